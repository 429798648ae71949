//! Anything that our own programs could say.

use std::time::Duration;

use godwit_handover::{
    Cause, Channel, DestinationReport, Go, GoEvidence, Phase, SourceReport, Standing, StandingBecause, Terms,
    Token, Wanted,
};
use godwit_protocol::clock::Offset;
use godwit_protocol::{
    Drive, Driving, GaveUp, GuestName, Order, OtherSide, Progress, Side, StreamOptions, Told, Transport,
    Update,
};
use proptest::prelude::*;

fn uid() -> impl Strategy<Value = String> {
    "[0-9a-zA-Z-]{1,63}"
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,10}){0,3}"
}

pub fn terms() -> impl Strategy<Value = Terms> {
    (
        uid(),
        uid(),
        0..i64::MAX.unsigned_abs(),
        any::<bool>(),
        name(),
        name(),
    )
        .prop_filter("two hosts", |(.., source, destination)| source != destination)
        .prop_map(|(migration, guest, epoch, strict, source, destination)| Terms {
            migration,
            guest,
            epoch,
            source,
            destination,
            strict,
        })
}

fn channel() -> impl Strategy<Value = Channel> {
    ("[!-~]{1,512}", proptest::collection::vec(any::<u8>(), 32)).prop_map(|(uri, token)| Channel {
        uri,
        token: Token(token),
    })
}

fn cause() -> impl Strategy<Value = Cause> {
    prop::sample::select(vec![
        Cause::Cancelled,
        Cause::DestinationFailed,
        Cause::DestinationDied,
        Cause::SourceDied,
        Cause::StreamFailed,
        Cause::DriverSilent,
        Cause::PathNotProven,
        Cause::GuestStopped,
        Cause::JournalFailed,
        Cause::HypervisorRefused,
        Cause::Reverted,
    ])
}

fn go() -> impl Strategy<Value = Go> {
    (
        prop::sample::select(vec![
            GoEvidence::Completed,
            GoEvidence::SealedAndReleased,
            GoEvidence::SourceDead,
        ]),
        prop::sample::select(vec![Wanted::Run, Wanted::StayStopped]),
        any::<bool>(),
    )
        .prop_map(|(evidence, wanted, sealed)| Go {
            evidence,
            wanted,
            sealed,
        })
}

pub fn guest() -> impl Strategy<Value = GuestName> {
    (uid(), "[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?", name()).prop_map(|(uid, namespace, name)| GuestName {
        uid,
        namespace,
        name,
    })
}

pub fn definition() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..300)
}

fn maybe_wanted() -> impl Strategy<Value = Option<Wanted>> {
    prop::sample::select(vec![None, Some(Wanted::Run), Some(Wanted::StayStopped)])
}

fn source_report() -> impl Strategy<Value = SourceReport> {
    prop_oneof![
        Just(SourceReport::Begun),
        Just(SourceReport::Streaming),
        any::<bool>().prop_map(|sealed| SourceReport::Stopped { sealed }),
        (any::<bool>(), any::<bool>(), maybe_wanted()).prop_map(|(sealed, ready, wanted)| {
            SourceReport::Switching {
                sealed,
                ready,
                wanted,
            }
        }),
        (any::<bool>(), any::<bool>(), maybe_wanted()).prop_map(|(sealed, ready, wanted)| {
            SourceReport::InDoubt {
                sealed,
                ready,
                wanted,
            }
        }),
        (cause(), maybe_wanted(), any::<bool>())
            .prop_map(|(cause, dead, sealed)| { SourceReport::Deciding { cause, dead, sealed } }),
        (
            any::<bool>(),
            prop::sample::select(vec![Wanted::Run, Wanted::StayStopped])
        )
            .prop_map(|(sealed, wanted)| SourceReport::Blocked { sealed, wanted }),
        Just(SourceReport::Yielded),
        go().prop_map(SourceReport::GoSent),
        Just(SourceReport::Released),
        cause().prop_map(SourceReport::Aborting),
        cause().prop_map(SourceReport::Aborted),
        Just(SourceReport::Died),
        cause().prop_map(SourceReport::Lost),
    ]
}

fn destination_report() -> impl Strategy<Value = DestinationReport> {
    prop_oneof![
        Just(DestinationReport::Preparing),
        channel().prop_map(DestinationReport::Prepared),
        Just(DestinationReport::Receiving),
        Just(DestinationReport::Loaded),
        Just(DestinationReport::Blocked),
        Just(DestinationReport::Deciding),
        Just(DestinationReport::Starting),
        any::<bool>().prop_map(|running| DestinationReport::Holding { running }),
        cause().prop_map(DestinationReport::Reverting),
        cause().prop_map(DestinationReport::Reverted),
        cause().prop_map(DestinationReport::Lost),
    ]
}

