//! A libvirt daemon for one of the lab's hosts.
//!
//! libvirt knows one daemon to a machine: its directories are fixed, and it refuses to migrate to a host with its own
//! name or UUID. So each has, beside its host's network, mounts and a host name of its own. What it writes goes below
//! the host's directory, and with the run. Its configuration is as small as it can be; every value that is set has its
//! reason here.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use godwit_lab::Host;
use godwit_lab::certificates::{Authority, Subject, write_secret};
use godwit_lab::process::Process;
use godwit_lab::processes;

use super::Mode;
use crate::by_hand::AES_128;

/// Where daemons listen for each other. libvirt's own ports are the agent's here.
const TCP_PORT: u16 = 16_609;
const TLS_PORT: u16 = 16_614;

/// Where hypervisors listen: below the ports that agents use, and those that the kernel gives to connections.
const MIGRATION_PORTS: (u16, u16) = (29_152, 29_215);

/// The first order waits until libvirt has found out what QEMU can do.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// An order that takes longer hangs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);

/// Makes the daemon's own view of the file system and becomes the daemon. Its arguments: directory, host name, daemon.
const ENTER: &str = r#"
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/log" /var/log/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/run" /run
hostname "$2"
exec "$3" --listen
"#;

/// What libvirt's packages make, and [`ENTER`] covers.
pub const COVERED: [&str; 4] = [
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/etc/libvirt",
];

/// A daemon and its guests; all are killed when it is dropped.
pub struct Daemon {
    process: Process,
    host: String,
    address: IpAddr,
    directory: PathBuf,
    virsh: PathBuf,
}

/// The programs of libvirt's that are needed.
pub struct Programs {
    pub daemon: PathBuf,
    pub virsh: PathBuf,
}

