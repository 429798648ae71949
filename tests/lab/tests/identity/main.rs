//! Identities from the signer: who gets which certificate from a real API server with the chart's rights and policy,
//! and agents that live by what they got.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod agents;
mod controllers;
mod pods;
mod requests;
mod rights;
mod rotation;
mod wire;

use std::process::ExitCode;

use agents::{
    a_guest_moves_between_agents_with_certificates_from_the_signer, a_restarted_agent_needs_no_signer,
    r1_each_agent_has_the_certificate_of_its_own_host,
    r5_nothing_begins_with_a_certificate_that_ends_too_soon, renewal_breaks_no_connection,
};
use controllers::{
    r1_the_controller_has_a_certificate_of_its_own, r4_the_controllers_token_gets_no_hosts_certificate,
};
use godwit_lab::{LabOptions, cases};
use pods::{
    r1_a_pod_gets_the_certificate_of_its_node, r4_only_its_own_node_asks_for_a_pod,
    r4_the_signer_serves_godwits_pods_alone,
};
use requests::{
    r1_a_token_without_a_pod_gets_nothing, r1_an_agent_gets_the_certificate_of_its_own_node_alone,
    r4_claims_are_the_api_servers_and_not_the_requesters, r4_nobody_approves_for_the_signer,
    r4_other_accounts_get_nothing,
};
use rights::r1_only_the_signer_signs_and_it_does_nothing_else;
use rotation::r5_two_roots_hold_during_a_rotation;

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("identity").signer(true),
        cases![
            r1_each_agent_has_the_certificate_of_its_own_host,
            r1_the_controller_has_a_certificate_of_its_own,
            a_restarted_agent_needs_no_signer,
            r1_an_agent_gets_the_certificate_of_its_own_node_alone,
            r1_a_token_without_a_pod_gets_nothing,
            r4_claims_are_the_api_servers_and_not_the_requesters,
            r4_other_accounts_get_nothing,
            r4_the_controllers_token_gets_no_hosts_certificate,
            r4_nobody_approves_for_the_signer,
            r1_only_the_signer_signs_and_it_does_nothing_else,
            r1_a_pod_gets_the_certificate_of_its_node,
            r4_only_its_own_node_asks_for_a_pod,
            r4_the_signer_serves_godwits_pods_alone,
            a_guest_moves_between_agents_with_certificates_from_the_signer,
            r5_nothing_begins_with_a_certificate_that_ends_too_soon,
            r5_two_roots_hold_during_a_rotation,
            ;
            long: renewal_breaks_no_connection,
        ],
    )
}
