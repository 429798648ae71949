//! Strangers in numbers, and what a process has of memory.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_tls::{VERSIONS, provider};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::net::{TcpSocket, TcpStream};

/// Lets this process have both ends of ten thousand connections, as far as its hard limit goes.
pub fn many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(65_536);
    assert!(
        wanted > 12_000,
        "no more than {wanted} descriptors are allowed here"
    );
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// What this process has in memory, in bytes.
pub fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes << 10
}

/// The bytes with which a client begins that asks for this.
pub fn client_hello(alpn: &[u8], name: &str) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = vec![];
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A connection from an address of this machine. Closed, it leaves no port waiting.
pub async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_zero_linger()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// Connections that are kept.
#[derive(Default)]
pub struct Crowd(Vec<TcpStream>);

impl Crowd {
    /// So many come from an address, and say this.
    pub async fn come(&mut self, from: IpAddr, to: SocketAddr, count: usize, words: &[u8]) {
        for _ in 0..count {
            self.0.push(connect(from, to).await.unwrap());
            self.0.last().unwrap().try_write(words).unwrap_or_default();
        }
    }

    /// Those who still can say something do.
    pub fn say(&self, words: &[u8]) {
        for stream in &self.0 {
            stream.try_write(words).unwrap_or_default();
        }
    }

    /// How many the other side has not closed.
    pub fn open(&self) -> usize {
        let mut bytes = [0; 4096];
        let open = |stream: &&TcpStream| loop {
            match stream.try_read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(why) => return why.kind() == io::ErrorKind::WouldBlock,
            }
        };
        self.0.iter().filter(open).count()
    }

    /// Waits until no more than so many are open.
    pub async fn thinned_to(&self, most: usize, within: Duration) {
        let until = Instant::now() + within;
        loop {
            let open = self.open();
            if open <= most {
                return;
            }
            assert!(Instant::now() < until, "{open} connections are kept");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
