//! The signer's program.

use std::process::ExitCode;

use clap::Parser;
use godwit_controller::program;
use godwit_controller::signer::config::Config;
use godwit_controller::signer::serve;

fn main() -> ExitCode {
    let config = Config::parse();
    program::run(config.log_format, |shutdown| serve::run(config, shutdown))
}
