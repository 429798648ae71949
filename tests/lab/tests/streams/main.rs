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

mod faults;
#[path = "../moves/setting.rs"]
mod setting;
#[path = "../moves/traces.rs"]
mod traces;
mod ways;

use std::process::ExitCode;

use faults::{
    an_agent_killed_in_mid_stream_takes_the_tunnel_up_again, plain_text_is_refused_where_a_host_forbids_it,
    relay_killed_at_the_destination, relay_killed_at_the_source, strangers_at_the_agent_port,
};
use godwit_lab::{LabOptions, cases};
use ways::{a_limit_is_kept_and_changed, encrypted_by_default, tunnelled};

fn main() -> ExitCode {
    godwit_lab::cases::main(
        LabOptions::new("streams"),
        cases![
            encrypted_by_default,
            tunnelled,
            a_limit_is_kept_and_changed,
            an_agent_killed_in_mid_stream_takes_the_tunnel_up_again,
            relay_killed_at_the_source,
            relay_killed_at_the_destination,
            strangers_at_the_agent_port,
            plain_text_is_refused_where_a_host_forbids_it,
        ],
    )
}
