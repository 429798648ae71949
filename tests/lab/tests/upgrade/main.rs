//! Programs of two protocol versions beside each other, and upgrades in mid-migration. The older ones are those of the
//! last revision that spoke the older version, built from the repository's history by `tests/tools/older`; that takes
//! minutes the first time, so all of it is left to whoever asks for the long tests.
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
mod back;
#[path = "../faults/guest.rs"]
mod guest;
mod matrix;
mod midway;
#[path = "../streams/moments.rs"]
mod moments;
#[path = "../moves/setting.rs"]
mod setting;
#[path = "../moves/traces.rs"]
mod traces;
mod versions;
#[path = "../streams/ways.rs"]
mod ways;

use std::process::ExitCode;

use back::{
    an_agent_in_the_middle_of_a_handover_cannot_read_its_journal,
    an_older_agent_in_the_middle_of_a_handover_is_in_nobodys_way,
    an_older_agent_leaves_alone_what_a_newer_one_has_begun, an_older_agent_leaves_alone_what_it_handed_on,
};
use godwit_lab::{LabOptions, cases};
use matrix::{an_older_host_takes_no_strict_handoff, every_mix_of_versions_moves_a_guest};
use midway::{
    agents_upgraded_in_mid_migration_native, agents_upgraded_in_mid_migration_tunnelled,
    the_controller_is_upgraded_in_mid_migration,
};

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("upgrade"),
        cases![;
            long:
            every_mix_of_versions_moves_a_guest,
            an_older_host_takes_no_strict_handoff,
            agents_upgraded_in_mid_migration_native,
            agents_upgraded_in_mid_migration_tunnelled,
            the_controller_is_upgraded_in_mid_migration,
            an_older_agent_leaves_alone_what_a_newer_one_has_begun,
            an_older_agent_in_the_middle_of_a_handover_is_in_nobodys_way,
            an_agent_in_the_middle_of_a_handover_cannot_read_its_journal,
            an_older_agent_leaves_alone_what_it_handed_on,
        ],
    )
}
