//! TLS 1.3 as godwit's programs speak it with each other: what the agent port and a relay have in common.
//!
//! * [`hello`] reads what a connection says first, without answering it.
//! * [`verify`] believes a certificate by its authority *and* by the one URI in it, at both ends.
//! * [`provider`] and [`VERSIONS`] are the cryptography and the versions that are spoken.
//!
//! It does no I/O and needs no runtime, so that the small process of a tunnel can use it too.

pub mod hello;
pub mod verify;

use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// The versions that are spoken: TLS 1.3, and none before it.
pub const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The cryptography. Named outright: no process-wide default that another library might have set.
pub fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// The certificates in a PEM text, in its order; none where there is not one, or one that cannot be read.
pub fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty())
}
