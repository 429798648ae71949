//! Arbitrary values of the words that all three machines share.

use godwit_handover::{
    Cause, Channel, Decision, Gates, Go, GoEvidence, RecordView, Standing, StandingBecause, StreamFact,
    Terms, Token, Wanted, Word,
};
use proptest::prelude::*;

pub const GATES: Gates = Gates {
    seal: true,
    hold_before_switchover: true,
    keep_destination_paused: true,
    inactivate_disks: true,
};

pub fn terms() -> Terms {
    Terms {
        migration: "m".into(),
        guest: "g".into(),
        epoch: 7,
        source: "s".into(),
        destination: "d".into(),
        strict: false,
    }
}

pub fn other_terms() -> Terms {
    Terms {
        migration: "n".into(),
        ..terms()
    }
}

pub fn channel() -> Channel {
    Channel {
        uri: "tcp://192.0.2.1:1".into(),
        token: Token(vec![1]),
    }
}

pub fn other_channel() -> Channel {
    Channel {
        uri: "tcp://192.0.2.1:2".into(),
        token: Token(vec![2]),
    }
}

pub fn cause() -> impl Strategy<Value = Cause> {
    prop::sample::select(vec![
        Cause::Cancelled,
        Cause::DestinationFailed,
        Cause::DriverSilent,
        Cause::StreamFailed,
        Cause::Reverted,
    ])
}

pub fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![4 => Just(Wanted::Run), 1 => Just(Wanted::StayStopped)]
}

pub fn go() -> impl Strategy<Value = Go> {
    let evidence = prop::sample::select(vec![
        GoEvidence::Completed,
        GoEvidence::SealedAndReleased,
        GoEvidence::SourceDead,
    ]);
    (evidence, wanted(), any::<bool>()).prop_map(|(evidence, wanted, sealed)| Go {
        evidence,
        wanted,
        sealed,
    })
}

pub fn stream_fact() -> impl Strategy<Value = StreamFact> {
    prop::sample::select(vec![
        StreamFact::None,
        StreamFact::Active,
        StreamFact::BeforeSwitchover,
        StreamFact::SwitchingOver,
        StreamFact::Completed,
        StreamFact::Failed,
        StreamFact::Cancelled,
    ])
}

pub fn armed() -> RecordView {
    RecordView {
        holder: terms().source,
        epoch: terms().epoch,
        migration: Some(terms().migration),
        decision: Decision::None,
        started: false,
        word: None,
    }
}

pub fn advanced() -> RecordView {
    RecordView {
        holder: terms().destination,
        epoch: terms().epoch + 1,
        migration: Some(terms().migration),
        decision: Decision::Committed,
        started: false,
        word: None,
    }
}

/// The guest was started afresh elsewhere: an administrator has fenced the destination.
pub fn afresh() -> RecordView {
    RecordView {
        holder: "t".into(),
        epoch: terms().epoch + 2,
        migration: None,
        decision: Decision::None,
        started: false,
        word: Some(Word {
            migration: Some(terms().migration),
            fenced: vec![terms().destination],
            lost: true,
            cold_start: Some(terms().epoch + 2),
        }),
    }
}

/// An administrator has fenced these hosts, and nothing else has changed.
pub fn fenced(record: RecordView, hosts: &[String], lost: bool) -> RecordView {
    RecordView {
        word: Some(Word {
            migration: Some(terms().migration),
            fenced: hosts.to_vec(),
            lost,
            cold_start: None,
        }),
        ..record
    }
}

/// By the destination, and not advanced.
pub fn committed() -> RecordView {
    RecordView {
        decision: Decision::Committed,
        ..armed()
    }
}

pub fn standing() -> impl Strategy<Value = Standing> {
    let because = prop::sample::select(vec![StandingBecause::Sealed, StandingBecause::SourceDead]);
    (because, wanted()).prop_map(|(because, wanted)| Standing { because, wanted })
}

pub fn reverted() -> RecordView {
    RecordView {
        decision: Decision::Reverted,
        ..armed()
    }
}

/// Any record that can be put together from the words at hand, most of them nonsense.
pub fn record() -> impl Strategy<Value = RecordView> {
    let host = prop::sample::select(vec!["s", "d", "t"]);
    let migration = prop::sample::select(vec![None, Some("m"), Some("n")]);
    let decision = prop::sample::select(vec![
        Decision::None,
        Decision::Committed,
        Decision::Aborted,
        Decision::Reverted,
    ]);
    (host, 6..10_u64, migration, decision).prop_map(|(holder, epoch, migration, decision)| RecordView {
        holder: holder.into(),
        epoch,
        migration: migration.map(Into::into),
        decision,
        started: false,
        word: None,
    })
}

/// A record that decides nothing about this migration: one word of a deciding record is another.
pub fn foreign_record() -> impl Strategy<Value = RecordView> {
    let deciding = prop::sample::select(vec![advanced(), reverted()]);
    (deciding, 0..4_u8, prop::option::of(Just("n".to_owned()))).prop_map(|(record, word, migration)| {
        match word {
            0 => RecordView { migration, ..record },
            1 => RecordView {
                holder: "t".into(),
                ..record
            },
            2 => RecordView {
                epoch: record.epoch + 2,
                ..record
            },
            _ => RecordView {
                decision: Decision::None,
                ..record
            },
        }
    })
}
