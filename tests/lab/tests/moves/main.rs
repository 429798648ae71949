//! The main job on real parts, where nothing fails: guests move between hosts because of objects that went through a
//! real API server, and nothing is left where they were.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod controller;
mod deletion;
mod disks;
mod endings;
mod lost_host;
mod moving;
mod peer_to_peer;
mod rest;
mod setting;
mod strict;
mod traces;

use std::process::ExitCode;

use controller::{
    a_controller_that_stays_away_is_given_up, no_guest_is_stopped_without_a_controller,
    the_controller_is_killed,
};
use deletion::{a_machine_deleted_during_its_migration, a_machine_is_deleted};
use disks::{a_guest_boots_from_its_disk_and_moves, a_guest_takes_its_interface_along, cached_disks};
use endings::{a_second_migration_is_refused, cancelled_while_memory_travels, deleted_while_memory_travels};
use godwit_lab::{LabOptions, cases};
use lost_host::a_guest_whose_host_is_gone_is_started_afresh_by_an_administrators_word;
use moving::{a_busy_guest_is_sealed, a_guest_moves, fifty_moves_in_a_row};
use peer_to_peer::{
    peer_to_peer_a_guest_moves, peer_to_peer_agents_are_parted, peer_to_peer_cancelled,
    peer_to_peer_the_agents_are_killed, peer_to_peer_the_controller_does_not_reach_the_destination,
    peer_to_peer_the_controller_is_away,
};
use rest::nothing_is_written_at_rest;
use strict::a_strict_handoff_is_recorded_before_the_start;

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("moves"),
        cases![
            a_guest_moves,
            fifty_moves_in_a_row,
            a_busy_guest_is_sealed,
            cancelled_while_memory_travels,
            deleted_while_memory_travels,
            a_second_migration_is_refused,
            the_controller_is_killed,
            no_guest_is_stopped_without_a_controller,
            a_machine_is_deleted,
            a_machine_deleted_during_its_migration,
            a_guest_boots_from_its_disk_and_moves,
            cached_disks,
            a_guest_takes_its_interface_along,
            a_strict_handoff_is_recorded_before_the_start,
            a_guest_whose_host_is_gone_is_started_afresh_by_an_administrators_word,
            peer_to_peer_a_guest_moves,
            peer_to_peer_the_controller_is_away,
            peer_to_peer_cancelled,
            peer_to_peer_the_agents_are_killed,
            peer_to_peer_agents_are_parted,
            peer_to_peer_the_controller_does_not_reach_the_destination,
            nothing_is_written_at_rest;
            long:
            a_controller_that_stays_away_is_given_up,
        ],
    )
}
