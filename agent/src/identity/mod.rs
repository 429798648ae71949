//! Who this host is: where its certificate comes from, and whether it lasts for what is asked of it.

mod lasting;

use std::time::Duration;

use godwit_identity::{Request, Source};
use godwit_protocol::TlsFiles;
use kube::Client;

use crate::config::{Config, Identity};

pub use lasting::{CERTIFICATE_ENDS_TOO_SOON, MUST_LAST, check_order};

/// Below the run directory: the agent's own key and certificate, where it asks the signer itself.
const DIRECTORY: &str = "identity";

/// The way to this host's certificate that the configuration chooses; none where it chooses none, which a
/// configuration that was checked never does.
pub fn source(config: &Config, client: &Client) -> Option<Source> {
    Some(match config.identity()? {
        Identity::Files(tls) => Source::Files(TlsFiles {
            authorities: tls.ca.clone(),
            chain: tls.certificate.clone(),
            key: tls.key.clone(),
        }),
        Identity::Request(request) => Source::Request(Box::new(Request {
            client: client.clone(),
            signer: request.signer.clone(),
            lifetime: Duration::from_secs(request.lifetime_seconds),
            authorities: request.ca.clone(),
            directory: config.run_directory.join(DIRECTORY),
        })),
    })
}
