//! Bad input and faults, on real parts: each migration ends as the table of outcomes says, with a reason, and leaves
//! nothing behind. One lab for all of them; each case has a guest of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod acts;
mod api_server;
mod attempt;
mod cells;
mod crashes;
mod early;
mod full;
mod guest;
mod input;
mod lacking;
mod links;
mod peer_to_peer;
mod strangers;
mod tickets;

use std::process::ExitCode;

use acts::{the_guest_panics, the_guest_powers_off, the_guest_resets};
use api_server::{
    the_api_server_is_out_of_reach_after_cont, the_api_server_is_out_of_reach_and_go_is_lost,
    the_api_server_is_out_of_reach_in_begin, the_api_server_is_out_of_reach_when_go_is_said,
    the_api_server_is_out_of_reach_while_memory_travels,
};
use cells::arbitration::{
    cell_controller_killed_loaded, cell_destination_agent_killed_commit_intended_managed,
    cell_destination_agent_killed_commit_intended_peer_to_peer,
    cell_destination_agent_killed_committed_managed, cell_destination_agent_killed_committed_peer_to_peer,
    cell_destination_agent_killed_cont_issued_managed,
    cell_destination_agent_killed_cont_issued_peer_to_peer, cell_destination_agent_killed_loaded_managed,
    cell_destination_agent_killed_loaded_peer_to_peer, cell_destination_cut_off_loaded_managed,
    cell_destination_cut_off_loaded_peer_to_peer, cell_go_lost_and_both_cut_off,
    cell_go_lost_and_the_source_cut_off, cell_source_agent_killed_asking_beside_the_destination,
    cell_source_agent_killed_asking_managed, cell_source_agent_killed_asking_peer_to_peer,
    cell_source_agent_killed_before_go_managed, cell_source_agent_killed_before_go_peer_to_peer,
    cell_source_agent_stopped_before_go_managed, cell_source_agent_stopped_before_go_peer_to_peer,
    cell_unsealed_stream_failed_at_the_gate_managed, cell_unsealed_stream_failed_at_the_gate_peer_to_peer,
    cell_unsealed_stream_failed_at_the_switchover_managed,
    cell_unsealed_stream_failed_at_the_switchover_peer_to_peer,
};
use cells::killed::{
    cell_destination_agent_killed_at_each_entry_managed,
    cell_destination_agent_killed_at_each_entry_peer_to_peer, cell_source_agent_killed_at_each_entry_managed,
    cell_source_agent_killed_at_each_entry_peer_to_peer,
};
use cells::late::{
    cell_cancelled_before_the_seal_managed, cell_cancelled_before_the_seal_peer_to_peer,
    cell_cancelled_before_the_switchover_managed, cell_cancelled_before_the_switchover_peer_to_peer,
    cell_cancelled_loaded_managed, cell_cancelled_loaded_peer_to_peer,
    cell_destination_hypervisor_dies_before_the_seal_managed,
    cell_destination_hypervisor_dies_before_the_seal_peer_to_peer,
    cell_destination_hypervisor_dies_before_the_switchover_idle_managed,
    cell_destination_hypervisor_dies_before_the_switchover_idle_peer_to_peer,
    cell_destination_hypervisor_dies_before_the_switchover_managed,
    cell_destination_hypervisor_dies_before_the_switchover_peer_to_peer,
    cell_destination_hypervisor_dies_loaded_managed, cell_destination_hypervisor_dies_loaded_peer_to_peer,
    cell_destination_hypervisor_dies_stream_completed_managed,
    cell_destination_hypervisor_dies_stream_completed_peer_to_peer,
    cell_destination_hypervisor_dies_told_go_managed, cell_destination_hypervisor_dies_told_go_peer_to_peer,
    cell_source_hypervisor_dies_before_the_seal_managed,
    cell_source_hypervisor_dies_before_the_seal_peer_to_peer,
    cell_source_hypervisor_dies_before_the_switchover_managed,
    cell_source_hypervisor_dies_before_the_switchover_peer_to_peer,
    cell_source_hypervisor_dies_loaded_managed, cell_source_hypervisor_dies_loaded_peer_to_peer,
    cell_source_hypervisor_dies_stream_completed_managed,
    cell_source_hypervisor_dies_stream_completed_peer_to_peer, cell_stream_cut_before_the_seal_managed,
    cell_stream_cut_before_the_seal_peer_to_peer, cell_stream_cut_before_the_switchover_idle_managed,
    cell_stream_cut_before_the_switchover_idle_peer_to_peer, cell_stream_cut_before_the_switchover_managed,
    cell_stream_cut_before_the_switchover_peer_to_peer,
};
use cells::lost::{
    cell_destination_host_lost_after_go_managed, cell_destination_host_lost_after_go_peer_to_peer,
    cell_source_host_lost_unsealed_managed, cell_source_host_lost_unsealed_peer_to_peer,
    cell_strict_destination_host_lost_managed, cell_strict_destination_host_lost_peer_to_peer,
};
use crashes::{
    controller_restarted_at_any_moment, destination_agent_killed_after_cont,
    destination_agent_killed_after_go, destination_agent_killed_before_go_sealed,
    destination_agent_killed_before_go_unsealed, destination_agent_killed_in_pre_copy,
    destination_agent_restarted_at_any_moment, destination_hypervisor_killed_after_cont,
    destination_hypervisor_killed_after_go, destination_hypervisor_killed_before_go_sealed,
    destination_hypervisor_killed_before_go_unsealed, destination_hypervisor_killed_in_pre_copy,
    source_agent_killed_after_cont, source_agent_killed_after_go, source_agent_killed_before_go_sealed,
    source_agent_killed_before_go_unsealed, source_agent_killed_in_pre_copy,
    source_agent_restarted_at_any_moment, source_hypervisor_killed_after_cont,
    source_hypervisor_killed_after_go, source_hypervisor_killed_before_go_sealed,
    source_hypervisor_killed_before_go_unsealed, source_hypervisor_killed_in_pre_copy,
};
use early::{
    a_destination_that_prepares_late_is_called_off, anybody_killed_in_begin, anybody_killed_in_prepare,
};
use full::{a_full_disk_at_the_beginning_is_named, full_disks_while_memory_travels};
use godwit_lab::{LabOptions, cases};
use input::{
    a_certificate_of_another_authority_is_rejected, a_certificate_of_another_host_is_rejected,
    a_guest_that_does_not_run_is_refused, a_hypervisor_may_be_missing, a_hypervisor_may_break,
    a_second_active_migration_is_refused, a_stopped_agents_host_is_refused, ports_may_run_out,
    too_little_memory_is_refused, unknown_names_are_refused,
};
use lacking::{
    a_missing_bridge_is_named, a_missing_machine_type_or_cpu_model_is_named, a_missing_pool_or_disk_is_named,
    a_process_in_the_guests_place_is_left_alone,
};
use links::{
    a_broken_link_at_any_moment, a_cable_is_pulled_while_memory_travels,
    a_destination_is_out_of_reach_when_go_is_said, a_destination_that_stays_away_is_given_up,
    a_host_is_out_of_reach_while_memory_travels, memory_does_not_arrive_at_the_switchover,
    memory_that_does_not_arrive_any_more_is_given_up,
};
use peer_to_peer::{
    peer_to_peer_a_destination_that_stays_away_keeps_no_guest, peer_to_peer_a_hypervisor_killed_in_pre_copy,
    peer_to_peer_an_agent_or_the_controller_killed_in_pre_copy, peer_to_peer_anybody_killed_after_cont,
    peer_to_peer_anybody_killed_after_go, peer_to_peer_anybody_killed_before_go,
    peer_to_peer_anybody_killed_before_go_sealed, peer_to_peer_anybody_killed_in_begin,
    peer_to_peer_anybody_killed_in_prepare,
};
use strangers::{garbage_on_the_agent_port_disturbs_nobody, strangers_on_the_migration_port_get_nothing};
use tickets::{r2_a_host_begins_nothing_that_was_not_ordered, r14_a_host_cannot_change_what_a_guest_is};

