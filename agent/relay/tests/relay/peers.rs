//! Peers made of the ordinary TLS library, which may do what a relay does not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use godwit_relay::header::{Header, LENGTH};
use godwit_relay::hello::{ALPN_TUNNEL, server_name};
use godwit_relay::order::{Credentials, Opening};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme, StreamOwned,
};

use crate::rig::{MIGRATION, PATIENCE};

pub type Source = StreamOwned<ClientConnection, TcpStream>;
pub type Destination = StreamOwned<ServerConnection, TcpStream>;

/// Connects as a source would, once the handshake has begun; the far end is to be handed on meanwhile.
pub fn source(to: SocketAddr, credentials: Option<&Credentials>, alpn: &[&[u8]]) -> Source {
    source_with(to, credentials, alpn, &rustls::version::TLS13)
}

/// With a version of TLS that may be an older one.
pub fn source_with(
    to: SocketAddr,
    credentials: Option<&Credentials>,
    alpn: &[&[u8]],
    version: &'static rustls::SupportedProtocolVersion,
) -> Source {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(verifier())));
    let mut config = match credentials {
        Some(credentials) => {
            let (chain, key) = parts(credentials);
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    let name = server_name(MIGRATION).try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, patient(TcpStream::connect(to).unwrap()))
}

/// A good source that has said hello.
pub fn good_source(to: SocketAddr, credentials: &Credentials) -> Source {
    let mut source = source(to, Some(credentials), &[ALPN_TUNNEL]);
    source.conn.write_tls(&mut source.sock).unwrap();
    source
}

/// Takes a connection as a destination would, and its header; not yet answered.
pub fn destination(at: &TcpListener, credentials: &Credentials) -> (Destination, Header) {
    let mut destination = bare_destination(at, credentials);
    let mut header = [0; LENGTH];
    destination.read_exact(&mut header).unwrap();
    (destination, Header::decode(&header).unwrap())
}

/// Takes a connection as a destination would; no handshake yet.
pub fn bare_destination(at: &TcpListener, credentials: &Credentials) -> Destination {
    let (chain, key) = parts(credentials);
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(credentials.authorities.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    // As many tickets as one may send: a relay has no use for them, and takes them.
    config.send_tls13_tickets = 8;
    let (socket, _) = at.accept().unwrap();
    StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), patient(socket))
}

pub fn header(opening: &Opening) -> Header {
    Header {
        migration: MIGRATION,
        channel: opening.channel,
        token: opening.token.clone(),
    }
}

/// Sends a header and reads the answer.
pub fn present(source: &mut Source, header: &[u8; LENGTH]) -> u8 {
    source.write_all(header).unwrap();
    let mut answer = [0; 1];
    source.read_exact(&mut answer).unwrap();
    answer[0]
}

fn patient(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn parts(credentials: &Credentials) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(credentials.chain.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes()).unwrap();
    (chain.map(Result::unwrap).collect(), key)
}

fn verifier() -> Arc<WebPkiServerVerifier> {
    // Its signatures are what is used of it; whom it trusts does not matter.
    let mut roots = RootCertStore::empty();
    let any = crate::authority::Authority::new().of("spiffe://nobody");
    roots
        .add(CertificateDer::from_pem_slice(any.authorities.as_bytes()).unwrap())
        .unwrap();
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap()
}

/// Takes any server: what is tested is whether the server takes this client.
#[derive(Debug)]
struct Anybody(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
