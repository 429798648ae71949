//! `completion`.

use clap::CommandFactory as _;
use clap_complete::shells;

use crate::args::{Cli, CompletionArgs, Shell};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output;

/// Prints the script.
pub fn run(args: &CompletionArgs) -> Result<Exit, CliError> {
    const PROGRAM: &str = "kubectl-godwit";
    let mut command = Cli::command();
    let mut script = Vec::new();
    match args.shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, PROGRAM, &mut script),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, PROGRAM, &mut script),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, PROGRAM, &mut script),
    }
    output::text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}
