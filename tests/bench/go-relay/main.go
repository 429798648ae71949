// go-relay is what the relay is compared with: io.Copy over crypto/tls, as others tunnel a guest's memory.
//
//	go-relay source      UNIX-PATH HOST:PORT AUTHORITY CHAIN KEY   listens at the path, connects to the port
//	go-relay destination UNIX-PATH HOST:PORT AUTHORITY CHAIN KEY   listens at the port, connects to the path
//
// Once it listens it prints where, in a line. It runs until it is killed.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if len(os.Args) != 7 {
		fmt.Fprintln(os.Stderr, "go-relay: wrong arguments")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "go-relay:", err)
		os.Exit(1)
	}
}

func run(role, path, address string, files []string) error {
	config, err := configuration(files)
	if err != nil {
		return err
	}
	switch role {
	case "source":
		listener, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		return serve(listener, func() (net.Conn, error) { return tls.Dial("tcp", address, config) })
	case "destination":
		listener, err := tls.Listen("tcp", address, config)
		if err != nil {
			return err
		}
		return serve(listener, func() (net.Conn, error) { return net.Dial("unix", path) })
	default:
		return fmt.Errorf("no such role: %s", role)
	}
}

func configuration(files []string) (*tls.Config, error) {
	authority, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, errors.New("there is no authority")
	}
	own, err := tls.LoadX509KeyPair(files[1], files[2])
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{own},
		RootCAs:      roots,
		ClientCAs:    roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ServerName:   "bench",
	}, nil
}

func serve(listener net.Listener, connect func() (net.Conn, error)) error {
	fmt.Println(listener.Addr())
	for {
		near, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			far, err := connect()
			if err != nil {
				fmt.Fprintln(os.Stderr, "go-relay:", err)
				near.Close()
				return
			}
			join(near, far)
		}()
	}
}

func join(one, other net.Conn) {
	done := make(chan struct{})
	go func() {
		carry(one, other)
		close(done)
	}()
	carry(other, one)
	<-done
	one.Close()
	other.Close()
}

func carry(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		fmt.Fprintln(os.Stderr, "go-relay:", err)
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}
