//! `kubectl godwit`: moves running guests and shows how they fare.
//!
//! Decisions and texts are pure functions (`outcome`, `view`, `text`, `units`, `near`); `connect`, `follow` and
//! `command` do the talking.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test ends at its first surprise"
    )
)]

mod args;
mod command;
mod connect;
mod error;
mod exit;
mod follow;
mod near;
mod outcome;
mod output;
mod report;
mod resource;
mod text;
mod units;
mod view;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::connect::Cluster;
use crate::error::CliError;
use crate::exit::Exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            // Help and version arrive here as well; a closed output is nobody's error.
            let _ = told.print();
            let exit = if told.use_stderr() {
                Exit::Usage
            } else {
                Exit::Success
            };
            return ExitCode::from(exit.code());
        }
    };
    let exit = run(&cli).unwrap_or_else(|error| {
        if !error.silent() {
            output::aside(&format!("error: {error}"));
        }
        error.exit()
    });
    ExitCode::from(exit.code())
}

fn run(cli: &Cli) -> Result<Exit, CliError> {
    match &cli.command {
        Command::Completion(args) => return command::completion::run(args),
        Command::Migrate(_)
        | Command::Status(_)
        | Command::Cancel(_)
        | Command::Resolve(_)
        | Command::Guests(_)
        | Command::Hosts(_) => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.block_on(async {
        let cluster = Cluster::connect(&cli.cluster).await?;
        match &cli.command {
            Command::Migrate(args) => command::migrate::run(&cluster, args).await,
            Command::Status(args) => command::status::run(&cluster, args).await,
            Command::Cancel(args) => command::cancel::run(&cluster, args).await,
            Command::Resolve(args) => command::resolve::run(&cluster, args).await,
            Command::Guests(args) => command::list::guests(&cluster, args).await,
            Command::Hosts(args) => command::list::hosts(&cluster, args).await,
            Command::Completion(args) => command::completion::run(args),
        }
    })
}
