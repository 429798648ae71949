//! A model of the production state machines: every interleaving of two agents, two hypervisor processes, drivers and
//! the guest's record, with lost, repeated and reordered messages and a bounded number of faults. `docs/safety.md` says
//! what is in it, and what is not.
//!
//! `GODWIT_MODEL_FAULTS` sets how many faults may happen in one history (1 by default; the test command takes 2).

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]

mod action;
mod administrator;
mod agents;
mod catches;
mod driving;
mod faults;
mod guest_record;
mod migration;
mod mutants;
mod processes;
mod properties;
mod record;
// The very rules by which production changes a record. They need no Kubernetes, and their crate would bring it.
#[allow(
    dead_code,
    unused_imports,
    reason = "a migration's parties do not use all of it"
)]
#[path = "../../../crds/src/record_change.rs"]
mod record_change;
mod resolution {
    //! What an administrator may say.

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum ResolutionAction {
        Wait,
        ColdStart,
        ResumeSource,
    }
}
mod shared;
mod work;
mod world;

use std::time::{Duration, Instant};

use action::Fault;
use driving::Flow;
use migration::Migration;
use stateright::report::{ReportData, ReportDiscovery, Reporter};
use stateright::{Checker, HasDiscoveries, Model};

/// Up to so many faults the worlds are visited breadth first, which finds the shortest way to one that is wrong. Of more of
/// them there are too many to keep those that were not visited yet in memory: then depth first.
const BREADTH_FIRST: u8 = 2;

fn faults() -> u8 {
    std::env::var("GODWIT_MODEL_FAULTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Says now and then how far it is.
struct Progress {
    next: Duration,
}

impl Reporter<Migration> for Progress {
    fn report_checking(&mut self, data: ReportData) {
        if data.duration < self.next {
            return;
        }
        self.next = data.duration + Duration::from_secs(10);
        println!(
            "{:>6} s: {:>10} states, {:>10} of them unique, {} steps deep",
            data.duration.as_secs(),
            data.total_states,
            data.unique_states,
            data.max_depth
        );
    }

    fn report_discoveries(
        &mut self,
        _: &Migration,
        _: std::collections::BTreeMap<&'static str, ReportDiscovery<Migration>>,
    ) {
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(50)
    }
}

/// What happens around a host that is gone for good: with more kinds of fault there would be too many worlds.
const LOSSES: &[Fault] = &[
    Fault::SourceHostLost,
    Fault::DestinationHostLost,
    Fault::SourceAgentCrash,
    Fault::DestinationAgentCrash,
    Fault::LateFailure,
    Fault::StreamBreaks,
    Fault::SourceUnheard,
    Fault::DestinationUnheard,
    Fault::SourceHearsNobody,
    Fault::DestinationHearsNobody,
    Fault::SourceDecisionUnanswered,
    Fault::DestinationDecisionUnanswered,
    Fault::RecordWriteUnanswered,
    Fault::StartUnanswered,
    Fault::NextMigration,
    Fault::Cancel,
];

fn the_rules_hold(flow: Flow, strict: bool, only: Option<&'static [Fault]>) {
    let began = Instant::now();
    // Strict terms, and the loss of hosts, differ in a few steps; a fault less of them is seen for the time that it takes.
    let faults = if strict || only.is_some() {
        faults().saturating_sub(1).max(1)
    } else {
        faults()
    };
    let terms = match (strict, only) {
        (false, None) => "",
        (true, None) => "strict, ",
        (false, Some(_)) => "hosts lost for good, ",
        (true, Some(_)) => "strict, hosts lost for good, ",
    };
    println!("{flow:?}, {terms}at most {faults} faults:");
    let checker = Migration {
        flow,
        strict,
        faults,
        only,
        mutant: None,
    }
    .checker()
    .threads(threads())
    .finish_when(HasDiscoveries::AnyFailures);
    if faults > BREADTH_FIRST {
        judge(
            checker.spawn_dfs(),
            began,
            &format!("{flow:?}, {terms}at most {faults} faults"),
        );
    } else {
        judge(
            checker.spawn_bfs(),
            began,
            &format!("{flow:?}, {terms}at most {faults} faults"),
        );
    }
}

fn judge(checker: impl Checker<Migration>, began: Instant, what: &str) {
    let checker = checker.report(&mut Progress {
        next: Duration::from_secs(10),
    });
    println!(
        "{what}: {} states, {} of them unique, in {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        began.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

#[test]
fn the_rules_hold_where_the_controller_drives() {
    the_rules_hold(Flow::ControllerDrives, false, None);
}

#[test]
fn the_rules_hold_where_the_source_drives() {
    the_rules_hold(Flow::SourceDrives, false, None);
}

#[test]
fn the_strict_rules_hold_where_the_controller_drives() {
    the_rules_hold(Flow::ControllerDrives, true, None);
}

#[test]
fn the_strict_rules_hold_where_the_source_drives() {
    the_rules_hold(Flow::SourceDrives, true, None);
}

#[test]
fn the_rules_hold_where_a_host_is_lost_and_the_controller_drives() {
    the_rules_hold(Flow::ControllerDrives, false, Some(LOSSES));
    the_rules_hold(Flow::ControllerDrives, true, Some(LOSSES));
}

#[test]
fn the_rules_hold_where_a_host_is_lost_and_the_source_drives() {
    the_rules_hold(Flow::SourceDrives, false, Some(LOSSES));
    the_rules_hold(Flow::SourceDrives, true, Some(LOSSES));
}
