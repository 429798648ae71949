//! `godwit-relay`: carries one side of one migration's streams. Started by an agent; see `docs/tunnel.md`.

use std::process::ExitCode;

use godwit_relay::limits::Limits;
use godwit_relay::{Argument, listener, lock_down, run};

const USAGE: &str = "\
Carries one side of one migration's streams. An agent starts it and tells it the rest.

Usage: godwit-relay CONTROL-SOCKET

  CONTROL-SOCKET  where to make the socket at which agents give orders; `-`: standard input is that socket

Exit codes: 0 told to end, or nobody needed it any more; 1 it could not go on; 2 wrong arguments.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let argument = match (arguments.next(), arguments.next()) {
        (Some(help), None) if help == "--help" || help == "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        (Some(argument), None) if argument == "-" || !argument.as_encoded_bytes().starts_with(b"-") => {
            Argument::of(argument)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let ended = lock_down()
        .map_err(godwit_relay::Failure::from)
        .and_then(|()| Ok(listener(&argument)?))
        .and_then(|listener| run(&listener, Limits::default()));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(godwit_relay::Failure::Control(error)) => {
            eprintln!("godwit-relay: the control socket fails: {error}");
            ExitCode::FAILURE
        }
    }
}
