//! The simulation and the sweep, each run in a process of its own.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a failing test may panic")]

use std::path::Path;
use std::process::Command;

use godwit_simulation::many::once;

const SIMULATE: &str = env!("CARGO_BIN_EXE_simulate");

fn passes(arguments: &[&str]) {
    let output = Command::new(SIMULATE).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{said}{words}");
}

/// `GODWIT_SIMULATION_SEEDS`: how many, 300 without it; the same for everybody.
#[test]
#[ignore = "a suite of its own: tests/run"]
fn nothing_is_wrong_in_any_seed() {
    let count = std::env::var("GODWIT_SIMULATION_SEEDS").unwrap_or_else(|_| "300".into());
    passes(&["seeds", &count]);
}

/// Every point of every scenario; through the tunnel, those that are the tunnel's. `make sweep` has them all.
#[test]
#[ignore = "a suite of its own: tests/run"]
fn nothing_is_wrong_at_any_point() {
    passes(&["sweep", "quick"]);
}

/// A seed is the same run each time, step for step; without that a failing one could not be looked at.
#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in ["1", "2", "3", "5", "8", "13", "21", "34"] {
        let [first, second] = [(); 2].map(|()| once(Path::new(SIMULATE), &["seed", seed]).unwrap());
        assert_eq!(first, second, "seed {seed}");
    }
}
