//! Records that are not what godwit has left: deleted, put back from an older backup, written for another holder. Nobody
//! runs a guest twice for their sake or loses it; what cannot be decided is told by name, and the guest is as it was once
//! the record has been put right (docs/runbooks.md).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "tests; what is shared with other files is not all used here"
)]

mod backup;
mod deleted;
mod older;
#[path = "../moves/setting.rs"]
mod setting;
mod store;
#[path = "../moves/traces.rs"]
mod traces;

use std::process::ExitCode;

use deleted::{a_deleted_record_is_put_back, a_record_is_deleted_while_memory_travels};
use godwit_lab::{LabOptions, cases};
use older::{
    a_record_from_before_a_move_is_put_back, a_record_from_before_the_first_start_is_put_back,
    a_record_of_a_migration_that_is_over_is_put_back, a_record_that_names_another_holder,
};
use store::{
    etcd_is_restored_from_amid_a_migration, etcd_is_restored_from_before_a_guest,
    etcd_is_restored_from_before_a_move,
};

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("records"),
        cases![
            a_record_from_before_a_move_is_put_back,
            a_record_is_deleted_while_memory_travels;
            long:
            a_deleted_record_is_put_back,
            a_record_from_before_the_first_start_is_put_back,
            a_record_of_a_migration_that_is_over_is_put_back,
            a_record_that_names_another_holder,
            etcd_is_restored_from_before_a_move,
            etcd_is_restored_from_amid_a_migration,
            // Its guest stays: nothing may come after it.
            etcd_is_restored_from_before_a_guest,
        ],
    )
}
