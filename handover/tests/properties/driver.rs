//! What a driver never orders, whatever it is told.

use godwit_handover::{
    Decision, DestinationReport, Driver, DriverEffect, DriverEvent, OrderKey, Outcome, RecordView, SideView,
    SourceReport, Stand, Standing, StandingBecause, Wait,
};
use proptest::prelude::*;

use crate::words;

pub fn source_report() -> impl Strategy<Value = SourceReport> {
    prop_oneof![
        Just(SourceReport::Begun),
        Just(SourceReport::Streaming),
        any::<bool>().prop_map(|sealed| SourceReport::Stopped { sealed }),
        (any::<bool>(), any::<bool>(), prop::option::of(words::wanted())).prop_map(
            |(sealed, ready, wanted)| SourceReport::Switching {
                sealed,
                ready,
                wanted
            }
        ),
        (any::<bool>(), any::<bool>(), prop::option::of(words::wanted())).prop_map(
            |(sealed, ready, wanted)| SourceReport::InDoubt {
                sealed,
                ready,
                wanted
            }
        ),
        (words::cause(), prop::option::of(words::wanted()), any::<bool>())
            .prop_map(|(cause, dead, sealed)| SourceReport::Deciding { cause, dead, sealed }),
        (any::<bool>(), words::wanted())
            .prop_map(|(sealed, wanted)| SourceReport::Blocked { sealed, wanted }),
        Just(SourceReport::Yielded),
        words::go().prop_map(SourceReport::GoSent),
        Just(SourceReport::Released),
        words::cause().prop_map(SourceReport::Aborting),
        words::cause().prop_map(SourceReport::Aborted),
        Just(SourceReport::Died),
        words::cause().prop_map(SourceReport::Lost),
    ]
}

pub fn destination_report() -> impl Strategy<Value = DestinationReport> {
    let channel = prop::sample::select(vec![words::channel(), words::other_channel()]);
    prop_oneof![
        Just(DestinationReport::Preparing),
        channel.prop_map(DestinationReport::Prepared),
        Just(DestinationReport::Receiving),
        Just(DestinationReport::Loaded),
        Just(DestinationReport::Blocked),
        Just(DestinationReport::Deciding),
        Just(DestinationReport::Starting),
        any::<bool>().prop_map(|running| DestinationReport::Holding { running }),
        words::cause().prop_map(DestinationReport::Reverting),
        words::cause().prop_map(DestinationReport::Reverted),
        words::cause().prop_map(DestinationReport::Lost),
    ]
}

/// The records that a migration sees, and now and then any other.
fn record() -> impl Strategy<Value = RecordView> {
    prop_oneof![
        6 => Just(words::armed()),
        3 => Just(words::advanced()),
        2 => Just(words::reverted()),
        2 => Just(words::committed()),
        3 => words::record(),
    ]
}

fn event() -> impl Strategy<Value = DriverEvent> {
    prop_oneof![
        1 => Just(DriverEvent::Cancel),
        8 => prop::option::weighted(0.9, source_report()).prop_map(DriverEvent::Source),
        8 => prop::option::weighted(0.9, destination_report()).prop_map(DriverEvent::Destination),
        6 => record().prop_map(DriverEvent::Record),
        1 => any::<bool>().prop_map(DriverEvent::SourceSilent),
        1 => any::<bool>().prop_map(DriverEvent::DestinationSilent),
        1 => words::cause().prop_map(DriverEvent::OrderFailed),
    ]
}

/// What a driver was told, newest last, and what it knows by it.
#[derive(Clone, Debug)]
struct Told {
    driver: Driver,
    events: Vec<DriverEvent>,
}

impl Told {
    fn record(&self) -> Option<&RecordView> {
        self.events.iter().rev().find_map(|event| match event {
            DriverEvent::Record(record) => Some(record),
            DriverEvent::Cancel
            | DriverEvent::Source(_)
            | DriverEvent::Destination(_)
            | DriverEvent::SourceSilent(_)
            | DriverEvent::DestinationSilent(_)
            | DriverEvent::OrderFailed(_) => None,
        })
    }

    /// Whether this side was last said to be silent.
    fn silent(&self, which: fn(bool) -> DriverEvent) -> bool {
        let last = |silent| self.events.iter().rposition(|event| *event == which(silent));
        last(true) > last(false)
    }

