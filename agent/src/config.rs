//! The agent's configuration: one YAML file, every field checked before anything is done with it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use godwit_crds::quantity::memory_bytes;
use godwit_protocol::{AGENT_PORT, TrustDomain};
use serde::{Deserialize, Deserializer};

use crate::guests::{UserRange, words};

/// The agent's configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The VirtualMachineHost's name; in a cluster the node's name.
    pub host: String,
    /// Where the agent listens.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Under which `address:port` the controller reaches it; published in the VirtualMachineHost.
    pub endpoint: String,
    /// At which addresses this host takes guest memory, the preferred one first.
    pub migration_addresses: Vec<IpAddr>,
    /// On which ports it does.
    #[serde(default)]
    pub migration_ports: PortRange,
    /// Whether guests neither leave nor come here in plain text, whatever a migration asks for.
    #[serde(default)]
    pub refuse_plain_text: bool,
    /// What must survive a reboot: records and journals.
    #[serde(default = "state_directory")]
    pub state_directory: PathBuf,
    /// Sockets and logs of the guests that run. Keep it short: a socket's path has at most 107 characters.
    #[serde(default = "run_directory")]
    pub run_directory: PathBuf,
    /// Directories in which guests' files lie, by name.
    #[serde(default)]
    pub pools: BTreeMap<String, PathBuf>,
    /// Block devices, or directories of block devices, that guests may use. None by default: whoever may write a
    /// VirtualMachine could else name the host's own disks.
    #[serde(default)]
    pub block_devices: Vec<PathBuf>,
    /// The trust domain of this installation: what its identities' URIs begin with.
    #[serde(default, deserialize_with = "trust_domain")]
    pub trust_domain: TrustDomain,
    /// The agent's identity and whom it believes, in files that someone else writes. Either this or
    /// `certificateRequest`.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// The agent asks the cluster's signer for its identity itself.
    #[serde(default)]
    pub certificate_request: Option<CertificateRequest>,
    /// How to reach the API server; left out, as a pod in the cluster.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace in which the host's Lease is kept.
    #[serde(default = "namespace")]
    pub namespace: String,
    /// QEMU on this host.
    #[serde(default)]
    pub qemu: Qemu,
    /// User ids that guests run as, one each, where the agent is root.
    #[serde(default)]
    pub guest_users: GuestUsers,
    /// Memory that guests do not get, for example `512Mi`.
    #[serde(default = "memory_reserve")]
    pub memory_reserve: String,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Default for PortRange {
    /// The range that libvirt uses, whose firewall rules many hosts already have.
    fn default() -> Self {
        Self {
            first: 49152,
            last: 49215,
        }
    }
}

/// A certificate from the cluster's signer. The agent's own token must be bound to its pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateRequest {
    /// The authorities that peers' certificates must come from, PEM.
    pub ca: PathBuf,
    /// The signer's name.
    #[serde(default = "signer")]
    pub signer: String,
    /// How long a certificate shall hold, in seconds; the signer may shorten it. It is renewed at two thirds.
    #[serde(default = "lifetime_seconds")]
    pub lifetime_seconds: u64,
}

/// Where the agent's identity comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    /// From files.
    Files(&'a Tls),
    /// From the signer.
    Request(&'a CertificateRequest),
}

/// Files of the agent's identity, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// The authorities that peers' certificates must come from, PEM.
    pub ca: PathBuf,
    /// The agent's certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// The certificate's key, PEM.
    pub key: PathBuf,
}

/// QEMU on this host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Qemu {
    /// The program; a name is looked up in PATH.
    pub binary: PathBuf,
    /// What runs the guests' instructions.
    pub accelerator: Accelerator,
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            binary: "qemu-system-x86_64".into(),
            accelerator: Accelerator::Auto,
        }
    }
}

/// What runs the guests' instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where a guest was seen to run with it, else TCG.
    #[default]
    Auto,
    /// KVM; without it the hypervisor counts as broken.
    Kvm,
    /// TCG.
    Tcg,
}

/// User ids that guests run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestUsers {
    /// The first.
    pub first: u32,
    /// How many: the most guests that the host can have.
    pub count: u32,
}

