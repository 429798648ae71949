//! The same guest, started and moved by hand: the agent's own arguments, plain TCP, and a QMP session to each side.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use godwit_lab::guest::{Guest, STARTS_WITHIN};
use godwit_lab::observer::Observer;
use godwit_lab::{Host, Lab};
use serde_json::{Value, json};

use crate::qmp::Session;

/// The port at which a destination listens: below those that the agents use.
const PORT: u16 = 49_000;

/// The longest stop allowed, in milliseconds: what godwit's migrations have by default.
const DOWNTIME_LIMIT: u64 = 300;

/// Encryption at its best, in the words of GnuTLS: of the ciphers the cheapest, which QEMU would not choose by itself for
/// a pre-shared key, nor libvirt with certificates.
pub const AES_128: &str = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM";

/// The key: it is no secret, the guests are made up.
const KEY: &str = "bench:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";

/// What a guest moved by hand is protected by on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing.
    None,
    /// QEMU's TLS.
    QemuTls,
}

/// What an agent gave a hypervisor, to be given to another one.
pub struct Recipe {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Recipe {
    /// From the hypervisor that a host's agent has started for a guest.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(host: &Host, guest: &Guest, pool: &Path) -> anyhow::Result<Self> {
        let mut arguments = host
            .hypervisors()
            .into_iter()
            .filter_map(|seen| std::fs::read(format!("/proc/{}/cmdline", seen.pid)).ok())
            .filter_map(|bytes| String::from_utf8(bytes).ok());
        let text = arguments
            .find(|text| text.split('\0').any(|word| word == guest.uid))
            .with_context(|| format!("{} has no hypervisor for {}", host.name, guest.name))?;
        let mut words = text.trim_end_matches('\0').split('\0').map(str::to_owned);
        let program = PathBuf::from(words.next().context("QEMU has no arguments")?);
        let mut arguments: Vec<String> = words.collect();
        // Descriptors are no use to another process; the files behind them are.
        for (option, file) in [
            ("-kernel", godwit_lab::lab::KERNEL),
            ("-initrd", godwit_lab::lab::INITRAMFS),
        ] {
            let value = arguments
                .iter()
                .position(|word| word == option)
                .and_then(|at| arguments.get_mut(at + 1))
                .with_context(|| format!("QEMU has no {option}"))?;
            *value = pool.join(file).display().to_string();
        }
        if arguments.last().is_some_and(|word| word == "defer") {
            arguments.truncate(arguments.len() - 2);
        }
        Ok(Self { program, arguments })
    }

    /// The arguments for a process whose sockets and log are in `directory`.
    fn arguments(&self, directory: &Path, incoming: bool) -> Vec<String> {
        let here = directory.display();
        let arguments = self.arguments.iter().map(|word| {
            if word.starts_with("socket,id=monitor,") {
                format!("socket,id=monitor,path={here}/qmp.sock,server=on,wait=off")
            } else if word.starts_with("socket,id=console,") {
                format!(
                    "socket,id=console,path={here}/console.sock,server=on,wait=off,logfile={here}/console.log,logappend=on"
                )
            } else {
                word.clone()
            }
        });
        let incoming = incoming.then_some(["-incoming", "defer"]).into_iter().flatten();
        arguments.chain(incoming.map(str::to_owned)).collect()
    }
}

/// A QEMU, killed when it is dropped.
struct Hypervisor {
    child: Child,
    session: Session,
}

