//! What the signer is told on its command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use godwit_protocol::TrustDomain;

use super::authority::AuthorityFiles;
use super::decide::{Rules, SHORTEST_FOR_POD};
use crate::config::LogFormat;

/// Gives godwit's programs their identities: it signs the certificates of agents and of the controller.
#[derive(Clone, Debug, Parser)]
#[command(name = "godwit-signer", version)]
pub struct Config {
    /// How to reach the API server; left out, as a pod of the cluster does.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of godwit's own accounts. Who may make pods or tokens in it can be any host.
    #[arg(long, env = "GODWIT_NAMESPACE", value_name = "NAME")]
    pub namespace: String,
    /// The trust domain of this installation: what its identities' URIs begin with.
    #[arg(long, value_name = "NAME", default_value_t)]
    pub trust_domain: TrustDomain,
    /// The signer's name, under which it is asked.
    #[arg(long, value_name = "NAME", default_value = "godwit.dev/agent", value_parser = signer_name)]
    pub signer_name: String,
    /// The agents' service account.
    #[arg(long, value_name = "NAME", default_value = "godwit-agent")]
    pub agent_account: String,
    /// The controller's service account.
    #[arg(long, value_name = "NAME", default_value = "godwit-controller")]
    pub controller_account: String,
    /// The authority's certificate, PEM. Read again when it changes, like the next two.
    #[arg(long, value_name = "FILE")]
    pub ca_certificate: PathBuf,
    /// The authority's key, PEM.
    #[arg(long, value_name = "FILE")]
    pub ca_key: PathBuf,
    /// Further roots that are published beside the authority's certificate, PEM: the next authority before it signs,
    /// the last one as long as its certificates hold. The file may be empty or missing.
    #[arg(long, value_name = "FILE")]
    pub ca_roots: Option<PathBuf>,
    /// The longest life of a certificate, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(SHORTEST_FOR_POD.as_secs()..=7_862_400))]
    pub longest_lifetime: u64,
    /// A ConfigMap of the namespace whose `ca.crt` holds the roots, for clusters without ClusterTrustBundles; left
    /// out, none is written.
    #[arg(long, value_name = "NAME")]
    pub trust_config_map: Option<String>,
    /// How the log is written; what is logged is chosen by RUST_LOG.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Where /livez and /readyz are served; left out, nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub health_listen: Option<SocketAddr>,
}

impl Config {
    /// By what it decides.
    pub fn rules(&self) -> Rules {
        Rules {
            domain: self.trust_domain.clone(),
            signer: self.signer_name.clone(),
            namespace: self.namespace.clone(),
            agent_account: self.agent_account.clone(),
            controller_account: self.controller_account.clone(),
            longest: Duration::from_secs(self.longest_lifetime),
        }
    }

    /// Where its authority lies.
    pub fn authority(&self) -> AuthorityFiles {
        AuthorityFiles {
            certificate: self.ca_certificate.clone(),
            key: self.ca_key.clone(),
            roots: self.ca_roots.clone(),
        }
    }
}

/// A signer's name has a domain and a path; the names of trust bundles are made from it.
fn signer_name(name: &str) -> Result<String, &'static str> {
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
    };
    match name.split_once('/') {
        Some((domain, path)) if plain(domain) && plain(path) && name.len() <= 200 => Ok(name.to_owned()),
        Some(_) | None => Err("a signer's name has the form domain/path, in lower case"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        use clap::CommandFactory;
        Config::command().debug_assert();
    }

    #[test]
    fn a_signers_name_has_a_domain_and_a_path() {
        assert!(signer_name("godwit.dev/agent").is_ok());
        for name in ["", "godwit.dev", "/agent", "godwit.dev/", "a/b/c", "A/b"] {
            assert!(signer_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_pods_certificate_must_fit_in() {
        let parse = |seconds: &str| {
            Config::try_parse_from([
                "godwit-signer",
                "--namespace=a",
                "--ca-certificate=c",
                "--ca-key=k",
                "--longest-lifetime",
                seconds,
            ])
        };
        assert_eq!(parse("3600").unwrap().rules().longest, SHORTEST_FOR_POD);
        assert!(parse("3599").is_err());
    }
}