fn main() -> ExitCode {
    let code = godwit_lab::cases::main(
        LabOptions::new("faults"),
        &[
            &cases![
                unknown_names_are_refused,
                a_second_active_migration_is_refused,
                a_guest_that_does_not_run_is_refused,
                a_stopped_agents_host_is_refused,
                too_little_memory_is_refused,
                a_missing_machine_type_or_cpu_model_is_named,
                a_missing_pool_or_disk_is_named,
                a_missing_bridge_is_named,
                a_process_in_the_guests_place_is_left_alone,
                ports_may_run_out,
                a_hypervisor_may_be_missing,
                a_hypervisor_may_break,
                a_certificate_of_another_authority_is_rejected,
                a_certificate_of_another_host_is_rejected,
                garbage_on_the_agent_port_disturbs_nobody,
                strangers_on_the_migration_port_get_nothing,
                r2_a_host_begins_nothing_that_was_not_ordered,
                r14_a_host_cannot_change_what_a_guest_is,
                the_guest_powers_off,
                the_guest_panics,
                the_guest_resets,
                anybody_killed_in_begin,
                anybody_killed_in_prepare,
                a_destination_that_prepares_late_is_called_off,
                a_full_disk_at_the_beginning_is_named,
                full_disks_while_memory_travels,
                a_cable_is_pulled_while_memory_travels,
                memory_does_not_arrive_at_the_switchover,
                a_destination_is_out_of_reach_when_go_is_said,
                source_hypervisor_killed_in_pre_copy,
                destination_hypervisor_killed_in_pre_copy,
                source_agent_killed_in_pre_copy,
                destination_agent_killed_in_pre_copy,
                source_hypervisor_killed_before_go_sealed,
                source_hypervisor_killed_before_go_unsealed,
                destination_hypervisor_killed_before_go_sealed,
                destination_hypervisor_killed_before_go_unsealed,
                source_agent_killed_before_go_sealed,
                source_agent_killed_before_go_unsealed,
                destination_agent_killed_before_go_sealed,
                destination_agent_killed_before_go_unsealed,
                source_hypervisor_killed_after_go,
                destination_hypervisor_killed_after_go,
                source_agent_killed_after_go,
                destination_agent_killed_after_go,
                source_hypervisor_killed_after_cont,
                destination_hypervisor_killed_after_cont,
                source_agent_killed_after_cont,
                destination_agent_killed_after_cont,
                source_agent_restarted_at_any_moment,
                destination_agent_restarted_at_any_moment,
                controller_restarted_at_any_moment,
                peer_to_peer_anybody_killed_in_begin,
                peer_to_peer_anybody_killed_in_prepare,
                peer_to_peer_a_hypervisor_killed_in_pre_copy,
                peer_to_peer_anybody_killed_before_go,
                peer_to_peer_anybody_killed_after_go,
                peer_to_peer_anybody_killed_after_cont,
                peer_to_peer_a_destination_that_stays_away_keeps_no_guest,
                the_api_server_is_out_of_reach_when_go_is_said,
                the_api_server_is_out_of_reach_after_cont,
                cell_source_agent_killed_before_go_peer_to_peer,
                cell_destination_agent_killed_loaded_managed,
                cell_controller_killed_loaded,
                cell_destination_agent_killed_committed_peer_to_peer,
                cell_unsealed_stream_failed_at_the_switchover_managed,
                cell_source_agent_killed_at_each_entry_managed,
                cell_destination_agent_killed_at_each_entry_managed,
                cell_destination_agent_killed_at_each_entry_peer_to_peer,
                cell_destination_hypervisor_dies_before_the_switchover_managed,
                cell_stream_cut_before_the_switchover_managed,
                cell_stream_cut_before_the_switchover_idle_peer_to_peer;
                long:
                a_host_is_out_of_reach_while_memory_travels,
                memory_that_does_not_arrive_any_more_is_given_up,
                a_destination_that_stays_away_is_given_up,
                a_broken_link_at_any_moment,
                peer_to_peer_an_agent_or_the_controller_killed_in_pre_copy,
                peer_to_peer_anybody_killed_before_go_sealed,
                the_api_server_is_out_of_reach_in_begin,
                the_api_server_is_out_of_reach_while_memory_travels,
                the_api_server_is_out_of_reach_and_go_is_lost,
                cell_source_agent_killed_before_go_managed,
                cell_source_agent_killed_asking_beside_the_destination,
                cell_source_agent_stopped_before_go_managed,
                cell_source_agent_stopped_before_go_peer_to_peer,
                cell_destination_agent_killed_loaded_peer_to_peer,
                cell_destination_agent_killed_commit_intended_managed,
                cell_destination_agent_killed_committed_managed,
                cell_destination_agent_killed_cont_issued_managed,
                cell_destination_agent_killed_commit_intended_peer_to_peer,
                cell_destination_agent_killed_cont_issued_peer_to_peer,
                cell_source_agent_killed_asking_managed,
                cell_source_agent_killed_asking_peer_to_peer,
                cell_go_lost_and_the_source_cut_off,
                cell_destination_cut_off_loaded_managed,
                cell_destination_cut_off_loaded_peer_to_peer,
                cell_go_lost_and_both_cut_off,
                cell_destination_host_lost_after_go_managed,
                cell_destination_host_lost_after_go_peer_to_peer,
                cell_strict_destination_host_lost_managed,
                cell_strict_destination_host_lost_peer_to_peer,
                cell_source_host_lost_unsealed_managed,
                cell_source_host_lost_unsealed_peer_to_peer,
                cell_unsealed_stream_failed_at_the_switchover_peer_to_peer,
                cell_unsealed_stream_failed_at_the_gate_managed,
                cell_unsealed_stream_failed_at_the_gate_peer_to_peer,
                cell_source_agent_killed_at_each_entry_peer_to_peer,
                cell_source_hypervisor_dies_before_the_seal_managed,
                cell_source_hypervisor_dies_before_the_seal_peer_to_peer,
                cell_source_hypervisor_dies_before_the_switchover_managed,
                cell_source_hypervisor_dies_before_the_switchover_peer_to_peer,
                cell_source_hypervisor_dies_stream_completed_managed,
                cell_source_hypervisor_dies_stream_completed_peer_to_peer,
                cell_source_hypervisor_dies_loaded_managed,
                cell_source_hypervisor_dies_loaded_peer_to_peer,
                cell_destination_hypervisor_dies_before_the_seal_managed,
                cell_destination_hypervisor_dies_before_the_seal_peer_to_peer,
                cell_destination_hypervisor_dies_before_the_switchover_peer_to_peer,
                cell_destination_hypervisor_dies_before_the_switchover_idle_managed,
                cell_destination_hypervisor_dies_before_the_switchover_idle_peer_to_peer,
                cell_destination_hypervisor_dies_stream_completed_managed,
                cell_destination_hypervisor_dies_stream_completed_peer_to_peer,
                cell_destination_hypervisor_dies_loaded_managed,
                cell_destination_hypervisor_dies_loaded_peer_to_peer,
                cell_destination_hypervisor_dies_told_go_managed,
                cell_destination_hypervisor_dies_told_go_peer_to_peer,
                cell_stream_cut_before_the_seal_managed,
                cell_stream_cut_before_the_seal_peer_to_peer,
                cell_stream_cut_before_the_switchover_peer_to_peer,
                cell_stream_cut_before_the_switchover_idle_managed,
                cell_cancelled_before_the_seal_managed,
                cell_cancelled_before_the_seal_peer_to_peer,
                cell_cancelled_before_the_switchover_managed,
                cell_cancelled_before_the_switchover_peer_to_peer,
                cell_cancelled_loaded_managed,
                cell_cancelled_loaded_peer_to_peer,
            ][..],
            cells::tunnelled::CASES,
            cells::deleted::CASES,
            cells::disk::CASES,
            cells::storage::CASES,
            cells::journal::CASES,
            cells::clock::CASES,
            cells::certificate::CASES,
        ]
        .concat(),
    );
    cells::table::show();
    code
}