impl Default for GuestUsers {
    /// Above every range that distributions, containers and systemd give out.
    fn default() -> Self {
        Self {
            first: 2_100_000_000,
            count: 1000,
        }
    }
}

fn trust_domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TrustDomain, D::Error> {
    TrustDomain::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn listen() -> SocketAddr {
    SocketAddr::from(([0u16; 8], AGENT_PORT))
}

fn signer() -> String {
    "godwit.dev/agent".into()
}

fn lifetime_seconds() -> u64 {
    86_400
}

fn state_directory() -> PathBuf {
    "/var/lib/godwit".into()
}

fn run_directory() -> PathBuf {
    "/run/godwit".into()
}

fn namespace() -> String {
    "godwit-system".into()
}

fn memory_reserve() -> String {
    "512Mi".into()
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("Cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML of the right shape.
    #[error("The configuration {} is not understood: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A field's value cannot be used.
    #[error("Configuration field {field}: {why}")]
    Field {
        /// The field's path.
        field: &'static str,
        /// Why.
        why: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.into(),
            source,
        })?;
        let config = Self::parse(&text).map_err(|message| ConfigError::Malformed {
            path: path.into(),
            message,
        })?;
        config.check()?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|e| e.to_string())
    }

    /// Where the agent's identity comes from.
    pub fn identity(&self) -> Option<Identity<'_>> {
        match (&self.tls, &self.certificate_request) {
            (Some(tls), None) => Some(Identity::Files(tls)),
            (None, Some(request)) => Some(Identity::Request(request)),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// Memory that guests do not get, in bytes.
    pub fn reserve_bytes(&self) -> u64 {
        memory_bytes(&self.memory_reserve).unwrap_or_default()
    }

    /// The users for guests.
    pub fn users(&self) -> UserRange {
        UserRange {
            first: self.guest_users.first,
            count: self.guest_users.count,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        expect("host", words::is_name(&self.host), || {
            format!("{:?} is not a name in lower case", self.host)
        })?;
        expect("endpoint", is_endpoint(&self.endpoint), || {
            format!(
                "{:?} is not address:port, with an IPv6 address in brackets",
                self.endpoint
            )
        })?;
        let addresses = &self.migration_addresses;
        expect("migrationAddresses", (1..=8).contains(&addresses.len()), || {
            "give between one and eight addresses".into()
        })?;
        for address in addresses {
            expect(
                "migrationAddresses",
                !address.is_unspecified() && !address.is_multicast(),
                || format!("{address} is not an address that another host can connect to"),
            )?;
        }
        let ports = self.migration_ports;
        expect(
            "migrationPorts",
            ports.first >= 1024 && ports.first <= ports.last,
            || {
                format!(
                    "{} to {} is not a range of ports above 1023",
                    ports.first, ports.last
                )
            },
        )?;
        expect(
            "migrationPorts",
            !(ports.first..=ports.last).contains(&self.listen.port()),
            || format!("the agent's own port {} is among them", self.listen.port()),
        )?;
        for (field, directory) in [
            ("stateDirectory", &self.state_directory),
            ("runDirectory", &self.run_directory),
        ] {
            expect(field, is_plain_path(directory), || {
                "give an absolute path of letters, digits, dots, hyphens and underscores, without `..`".into()
            })?;
        }
        // "/guests/<uid>/console.sock" comes after it, and a socket's path has at most 107 characters.
        expect("runDirectory", self.run_directory.as_os_str().len() <= 50, || {
            "it has more than 50 characters, and the paths of the sockets in it would be too long".into()
        })?;
        for (name, path) in &self.pools {
            expect("pools", words::is_label(name), || {
                format!("{name:?} is not a pool's name")
            })?;
            expect("pools", path.is_absolute(), || {
                format!("{name}: give an absolute path")
            })?;
        }
        expect("pools", self.pools.len() <= 32, || "at most 32".into())?;
        for device in &self.block_devices {
            expect(
                "blockDevices",
                device.to_str().is_some_and(words::is_block_device),
                || format!("{} is not a plain path below /dev", device.display()),
            )?;
        }
        expect("namespace", words::is_label(&self.namespace), || {
            format!("{:?} is not a namespace's name", self.namespace)
        })?;
        expect("tls", self.identity().is_some(), || {
            "give either `tls` or `certificateRequest`".into()
        })?;
        if let Some(request) = &self.certificate_request {
            expect(
                "certificateRequest.signer",
                request
                    .signer
                    .split_once('/')
                    .is_some_and(|(domain, path)| words::is_name(domain) && words::is_name(path)),
                || {
                    format!(
                        "{:?} is not a signer's name, as godwit.dev/agent is",
                        request.signer
                    )
                },
            )?;
            // The API server's own bounds.
            expect(
                "certificateRequest.lifetimeSeconds",
                (600..=7_862_400).contains(&request.lifetime_seconds),
                || "give between 600 (ten minutes) and 7862400 (91 days)".into(),
            )?;
        }
        expect("qemu.binary", !self.qemu.binary.as_os_str().is_empty(), || {
            "give a program".into()
        })?;
        let users = self.guest_users;
        expect("guestUsers", users.first >= 1000 && users.count >= 1, || {
            "give at least one user id, from 1000 on".into()
        })?;
        let last = users
            .first
            .checked_add(users.count)
            .filter(|last| *last <= i32::MAX.unsigned_abs());
        expect("guestUsers", last.is_some(), || {
            "user ids end at 2147483647".into()
        })?;
        expect(
            "memoryReserve",
            memory_bytes(&self.memory_reserve).is_some(),
            || format!("{:?} is not a whole number of Mi or Gi", self.memory_reserve),
        )
    }
}

fn expect(field: &'static str, holds: bool, why: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::Field { field, why: why() })
    }
}

