//! `simulate`: runs seeds, and the sweep.
//!
//! ```text
//! simulate seeds COUNT [FROM]              many seeds, each in a process of its own
//! simulate seed N [tell]                   one; `tell` says everything at once, step for step
//! simulate sweep [SCENARIO]                every point of every scenario, or of one
//! simulate sweep quick                     the same, but of tunnelled scenarios only what is the tunnel's
//! simulate point SCENARIO KIND N [tell]    one of them
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a simulation that is wrong in itself is to end at once"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use godwit_simulation::many;
use godwit_simulation::run::{Outcome, Plan, run};
use godwit_simulation::sweep::{SCENARIOS, Scenario, quick, strike, strikes, words};

const USAGE: &str = "usage: simulate seeds COUNT [FROM] | seed N [tell] | sweep [SCENARIO | quick] | point SCENARIO KIND N [tell]";
/// How many lines a summary prints of each failure.
const REASONS: usize = 6;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (told, arguments) = match arguments.split_last() {
        Some((last, before)) if last == "tell" => (true, before),
        Some(_) | None => (false, &arguments[..]),
    };
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["seed", seed] => one(&Plan::draw(number(seed)), told),
        ["seeds", count] => seeds(number(count), 1),
        ["seeds", count, from] => seeds(number(count), number(from)),
        ["sweep"] => sweep(&SCENARIOS, false),
        ["sweep", "quick"] => sweep(&SCENARIOS, true),
        ["sweep", name] => sweep(&[scenario(name)], false),
        ["point", name, "none", _] => one(&scenario(name).plan(None), told),
        ["point", name, kind, number] => match strike(kind, number) {
            Some(strike) => one(&scenario(name).plan(Some(strike)), told),
            None => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn scenario(name: &str) -> Scenario {
    let found = SCENARIOS.into_iter().find(|scenario| scenario.name == name);
    found.unwrap_or_else(|| panic!("there is no scenario {name}"))
}

/// One run, and what came of it as the last line.
fn one(plan: &Plan, tell: bool) -> ExitCode {
    if tell {
        // What the parts themselves have to say: RUST_LOG.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .without_time()
            .init();
        eprintln!("{plan:#?}");
    }
    let outcome = run(plan, tell);
    if tell {
        outcome.violations.iter().for_each(|wrong| eprintln!("{wrong}"));
    }
    println!("{}", serde_json::to_string(&outcome).unwrap());
    ExitCode::from(u8::from(!outcome.violations.is_empty()))
}

type Failed = Vec<(Vec<String>, Outcome)>;

/// Runs all of them, and gives those that failed, and how often migrations ended in which phase.
fn all(runs: &[Vec<String>]) -> (Failed, BTreeMap<String, u32>) {
    let program: PathBuf = std::env::current_exe().unwrap();
    let phases = Mutex::new(BTreeMap::new());
    let failed: Mutex<Failed> = Mutex::default();
    let all = many::all(&program, runs, |arguments, outcome| {
        for phase in &outcome.phases {
            *phases.lock().unwrap().entry(phase.clone()).or_insert(0) += 1;
        }
        if !outcome.violations.is_empty() {
            failed.lock().unwrap().push((arguments.to_vec(), outcome));
        }
    });
    all.unwrap();
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by(|(one, _), (other, _)| one.cmp(other));
    (failed, phases.into_inner().unwrap())
}

fn tell(failed: &Failed) {
    for (arguments, outcome) in failed {
        let arguments = arguments.join(" ");
        println!("{arguments} fails: cargo run --bin simulate -- {arguments} tell");
        for wrong in outcome.violations.iter().take(REASONS) {
            println!("    {wrong}");
        }
    }
}

fn seeds(count: u64, from: u64) -> ExitCode {
    let runs: Vec<_> = (from..from + count)
        .map(|seed| vec!["seed".to_owned(), seed.to_string()])
        .collect();
    let (failed, phases) = all(&runs);
    tell(&failed);
    println!(
        "{count} seeds from {from} on, {} failed; their migrations: {phases:?}",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

fn sweep(scenarios: &[Scenario], quickly: bool) -> ExitCode {
    let program: PathBuf = std::env::current_exe().unwrap();
    let (mut points, mut broken) = (0, 0);
    for scenario in scenarios {
        let counted = many::once(&program, &["point", scenario.name, "none", "0"]).unwrap();
        if !counted.violations.is_empty() {
            println!(
                "{} fails without a fault: {:#?}",
                scenario.name, counted.violations
            );
            broken += 1;
            continue;
        }
        // A world in which a host may be lost has Leases, and somebody who waits: its points are counted in one like it.
        let never = usize::MAX.to_string();
        let lost = many::once(&program, &["point", scenario.name, "lose", &never]).unwrap();
        let mut all_of_it = strikes(counted.counts, &lost.hosts);
        if quickly {
            all_of_it = quick(*scenario, all_of_it, &counted.tunnel);
        }
        let runs: Vec<_> = all_of_it
            .into_iter()
            .map(|strike| {
                let [kind, number] = words(strike);
                vec!["point".to_owned(), scenario.name.to_owned(), kind, number]
            })
            .collect();
        let (failed, phases) = all(&runs);
        tell(&failed);
        let of = |kind| runs.iter().filter(|run| run[2] == kind).count();
        let [crashes, lists, events, writes, losses] =
            ["crash", "stale-list", "drop-event", "unanswered", "lose"].map(of);
        println!(
            "{:<32} {crashes:>4} crashes {lists:>3} stale lists {events:>3} lost events {writes:>3} unanswered writes \
             {losses:>4} hosts lost, {} failed; {phases:?}",
            scenario.name,
            failed.len()
        );
        points += runs.len();
        broken += failed.len();
    }
    println!("{points} points swept, {broken} failed");
    ExitCode::from(u8::from(broken > 0))
}
