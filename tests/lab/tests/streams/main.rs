//! By which ways memory travels, on real parts: encrypted and in plain text, from hypervisor to hypervisor and through
//! the tunnel, with a limit that changes; and what happens when a way breaks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "tests; what is shared with other files is not all used here"
)]

#[path = "../faults/attempt.rs"]
mod attempt;
mod cuts;
mod faults;
#[path = "../faults/guest.rs"]
mod guest;
mod kills;
mod matrix;
mod moments;
mod native_several;
mod pairs;
mod played;
#[path = "../moves/setting.rs"]
mod setting;
mod several;
mod strangers;
#[path = "../moves/traces.rs"]
mod traces;
mod ways;

use std::process::ExitCode;

use cuts::{
    a_hole_that_closes_again_ends_nothing, a_hole_that_stays_is_given_up, connections_are_reset,
    connections_are_reset_in_each_phase_in_both_flows, more_holes_that_close_again,
};
use faults::{
    an_agent_killed_in_mid_stream_takes_the_tunnel_up_again, plain_text_is_refused_where_a_host_forbids_it,
    strangers_at_the_agent_port,
};
use godwit_lab::{LabOptions, cases};
use kills::{
    a_hypervisor_killed_while_a_tunnel_carries_its_memory, a_relay_killed_in_each_phase,
    an_agent_killed_in_each_phase_of_a_tunnelled_move, an_agent_killed_in_each_phase_of_an_encrypted_move,
    either_relay_killed_in_each_phase_in_both_flows,
};
use matrix::every_way_moves_a_linux_guest;
use native_several::{
    encrypted_connections_end_no_guest, hypervisors_connect_themselves_and_reach_nothing_else,
    the_migration_network_goes_with_its_migration,
};
use pairs::{nor_does_anything_else_that_breaks_one, what_breaks_one_migration_does_not_touch_another};
use several::{
    a_channel_that_never_comes_ends_the_migration, memory_is_spread_over_several_connections,
    several_connections_outlive_agents_and_fall_with_a_relay,
};
use strangers::{
    a_source_that_breaks_other_rules_is_refused_too, a_source_that_breaks_the_rules_is_refused_by_name,
    strangers_get_no_channel,
};
use ways::{a_limit_is_kept_and_changed, encrypted_by_default, tunnelled};

fn main() -> ExitCode {
    if played::is_a_relay() {
        return match played::play() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    godwit_lab::cases::main(
        LabOptions::new("streams"),
        cases![
            encrypted_by_default,
            tunnelled,
            a_limit_is_kept_and_changed,
            memory_is_spread_over_several_connections,
            hypervisors_connect_themselves_and_reach_nothing_else,
            the_migration_network_goes_with_its_migration,
            encrypted_connections_end_no_guest,
            an_agent_killed_in_mid_stream_takes_the_tunnel_up_again,
            a_relay_killed_in_each_phase,
            connections_are_reset,
            a_hole_that_closes_again_ends_nothing,
            strangers_get_no_channel,
            a_source_that_breaks_the_rules_is_refused_by_name,
            every_way_moves_a_linux_guest,
            what_breaks_one_migration_does_not_touch_another,
            strangers_at_the_agent_port,
            plain_text_is_refused_where_a_host_forbids_it;
            long:
            several_connections_outlive_agents_and_fall_with_a_relay,
            a_channel_that_never_comes_ends_the_migration,
            either_relay_killed_in_each_phase_in_both_flows,
            a_hypervisor_killed_while_a_tunnel_carries_its_memory,
            an_agent_killed_in_each_phase_of_a_tunnelled_move,
            an_agent_killed_in_each_phase_of_an_encrypted_move,
            connections_are_reset_in_each_phase_in_both_flows,
            more_holes_that_close_again,
            a_hole_that_stays_is_given_up,
            nor_does_anything_else_that_breaks_one,
            a_source_that_breaks_other_rules_is_refused_too,
        ],
    )
}
