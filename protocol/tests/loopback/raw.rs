//! A client that keeps none of this crate's rules: what a stranger or another version might send.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_protocol::{TlsFiles, wire};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// Long enough for anything on loopback; its passing is a failure.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Trusts any server: it is the server's judgement that is tested.
#[derive(Debug)]
struct TrustsAll;

impl rustls::client::danger::ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[derive(Clone)]
pub struct Stranger {
    pub files: Option<TlsFiles>,
    pub version: &'static SupportedProtocolVersion,
    pub alpn: Vec<Vec<u8>>,
}

impl Stranger {
    pub fn with(files: TlsFiles) -> Self {
        Self {
            files: Some(files),
            version: &rustls::version::TLS13,
            alpn: vec![b"h2".to_vec()],
        }
    }

    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustsAll));
        let mut config = match &self.files {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = CertificateDer::pem_file_iter(&files.chain)
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.clone();
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("any").unwrap(), stream)
            .await
    }

    /// The TLS error with which the server turned it away, at the handshake or at the first read.
    pub async fn turned_away(&self, address: SocketAddr) -> Option<rustls::Error> {
        let refusal = async {
            let mut stream = match self.connect(address).await {
                Ok(stream) => stream,
                Err(why) => return Some(why),
            };
            stream.read(&mut [0; 1]).await.err()
        };
        let refusal = tokio::time::timeout(DEADLINE, refusal)
            .await
            .expect("the server says nothing")?;
        refusal.get_ref()?.downcast_ref::<rustls::Error>().cloned()
    }

    /// Calls in the wire's own words.
    pub async fn calls(&self, address: SocketAddr) -> wire::agent_client::AgentClient<Channel> {
        let stream = self.connect(address).await.unwrap();
        let mut once = Some(stream);
        let channel = Endpoint::from_static("http://agent")
            .connect_with_connector(Connector(move || once.take().unwrap()))
            .await
            .unwrap();
        wire::agent_client::AgentClient::new(channel)
    }
}

struct Connector<F>(F);

impl<F: FnMut() -> TlsStream<TcpStream>> tonic::codegen::Service<tonic::codegen::http::Uri> for Connector<F> {
    type Response = hyper_util::rt::TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::codegen::http::Uri) -> Self::Future {
        std::future::ready(Ok(hyper_util::rt::TokioIo::new(self.0())))
    }
}
