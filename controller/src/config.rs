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
    /// The controller's certificate, as PEM; its URI is spiffe://<trust domain>/godwit/controller. The key must be
    /// named too.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        required_unless_present = "certificate_signer"
    )]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's private key, as PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// In place of files: the signer that is asked for the certificate, with the token that the controller logs in
    /// with, which must be bound to its pod. The key never leaves the controller.
    #[arg(long, value_name = "NAME", requires = "certificate_directory", conflicts_with_all = ["tls_certificate", "tls_key"])]
    pub certificate_signer: Option<String>,
    /// Where key and certificate are kept, so that a controller that is started again needs no signer; best a directory
    /// that is as short-lived as the pod.
    #[arg(long, value_name = "DIRECTORY", requires = "certificate_signer")]
    pub certificate_directory: Option<PathBuf>,
    /// How long a certificate from the signer shall hold, in seconds; the signer may shorten it. It is renewed before
    /// two thirds of that have passed.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(600..=7_862_400))]
    pub certificate_lifetime: u64,
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

    fn parsed(more: &[&str]) -> Result<Config, clap::error::ErrorKind> {
        let always = ["godwit-controller", "--namespace", "n", "--tls-ca", "ca"];
        Config::try_parse_from(always.iter().chain(more)).map_err(|error| error.kind())
    }

    #[test]
    fn a_certificate_comes_from_files_or_from_the_signer() {
        use clap::error::ErrorKind;
        let files = ["--tls-certificate", "c", "--tls-key", "k"];
        let asks = ["--certificate-signer", "s", "--certificate-directory", "d"];
        assert!(parsed(&files).is_ok());
        assert_eq!(
            parsed(&asks).map(|config| config.certificate_lifetime),
            Ok(86_400)
        );
        for half in [&files[..2], &files[2..], &asks[..2], &asks[2..], &[]] {
            assert_eq!(
                parsed(half).map(|_| ()),
                Err(ErrorKind::MissingRequiredArgument),
                "{half:?}"
            );
        }
        let both = [&files[..], &asks].concat();
        assert_eq!(parsed(&both).map(|_| ()), Err(ErrorKind::ArgumentConflict));
        let brief = [&asks[..], &["--certificate-lifetime", "599"]].concat();
        assert_eq!(parsed(&brief).map(|_| ()), Err(ErrorKind::ValueValidation));
    }
}
