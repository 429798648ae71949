//! The signer of identities: a program of its own, apart from the controller, because who may move guests must not be
//! able to make itself a host.
//!
//! It holds the authority's key and answers two kinds of requests for its signer's name: CertificateSigningRequests,
//! which agents make with their own tokens, and PodCertificateRequests, which kubelets make for the agents' pods.
//! [`decide`] is the whole judgement, on plain data; [`serve`] watches, asks it, and writes the answers down.
//! It depends on no other part of godwit: a crashed agent must get a certificate whatever else is down.

pub mod authority;
pub mod config;
pub mod decide;
pub mod objects;
pub mod publish;
pub mod request;
pub mod serve;
