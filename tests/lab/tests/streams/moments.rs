//! A migration over one of the ways, and the moments of it at which something is broken.

use std::fmt::Debug;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_crds::VirtualMachineMigration;
use godwit_crds::migration::{ControlFlow, SecurityRequirement, Transport};
use godwit_lab::guest::Guest;
use godwit_lab::hosts::{AGENT_PORT, comes_in};
use godwit_lab::processes::{self, Seen};
use godwit_lab::{Host, Lab};
use kube::ResourceExt as _;
use rustix::process::Signal;
use serde_json::json;

use crate::attempt::{Attempt, End, Ended, journaled, migrations, when_journaled};
use crate::guest::{until, until_within};
use crate::setting::{MOVES_WITHIN, SOON, clear, linux, lives_on, start};
use crate::traces::{groups, settles};
use crate::ways::{ask, limit, no_relay_is_left, relays};

/// So slow, in bytes in a second, that a Linux guest's memory takes the better part of a minute.
pub const TRICKLE: &str = "1Mi";

/// As fast as a guest's memory travels when its switchover is to be met: slowly enough for the source's agent to stop
/// the guest before the hypervisor finds nothing left to send. On a machine so busy that the guest hardly changes its
/// memory, or the agent hardly looks, that is slower.
const BRISK: [&str; 3] = ["32Mi", "16Mi", "8Mi"];

/// For how long the guest may stand still: what a busy one changes in a pass is sent in that time at each of these.
const MAX_DOWNTIME: &str = "1s";

/// What the source's link carries then, in Mbit/s.
const SLOW: u32 = 160;

/// Changes its memory faster than [`BRISK`], and never so much of it that the rest would take long.
const BUSY: &str = "godwit.fill=8M godwit.dirty=40M godwit.working_set=4M";

/// How soon Go is said by a driver that knows that the guest is loaded.
const GO_WITHIN: Duration = Duration::from_secs(15);

/// How often a guest may be past a moment before it is met.
const MOST_LATE: u32 = 20;

/// Who drives, and how memory travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub flow: ControlFlow,
    pub transport: Transport,
    pub require: SecurityRequirement,
}

impl Way {
    pub const fn tunnelled(flow: ControlFlow) -> Self {
        Self {
            flow,
            transport: Transport::Tunnelled,
            require: SecurityRequirement::Encrypted,
        }
    }

    pub const fn native(flow: ControlFlow, require: SecurityRequirement) -> Self {
        Self {
            flow,
            transport: Transport::Native,
            require,
        }
    }
}

pub const BOTH_FLOWS: [ControlFlow; 2] = [ControlFlow::ManagedDirect, ControlFlow::PeerToPeer];

/// When something is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The destination has taken it on.
    Prepare,
    /// Memory travels.
    PreCopy,
    /// The guest was stopped, and the last of it is on its way.
    Switchover,
    /// The destination has all of the guest, and nobody was told.
    Loaded,
    /// The destination has told the driver, who has not looked yet: what is broken now meets Go.
    Unheard,
    /// Go was said, and the destination has not obeyed.
    Go,
    /// The destination has obeyed.
    Cont,
}

/// A Linux guest that is moved to and fro, and what is known of it.
pub struct Traveller {
    pub guest: Guest,
    /// The host that it is on, counted from 1.
    pub here: usize,
    pub epoch: i64,
    trips: u32,
    late: u32,
}

/// One move of it.
pub struct Trip {
    pub attempt: Attempt,
    pub way: Way,
    pub from: usize,
    pub to: usize,
    brisk: &'static str,
}

impl Traveller {
    /// Starts it on host 1, and nothing else.
    pub async fn start(lab: &mut Lab, name: &str) -> anyhow::Result<Self> {
        clear(lab).await?;
        let guest = start(lab, linux(name, "128Mi", BUSY)).await?;
        Ok(Self {
            guest,
            here: 1,
            epoch: 1,
            trips: 0,
            late: 0,
        })
    }

