//! What must hold in every world, and where a world may come to rest.

use godwit_handover::{Outcome, SourceReport, Stand, Wait};
use stateright::{Expectation, Model, Property};

use crate::action::Action;
use crate::agents::Pen;
use crate::driving::Seat;
use crate::migration::Migration;
use crate::world::{Broken, World, terms};

pub const ONE_COPY: &str = "I1 one copy";
pub const SOMEBODY: &str = "I2 a guest with a valid image is not left standing";
pub const NO_WAY_BACK: &str = "I3 no way back";
pub const SUCCEEDED: &str = "I4 succeeded means moved";
pub const RECORDED: &str = "I4 an ending stands in the record";
pub const ONE_DESTINATION: &str = "I5 one destination process";
pub const REST: &str = "I6 rest is an ending or a named wait";
pub const SETTLED: &str = "I6 a guest that runs at the destination is not left undecided";
pub const IMAGE: &str = "I7 no valid image destroyed";
pub const RECORD: &str = "I8 the record changes by its rules";
pub const LOCKS: &str = "rule 1: no cont while the source holds the disks";
pub const NAMED: &str = "rule 6: no source destroyed that the record names";
pub const PATH: &str = "rule 8: no switchover without a proof of the path";
pub const ENDED: &str = "a guest that ended is not run again";

fn always(name: &'static str, condition: fn(&Migration, &World) -> bool) -> Property<Migration> {
    Property {
        expectation: Expectation::Always,
        name,
        condition,
    }
}

impl Model for Migration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.flow, self.strict, self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.enabled(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let next = self.apply(world, &action);
        // A fault that changes nothing has not happened.
        let mut paid = world.clone();
        paid.faults_left = next.faults_left;
        (next != paid).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            always(ONE_COPY, |_, w| {
                let copies = [w.source.running, w.destination.running, w.afresh];
                copies.into_iter().filter(|runs| *runs).count() <= 1
            }),
            always(NO_WAY_BACK, |_, w| !(w.executed && w.source.running)),
            always(SOMEBODY, |m, w| w.somebody_runs() || m.moves(w)),
            always(SUCCEEDED, |_, w| {
                outcomes(w).all(|outcome| match outcome {
                    Outcome::Succeeded { running } => {
                        w.source.destroyed_by_us || !w.source.alive && (w.executed || !running)
                    }
                    Outcome::Aborted(_) | Outcome::GuestLost(_) => true,
                })
            }),
            always(RECORDED, |_, w| {
                // Of two leaders the one that knew of nothing yet may end before the other.
                let led = w.drivers.iter().any(|seat| !seat.ended());
                outcomes(w).all(|outcome| led || recorded(w, outcome))
            }),
            always(ONE_DESTINATION, |_, w| w.destination.launches <= 1),
            always(REST, |m, w| w.ends_or_waits() || m.moves(w)),
            always(SETTLED, |m, w| w.is_settled() || m.moves(w)),
            always(IMAGE, |_, w| w.broken != Some(Broken::ImageDestroyed)),
            always(RECORD, |_, w| w.broken != Some(Broken::RecordRules)),
            always(LOCKS, |_, w| w.broken != Some(Broken::LockedOut)),
            always(NAMED, |_, w| w.broken != Some(Broken::DestroyedWhileNamed)),
            always(PATH, |_, w| w.broken != Some(Broken::PathNotProven)),
            always(ENDED, |_, w| w.broken != Some(Broken::EndedGuestRun)),
            Property {
                expectation: Expectation::Sometimes,
                name: "a migration succeeds",
                condition: |_, w| {
                    w.executed && outcomes(w).any(|outcome| outcome == Outcome::Succeeded { running: true })
                },
            },
        ]
    }
}

fn outcomes(w: &World) -> impl Iterator<Item = Outcome> {
    w.drivers.iter().filter_map(Seat::outcome)
}

/// Whoever reads the record learns of the same ending. One that the guest's next migration has replaced was read
/// before; and where nothing was begun it may never have been armed.
fn recorded(w: &World, outcome: Outcome) -> bool {
    let record = w.record.view();
    if !w.record.is_for(&terms()) {
        return record.migration.is_some() || w.afresh || matches!(outcome, Outcome::Aborted(_));
    }
    match outcome {
        Outcome::Succeeded { .. } => record.advanced_for(&terms()),
        Outcome::Aborted(_) => record.reverted_for(&terms()),
        Outcome::GuestLost(_) => record.advanced_for(&terms()) || record.reverted_for(&terms()),
    }
}

impl Migration {
    /// Whether anything but a fault can change anything.
    fn moves(&self, world: &World) -> bool {
        let mut actions = vec![];
        self.enabled(world, &mut actions);
        actions
            .iter()
            .any(|a| !a.is_fault() && self.apply(world, a) != *world)
    }
}

impl World {
    fn journals_are_good(&self) -> bool {
        self.source_agent.pen == Pen::Good && self.destination_agent.pen == Pen::Good
    }

    /// Every driver has ended as its outcome says, or waits by name.
    fn ends_or_waits(&self) -> bool {
        self.drivers.iter().all(|seat| match seat.driver.stand() {
            Stand::Ended(Outcome::Succeeded { .. }) => !self.source.alive,
            Stand::Ended(Outcome::Aborted(_)) => !self.destination.alive,
            Stand::Ended(Outcome::GuestLost(_)) => {
                !self.source.running && !self.destination.running && !self.destination.alive
            }
            Stand::Waiting { wait: Wait::Decision } => true,
            // A journal that takes no entries keeps the guest stopped and says so.
            Stand::Waiting {
                wait: Wait::Source | Wait::Destination | Wait::Record,
            } => !self.journals_are_good(),
        })
    }

    /// The guest runs somewhere, or wants to stand still, or nobody can know whether the source's image is the newest.
    fn somebody_runs(&self) -> bool {
        let (s, d) = (&self.source, &self.destination);
        let runs = s.running || d.running || s.ended || s.paused;
        let both = s.alive && d.alive && d.loaded;
        let source_only = s.alive && !both;
        let destination_only = !s.alive && d.alive && d.loaded && !self.stale;
        runs || self.afresh
            || !(both || source_only || destination_only)
            || self.destination_holds()
            || self.kept_by_a_journal()
    }

    /// A broken journal keeps the guest standing where the other side cannot have the record decide: its own is broken
    /// too, or Go was said, or the destination has committed, or the source is dead or not sealed.
    fn kept_by_a_journal(&self) -> bool {
        let broken = (
            self.source_agent.pen != Pen::Good,
            self.destination_agent.pen != Pen::Good,
        );
        match (broken, self.source_report()) {
            ((false, false), _) => false,
            ((true, true), _) | (_, Some(SourceReport::GoSent(_))) => true,
            ((true, false), report) => !matches!(report, Some(SourceReport::Blocked { sealed: true, .. })),
            ((false, true), report) => {
                matches!(report, Some(SourceReport::Yielded | SourceReport::Died)) || !self.source.alive
            }
        }
    }

    /// No person is needed where the destination runs the guest.
    fn is_settled(&self) -> bool {
        let succeeded = outcomes(self).any(|outcome| outcome == Outcome::Succeeded { running: true });
        // Where the driver is gone for good, whoever watches reads the record and asks the destination.
        let recorded = self.source_gone && self.record.view().advanced_for(&terms());
        !self.destination.running || succeeded || recorded || !self.journals_are_good()
    }
}
