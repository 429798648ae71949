//! The custom resources, rights and policies, as a real API server applies them after a real `helm install`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod chart;
mod machine;
mod migration;
mod record;
mod rights;
mod server;

use std::process::ExitCode;

use chart::{every_field_is_explained, helm_warns_of_nothing, images_must_be_named, listings_have_columns};
use godwit_lab::{LabOptions, cases};
use machine::{a_machine_is_checked, a_machine_is_fixed_once_written};
use migration::{a_migration_is_checked, a_migration_is_fixed_once_written, an_unserved_field_is_refused};
use record::{a_record_is_checked, a_record_moves_by_the_rules_only, nobody_else_writes_records};
use rights::{parts_have_their_rights_and_no_more, peoples_rights};

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("api").only_api(),
        cases![
            helm_warns_of_nothing,
            every_field_is_explained,
            listings_have_columns,
            images_must_be_named,
            a_machine_is_checked,
            a_machine_is_fixed_once_written,
            a_migration_is_checked,
            a_migration_is_fixed_once_written,
            an_unserved_field_is_refused,
            nobody_else_writes_records,
            a_record_is_checked,
            a_record_moves_by_the_rules_only,
            parts_have_their_rights_and_no_more,
            peoples_rights,
        ],
    )
}