    /// Orders its move to the other host, slowly.
    pub async fn leaves(&mut self, lab: &Lab, way: Way) -> anyhow::Result<Trip> {
        let (from, to) = (self.here, 3 - self.here);
        self.trips += 1;
        let name = format!("{}-{}", self.guest.name, self.trips);
        let spec = json!({
            "controlFlow": way.flow,
            "transport": way.transport,
            "security": {"require": way.require},
            "tuning": {"bandwidth": TRICKLE, "maxDowntime": MAX_DOWNTIME},
        });
        ask(lab, &self.guest, &name, &lab.hosts[to - 1], spec).await?;
        let uid = migrations(lab).get(&name).await?.uid().context("a UID")?;
        let attempt = Attempt { name, uid };
        let slower = usize::try_from(self.late)?.min(BRISK.len() - 1);
        Ok(Trip {
            attempt,
            way,
            from,
            to,
            brisk: BRISK[slower],
        })
    }

    /// Waits for a move's end, which must be one of these, and checks that the guest is as it says and that nothing
    /// is left of what is over.
    pub async fn settles(
        &mut self,
        lab: &Lab,
        trip: &Trip,
        allowed: &[End],
        what: impl Debug,
    ) -> anyhow::Result<Ended> {
        let name = format!("{:?}, {what:?}", trip.way.flow);
        let ended = trip
            .attempt
            .ended_within(lab, MOVES_WITHIN)
            .await
            .context(name.clone())?;
        println!("  {name}: {:?}, {}: {}", ended.end, ended.reason, ended.message);
        ensure!(
            allowed.contains(&ended.end),
            "{name}: {ended:?} where only {allowed:?} may be"
        );
        if ended.end == End::Moved {
            self.here = trip.to;
            self.epoch += 1;
        }
        let alive = lives_on(lab, &self.guest, self.here, self.epoch).await;
        alive.with_context(|| format!("{name}: {ended:?}"))?;
        nothing_is_left(lab, &trip.attempt).await.context(name)?;
        Ok(ended)
    }

    /// Waits for the end of a move that was past the moment which was waited for, or was held up for so long that it was
    /// given up. That may happen, but not always.
    pub async fn was_early(&mut self, lab: &Lab, trip: &Trip) -> anyhow::Result<()> {
        self.settles(lab, trip, &[End::Moved, End::Stays], "too late")
            .await?;
        self.late += 1;
        ensure!(self.late <= MOST_LATE, "it is always too late");
        Ok(())
    }

    /// Has it check its memory, after all its moves.
    pub fn is_whole(&self, lab: &Lab) -> anyhow::Result<()> {
        self.guest.check_memory(&lab.hosts[self.here - 1], MOVES_WITHIN)?;
        let verdict = self.guest.observer.verdict();
        ensure!(
            verdict.memory_intact() && verdict.counter_continuous(),
            "{verdict:?}"
        );
        Ok(())
    }
}

impl Trip {
    /// The journals of the source and of the destination.
    pub fn journals(&self, lab: &mut Lab) -> anyhow::Result<[PathBuf; 2]> {
        Ok([
            self.attempt.journal(lab, self.from)?,
            self.attempt.journal(lab, self.to)?,
        ])
    }

    /// Lets it go as fast as it can.
    pub async fn goes_on(&self, lab: &Lab) -> anyhow::Result<()> {
        limit(lab, &self.attempt.name, "0").await
    }

    /// The process that gives the destination its orders.
    pub fn driver(&self, lab: &mut Lab) -> anyhow::Result<Seen> {
        match self.way.flow {
            ControlFlow::PeerToPeer => agent(lab, self.from),
            ControlFlow::ManagedDirect => {
                let pid = lab.controller().context("no controller")?.pid();
                processes::look(i32::try_from(pid)?).context("the controller had ended")
            }
        }
    }
}

/// Waits until some of a migration's memory has travelled.
pub async fn travels(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let moving = |migration: Option<&VirtualMachineMigration>| {
        let status = migration.and_then(|migration| migration.status.as_ref());
        let progress = status.and_then(|status| status.progress.as_ref());
        progress.is_some_and(|progress| progress.transferred_bytes > 0)
    };
    godwit_lab::guest::until(&migrations(lab), name, MOVES_WITHIN, "memory travels", moving).await?;
    Ok(())
}

/// Does something at a moment of a migration that was just ordered, on a link on which the last of the memory takes
/// its time, where links can be shaped. `find` looks for what the deed needs, so that the
/// deed itself takes no time.
///
/// False: the migration was past that moment before the deed. It happens where a hypervisor has nothing left to send
/// before its agent looks; the deed is not done then.
pub async fn at<T: Send + 'static>(
    lab: &mut Lab,
    trip: &Trip,
    moment: Moment,
    find: impl FnMut(&mut Lab) -> anyhow::Result<T>,
    deed: impl FnOnce(T) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<bool> {
    let slow = moment > Moment::PreCopy && lab.network.separate();
    if slow {
        lab.network.shape(trip.from, Some(SLOW))?;
    }
    let done = met(lab, trip, moment, find, deed).await;
    if slow {
        lab.network.shape(trip.from, None)?;
    }
    done
}

