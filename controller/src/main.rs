//! The controller's program.

use std::process::ExitCode;

use clap::Parser;
use godwit_controller::config::Config;
use godwit_controller::{program, run};

fn main() -> ExitCode {
    let config = Config::parse();
    program::run(config.log_format, |shutdown| run::run(config, shutdown))
}