/// A path that can stand in any option of a hypervisor without being read as something else.
fn is_plain_path(path: &Path) -> bool {
    path.to_str()
        .and_then(|text| text.strip_prefix('/'))
        .is_some_and(|rest| {
            rest.split('/').all(|part| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            })
        })
}

fn is_endpoint(text: &str) -> bool {
    if text
        .parse::<SocketAddr>()
        .is_ok_and(|address| address.port() != 0 && !address.ip().is_unspecified())
    {
        return true;
    }
    text.rsplit_once(':').is_some_and(|(name, port)| {
        words::is_name(name)
            && name.contains(|c: char| c.is_ascii_lowercase())
            && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    const SMALLEST: &str = "
host: node-a
endpoint: 10.0.0.1:16514
migrationAddresses: [10.0.0.1, fd00::1]
tls: {ca: /etc/godwit/ca.pem, certificate: /etc/godwit/tls.pem, key: /etc/godwit/key.pem}
";

    fn read(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path())
    }

    #[test]
    fn the_defaults_work() {
        let config = read(SMALLEST).unwrap();
        assert_eq!(config.listen.to_string(), "[::]:16514");
        assert_eq!(
            config.migration_ports,
            PortRange {
                first: 49152,
                last: 49215
            }
        );
        assert_eq!(config.trust_domain.as_str(), "godwit.dev");
        assert_eq!(config.namespace, "godwit-system");
        assert_eq!(config.reserve_bytes(), 512 << 20);
        assert_eq!(config.qemu.accelerator, Accelerator::Auto);
        assert!(!config.refuse_plain_text);
    }

    #[test]
    fn everything_can_be_said() {
        let config = read(&format!(
            "{SMALLEST}
listen: 127.0.0.2:16514
migrationPorts: {{first: 50000, last: 50009}}
stateDirectory: /tmp/state
runDirectory: /tmp/run
pools: {{default: /srv/pool}}
blockDevices: [/dev/mapper]
trustDomain: prod.example
kubeconfig: /etc/godwit/kubeconfig
namespace: godwit
qemu: {{binary: /usr/bin/qemu-system-x86_64, accelerator: tcg}}
guestUsers: {{first: 70000, count: 10}}
refusePlainText: true
memoryReserve: 2Gi
"
        ))
        .unwrap();
        assert_eq!(config.trust_domain.as_str(), "prod.example");
        assert_eq!(config.qemu.accelerator, Accelerator::Tcg);
        assert!(config.refuse_plain_text);
        assert_eq!(
            config.users(),
            UserRange {
                first: 70000,
                count: 10
            }
        );
    }

    #[test]
    fn an_identity_comes_from_files_or_from_the_signer() {
        let files = read(SMALLEST).unwrap();
        assert!(matches!(files.identity(), Some(Identity::Files(tls)) if tls.key.ends_with("key.pem")));
        let without = SMALLEST.lines().filter(|line| !line.starts_with("tls:"));
        let without: String = without.map(|line| line.to_owned() + "\n").collect();
        let field = |text: &str| match read(text) {
            Err(ConfigError::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(&without), "tls");
        let asking = without + "certificateRequest: {ca: /trust/ca.crt}\n";
        match read(&asking).unwrap().identity() {
            Some(Identity::Request(request)) => {
                assert_eq!(
                    (request.signer.as_str(), request.lifetime_seconds),
                    ("godwit.dev/agent", 86_400)
                );
            }
            other => panic!("{other:?}"),
        }
        let both = format!("{SMALLEST}certificateRequest: {{ca: /trust/ca.crt}}\n");
        assert_eq!(field(&both), "tls");
        let with = |more: &str| asking.replace("ca.crt}", &format!("ca.crt, {more}}}"));
        assert_eq!(field(&with("signer: agent")), "certificateRequest.signer");
        assert_eq!(
            field(&with("lifetimeSeconds: 599")),
            "certificateRequest.lifetimeSeconds"
        );
    }

    #[test]
    fn a_mistake_names_its_field() {
        for (line, field) in [
            ("migrationPorts: {first: 50000, last: 40000}", "migrationPorts"),
            ("migrationPorts: {first: 80, last: 90}", "migrationPorts"),
            ("migrationPorts: {first: 16000, last: 17000}", "migrationPorts"),
            ("stateDirectory: state", "stateDirectory"),
            ("stateDirectory: '/a,b'", "stateDirectory"),
            ("runDirectory: /a/../b", "runDirectory"),
            (
                "runDirectory: /tmp/a-very-long-path/that-goes-on-and-on/and-on-and-on",
                "runDirectory",
            ),
            ("pools: {Default: /srv}", "pools"),
            ("pools: {default: srv}", "pools"),
            ("blockDevices: [/etc]", "blockDevices"),
            ("namespace: 'a b'", "namespace"),
            ("guestUsers: {first: 0, count: 10}", "guestUsers"),
            ("guestUsers: {first: 2147483000, count: 1000}", "guestUsers"),
            ("memoryReserve: 512M", "memoryReserve"),
        ] {
            match read(&format!("{SMALLEST}{line}\n")) {
                Err(ConfigError::Field { field: named, .. }) => assert_eq!(named, field, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        for (from, to, field) in [
            ("node-a", "Node", "host"),
            ("10.0.0.1:16514", "10.0.0.1", "endpoint"),
            ("10.0.0.1:16514", "0.0.0.0:16514", "endpoint"),
            ("[10.0.0.1, fd00::1]", "[0.0.0.0]", "migrationAddresses"),
            ("[10.0.0.1, fd00::1]", "[]", "migrationAddresses"),
        ] {
            match read(&SMALLEST.replace(from, to)) {
                Err(ConfigError::Field { field: named, .. }) => assert_eq!(named, field, "{to}"),
                other => panic!("{to}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_unknown_is_refused() {
        assert!(matches!(
            read(&format!("{SMALLEST}tunnel: true\n")),
            Err(ConfigError::Malformed { .. })
        ));
        assert!(matches!(read("host: a\n"), Err(ConfigError::Malformed { .. })));
        assert!(matches!(
            Config::read(Path::new("/nonexistent")),
            Err(ConfigError::Unreadable { .. })
        ));
    }

    #[test]
    fn an_endpoint_is_an_address_or_a_name_with_a_port() {
        for good in ["10.0.0.1:16514", "[fd00::1]:16514", "node-a.example:16514"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in [
            "",
            ":1",
            "a:",
            "a:0",
            "a:b",
            "fd00::1:16514x",
            "a b:1",
            "a,b:1",
            "10.0.0.1:0",
            "999.1.1.1:5",
        ] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }
}