async fn met<T: Send + 'static>(
    lab: &mut Lab,
    trip: &Trip,
    moment: Moment,
    mut find: impl FnMut(&mut Lab) -> anyhow::Result<T>,
    deed: impl FnOnce(T) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<bool> {
    let [source, destination] = trip.journals(lab)?;
    if moment == Moment::Prepare {
        when_journaled(destination, "Prepared", || {}).await?;
        let found = until("what is to be broken", async || Ok(find(lab).ok())).await?;
        return deed(found).map(|()| true);
    }
    until("a stream comes in", async || {
        Ok((streams(lab, trip.to)? > 0).then_some(()))
    })
    .await?;
    if moment == Moment::PreCopy {
        // It may still be about to be opened.
        trip.attempt.streams(lab).await?;
        let found = find(lab)?;
        ensure!(!journaled(&source, "Sealed"), "the guest was stopped already");
        return deed(found).map(|()| true);
    }
    let found = find(lab)?;
    let (driver, obeying) = (trip.driver(lab)?, agent(lab, trip.to)?);
    let brisk = limit(lab, &trip.attempt.name, trip.brisk);
    if moment == Moment::Cont {
        let let_run = async {
            tokio::select! {
                biased;
                done = when_journaled(destination, "ContIssued", || deed(found)) => done?.map(|()| true),
                over = until("it is given up", async || Ok(journaled(&source, "AbortIntent").then_some(())))
                    => over.map(|()| false),
            }
        };
        let (done, brisk) = tokio::join!(let_run, brisk);
        brisk?;
        return done;
    }
    if moment == Moment::Switchover {
        let (done, brisk) = tokio::join!(when_stopped(source, || deed(found)), brisk);
        brisk?;
        return match done? {
            Some(done) => done.map(|()| true),
            None => Ok(false),
        };
    }
    let stop = obeying.clone();
    let stopped = when_stopped(source.clone(), move || processes::signal(&stop, Signal::STOP));
    let (stopped, brisk) = tokio::join!(stopped, brisk);
    let outcome = async {
        brisk?;
        if stopped? != Some(true) || journaled(&source, "GoSent") {
            return Ok(false);
        }
        until("the guest is loaded", async || {
            Ok((streams(lab, trip.to)? == 0).then_some(()))
        })
        .await?;
        if moment == Moment::Loaded {
            return deed(found).map(|()| true);
        }
        // The destination tells the driver, who does not hear it yet.
        processes::signal(&driver, Signal::STOP);
        processes::signal(&obeying, Signal::CONT);
        told(lab, trip.to, &driver).await?;
        if moment == Moment::Unheard {
            return deed(found).map(|()| true);
        }
        processes::signal(&obeying, Signal::STOP);
        processes::signal(&driver, Signal::CONT);
        let said = until_within(GO_WITHIN, "Go is said", async || {
            Ok(journaled(&source, "GoSent").then_some(()))
        });
        if said.await.is_err() {
            // What the destination's agent had told was something else.
            return Ok(false);
        }
        ensure!(
            !journaled(&destination, "ContIssued"),
            "the guest was let run already"
        );
        deed(found).map(|()| true)
    }
    .await;
    processes::signal(&driver, Signal::CONT);
    processes::signal(&obeying, Signal::CONT);
    outcome
}

/// Runs at once when the source's journal says that the guest was stopped while its stream was active. None: that was
/// not how it went.
async fn when_stopped<T: Send + 'static>(
    journal: PathBuf,
    deed: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<Option<T>> {
    let stopped = journal.clone();
    let deed = move || (!journaled(&stopped, "GoSent")).then(deed);
    tokio::select! {
        biased;
        done = when_journaled(journal.clone(), "Sealed", deed) => done,
        over = until("it goes on otherwise", async || {
            let over = journaled(&journal, "GoSent") || journaled(&journal, "AbortIntent");
            Ok(over.then_some(()))
        }) => over.map(|()| None),
    }
}

