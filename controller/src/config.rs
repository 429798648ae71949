//! What the controller is told on its command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Parser, ValueEnum};
use godwit_protocol::TrustDomain;

/// Starts guests where their records say, and drives their migrations.
#[derive(Clone, Debug, Parser)]
#[command(name = "godwit-controller", version)]
pub struct Config {
    /// How to reach the API server; left out, as a pod of the cluster does.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The controller's own namespace: its Lease and the hosts' Leases lie there.
    #[arg(long, env = "GODWIT_NAMESPACE", value_name = "NAME")]
    pub namespace: String,
    /// The name under which it takes the lead, of which no two run at once; in a pod, the pod's. Started again under
    /// the same name, it leads at once and need not wait until its Lease has run out. Left out, a name of its own.
    #[arg(long, env = "GODWIT_IDENTITY", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub identity: Option<String>,
    /// The trust domain of this installation: what its identities' URIs begin with.
    #[arg(long, value_name = "NAME", default_value_t)]
    pub trust_domain: TrustDomain,
    /// The authorities that agents' certificates come from, as PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: PathBuf,
    /// The controller's certificate, as PEM; its URI is spiffe://<trust domain>/godwit/controller.
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: PathBuf,
    /// The certificate's private key, as PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: PathBuf,
    /// Peer to peer: for how many seconds the two agents of a migration may not hear each other before that counts. The
    /// default is libvirt's: a keepalive every 5 s, and 5 that may stay unanswered.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub peer_silence: u64,
    /// How the log is written; what is logged is chosen by RUST_LOG.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Where /livez and /readyz are served; left out, nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub health_listen: Option<SocketAddr>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        use clap::CommandFactory;
        Config::command().debug_assert();
    }
}