impl Hypervisor {
    fn start(recipe: &Recipe, host: &Host, directory: &Path, incoming: bool) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        for file in ["qmp.sock", "console.sock"] {
            match std::fs::remove_file(directory.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        let mut command: Command = host.command(&recipe.program);
        let log = std::fs::File::create(directory.join("qemu.log"))?;
        let child = command
            .args(recipe.arguments(directory, incoming))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start QEMU")?;
        let mut child = KillOnDrop(Some(child));
        let session = Session::open(&directory.join("qmp.sock"))?;
        let child = child.0.take().context("QEMU was started")?;
        Ok(Self { child, session })
    }

    /// Has it encrypt the next migration, as the end that listens or the one that connects.
    fn encrypt(&mut self, directory: &Path, endpoint: &str) -> anyhow::Result<()> {
        std::fs::write(directory.join("keys.psk"), KEY)?;
        // A process has one migration, or two: one in, one out, with different ends of the key.
        let id = format!("key-{endpoint}");
        let mut credentials = json!({
            "qom-type": "tls-creds-psk", "id": id, "endpoint": endpoint,
            "dir": directory.display().to_string(), "priority": AES_128,
        });
        if endpoint == "client"
            && let Some(fields) = credentials.as_object_mut()
        {
            fields.insert("username".into(), "bench".into());
        }
        self.session.call("object-add", credentials)?;
        self.session
            .call("migrate-set-parameters", json!({ "tls-creds": id }))?;
        Ok(())
    }

    fn quit(mut self) -> anyhow::Result<()> {
        self.session.call("quit", json!({}))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A guest that runs by hand on the first of two hosts.
pub struct HandGuest {
    /// What is seen of it; no VirtualMachine stands behind it.
    pub guest: Guest,
    recipe: Recipe,
    hosts: Vec<Place>,
    running: Hypervisor,
    at: usize,
}

struct Place {
    address: std::net::IpAddr,
    directory: PathBuf,
}

/// What a move took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Bytes sent, by QEMU's count.
    pub bytes: u64,
    /// QEMU's own time for it, in milliseconds.
    pub millis: u64,
    /// From STOP at the source to RESUME at the destination, in microseconds.
    pub stop_to_resume: i64,
    /// From the order until who gave it was told that it was done.
    pub took: Duration,
}

impl HandGuest {
    /// Starts it on h1 and waits until it ticks.
    ///
    /// # Errors
    /// When QEMU does not start, or the guest does not tick.
    pub fn start(lab: &Lab, name: &str, recipe: Recipe, interval: Duration) -> anyhow::Result<Self> {
        let hosts: Vec<Place> = lab
            .hosts
            .iter()
            .map(|host| Place {
                address: host.address,
                directory: host.directory.join("by-hand").join(name),
            })
            .collect();
        let (host, place) = lab
            .hosts
            .first()
            .zip(hosts.first())
            .context("the lab has no hosts")?;
        let mut running = Hypervisor::start(&recipe, host, &place.directory, false)?;
        running.session.call("cont", json!({}))?;
        let guest = Guest {
            name: format!("{name}, by hand"),
            uid: String::new(),
            observer: Self::observe(lab, &hosts, interval),
        };
        guest.wait_for_ticks(1, STARTS_WITHIN)?;
        Ok(Self {
            guest,
            recipe,
            hosts,
            running,
            at: 0,
        })
    }

    /// Begins to observe it, from its first line on.
    fn observe(lab: &Lab, places: &[Place], interval: Duration) -> Observer {
        let observer = Observer::start(interval);
        for (host, place) in lab.hosts.iter().zip(places) {
            observer.follow(&host.name, &place.directory.join("console.log"));
        }
        observer
    }

    /// Moves it to the other host, its memory over so many connections.
    ///
    /// # Errors
    /// When QEMU refuses or fails.
    pub fn move_on(&mut self, lab: &Lab, protection: Protection, connections: u32) -> anyhow::Result<Taken> {
        let begun = Instant::now();
        let several = connections > 1;
        let to = 1 - self.at;
        let (host, place) = lab
            .hosts
            .get(to)
            .zip(self.hosts.get(to))
            .context("there are two hosts")?;
        let mut destination = Hypervisor::start(&self.recipe, host, &place.directory, true)?;
        let source = &mut self.running.session;
        for session in [&mut *source, &mut destination.session] {
            let capabilities: Vec<Value> = [
                ("events", true),
                ("return-path", true),
                ("validate-uuid", true),
                ("multifd", several),
            ]
            .map(|(name, state)| json!({"capability": name, "state": state}))
            .to_vec();
            session.call(
                "migrate-set-capabilities",
                json!({ "capabilities": capabilities }),
            )?;
            if several {
                session.call(
                    "migrate-set-parameters",
                    json!({ "multifd-channels": connections }),
                )?;
            }
        }
        if protection == Protection::QemuTls {
            destination.encrypt(&place.directory, "server")?;
            let here = self.hosts.get(self.at).context("there are two hosts")?;
            self.running.encrypt(&here.directory, "client")?;
        }
        let source = &mut self.running.session;
        let uri = format!("tcp:{}:{PORT}", place.address);
        destination
            .session
            .call("migrate-incoming", json!({ "uri": uri }))?;
        source.call(
            "migrate-set-parameters",
            json!({"max-bandwidth": 0, "downtime-limit": DOWNTIME_LIMIT}),
        )?;
        source.call("migrate", json!({ "uri": uri }))?;
        destination.session.wait("MIGRATION", Some("completed"))?;
        destination.session.call("cont", json!({}))?;
        let resumed = destination.session.wait("RESUME", None)?;
        let stopped = source.wait("STOP", None)?;
        source.wait("MIGRATION", Some("completed"))?;
        let figures = source.call("query-migrate", json!({}))?;
        let figure = |path: &str| {
            let value = figures.pointer(path).and_then(Value::as_u64);
            value.with_context(|| format!("query-migrate has no {path}: {figures}"))
        };
        let moved = Taken {
            bytes: figure("/ram/transferred")?,
            millis: figure("/total-time")?,
            stop_to_resume: resumed - stopped,
            took: begun.elapsed(),
        };
        ensure!(moved.millis > 0, "a migration took no time: {figures}");
        if source
            .call("query-status", json!({}))?
            .get("status")
            .and_then(Value::as_str)
            != Some("postmigrate")
        {
            bail!("the source is not in postmigrate");
        }
        std::mem::replace(&mut self.running, destination).quit()?;
        self.at = to;
        Ok(moved)
    }
}