    /// Whether the source's last report says that its guest does not run again by itself.
    fn stands(&self, standing: Standing) -> bool {
        let Standing { because, wanted } = standing;
        let sealed = SourceReport::Blocked { sealed: true, wanted };
        if because == StandingBecause::Sealed && self.source() == Some(&sealed) {
            return true;
        }
        match (because, self.source()) {
            (
                StandingBecause::Sealed,
                Some(
                    SourceReport::Switching {
                        sealed: true,
                        wanted: told,
                        ..
                    }
                    | SourceReport::InDoubt {
                        sealed: true,
                        wanted: told,
                        ..
                    },
                ),
            )
            | (StandingBecause::SourceDead, Some(SourceReport::Deciding { dead: told, .. })) => {
                *told == Some(wanted)
            }
            (_, _) => false,
        }
    }

    fn armed(&self) -> bool {
        self.record().is_some_and(|r| r.migration.as_deref() == Some("m"))
    }

    fn advanced(&self) -> bool {
        self.record() == Some(&words::advanced())
    }

    /// Aborted or Reverted: the destination never will run the guest.
    fn decided_against(&self) -> bool {
        self.record().is_some_and(|r| {
            matches!(r.decision, Decision::Aborted | Decision::Reverted)
                && RecordView {
                    decision: Decision::None,
                    ..r.clone()
                } == words::armed()
        })
    }

    fn source(&self) -> Option<&SourceReport> {
        match self.driver.source() {
            SideView::Reported(report) => Some(report),
            SideView::Unheard | SideView::NoSuchMigration => None,
        }
    }

    fn destination(&self) -> Option<&DestinationReport> {
        match self.driver.destination() {
            SideView::Reported(report) => Some(report),
            SideView::Unheard | SideView::NoSuchMigration => None,
        }
    }

    /// The switchover was ordered, and the source has not let go.
    fn source_is_bound(&self) -> bool {
        matches!(
            self.source(),
            Some(
                SourceReport::Switching { .. }
                    | SourceReport::InDoubt { .. }
                    | SourceReport::Deciding { .. }
                    | SourceReport::Yielded
                    | SourceReport::Blocked { .. }
                    | SourceReport::GoSent(_)
                    | SourceReport::Died
            )
        )
    }

    fn source_ended_here(&self) -> bool {
        *self.driver.source() == SideView::NoSuchMigration
            || matches!(
                self.source(),
                Some(SourceReport::Aborted(_) | SourceReport::Lost(_))
            )
    }

    fn destination_is_clear(&self) -> bool {
        *self.driver.destination() == SideView::NoSuchMigration
            || matches!(self.destination(), Some(DestinationReport::Reverted(_)))
    }