/// Waits until no host has a relay, a socket or a control group of this migration.
pub async fn nothing_is_left(lab: &Lab, attempt: &Attempt) -> anyhow::Result<()> {
    no_relay_is_left(lab).await?;
    settles("no control group is left", SOON, || {
        let left = lab.hosts.iter().flat_map(|host| groups(host, &attempt.uid));
        Ok(left.map(|group| group.display().to_string()).collect())
    })
    .await
}

pub fn agent(lab: &mut Lab, host: usize) -> anyhow::Result<Seen> {
    let pid = lab.host(host)?.agent().context("no agent")?.pid();
    processes::look(i32::try_from(pid)?).context("the agent had ended")
}

/// The one relay of a host.
pub fn relay(lab: &Lab, host: usize) -> anyhow::Result<Seen> {
    let mut relays = relays(&lab.hosts[host - 1]);
    ensure!(relays.len() == 1, "{relays:?}");
    relays.pop().context("a relay")
}

/// The one hypervisor of a host.
pub fn hypervisor(lab: &Lab, host: usize) -> anyhow::Result<Seen> {
    let mut hypervisors = lab.hosts[host - 1].hypervisors();
    ensure!(hypervisors.len() == 1, "{hypervisors:?}");
    hypervisors.pop().context("a hypervisor")
}

/// A line of the kernel's table of TCP sockets.
pub struct Socket {
    pub local: String,
    pub local_port: u16,
    pub remote: String,
    pub established: bool,
    pub unread: u64,
    pub tries: u64,
    pub inode: u64,
}

/// The sockets in a process's network.
pub fn sockets(pid: i32) -> anyhow::Result<Vec<Socket>> {
    Ok(parsed(&std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?))
}

fn parsed(table: &str) -> Vec<Socket> {
    let sockets = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, queues, _, again, _, probes, inode, ..] = fields.as_slice() else {
            return None;
        };
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Socket {
            local: (*local).to_owned(),
            local_port: u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?,
            remote: (*remote).to_owned(),
            established: *state == "01",
            unread: number(queues.rsplit_once(':')?.1)?,
            // Sent again without an answer, or not sent at all and asked for the way again.
            tries: number(again)? + number(probes)?,
            inode: inode.parse().ok()?,
        })
    });
    sockets.collect()
}

/// A host's agent port, as the kernel writes it.
pub fn agent_port(host: &Host) -> anyhow::Result<String> {
    let IpAddr::V4(address) = host.address else {
        anyhow::bail!("the lab has no IPv6");
    };
    let address = u32::from_ne_bytes(address.octets());
    Ok(format!("{address:08X}:{AGENT_PORT:04X}"))
}

/// Whether a process holds this socket.
pub fn holds(process: &Seen, socket: &Socket) -> bool {
    let name = format!("socket:[{}]", socket.inode);
    let held = std::fs::read_dir(format!("/proc/{}/fd", process.pid));
    held.into_iter()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .any(|link| link.as_os_str() == name.as_str())
}

/// How many streams come in at a host.
pub fn streams(lab: &Lab, host: usize) -> anyhow::Result<usize> {
    let host = &lab.hosts[host - 1];
    let relays = relays(host);
    let table = host
        .command(Path::new("cat"))
        .arg("/proc/net/tcp")
        .output()?
        .stdout;
    let streams = parsed(&String::from_utf8_lossy(&table))
        .into_iter()
        .filter(|socket| {
            let native = comes_in(&socket.local, &socket.remote, host.address);
            socket.established && (native || relays.iter().any(|relay| holds(relay, socket)))
        });
    Ok(streams.count())
}

/// Waits until what the destination's agent has said lies unread before the driver, and it says no more.
async fn told(lab: &Lab, host: usize, driver: &Seen) -> anyhow::Result<()> {
    const STEADY: u32 = 20;
    let remote = agent_port(&lab.hosts[host - 1])?;
    let mut seen = (0, 0);
    until(
        "the destination's agent has told that the guest is loaded",
        async || {
            let sockets = sockets(driver.pid)?.into_iter();
            let unread = sockets
                .filter(|socket| socket.remote == remote)
                .map(|socket| socket.unread);
            let unread: u64 = unread.sum();
            seen = if unread == seen.0 {
                (unread, seen.1 + 1)
            } else {
                (unread, 0)
            };
            Ok((unread > 0 && seen.1 >= STEADY).then_some(()))
        },
    )
    .await
}
