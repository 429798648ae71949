//! What a connection says first, read before anything is answered: the ClientHello.
//!
//! A TLS session cannot move between processes, so the agent begins none for a tunnel: it reads this one message,
//! and hands socket and bytes on.

use std::io::Cursor;

use rustls::server::Acceptor;
use uuid::Uuid;

/// The most bytes of a connection's beginning that are read to see what it wants.
pub const LONGEST: usize = 16 * 1024;

/// The application protocol of a tunnel's connections.
pub const ALPN_TUNNEL: &[u8] = b"godwit-tunnel/1";

/// What follows the migration's UID in the server name of a tunnel's connections.
const DOMAIN: &str = ".tunnel.godwit.internal";

/// The server name under which a migration's relay is called.
pub fn server_name(migration: Uuid) -> String {
    format!("{}{DOMAIN}", migration.as_hyphenated())
}

/// What a client says first. None of it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The application protocols that it offers.
    pub alpn: Vec<Vec<u8>>,
    /// The server name that it asks for.
    pub sni: Option<String>,
}

impl Hello {
    /// Whether the tunnel's protocol is asked for, and no other beside it.
    pub fn wants_tunnel(&self) -> bool {
        matches!(self.alpn.as_slice(), [only] if only == ALPN_TUNNEL)
    }

    /// The migration whose relay is asked for: the tunnel's protocol alone, and its server name.
    pub fn tunnel(&self) -> Option<Uuid> {
        if !self.wants_tunnel() {
            return None;
        }
        let uid = self.sni.as_deref()?.strip_suffix(DOMAIN)?;
        let migration = Uuid::try_parse(uid).ok()?;
        // One name for each migration: Uuid reads other spellings too.
        (migration.as_hyphenated().to_string() == uid).then_some(migration)
    }
}

/// Why a connection's beginning says nothing.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// There is no end of it.
    #[error("the client's first message is longer than {LONGEST} bytes")]
    TooLong,
    /// It is not TLS, or not as it should be.
    #[error("the client does not begin as TLS does: {0}")]
    NotTls(#[source] rustls::Error),
}

/// Collects a connection's first bytes until they tell where it belongs.
///
/// It does not read by itself, so that it serves blocking and other sockets alike; the caller bounds the time.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    bytes: Vec<u8>,
}

impl HelloReader {
    /// One that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes; the hello, once it is whole. What came after it is kept too.
    ///
    /// # Errors
    /// [`HelloError`]: the connection is to be closed, with nothing said.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
        if self.bytes.len() + bytes.len() > LONGEST {
            return Err(HelloError::TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        let mut cursor = Cursor::new(bytes);
        while usize::try_from(cursor.position()).is_ok_and(|read| read < bytes.len()) {
            // The acceptor's own buffer is full only of a message that is too long.
            self.acceptor
                .read_tls(&mut cursor)
                .map_err(|_| HelloError::TooLong)?;
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Ok(Some(Hello {
                        alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                        sni: hello.server_name().map(str::to_owned),
                    }));
                }
                Err((error, _)) => return Err(HelloError::NotTls(error)),
            }
        }
        Ok(None)
    }

    /// All that was read, to be handed on.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(alpn: &[&[u8]], name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = vec![];
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_tells_where_a_connection_belongs_however_it_is_cut() {
        let migration = Uuid::from_u128(77);
        let bytes = hello(&[ALPN_TUNNEL], &server_name(migration));
        for size in [1, 7, 500, bytes.len()] {
            let mut reader = HelloReader::new();
            let mut read = None;
            for piece in bytes.chunks(size) {
                assert_eq!(read, None);
                read = reader.push(piece).unwrap();
            }
            assert_eq!(read.unwrap().tunnel(), Some(migration));
            assert_eq!(reader.into_bytes(), bytes);
        }
    }

    #[test]
    fn other_protocols_and_names_are_no_tunnel() {
        let read = |alpn: &[&[u8]], name: &str| HelloReader::new().push(&hello(alpn, name)).unwrap().unwrap();
        let name = server_name(Uuid::from_u128(7));
        assert_eq!(read(&[b"h2"], &name).tunnel(), None);
        assert_eq!(read(&[b"h2"], &name).alpn, [b"h2"]);
        assert_eq!(read(&[], &name).tunnel(), None);
        assert_eq!(read(&[ALPN_TUNNEL, b"h2"], &name).tunnel(), None);
        let nameless = read(&[ALPN_TUNNEL], "tunnel.godwit.internal");
        assert_eq!((nameless.wants_tunnel(), nameless.tunnel()), (true, None));
        let unhyphenated = format!("{}{DOMAIN}", Uuid::from_u128(7).as_simple());
        assert_eq!(read(&[ALPN_TUNNEL], &unhyphenated).tunnel(), None);
    }

    #[test]
    fn what_is_not_tls_or_has_no_end_is_refused() {
        let refused = |bytes: &[u8]| HelloReader::new().push(bytes).unwrap_err();
        assert!(matches!(
            refused(b"GET / HTTP/1.1\r\n\r\n"),
            HelloError::NotTls(_)
        ));
        // A handshake message whose length promises more than may come.
        let mut endless = HelloReader::new();
        let mut record = vec![22, 3, 1, 0x20, 0];
        record.extend([1, 0, 0xff, 0]);
        record.resize(5 + 0x2000, 0);
        assert!(matches!(endless.push(&record), Ok(None)));
        assert!(matches!(endless.push(&record), Err(HelloError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_beginning_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            drop(HelloReader::new().push(&bytes));
        }

        #[test]
        fn a_changed_hello_is_read_or_refused(at: prop::sample::Index, to: u8) {
            let mut bytes = hello(&[ALPN_TUNNEL], &server_name(Uuid::from_u128(1)));
            let at = at.index(bytes.len());
            bytes[at] = to;
            drop(HelloReader::new().push(&bytes));
        }
    }
}
