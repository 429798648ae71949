//! The custom resources, rights and policies, as a real API server applies them after a real `helm install`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod agents;
mod chart;
mod machine;
mod migration;
mod parties;
mod record;
mod resolution;
mod rights;
mod server;

use std::process::ExitCode;

use agents::{
    a_host_with_guests_is_not_removed_while_it_is_heard, r3_a_host_holds_its_own_lease_and_no_other,
    r3_a_node_cannot_be_forged_by_impersonation, r3_a_node_is_given_tokens_of_its_own_pods_alone,
    r3_a_token_bound_to_a_node_speaks_for_that_node, r3_a_token_names_its_node_and_dies_with_its_pod,
    r3_an_agent_writes_its_own_host_and_no_other, r3_the_policy_holds_beyond_the_roles,
    r3_without_a_node_nothing_is_written, r4_the_name_comes_from_the_token_and_not_from_the_message,
};
use chart::{
    every_field_is_explained, helm_warns_of_nothing, images_must_be_named, listings_have_columns,
    r16_the_controllers_pod_meets_the_restricted_profile,
};
use godwit_lab::{LabOptions, cases};
use machine::{a_machine_is_checked, a_machine_is_fixed_once_written};
use migration::{
    a_migration_is_checked, a_migration_is_fixed_once_written, an_unserved_field_is_refused,
    r5_plain_text_is_refused_where_the_cluster_forbids_it, what_is_left_out_is_refused_or_has_its_default,
};
use parties::{
    each_party_makes_the_writes_that_are_its_own, r3_a_decision_carries_no_other_change,
    r3_a_record_is_changed_by_its_parties_and_by_the_rules, r3_people_of_a_namespace_change_no_record,
    r3_refusals_are_in_the_audit_log,
};
use record::{a_record_is_checked, a_record_moves_by_the_rules_only, nobody_else_writes_records};
use resolution::{
    a_guest_is_started_afresh_by_the_rules_only, a_resolution_is_checked_and_carries_the_name_of_its_author,
};
use rights::{
    an_upgrade_keeps_what_the_controller_wrote, r2_the_controller_alone_publishes_keys_of_tickets,
    r3_parts_have_their_rights_and_no_more, r12_objects_are_linked_by_uid_within_a_namespace,
    r13_a_guest_goes_to_one_host_at_a_time, r13_migrating_is_an_administrators_right,
    r13_migrations_count_against_a_quota, r13_the_chart_says_who_else_may_migrate,
};

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("api").only_api(),
        cases![
            helm_warns_of_nothing,
            every_field_is_explained,
            listings_have_columns,
            images_must_be_named,
            r16_the_controllers_pod_meets_the_restricted_profile,
            a_machine_is_checked,
            a_machine_is_fixed_once_written,
            a_migration_is_checked,
            what_is_left_out_is_refused_or_has_its_default,
            a_migration_is_fixed_once_written,
            an_unserved_field_is_refused,
            r5_plain_text_is_refused_where_the_cluster_forbids_it,
            nobody_else_writes_records,
            a_record_is_checked,
            a_record_moves_by_the_rules_only,
            a_resolution_is_checked_and_carries_the_name_of_its_author,
            a_guest_is_started_afresh_by_the_rules_only,
            r3_parts_have_their_rights_and_no_more,
            r12_objects_are_linked_by_uid_within_a_namespace,
            r13_migrating_is_an_administrators_right,
            r13_the_chart_says_who_else_may_migrate,
            r2_the_controller_alone_publishes_keys_of_tickets,
            an_upgrade_keeps_what_the_controller_wrote,
            r13_migrations_count_against_a_quota,
            r13_a_guest_goes_to_one_host_at_a_time,
            r3_a_token_names_its_node_and_dies_with_its_pod,
            r3_a_token_bound_to_a_node_speaks_for_that_node,
            r3_an_agent_writes_its_own_host_and_no_other,
            r3_a_host_holds_its_own_lease_and_no_other,
            a_host_with_guests_is_not_removed_while_it_is_heard,
            r4_the_name_comes_from_the_token_and_not_from_the_message,
            r3_without_a_node_nothing_is_written,
            r3_a_node_cannot_be_forged_by_impersonation,
            r3_a_node_is_given_tokens_of_its_own_pods_alone,
            r3_a_record_is_changed_by_its_parties_and_by_the_rules,
            r3_a_decision_carries_no_other_change,
            each_party_makes_the_writes_that_are_its_own,
            r3_people_of_a_namespace_change_no_record,
            r3_refusals_are_in_the_audit_log,
            r3_the_policy_holds_beyond_the_roles,
        ],
    )
}
