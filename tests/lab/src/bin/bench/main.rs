//! `make bench`: measures godwit on real parts, prints a table, and writes `target/bench/results.json`.
//!
//! Godwit's programs are those built with the same profile as this one: measure with the optimised ones. What is
//! compared with QEMU alone is compared within one run, in turn, on the same hosts and the same link.

mod by_hand;
mod decision;
mod downtime;
mod handover;
mod libvirt;
mod overhead;
mod qmp;
mod recovery;
mod rest;
mod rows;
mod setting;
mod throughput;
mod transports;
mod tunnel;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use godwit_lab::{Lab, LabOptions, cache};

use rows::Row;

/// Measures godwit and compares with the targets.
#[derive(Parser)]
#[command(
    name = "bench",
    after_help = "Exit codes: 0 all targets are met (with --quick: all was measured); 1 one is missed, or it could not be measured; 2 wrong arguments."
)]
struct Arguments {
    /// A few rounds of each, in a minute: that everything can be measured, not how it comes out.
    #[arg(long)]
    quick: bool,
    /// Only this measurement; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Measurement>,
    /// Measure libvirt too (migrations native, tunnelled, and tunnelled with TLS) beside godwit's. It must be installed.
    #[arg(long, conflicts_with = "relay")]
    with_libvirt: bool,
    /// Only this build of the relay, against the first that is given so: several times, in turns.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "only")]
    relay: Vec<PathBuf>,
    /// With --relay: through so many channels.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "relay")]
    channels: usize,
    /// With --relay: so many rounds.
    #[arg(long, value_name = "NUMBER", requires = "relay")]
    rounds: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Measurement {
    /// Memory and API writes while nothing happens.
    Rest,
    /// What godwit adds around QEMU's own time.
    Overhead,
    /// Godwit's own share of the time that the guest stands still, and what a migration writes.
    Handover,
    /// How well the budget for that time is kept by guests that change their memory.
    Seals,
    /// How soon a migration is followed again, or decided, after an agent's restart.
    Recovery,
    /// Speed against QMP by hand.
    Throughput,
    /// Downtime against QMP by hand.
    Downtime,
    /// The speeds of plain text, QEMU's encryption and the tunnel.
    Transports,
    /// The same with four connections each.
    #[value(name = "transports-4")]
    TransportsSeveral,
    /// The same for plain text and the tunnel, on a link of 5 Gbit/s.
    #[value(name = "transports-5g")]
    TransportsShaped,
    /// libvirt's migrations beside godwit's, for which it must be installed; part of all only by --with-libvirt.
    Libvirt,
    /// What the tunnel adds to the downtime.
    TunnelDowntime,
    /// The relay by itself: no lab, no guest.
    Tunnel,
}

/// How much of each there is.
struct Extent {
    overhead: usize,
    throughput: usize,
    downtime: usize,
    handover: usize,
    seals: usize,
    recovery: usize,
    transports: usize,
    tunnel_downtime: usize,
    tunnel: tunnel::Extent,
    settle: Duration,
    rest: Duration,
}

const FULL: Extent = Extent {
    overhead: 25,
    throughput: 11,
    downtime: 21,
    handover: 200,
    seals: 21,
    recovery: 11,
    transports: 11,
    tunnel_downtime: 21,
    tunnel: tunnel::Extent {
        rounds: 11,
        mebibytes: 2048,
    },
    settle: Duration::from_secs(15),
    rest: Duration::from_secs(60),
};

const QUICK: Extent = Extent {
    overhead: 2,
    throughput: 1,
    downtime: 2,
    handover: 3,
    seals: 1,
    recovery: 1,
    transports: 1,
    tunnel_downtime: 2,
    tunnel: tunnel::Extent {
        rounds: 2,
        mebibytes: 256,
    },
    settle: Duration::from_secs(3),
    rest: Duration::from_secs(5),
};

fn main() -> ExitCode {
    if let Some(code) = tunnel::plain::run_if_asked() {
        return code;
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            tokio::select! {
                outcome = bench(&arguments) => outcome,
                _ = tokio::signal::ctrl_c() => bail!("interrupted; what was started is being taken down"),
            }
        })
    });
    match outcome {
        Ok(holds) if holds || arguments.quick => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("bench: a target is missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether all targets are met.
async fn bench(arguments: &Arguments) -> anyhow::Result<bool> {
    let extent = if arguments.quick { QUICK } else { FULL };
    let wanted = |measurement| match measurement {
        Measurement::Libvirt => arguments.with_libvirt || arguments.only.contains(&measurement),
        Measurement::Rest
        | Measurement::Overhead
        | Measurement::Handover
        | Measurement::Seals
        | Measurement::Recovery
        | Measurement::Throughput
        | Measurement::Downtime
        | Measurement::Transports
        | Measurement::TransportsSeveral
        | Measurement::TransportsShaped
        | Measurement::TunnelDowntime
        | Measurement::Tunnel => arguments.only.is_empty() || arguments.only.contains(&measurement),
    };
    let begun = Instant::now();
    // Before anything is measured that would have to be measured again.
    let libvirt = wanted(Measurement::Libvirt).then(libvirt::find).transpose()?;
    println!("{}", machine()?);
    if let Some(libvirt) = libvirt {
        println!("{libvirt}");
    }
    let mut results = Results::default();
    if !arguments.relay.is_empty() {
        say("builds of the relay");
        let (programs, channels) = (arguments.relay.clone(), arguments.channels);
        let mut extent = extent.tunnel;
        extent.rounds = arguments.rounds.unwrap_or(extent.rounds);
        let compare = move || tunnel::builds::compare(&programs, channels, extent);
        results.take(tokio::task::spawn_blocking(compare).await?);
        return report(&results, arguments, begun);
    }
    if wanted(Measurement::Tunnel) {
        say("the relay by itself");
        let measured = tokio::task::spawn_blocking(move || tunnel::measure(extent.tunnel)).await?;
        results.take(measured);
    }
    let in_lab = |measurement: &Measurement| *measurement != Measurement::Tunnel;
    if arguments.only.is_empty() || arguments.with_libvirt || arguments.only.iter().any(in_lab) {
        // A lab that does not start, or not stop, hides nothing of what was measured.
        let measured = measure_in_lab(&extent, wanted, &mut results).await;
        results.take(measured.map(|()| vec![]));
    }
    report(&results, arguments, begun)
}

/// What is measured on hosts and guests.
async fn measure_in_lab(
    extent: &Extent,
    wanted: impl Fn(Measurement) -> bool,
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut lab = Lab::start(LabOptions::new("bench")).await?;
    for skipped in lab.network.skipped() {
        println!("{skipped}");
    }
    if wanted(Measurement::Rest) {
        say("memory at rest");
        results.take(rest::memory(&mut lab, extent.settle).await);
    }
    if wanted(Measurement::Overhead) {
        say(&format!("overhead: {} migrations", extent.overhead + 1));
        results.take(overhead::measure(&lab, extent.overhead).await);
    }
    if wanted(Measurement::Downtime) {
        say(&format!("downtime: 2 × {} migrations", extent.downtime + 1));
        results.take(downtime::measure(&lab, extent.downtime).await);
    }
    if wanted(Measurement::Handover) {
        say(&format!("handovers: {} migrations", extent.handover + 1));
        results.take(handover::measure(&lab, extent.handover).await);
    }
    if wanted(Measurement::Seals) {
        say(&format!("seals: 3 × {} migrations", extent.seals + 1));
        results.take(handover::seals(&lab, extent.seals).await);
    }
    if wanted(Measurement::Recovery) {
        say(&format!("recovery: 2 × {} migrations", extent.recovery + 1));
        results.take(recovery::follow(&mut lab, extent.recovery).await);
        results.take(decision::measure(&mut lab, extent.recovery).await);
    }
    if wanted(Measurement::Throughput) {
        let moves = 2 * extent.throughput + 1;
        say(&format!("throughput: 2 × {moves} migrations of 1 GiB"));
        results.take(throughput::measure(&lab, extent.throughput).await);
    }
    if wanted(Measurement::Transports) {
        say(&format!(
            "transports: 4 × {} migrations of 1 GiB",
            extent.transports + 1
        ));
        results.take(transports::unshaped(&lab, extent.transports).await);
    }
    if wanted(Measurement::TransportsSeveral) {
        say(&format!(
            "transports, 4 connections: 3 × {} migrations of 1 GiB",
            extent.transports + 1
        ));
        results.take(transports::several(&lab, extent.transports).await);
    }
    if wanted(Measurement::TransportsShaped) {
        say(&format!(
            "transports, 5 Gbit/s: 2 × {} migrations of 1 GiB",
            extent.transports + 1
        ));
        results.take(transports::shaped(&lab, extent.transports).await);
    }
    if wanted(Measurement::Libvirt) {
        say(&format!(
            "libvirt beside godwit: 5 × {} migrations of 1 GiB",
            extent.transports + 1
        ));
        results.take(transports::beside_libvirt(&lab, extent.transports).await);
    }
    if wanted(Measurement::TunnelDowntime) {
        say(&format!(
            "the tunnel's downtime: 2 × {} migrations",
            extent.tunnel_downtime + 1
        ));
        results.take(transports::downtime(&lab, extent.tunnel_downtime).await);
    }
    if wanted(Measurement::Rest) {
        say("API writes at rest");
        results.take(rest::writes(&lab, extent.settle, extent.rest).await);
    }
    lab.stop().await
}

/// Prints and writes what was measured; whether all targets are met.
fn report(results: &Results, arguments: &Arguments, begun: Instant) -> anyhow::Result<bool> {
    let Results { rows, failures } = results;
    let path = file();
    rows::write(rows, &path)?;
    println!("\n{}", rows::table(rows));
    if arguments.quick {
        println!("These are too few rounds to judge by.");
    }
    println!(
        "{}; {:.0} s; {}",
        machine()?,
        begun.elapsed().as_secs_f64(),
        path.display()
    );
    if *failures > 0 {
        bail!("{failures} of the measurements failed");
    }
    Ok(rows.iter().all(|row| row.holds != Some(false)))
}

/// Where the rows are written.
fn file() -> PathBuf {
    cache::workspace().join("target/bench/results.json")
}

/// What was measured so far. A measurement that fails does not keep the others from being made, and what was measured
/// is printed and written at once: it outlives an interruption.
#[derive(Default)]
struct Results {
    rows: Vec<Row>,
    failures: usize,
}

impl Results {
    fn take(&mut self, measured: anyhow::Result<Vec<Row>>) {
        if let Err(error) = measured.and_then(|rows| self.keep(rows)) {
            self.failures += 1;
            eprintln!("bench: not measured: {error:#}");
        }
    }

    fn keep(&mut self, measured: Vec<Row>) -> anyhow::Result<()> {
        if measured.is_empty() {
            return Ok(());
        }
        println!("\n{}", rows::table(&measured));
        self.rows.extend(measured);
        rows::write(&self.rows, &file())
    }
}

fn say(what: &str) {
    println!("measuring {what}");
}

/// The machine in a line: what the figures depend on.
fn machine() -> anyhow::Result<String> {
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or("unknown");
    // What a socket may hold that its maker does not size, and the most that it can be given: the first counts where a
    // tunnelled migration has several channels, the second where it has one.
    let kibibytes = |name: &str| -> anyhow::Result<u64> {
        let bytes: u64 = std::fs::read_to_string(format!("/proc/sys/net/core/{name}"))?
            .trim()
            .parse()?;
        Ok(bytes / 1024)
    };
    let (default, most) = (kibibytes("wmem_default")?, kibibytes("wmem_max")?);
    let control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
    Ok(format!(
        "{cores} cores, load {load}; net.core.wmem_default {default} KiB, net.core.wmem_max {most} KiB, TCP {}",
        control.trim()
    ))
}
