//! The second judge of a cell: the hypervisors themselves, asked over a monitor that is not the agent's.

use anyhow::{Context as _, ensure};
use godwit_lab::Lab;
use godwit_lab::observer::Monitors;

use crate::attempt::End;
use crate::guest::Guest;

/// The file that asks the agents for monitors.
const OBSERVED: &str = "observed";

/// Asks both hosts' hypervisors of a guest who runs, all the time.
pub struct Judge(Monitors);

/// Has each guest that is started from now on get a monitor for the judge.
pub fn ask_for_monitors(lab: &mut Lab) -> anyhow::Result<()> {
    for number in 1..=lab.hosts.len() {
        std::fs::write(lab.host(number)?.points().join(OBSERVED), "")?;
    }
    Ok(())
}

impl Judge {
    /// Watches a guest that was started on host 1, and its coming to host 2.
    pub fn watch(lab: &Lab, guest: &Guest) -> Self {
        let socket = format!("{}.monitor", guest.uid);
        let sockets = lab
            .hosts
            .iter()
            .map(|host| (host.name.clone(), host.points().join(&socket)));
        Self(Monitors::watch(sockets.collect()))
    }

    /// Says what it has seen, which must be as the end says: never two that ran at once, and nothing at a host where
    /// it is not to have run.
    pub fn agrees(&self, end: End) -> anyhow::Result<()> {
        let seen = self.0.verdict();
        let between = seen.between("h1", "h2");
        println!(
            "  the hypervisors: {} answers, {} of them bracketed, {} proofs of two; stopped {}",
            seen.answers,
            seen.brackets,
            seen.overlaps.len(),
            between.map_or_else(
                || "and never let run elsewhere".to_owned(),
                |time| format!("{:.1} ms before it was let run", ms(time))
            ),
        );
        ensure!(seen.overlaps.is_empty(), "two ran at once: {seen:#?}");
        ensure!(
            seen.ran_at("h1"),
            "the source's hypervisor was not heard: {seen:#?}"
        );
        match end {
            End::Moved => {
                let between = between.context("the destination's hypervisor was not heard")?;
                ensure!(between >= 0, "let run before it was stopped: {seen:#?}");
            }
            End::Stays | End::Lost => ensure!(!seen.ran_at("h2"), "it ran at the destination: {seen:#?}"),
        }
        Ok(())
    }
}

fn ms(us: i64) -> f64 {
    let us = i32::try_from(us).unwrap_or(i32::MAX);
    f64::from(us) / 1000.0
}
