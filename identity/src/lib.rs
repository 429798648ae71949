//! Where a program's certificate comes from, and how it stays fresh while the program runs.
//!
//! One interface, [`Source`], for all the ways. [`Source::Files`]: another party writes files (a person, cert-manager,
//! or the kubelet, which is how pod certificates arrive) and they are read again when they change.
//! [`Source::Request`]: the program makes its key itself and asks the cluster's signer by a
//! CertificateSigningRequest, which is what clusters without pod certificates can do.
//!
//! Either way the program gets [`CurrentCredentials`](godwit_protocol::CurrentCredentials), whose content is replaced
//! behind its back: a connection keeps what it began with, the next one has the newest. What cannot be used never
//! takes the place of what works.

mod files;
mod judge;
mod request;
mod schedule;
mod source;
mod store;

pub use request::{Request, RequestError};
pub use source::{Keeper, OpenError, Source};
