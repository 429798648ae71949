//! The same through the tunnel, which must be encrypted; and what befalls only a tunnel: its relays die.

use godwit_lab::cases::Case;

use super::late::{
    COMPLETED, DESTINATION, EITHER, Fault, Kind, LOADED, LOST, MOVED, Row, SEAL, SOURCE, STAYS,
    STAYS_OR_LOST, SWITCHOVER, TOLD_GO, run,
};
use super::way::{TUNNELLED_MANAGED, TUNNELLED_PEERS};

/// Whether it is in the test command, or takes too long with all the others.
const ALWAYS: bool = false;
const LONG: bool = true;

macro_rules! rows {
    ($($name:ident, $long:ident: $way:ident, $moment:ident, $fault:expr, $kind:ident, $expected:ident;)*) => {
        pub const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            long: $long,
            body: |lab| Box::pin(run(lab, Row {
                moment: $moment,
                fault: $fault,
                kind: Kind::$kind,
                way: $way,
                expected: $expected,
            })),
        }),*];
    };
}

rows! {
    cell_tunnelled_source_relay_dies_before_the_seal_managed, LONG:
        TUNNELLED_MANAGED, SEAL, Fault::Relay(SOURCE), Busy, STAYS;
    cell_tunnelled_source_relay_dies_before_the_seal_peer_to_peer, LONG:
        TUNNELLED_PEERS, SEAL, Fault::Relay(SOURCE), Busy, STAYS;
    cell_tunnelled_source_relay_dies_before_the_switchover_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Relay(SOURCE), Busy, STAYS;
    cell_tunnelled_source_relay_dies_before_the_switchover_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Relay(SOURCE), Busy, STAYS;
    cell_tunnelled_source_relay_dies_stream_completed_managed, LONG:
        TUNNELLED_MANAGED, COMPLETED, Fault::Relay(SOURCE), Busy, MOVED;
    cell_tunnelled_source_relay_dies_stream_completed_peer_to_peer, ALWAYS:
        TUNNELLED_PEERS, COMPLETED, Fault::Relay(SOURCE), Busy, MOVED;
    cell_tunnelled_source_relay_dies_loaded_managed, LONG:
        TUNNELLED_MANAGED, LOADED, Fault::Relay(SOURCE), Busy, MOVED;
    cell_tunnelled_source_relay_dies_loaded_peer_to_peer, LONG:
        TUNNELLED_PEERS, LOADED, Fault::Relay(SOURCE), Busy, MOVED;
    cell_tunnelled_destination_relay_dies_before_the_seal_managed, LONG:
        TUNNELLED_MANAGED, SEAL, Fault::Relay(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_relay_dies_before_the_seal_peer_to_peer, LONG:
        TUNNELLED_PEERS, SEAL, Fault::Relay(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_relay_dies_before_the_switchover_managed, ALWAYS:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Relay(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_relay_dies_before_the_switchover_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Relay(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_relay_dies_before_the_switchover_idle_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Relay(DESTINATION), Idle, STAYS;
    cell_tunnelled_destination_relay_dies_before_the_switchover_idle_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Relay(DESTINATION), Idle, STAYS;
    cell_tunnelled_destination_relay_dies_stream_completed_managed, LONG:
        TUNNELLED_MANAGED, COMPLETED, Fault::Relay(DESTINATION), Busy, MOVED;
    cell_tunnelled_destination_relay_dies_stream_completed_peer_to_peer, LONG:
        TUNNELLED_PEERS, COMPLETED, Fault::Relay(DESTINATION), Busy, MOVED;
    cell_tunnelled_destination_relay_dies_loaded_managed, LONG:
        TUNNELLED_MANAGED, LOADED, Fault::Relay(DESTINATION), Busy, MOVED;
    cell_tunnelled_destination_relay_dies_loaded_peer_to_peer, LONG:
        TUNNELLED_PEERS, LOADED, Fault::Relay(DESTINATION), Busy, MOVED;
    cell_tunnelled_source_hypervisor_dies_before_the_seal_managed, LONG:
        TUNNELLED_MANAGED, SEAL, Fault::Hypervisor(SOURCE), Busy, LOST;
    cell_tunnelled_source_hypervisor_dies_before_the_seal_peer_to_peer, LONG:
        TUNNELLED_PEERS, SEAL, Fault::Hypervisor(SOURCE), Busy, LOST;
    cell_tunnelled_source_hypervisor_dies_before_the_switchover_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Hypervisor(SOURCE), Busy, LOST;
    cell_tunnelled_source_hypervisor_dies_before_the_switchover_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Hypervisor(SOURCE), Busy, LOST;
    cell_tunnelled_source_hypervisor_dies_stream_completed_managed, LONG:
        TUNNELLED_MANAGED, COMPLETED, Fault::Hypervisor(SOURCE), Busy, MOVED;
    cell_tunnelled_source_hypervisor_dies_stream_completed_peer_to_peer, LONG:
        TUNNELLED_PEERS, COMPLETED, Fault::Hypervisor(SOURCE), Busy, MOVED;
    cell_tunnelled_source_hypervisor_dies_loaded_managed, LONG:
        TUNNELLED_MANAGED, LOADED, Fault::Hypervisor(SOURCE), Busy, MOVED;
    cell_tunnelled_source_hypervisor_dies_loaded_peer_to_peer, LONG:
        TUNNELLED_PEERS, LOADED, Fault::Hypervisor(SOURCE), Busy, MOVED;
    cell_tunnelled_destination_hypervisor_dies_before_the_seal_managed, LONG:
        TUNNELLED_MANAGED, SEAL, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_before_the_seal_peer_to_peer, LONG:
        TUNNELLED_PEERS, SEAL, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_before_the_switchover_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_before_the_switchover_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_before_the_switchover_idle_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Hypervisor(DESTINATION), Idle, STAYS;
    cell_tunnelled_destination_hypervisor_dies_before_the_switchover_idle_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Hypervisor(DESTINATION), Idle, STAYS;
    cell_tunnelled_destination_hypervisor_dies_stream_completed_managed, LONG:
        TUNNELLED_MANAGED, COMPLETED, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_stream_completed_peer_to_peer, LONG:
        TUNNELLED_PEERS, COMPLETED, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_loaded_managed, LONG:
        TUNNELLED_MANAGED, LOADED, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_loaded_peer_to_peer, LONG:
        TUNNELLED_PEERS, LOADED, Fault::Hypervisor(DESTINATION), Busy, STAYS;
    cell_tunnelled_destination_hypervisor_dies_told_go_managed, LONG:
        TUNNELLED_MANAGED, TOLD_GO, Fault::Hypervisor(DESTINATION), Busy, STAYS_OR_LOST;
    cell_tunnelled_destination_hypervisor_dies_told_go_peer_to_peer, LONG:
        TUNNELLED_PEERS, TOLD_GO, Fault::Hypervisor(DESTINATION), Busy, STAYS_OR_LOST;
    cell_tunnelled_stream_cut_before_the_seal_managed, LONG:
        TUNNELLED_MANAGED, SEAL, Fault::StreamCut, Busy, STAYS;
    cell_tunnelled_stream_cut_before_the_seal_peer_to_peer, ALWAYS:
        TUNNELLED_PEERS, SEAL, Fault::StreamCut, Busy, STAYS;
    cell_tunnelled_stream_cut_before_the_switchover_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::StreamCut, Busy, STAYS;
    cell_tunnelled_stream_cut_before_the_switchover_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::StreamCut, Busy, STAYS;
    cell_tunnelled_stream_cut_before_the_switchover_idle_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::StreamCut, Idle, STAYS;
    cell_tunnelled_stream_cut_before_the_switchover_idle_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::StreamCut, Idle, STAYS;
    cell_tunnelled_cancelled_before_the_seal_managed, LONG:
        TUNNELLED_MANAGED, SEAL, Fault::Cancel, Busy, EITHER;
    cell_tunnelled_cancelled_before_the_seal_peer_to_peer, LONG:
        TUNNELLED_PEERS, SEAL, Fault::Cancel, Busy, EITHER;
    cell_tunnelled_cancelled_before_the_switchover_managed, LONG:
        TUNNELLED_MANAGED, SWITCHOVER, Fault::Cancel, Busy, EITHER;
    cell_tunnelled_cancelled_before_the_switchover_peer_to_peer, LONG:
        TUNNELLED_PEERS, SWITCHOVER, Fault::Cancel, Busy, EITHER;
    cell_tunnelled_cancelled_loaded_managed, LONG:
        TUNNELLED_MANAGED, LOADED, Fault::Cancel, Busy, EITHER;
    cell_tunnelled_cancelled_loaded_peer_to_peer, LONG:
        TUNNELLED_PEERS, LOADED, Fault::Cancel, Busy, EITHER;
}
