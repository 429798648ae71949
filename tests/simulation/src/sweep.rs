//! The sweep: for each scenario, every point once.
//!
//! A scenario is run without a fault first, and its points are counted: each write to the API server (before it leaves,
//! and once its answer is there), each line of a journal (torn or not written, and written but not answered for), each
//! write of another file, each command to a hypervisor (before it, and before its answer is taken), each message (at
//! the sender, at the receiver, and before its answer leaves), each report of a watch (at both ends), each thing done
//! with the guests' processes and what is kept of them. Then it is run once for each of them, the process that comes
//! to it being killed there and started again; then once for each list that shows an old state, each event of a watch
//! that is lost, and each write that is applied and answered with an error.

use crate::run::{End, Loss, Plan, Wish};
use crate::sim::Strike;

/// A scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    flow: &'static str,
    end: End,
    kind: Kind,
    tunnelled: bool,
}

/// How its handover goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sealed,
    Unsealed,
    Strict,
}

const fn of(name: &'static str, flow: &'static str, end: End, kind: Kind) -> Scenario {
    Scenario {
        name,
        flow,
        end,
        kind,
        tunnelled: false,
    }
}

/// The same through the tunnel.
const fn tunnelled(name: &'static str, flow: &'static str, end: End, kind: Kind) -> Scenario {
    Scenario {
        tunnelled: true,
        ..of(name, flow, end, kind)
    }
}

const MANAGED: &str = "ManagedDirect";
const PEER: &str = "PeerToPeer";
/// In the middle of pre-copy, as the scenarios go.
const AMIDST: u64 = 150;

/// Every scenario.
pub const SCENARIOS: [Scenario; 16] = [
    of("managed-direct/succeed", MANAGED, End::Succeed, Kind::Sealed),
    of(
        "managed-direct/succeed-unsealed",
        MANAGED,
        End::Succeed,
        Kind::Unsealed,
    ),
    of("managed-direct/strict", MANAGED, End::Succeed, Kind::Strict),
    of(
        "managed-direct/cancel",
        MANAGED,
        End::Cancel(AMIDST),
        Kind::Sealed,
    ),
    of("managed-direct/fail", MANAGED, End::Fail, Kind::Sealed),
    tunnelled("managed-direct/tunnelled", MANAGED, End::Succeed, Kind::Sealed),
    tunnelled(
        "managed-direct/tunnelled-cancel",
        MANAGED,
        End::Cancel(AMIDST),
        Kind::Sealed,
    ),
    tunnelled("managed-direct/tunnelled-fail", MANAGED, End::Fail, Kind::Sealed),
    of("peer-to-peer/succeed", PEER, End::Succeed, Kind::Sealed),
    of(
        "peer-to-peer/succeed-unsealed",
        PEER,
        End::Succeed,
        Kind::Unsealed,
    ),
    of("peer-to-peer/strict", PEER, End::Succeed, Kind::Strict),
    of("peer-to-peer/cancel", PEER, End::Cancel(AMIDST), Kind::Sealed),
    of("peer-to-peer/fail", PEER, End::Fail, Kind::Sealed),
    tunnelled("peer-to-peer/tunnelled", PEER, End::Succeed, Kind::Sealed),
    tunnelled(
        "peer-to-peer/tunnelled-cancel",
        PEER,
        End::Cancel(AMIDST),
        Kind::Sealed,
    ),
    tunnelled("peer-to-peer/tunnelled-fail", PEER, End::Fail, Kind::Sealed),
];

impl Scenario {
    /// The plan of this scenario with that fault, or without one.
    pub fn plan(&self, strike: Option<Strike>) -> Plan {
        Plan {
            seed: 7,
            wishes: vec![Wish {
                flow: self.flow,
                end: self.end,
                unsealed: self.kind == Kind::Unsealed,
                strict: self.kind == Kind::Strict,
                tunnelled: self.tunnelled,
            }],
            faults: Vec::new(),
            crashes: Vec::new(),
            strike,
            // The key for tickets is made in one scenario of each flow.
            first: self.end == End::Succeed && self.kind == Kind::Sealed && !self.tunnelled,
            loss: match strike {
                Some(Strike::Lose(number)) => Some(Loss {
                    at: None,
                    back: number % 2 == 0,
                }),
                Some(
                    Strike::Crash(_) | Strike::Unanswered(_) | Strike::DropEvent(_) | Strike::StaleList(_),
                )
                | None => None,
            },
        }
    }
}

/// The faults of a scenario whose run without one counted so many points, writes, events and lists, and these of the points
/// as a host's.
pub fn strikes([points, writes, events, lists]: [usize; 4], hosts: &[usize]) -> Vec<Strike> {
    let lost = hosts.iter().copied().map(Strike::Lose);
    let crashes = (0..points).map(Strike::Crash);
    let unanswered = (0..writes).map(Strike::Unanswered);
    let dropped = (0..events).map(Strike::DropEvent);
    let stale = (0..lists).map(Strike::StaleList);
    crashes
        .chain(stale)
        .chain(dropped)
        .chain(unanswered)
        .chain(lost)
        .collect()
}

/// Those that a quick sweep leaves: no lost hosts, which take their time; and through the tunnel, the crashes at what is the
/// tunnel's. The rest is what the same scenario has without it.
pub fn quick(scenario: Scenario, mut strikes: Vec<Strike>, tunnel: &[usize]) -> Vec<Strike> {
    if !scenario.tunnelled {
        strikes.retain(|strike| !matches!(strike, Strike::Lose(_)));
        return strikes;
    }
    tunnel.iter().copied().map(Strike::Crash).collect()
}

/// A fault as the program takes it.
pub fn words(strike: Strike) -> [String; 2] {
    let (kind, number) = match strike {
        Strike::Crash(number) => ("crash", number),
        Strike::Lose(number) => ("lose", number),
        Strike::StaleList(number) => ("stale-list", number),
        Strike::DropEvent(number) => ("drop-event", number),
        Strike::Unanswered(number) => ("unanswered", number),
    };
    [kind.to_owned(), number.to_string()]
}

/// The fault that these words mean.
pub fn strike(kind: &str, number: &str) -> Option<Strike> {
    let number = number.parse().ok()?;
    match kind {
        "crash" => Some(Strike::Crash(number)),
        "lose" => Some(Strike::Lose(number)),
        "stale-list" => Some(Strike::StaleList(number)),
        "drop-event" => Some(Strike::DropEvent(number)),
        "unanswered" => Some(Strike::Unanswered(number)),
        _ => None,
    }
}
