//! What is plugged for one side of one migration: names and addresses, made from little.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Side;

/// What the names of all cables' ends on the host begin with. No other device's name may.
pub(super) const DEVICES: &str = "gwm";
/// The other end's name, in the guest's namespace.
pub(super) const INSIDE: &str = "migration";
/// The first of the addresses that cables have: link-local ones (RFC 3927), which no network routes, clear of those
/// that clouds and node services are known to use.
const FIRST: Ipv4Addr = Ipv4Addr::new(169, 254, 208, 0);
/// So many pairs of addresses there are: a host has far fewer migrations at once.
const SLOTS: u16 = 1024;

/// Who is at the other end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    /// The guest is here and sends.
    Source {
        /// To where.
        to: SocketAddrV4,
    },
    /// The guest is to come here.
    Destination {
        /// Under which port it is reached, outside and inside.
        port: u16,
        /// Who may reach it.
        from: Ipv4Addr,
    },
}

impl End {
    pub(super) fn side(self) -> Side {
        match self {
            Self::Source { .. } => Side::Source,
            Self::Destination { .. } => Side::Destination,
        }
    }

    /// The other host's migration address.
    pub(super) fn peer(self) -> Ipv4Addr {
        match self {
            Self::Source { to } => *to.ip(),
            Self::Destination { from, .. } => from,
        }
    }
}

/// Everything that is plugged, or is about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    pub(super) migration: Uuid,
    pub(super) end: End,
    /// This host's migration address.
    pub(super) own: Ipv4Addr,
    /// The device that leads to the other host.
    pub(super) uplink: String,
    /// The largest packet of that device.
    pub(super) mtu: u32,
    /// Which pair of addresses the cable has.
    pub(super) slot: u16,
    /// Packets that come in there were passed on to nobody before.
    pub(super) restore_forwarding: bool,
}

/// The name under which one side of a migration is known.
pub(super) fn name(migration: Uuid, side: Side) -> String {
    match side {
        Side::Source => format!("{migration}-source"),
        Side::Destination => format!("{migration}-destination"),
    }
}

impl Plan {
    pub(super) fn name(&self) -> String {
        name(self.migration, self.end.side())
    }

    /// The cable's end on the host: the side's letter and 44 bits of the UID, within the kernel's 15 characters.
    pub(super) fn device(&self) -> String {
        let letter = match self.end.side() {
            Side::Source => 's',
            Side::Destination => 'd',
        };
        let digits = self.migration.simple().to_string();
        let tail = digits.get(digits.len().saturating_sub(11)..).unwrap_or_default();
        format!("{DEVICES}{letter}{tail}")
    }

    /// The table of the packet filter.
    pub(super) fn table(&self) -> String {
        let side = match self.end.side() {
            Side::Source => "source",
            Side::Destination => "destination",
        };
        format!("godwit_{side}_{}", self.migration.simple())
    }

    /// The address of the cable's end on the host.
    pub(super) fn host_address(&self) -> Ipv4Addr {
        host_address(self.slot)
    }

    /// The address of the guest's end.
    pub(super) fn guest_address(&self) -> Ipv4Addr {
        guest_address(self.slot)
    }
}

fn host_address(slot: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST.to_bits() + 2 * u32::from(slot))
}

fn guest_address(slot: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST.to_bits() + 2 * u32::from(slot) + 1)
}

/// The first pair of addresses that neither a plan nor the host has.
pub(super) fn free_slot(taken: impl Iterator<Item = u16>, addresses: &[Ipv4Addr]) -> Option<u16> {
    let taken: Vec<_> = taken.collect();
    (0..SLOTS).find(|slot| {
        !taken.contains(slot)
            && !addresses.contains(&host_address(*slot))
            && !addresses.contains(&guest_address(*slot))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn plan(end: End) -> Plan {
        Plan {
            migration: Uuid::parse_str("6f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e").unwrap(),
            end,
            own: Ipv4Addr::new(192, 0, 2, 1),
            uplink: "eth0".into(),
            mtu: 1500,
            slot: 3,
            restore_forwarding: false,
        }
    }

    pub(in super::super) fn source() -> Plan {
        plan(End::Source {
            to: "192.0.2.2:49160".parse().unwrap(),
        })
    }

    pub(in super::super) fn destination() -> Plan {
        plan(End::Destination {
            port: 49160,
            from: Ipv4Addr::new(192, 0, 2, 2),
        })
    }

    #[test]
    fn names_fit_the_kernel_and_tell_the_sides_apart() {
        let (source, destination) = (source(), destination());
        assert_eq!(source.device(), "gwmsd8a5b1c2d3e");
        assert!(source.device().len() <= 15 && source.device() != destination.device());
        assert_eq!(source.table(), "godwit_source_6f1ad7a03f544a439c5e0d8a5b1c2d3e");
        assert_ne!(source.table(), destination.table());
        assert_ne!(source.name(), destination.name());
    }

    #[test]
    fn each_cable_has_addresses_of_its_own() {
        assert_eq!(source().host_address(), Ipv4Addr::new(169, 254, 208, 6));
        assert_eq!(source().guest_address(), Ipv4Addr::new(169, 254, 208, 7));
        assert_eq!(free_slot([0, 1].into_iter(), &[]), Some(2));
        assert_eq!(
            free_slot([0].into_iter(), &[Ipv4Addr::new(169, 254, 208, 3)]),
            Some(2)
        );
        assert_eq!(guest_address(SLOTS - 1), Ipv4Addr::new(169, 254, 215, 255));
        assert_eq!(free_slot(0..SLOTS, &[]), None);
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        for plan in [source(), destination()] {
            let text = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        }
    }
}
