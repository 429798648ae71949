//! Bad input and faults, on real parts: each migration ends as the table of outcomes says, with a reason, and leaves
//! nothing behind. One lab for all of them; each case has a guest of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod attempt;
mod crashes;
mod guest;

use std::process::ExitCode;

use crashes::{
    destination_agent_killed_before_go_sealed, destination_agent_killed_before_go_unsealed,
    destination_agent_killed_in_pre_copy, destination_hypervisor_killed_before_go_sealed,
    destination_hypervisor_killed_before_go_unsealed, destination_hypervisor_killed_in_pre_copy,
    source_agent_killed_before_go_sealed, source_agent_killed_before_go_unsealed,
    source_agent_killed_in_pre_copy, source_hypervisor_killed_before_go_sealed,
    source_hypervisor_killed_before_go_unsealed, source_hypervisor_killed_in_pre_copy,
};
use godwit_lab::{LabOptions, cases};

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("faults"),
        cases![
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
        ],
    )
}