    /// Whether the order follows from what is known.
    fn allows(&self, effect: &DriverEffect) -> bool {
        let (source, destination) = (self.source(), self.destination());
        let open = self.armed() && !self.advanced() && !self.decided_against();
        match effect {
            DriverEffect::ArmRecord => self
                .record()
                .is_none_or(|r| r.migration.as_deref() != Some("m") && r.holder == "s" && r.epoch == 7),
            DriverEffect::Begin => open && *self.driver.source() == SideView::NoSuchMigration,
            DriverEffect::Prepare => {
                open && source == Some(&SourceReport::Begun)
                    && *self.driver.destination() == SideView::NoSuchMigration
            }
            DriverEffect::Perform(channel) => {
                let offered = self.events.iter().any(|event| {
                    *event == DriverEvent::Destination(Some(DestinationReport::Prepared(channel.clone())))
                });
                let taken = matches!(
                    destination,
                    Some(DestinationReport::Receiving | DestinationReport::Loaded)
                );
                open && source == Some(&SourceReport::Begun)
                    && (destination == Some(&DestinationReport::Prepared(channel.clone()))
                        || offered && taken)
            }
            DriverEffect::Ready => {
                let waits = matches!(
                    source,
                    Some(
                        SourceReport::Switching { ready: false, .. }
                            | SourceReport::InDoubt { ready: false, .. }
                            | SourceReport::Died
                    )
                );
                open && waits && destination == Some(&DestinationReport::Loaded)
            }
            DriverEffect::Finish(go) => {
                open && source == Some(&SourceReport::GoSent(*go))
                    && matches!(
                        destination,
                        Some(DestinationReport::Loaded | DestinationReport::Deciding)
                    )
            }
            DriverEffect::AdvanceRecord => {
                open && self.source_is_bound()
                    && matches!(
                        destination,
                        Some(DestinationReport::Holding { .. } | DestinationReport::Lost(_))
                    )
            }
            DriverEffect::Confirm => {
                self.advanced()
                    && self.source_is_bound()
                    && matches!(
                        destination,
                        Some(DestinationReport::Holding { .. } | DestinationReport::Lost(_))
                    )
            }
            DriverEffect::AbortSource(_) => {
                !self.advanced()
                    && matches!(
                        source,
                        Some(SourceReport::Begun | SourceReport::Streaming | SourceReport::Stopped { .. })
                    )
            }
            DriverEffect::AbortDestination(_) => {
                // That a source knows nothing is no evidence against the only whole copy.
                let only_copy = open
                    && *self.driver.source() == SideView::NoSuchMigration
                    && matches!(
                        destination,
                        Some(DestinationReport::Loaded | DestinationReport::Blocked)
                    );
                self.armed() && !self.advanced() && self.source_ended_here() && !only_copy
            }
            DriverEffect::DecideRecord(Decision::Reverted) => {
                open && matches!(destination, Some(DestinationReport::Reverted(_)))
            }
            DriverEffect::DecideRecord(Decision::Aborted) => {
                open && self.source_ended_here() && self.destination_is_clear()
            }
            DriverEffect::DecideRecord(Decision::None | Decision::Committed) => false,
            DriverEffect::Settle => self.decided_against() && self.source_is_bound(),
            DriverEffect::TellStanding(standing) => {
                let takes = matches!(
                    destination,
                    Some(
                        DestinationReport::Prepared(_)
                            | DestinationReport::Receiving
                            | DestinationReport::Loaded
                    )
                );
                open && takes && self.stands(*standing)
            }
            DriverEffect::ArbitrateSource(_) => {
                let waits = matches!(
                    source,
                    Some(SourceReport::Switching { .. } | SourceReport::InDoubt { .. })
                );
                let blocked = destination == Some(&DestinationReport::Blocked);
                open && waits && (blocked || self.silent(DriverEvent::DestinationSilent))
            }
            DriverEffect::ArbitrateDestination => {
                let dead = matches!(
                    source,
                    Some(SourceReport::Deciding { dead: Some(_), .. } | SourceReport::Blocked { .. })
                );
                open && destination == Some(&DestinationReport::Loaded)
                    && (dead || self.silent(DriverEvent::SourceSilent))
            }
        }
    }
}

fn told() -> impl Strategy<Value = Told> {
    prop::collection::vec(event(), 0..30).prop_map(|events| {
        let driver = events.iter().fold(Driver::new(words::terms()), |driver, event| {
            driver.step(event.clone()).0
        });
        Told { driver, events }
    })
}

