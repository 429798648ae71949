//! `lab`: brings a lab up and leaves it running, shows what runs, takes it down.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, Subcommand};
use godwit_lab::{Lab, LabOptions, cache, run};

/// A real control plane and hosts with real agents, on this machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Word,
}

#[derive(Subcommand)]
enum Word {
    /// Bring a lab up, leave it running and say how to use it.
    Up {
        /// How many hosts.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=99))]
        hosts: u8,
        /// Only the control plane and the chart, with hosts prepared but nothing started on them.
        #[arg(long)]
        bare: bool,
        /// Start the signer too, and let the agents ask it for their certificates.
        #[arg(long)]
        signer: bool,
    },
    /// Show the runs on this machine.
    Status,
    /// Remove runs that no process holds: those left running, and what crashed ones left behind.
    Down {
        /// Which; all of them when none is named.
        runs: Vec<u8>,
    },
}

fn main() -> ExitCode {
    match run_command(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(command: Word) -> anyhow::Result<()> {
    match command {
        Word::Up { hosts, bare, signer } => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(up(hosts, bare, signer)),
        Word::Status => status(),
        Word::Down { runs } => down(&runs),
    }
}

async fn up(hosts: u8, bare: bool, signer: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    let options = LabOptions::new("up")
        .hosts(usize::from(hosts))
        .agents(!bare)
        .guest_files(!bare)
        .controller(!bare)
        .signer(signer)
        .tell(Arc::new(move |step| {
            println!("{:5.1} s  {step}", begun.elapsed().as_secs_f64())
        }));
    let lab = tokio::select! {
        lab = Lab::start(options) => lab?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; what was started has been taken down"),
    };
    println!("{:5.1} s  up", begun.elapsed().as_secs_f64());
    let programs = cache::programs()?;
    println!("\nhosts");
    for host in &lab.hosts {
        println!(
            "  {:4} {:15} {}",
            host.name,
            host.address,
            host.directory.display()
        );
    }
    let kubectl = cache::tool("kubectl")?;
    let tools = kubectl.parent().unwrap_or(&kubectl).to_owned();
    let number = lab.number();
    let records = lab.leave().await?;
    println!("\nlogs\n  {}", records.join("logs").display());
    println!("\nto use it");
    println!(
        "  export KUBECONFIG={}",
        records.join("administrator.kubeconfig").display()
    );
    println!("  export PATH={}:{}:$PATH", programs.display(), tools.display());
    println!("  kubectl get vmhost");
    println!("  kubectl explain vmmig.spec");
    println!("  kubectl godwit --help");
    println!("\nto remove it\n  {}/lab down {number}", programs.display());
    Ok(())
}

fn status() -> anyhow::Result<()> {
    let runs = run::list()?;
    if runs.is_empty() {
        println!("nothing runs");
    }
    for listed in runs {
        let kind = match (&listed.left, listed.held) {
            (_, true) => "held by a process that lives",
            (Some(left), false) if left.on_purpose => "left running",
            (_, false) => "left behind by a crash",
        };
        println!(
            "run {}: {kind}, {} processes",
            listed.number,
            listed.processes.len()
        );
        for process in &listed.processes {
            println!("  {:7} {}", process.pid, process.program);
        }
        if let Some(left) = listed.left {
            println!("  {}", left.records.display());
        }
    }
    Ok(())
}

fn down(runs: &[u8]) -> anyhow::Result<()> {
    for number in runs {
        let word = if run::remove_one(*number)? {
            "removed"
        } else {
            "is not there"
        };
        println!("run {number} {word}");
    }
    if !runs.is_empty() {
        return Ok(());
    }
    let removed = run::remove_all()?;
    if removed.is_empty() {
        println!("there was nothing to remove");
    }
    for number in removed {
        println!("run {number} removed");
    }
    for listed in run::list()? {
        println!(
            "run {} is held by a process that lives: end that one first",
            listed.number
        );
    }
    Ok(())
}
