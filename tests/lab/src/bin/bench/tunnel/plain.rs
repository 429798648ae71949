//! The bound: a relay that only reads and writes, with the relay's threads, buffers and sockets, and no TLS.
//!
//! This program runs itself as such a relay, so that it is a process like the others.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use socket2::SockRef;

/// The first argument that makes this program such a relay; role, path and address follow, as for the relay in Go.
pub const ARGUMENT: &str = "plain-relay";

/// What the relay reads at once, and gives its UNIX sockets.
const BUFFER: usize = 256 * 1024;
const SEND_BUFFER: usize = 256 * 1024;
/// What a sender takes beyond what it may send now.
const UNSENT: u32 = 128 * 1024;

/// Runs as a relay if the arguments say so.
pub fn run_if_asked() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, role, path, address] = arguments.as_slice() else {
        return None;
    };
    if first != ARGUMENT {
        return None;
    }
    Some(match run(role, Path::new(path), address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: plain relay: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn run(role: &str, path: &Path, address: &str) -> anyhow::Result<()> {
    match role {
        "source" => {
            let listener = UnixListener::bind(path)?;
            println!("{}", path.display());
            for near in listener.incoming() {
                let far = TcpStream::connect(address).context("connect")?;
                begin(near?, far)?;
            }
        }
        "destination" => {
            let listener = TcpListener::bind(address)?;
            println!("{}", listener.local_addr()?);
            for far in listener.incoming() {
                let near = UnixStream::connect(path).context("connect")?;
                begin(near, far?)?;
            }
        }
        other => bail!("no such role: {other}"),
    }
    Ok(())
}

fn begin(near: UnixStream, far: TcpStream) -> anyhow::Result<()> {
    far.set_nodelay(true)?;
    SockRef::from(&far).set_tcp_notsent_lowat(UNSENT)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&near, SEND_BUFFER)?;
    let (mut near_in, mut near_out) = (near.try_clone()?, near);
    let (mut far_in, mut far_out) = (far.try_clone()?, far);
    std::thread::spawn(move || {
        carry(|buffer| near_in.read(buffer), |bytes| far_out.write_all(bytes));
        // Either may be gone.
        let _ = far_out.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        carry(|buffer| far_in.read(buffer), |bytes| near_out.write_all(bytes));
        let _ = near_out.shutdown(Shutdown::Write);
    });
    Ok(())
}

fn carry(
    mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match read(&mut buffer) {
            Ok(0) => return,
            Ok(some) => {
                if write(buffer.get(..some).unwrap_or_default()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