proptest! {
    /// Each order follows from what both sides and the record said last, and there is never more than one of a kind.
    #[test]
    fn every_order_has_its_reasons(told in told()) {
        let orders = told.driver.next();
        let kinds: std::collections::BTreeSet<OrderKey> = orders.iter().map(OrderKey::of).collect();
        prop_assert_eq!(kinds.len(), orders.len());
        for effect in &orders {
            prop_assert!(told.allows(effect), "{:?}", effect);
            let waits = matches!(told.driver.stand(), Stand::Waiting { .. });
            prop_assert!(waits);
        }
    }

    /// I4: success is told only of a guest that the record and the destination hold and the source has let go.
    #[test]
    fn an_outcome_has_its_reasons(told in told()) {
        match told.driver.stand() {
            Stand::Ended(Outcome::Succeeded { running }) => {
                prop_assert!(told.advanced());
                prop_assert_eq!(told.source(), Some(&SourceReport::Released));
                prop_assert_eq!(told.destination(), Some(&DestinationReport::Holding { running }));
            }
            Stand::Ended(Outcome::Aborted(_)) if told.armed() => {
                prop_assert!(told.decided_against() && told.destination_is_clear());
                prop_assert!(!matches!(told.source(), Some(SourceReport::Lost(_))));
                prop_assert!(told.source_ended_here());
            }
            Stand::Ended(Outcome::Aborted(_)) => {
                prop_assert!(told.source().is_none() && told.destination().is_none());
            }
            Stand::Ended(Outcome::GuestLost(_)) => {
                let at_source = told.decided_against() && matches!(told.source(), Some(SourceReport::Lost(_)));
                let at_destination =
                    told.advanced() && matches!(told.destination(), Some(DestinationReport::Lost(_)));
                prop_assert!(at_source || at_destination);
            }
            Stand::Waiting { .. } => {}
        }
    }

    /// The phase for people never goes back.
    #[test]
    fn the_phase_never_goes_back(events in prop::collection::vec(event(), 0..40)) {
        let mut driver = Driver::new(words::terms());
        for event in events {
            let (next, _) = driver.step(event);
            prop_assert!(next.phase() >= driver.phase());
            driver = next;
        }
    }

    /// Level-triggered: a driver that is started now and told what is so, in any order, gives the same order and
    /// stands at the same place as one that has seen everything.
    #[test]
    fn a_new_driver_goes_on_where_the_old_one_stood(told in told(), turn in 0..24_usize) {
        let mut known: Vec<DriverEvent> = told.record().cloned().map(DriverEvent::Record).into_iter().collect();
        if *told.driver.source() != SideView::Unheard {
            known.push(DriverEvent::Source(told.source().copied()));
        }
        if *told.driver.destination() != SideView::Unheard {
            known.push(DriverEvent::Destination(told.destination().cloned()));
        }
        // The user's word is in the object; the first failure of an order is what the driver holds on to.
        known.extend(told.events.iter().find(|e| matches!(e, DriverEvent::Cancel)).cloned());
        known.extend(told.events.iter().find(|e| matches!(e, DriverEvent::OrderFailed(_))).cloned());
        for which in [DriverEvent::SourceSilent, DriverEvent::DestinationSilent] {
            if told.silent(which) {
                known.push(which(true));
            }
        }
        // A channel that was offered before and is in use now is known to the old one only; the new one gives up.
        let in_use = matches!(
            told.destination(),
            Some(DestinationReport::Receiving | DestinationReport::Loaded)
        );
        prop_assume!(!(in_use && told.source() == Some(&SourceReport::Begun)));
        let length = known.len().max(1);
        known.rotate_left(turn % length);
        if turn % 2 == 0 {
            known.reverse();
        }
        let fresh = known.into_iter().fold(Driver::new(words::terms()), |d, event| d.step(event).0);
        prop_assert_eq!(fresh.next(), told.driver.next());
        prop_assert_eq!(fresh.stand(), told.driver.stand());
    }

    /// I9, I10: what is told again orders nothing; what is new orders what is due.
    #[test]
    fn a_repetition_orders_nothing(told in told(), event in event()) {
        let (once, step) = told.driver.step(event.clone());
        if once != told.driver {
            prop_assert_eq!(step.effects, once.next());
        }
        let (twice, step) = once.step(event);
        prop_assert!(step.effects.is_empty());
        prop_assert_eq!(once, twice);
    }

    /// A record of another migration moves nothing: it is armed where it is still the source's, and waited for
    /// otherwise.
    #[test]
    fn other_records_move_nothing(told in told(), record in words::record(), armed in any::<bool>()) {
        let migration = armed.then(|| words::other_terms().migration);
        let record = RecordView { migration, ..record };
        let (next, _) = told.driver.step(DriverEvent::Record(record));
        let harmless = next.next().iter().all(|effect| *effect == DriverEffect::ArmRecord);
        prop_assert!(harmless);
        let succeeded = matches!(next.stand(), Stand::Ended(Outcome::Succeeded { .. } | Outcome::GuestLost(_)));
        prop_assert!(!succeeded);
    }
}

/// I7: a source that has lost its journal says that it knows nothing, and the copy may be the only one left.
#[test]
fn a_source_that_knows_nothing_is_no_evidence_against_a_whole_copy() {
    let driver = [
        DriverEvent::Record(words::armed()),
        DriverEvent::Destination(Some(DestinationReport::Loaded)),
        DriverEvent::Source(None),
        DriverEvent::Cancel,
    ]
    .into_iter()
    .fold(Driver::new(words::terms()), |driver, event| driver.step(event).0);
    assert_eq!(driver.next(), []);
    let decision = Stand::Waiting { wait: Wait::Decision };
    assert_eq!(driver.stand(), decision);
}
