//! A model of the production state machines: every interleaving of two agents, two hypervisor processes and a
//! driver, with lost, repeated and reordered messages and a bounded number of faults.
//!
//! `GODWIT_MODEL_FAULTS` sets how many faults may happen in one history (1 by default; the test command takes 2).

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests fail by panicking"
)]

mod actions;
mod mutants;
mod world;

use actions::{Action, Migration};
use godwit_handover::{Outcome, Stand, Wait};
use mutants::Mutant;
use std::collections::BTreeSet;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use world::World;

impl Model for Migration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.enabled(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let next = self.apply(world, &action);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property {
                expectation: Expectation::Always,
                name: "I1 one copy",
                condition: |_, w| !(w.source.running && w.destination.running),
            },
            Property {
                expectation: Expectation::Always,
                name: "I3 no way back",
                condition: |_, w| !(w.executed && w.source.running),
            },
            Property {
                expectation: Expectation::Always,
                name: "I4 succeeded means moved",
                condition: |_, w| match w.driver.stand() {
                    Stand::Ended(Outcome::Succeeded { running }) => {
                        w.source.destroyed_by_us || !w.source.alive && (w.executed || !running)
                    }
                    Stand::Ended(Outcome::Aborted(_) | Outcome::GuestLost(_)) | Stand::Waiting { .. } => true,
                },
            },
            Property {
                expectation: Expectation::Always,
                name: "I5 one destination process",
                condition: |_, w| w.destination.launches <= 1,
            },
            Property {
                expectation: Expectation::Always,
                name: "I7 no valid image destroyed",
                condition: |_, w| w.broken.is_none(),
            },
            Property {
                expectation: Expectation::Always,
                name: "rest is an ending or a named wait",
                condition: |m, w| m.may_rest(w),
            },
            Property {
                expectation: Expectation::Sometimes,
                name: "a migration succeeds",
                condition: |_, w| {
                    w.driver.stand() == Stand::Ended(Outcome::Succeeded { running: true }) && w.executed
                },
            },
        ]
    }
}

impl Migration {
    /// Where nothing but a fault can change anything, the migration has ended as its outcome says, or waits by
    /// name.
    fn may_rest(&self, world: &World) -> bool {
        let mut actions = vec![];
        self.enabled(world, &mut actions);
        let moves = actions
            .iter()
            .any(|a| !a.is_fault() && self.apply(world, a) != *world);
        if moves {
            return true;
        }
        match world.driver.stand() {
            Stand::Ended(Outcome::Succeeded { .. }) => !world.source.alive,
            Stand::Ended(Outcome::Aborted(_)) => !world.destination.alive,
            Stand::Ended(Outcome::GuestLost(_)) => {
                !world.source.running && !world.destination.running && !world.destination.alive
            }
            Stand::Waiting { wait: Wait::Decision } => true,
            Stand::Waiting { .. } => {
                // A journal that takes no entries keeps the guest stopped and says so.
                world.source_agent.journal_broken || world.destination_agent.journal_broken
            }
        }
    }
}

fn faults() -> u8 {
    std::env::var("GODWIT_MODEL_FAULTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[test]
fn the_rules_hold() {
    let checker = Migration {
        faults: faults(),
        only: None,
        mutant: None,
    }
    .checker()
    .threads(threads())
    .spawn_bfs()
    .join();
    println!(
        "{} states, {} of them unique",
        checker.state_count(),
        checker.unique_state_count()
    );
    checker.assert_properties();
}

/// The mutant must break the property by no more than these faults, one of each.
fn assert_caught(mutant: Mutant, property: &'static str, faults: &'static [Action]) {
    let budget = u8::try_from(faults.len()).expect("a few faults");
    let checker = Migration {
        faults: budget,
        only: Some(faults),
        mutant: Some(mutant),
    }
    .checker()
    .threads(threads())
    .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
    .spawn_bfs()
    .join();
    let path = checker.discovery(property).unwrap_or_else(|| {
        panic!(
            "{mutant:?} was not caught by {property:?}; found instead: {:?}",
            checker.discoveries().keys()
        )
    });
    println!("{mutant:?} breaks {property:?}:");
    for action in path.into_actions() {
        println!("  {action:?}");
    }
}

#[test]
fn mutant_no_seal_is_caught() {
    assert_caught(Mutant::NoSeal, "I1 one copy", &[Action::LateFailure]);
}

#[test]
fn mutant_cont_before_go_is_caught() {
    assert_caught(Mutant::ContBeforeGo, "I1 one copy", &[Action::LateFailure]);
}

#[test]
fn mutant_destroy_on_time_out_is_caught() {
    let faults = &[Action::DriverSilent, Action::SourceProcessDies];
    assert_caught(Mutant::DestroyOnTimeOut, "I7 no valid image destroyed", faults);
}

#[test]
fn mutant_resume_on_silence_is_caught() {
    assert_caught(Mutant::ResumeOnSilence, "I1 one copy", &[Action::DriverSilent]);
}

#[test]
fn mutant_unjournaled_cont_is_caught() {
    let faults = &[Action::DestinationAgentCrash, Action::DestinationProcessDies];
    assert_caught(Mutant::UnjournaledCont, "I3 no way back", faults);
}

#[test]
fn mutant_completed_without_acknowledgement_is_caught() {
    assert_caught(
        Mutant::CompletedUnacknowledged,
        "I1 one copy",
        &[Action::LateFailure],
    );
}

#[test]
fn mutant_advance_before_report_is_caught() {
    assert_caught(Mutant::AdvanceOnGo, "I7 no valid image destroyed", &[]);
}
