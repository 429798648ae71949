module godwit.dev/bench/go-relay

go 1.22