impl Daemon {
    /// Starts one and waits until it answers. `names` are the lines of its `/etc/hosts`.
    ///
    /// # Errors
    /// When it cannot be configured, or does not answer.
    pub async fn start(
        host: &Host,
        programs: &Programs,
        authority: &Authority,
        names: &str,
    ) -> anyhow::Result<Self> {
        let directory = host.directory.join("libvirt");
        for part in ["lib", "cache", "log", "etc", "run", "pki"] {
            let part = directory.join(part);
            std::fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        std::fs::write(directory.join("hosts"), names)?;
        write_certificate(authority, host, &directory.join("pki"))?;
        std::fs::write(
            directory.join("etc/libvirtd.conf"),
            daemon_configuration(host.address, &directory),
        )?;
        std::fs::write(
            directory.join("etc/qemu.conf"),
            driver_configuration(host.address),
        )?;
        let mut command = host.command(Path::new("unshare"));
        command
            .args(["--mount", "--uts", "--", "sh", "-euc", ENTER, "sh"])
            .arg(&directory)
            .arg(&host.name)
            .arg(&programs.daemon);
        let part = format!("libvirt-{}", host.name);
        let log = directory.join("libvirtd.log");
        let daemon = Self {
            process: Process::start(&log, &directory, &part, command)?,
            host: host.name.clone(),
            address: host.address,
            directory,
            virsh: programs.virsh.clone(),
        };
        daemon.wait_until_it_answers().await
    }

    async fn wait_until_it_answers(mut self) -> anyhow::Result<Self> {
        let deadline = Instant::now() + STARTS_WITHIN;
        loop {
            self.process.check()?;
            let output = self.run(&["version"]).await?;
            if output.status.success() {
                return Ok(self);
            }
            if Instant::now() > deadline {
                bail!(
                    "libvirt on {} does not answer within {STARTS_WITHIN:?}: {}; {}",
                    self.host,
                    String::from_utf8_lossy(&output.stderr).trim(),
                    self.process.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Gives it an order by `virsh`, and gives back what that prints.
    ///
    /// # Errors
    /// When it refuses or fails, or does not answer in time.
    pub async fn order(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments).await?;
        if !output.status.success() {
            bail!(
                "libvirt on {}, {}: {}; {}",
                self.host,
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim(),
                self.process.last_words()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let socket = self.directory.join("run/libvirt/libvirt-sock");
        let output = tokio::process::Command::new(&self.virsh)
            .arg("--connect")
            .arg(format!("qemu+unix:///system?socket={}", socket.display()))
            .args(arguments)
            // Its words are read here.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        tokio::time::timeout(ANSWERS_WITHIN, output)
            .await
            .with_context(|| {
                format!(
                    "libvirt on {} has not done it within {ANSWERS_WITHIN:?}: {}",
                    self.host,
                    arguments.join(" ")
                )
            })?
            .context("run virsh")
    }

    /// The words that have the daemon move a guest to another one.
    pub fn migrate(&self, name: &str, to: &Self, mode: Mode) -> Vec<String> {
        let mut words = ["migrate", "--live", "--p2p", name].map(str::to_owned).to_vec();
        let address = to.address;
        let plain = format!("qemu+tcp://{address}:{TCP_PORT}/system");
        match mode {
            Mode::Native => words.extend([plain, format!("tcp://{address}")]),
            Mode::Tunnelled => words.extend([plain, "--tunnelled".to_owned()]),
            Mode::TunnelledTls => {
                let pki = self.directory.join("pki");
                let uri = format!("qemu+tls://{address}:{TLS_PORT}/system?pkipath={}", pki.display());
                words.extend([uri, "--tunnelled".to_owned()]);
            }
        }
        words
    }

    /// Where the console of a guest ends up that writes it to `/var/log/libvirt`.
    pub fn log(&self, file: &str) -> PathBuf {
        self.directory.join("log").join(file)
    }

    /// The hypervisors that it has started, by the files in which it remembers them itself.
    fn hypervisors(&self) -> Vec<processes::Seen> {
        std::fs::read_dir(self.directory.join("run/libvirt/qemu"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|path| processes::look(std::fs::read_to_string(path).ok()?.trim().parse().ok()?))
            .filter(processes::is_hypervisor)
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // First the daemon, which would otherwise see its guests end, and might be about to start one.
        self.process.kill();
        for left in processes::kill(&self.hypervisors()) {
            eprintln!("{} ({}) of libvirt's cannot be killed", left.program, left.pid);
        }
    }
}

/// Writes a certificate under the names by which libvirt looks for them as a client; the daemon uses the same.
fn write_certificate(authority: &Authority, host: &Host, directory: &Path) -> anyhow::Result<()> {
    let issued = authority.issue(&Subject {
        common_name: host.name.clone(),
        names: vec![host.name.clone()],
        addresses: vec![host.address],
        encrypts_keys: true,
        ..Subject::default()
    })?;
    write_secret(&directory.join("cacert.pem"), authority.certificate())?;
    write_secret(&directory.join("clientcert.pem"), &issued.certificate)?;
    write_secret(&directory.join("clientkey.pem"), &issued.key)
}

/// `libvirtd.conf`.
fn daemon_configuration(address: IpAddr, directory: &Path) -> String {
    let pki = directory.join("pki").display().to_string();
    let uuid = uuid::Uuid::new_v4();
    // The cipher that our tunnel uses, which is cheaper than what GnuTLS would choose.
    format!(
        r#"listen_tcp = 1
listen_tls = 1
listen_addr = "{address}"
tcp_port = "{TCP_PORT}"
tls_port = "{TLS_PORT}"
auth_tcp = "none"
auth_tls = "none"
auth_unix_rw = "none"
ca_file = "{pki}/cacert.pem"
cert_file = "{pki}/clientcert.pem"
key_file = "{pki}/clientkey.pem"
tls_priority = "{AES_128}"
host_uuid = "{uuid}"
log_outputs = "3:stderr"
"#
    )
}

/// `qemu.conf`: hypervisors run as root, unconfined, as those moved by hand do. No console log daemon: there is none in
/// this host's mounts.
fn driver_configuration(address: IpAddr) -> String {
    let (first, last) = MIGRATION_PORTS;
    format!(
        r#"user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
migration_address = "{address}"
migration_host = "{address}"
migration_port_min = {first}
migration_port_max = {last}
"#
    )
}