pub fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        ((1u64..=3_600_000_000), stream()).prop_map(|(micros, stream)| Order::Begin {
            max_downtime: Duration::from_micros(micros),
            stream,
        }),
        (guest(), definition(), stream(), ticket()).prop_map(|(guest, definition, stream, ticket)| {
            Order::Prepare {
                guest,
                definition,
                stream,
                ticket,
            }
        }),
        drive().prop_map(|drive| Order::Drive(Box::new(drive))),
        channel().prop_map(Order::Perform),
        Just(Order::Ready),
        go().prop_map(Order::Finish),
        Just(Order::Confirm),
        cause().prop_map(Order::AbortSource),
        cause().prop_map(Order::AbortDestination),
        Just(Order::Settle),
        (
            prop::sample::select(vec![
                StandingBecause::Sealed,
                StandingBecause::SourceDead,
                StandingBecause::SourceFenced
            ]),
            prop::sample::select(vec![Wanted::Run, Wanted::StayStopped]),
        )
            .prop_map(|(because, wanted)| Order::SourceStands(Standing { because, wanted })),
        cause().prop_map(Order::ArbitrateSource),
        Just(Order::ArbitrateDestination),
        (0..=i64::MAX.unsigned_abs()).prop_map(|bandwidth| Order::Retune { bandwidth }),
    ]
}

fn stream() -> impl Strategy<Value = StreamOptions> {
    let transport = prop_oneof![Just(Transport::Native), Just(Transport::Tunnelled)];
    (
        transport,
        any::<bool>(),
        1u32..=16,
        0..=i64::MAX.unsigned_abs(),
        any::<Option<std::net::IpAddr>>(),
    )
        .prop_map(
            |(transport, encrypted, connections, bandwidth, source_address)| StreamOptions {
                transport,
                encrypted,
                connections,
                bandwidth,
                source_address,
            },
        )
}

fn progress() -> impl Strategy<Value = Progress> {
    any::<(u64, u64, u64, u64, u64, u64)>().prop_map(|figures| Progress {
        total_bytes: figures.0,
        transferred_bytes: figures.1,
        remaining_bytes: figures.2,
        dirty_bytes_per_second: figures.3,
        bytes_per_second: figures.4,
        iteration: figures.5,
    })
}

pub fn update() -> impl Strategy<Value = Update> {
    let side = prop_oneof![
        source_report().prop_map(Side::Source),
        destination_report().prop_map(Side::Destination),
    ];
    (
        proptest::option::of(side),
        proptest::option::of(progress()),
        proptest::option::of(1..i64::MAX),
        proptest::option::of(1..i64::MAX),
        proptest::option::of(any::<u64>()),
        proptest::option::of(1..u64::MAX),
        "[ -~ä]{0,500}",
        "[A-Za-z]{0,64}",
        proptest::option::of(driving().prop_map(Box::new)),
        any::<bool>(),
    )
        .prop_map(
            |(side, progress, stopped, resumed, downtime, total, detail, reason, driving, held_back)| {
                Update {
                    side,
                    progress,
                    stopped_at_micros: stopped,
                    resumed_at_micros: resumed,
                    hypervisor_downtime_millis: downtime,
                    hypervisor_total_millis: total,
                    detail,
                    reason,
                    driving,
                    held_back,
                }
            },
        )
}

fn ticket() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

fn drive() -> impl Strategy<Value = Drive> {
    (
        guest(),
        "[a-z0-9.]{1,40}:[1-9][0-9]{0,3}",
        1u64..=3_600_000_000,
        stream(),
        1000u64..=3_600_000,
        ticket(),
    )
        .prop_map(|(guest, endpoint, downtime, stream, silence, ticket)| Drive {
            guest,
            endpoint,
            max_downtime: Duration::from_micros(downtime),
            stream,
            silence: Duration::from_millis(silence),
            ticket,
        })
}

fn told() -> impl Strategy<Value = Told> {
    ("[A-Za-z]{0,64}", "[ -~ä]{0,200}").prop_map(|(reason, message)| Told { reason, message })
}

fn driving() -> impl Strategy<Value = Driving> {
    let clock = any::<(i64, u64)>().prop_map(|(micros, error_micros)| Offset { micros, error_micros });
    let destination = (
        proptest::option::of(destination_report()),
        proptest::option::of(1..i64::MAX),
        proptest::option::of(clock),
        told(),
    )
        .prop_map(|(report, resumed_at_micros, clock, failure)| OtherSide {
            report,
            resumed_at_micros,
            clock,
            failure,
        });
    let phases = [
        Phase::Begin,
        Phase::Prepare,
        Phase::Perform,
        Phase::Finish,
        Phase::Confirm,
    ];
    (
        proptest::option::of(destination),
        proptest::sample::subsequence(phases.to_vec(), 0..=5),
        any::<i64>(),
        proptest::option::of(1..i64::MAX),
        proptest::option::of((cause(), told())),
        proptest::option::of(told()),
    )
        .prop_map(
            |(destination, phases, at, ended_at_micros, gave_up, blocked)| Driving {
                destination,
                phases: phases.into_iter().map(|phase| (phase, at)).collect(),
                ended_at_micros,
                gave_up: gave_up.map(|(cause, told)| GaveUp { cause, told }),
                blocked,
            },
        )
}
