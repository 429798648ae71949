//! The exit codes: part of the interface, listed in `--help` and in `docs/cli.md`.

/// How a run of the program ended, for the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or for a wait: the migration succeeded.
    Success,
    /// The API server refused, nothing was found, or the answer made no sense.
    Error,
    /// The command line was wrong.
    Usage,
    /// The migration failed.
    MigrationFailed,
    /// The migration was cancelled.
    Cancelled,
    /// godwit cannot tell which side may run the guest; a person must look.
    NeedsDecision,
    /// The wait was over before the migration was; it goes on.
    TimedOut,
    /// Ctrl-C ended the watching; the migration goes on. The number is the shells' own for SIGINT.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::MigrationFailed => 3,
            Self::Cancelled => 4,
            Self::NeedsDecision => 5,
            Self::TimedOut => 6,
            Self::Interrupted => 130,
        }
    }
}

/// The list as it stands at the end of every `--help`.
pub const HELP: &str = "\
Exit codes:
  0    success; with --wait: the migration succeeded
  1    error: the API server refused or did not answer, or something was not found
  2    wrong command line
  3    the migration failed
  4    the migration was cancelled
  5    the migration needs a decision
  6    timed out waiting; the migration goes on
  130  stopped watching by Ctrl-C; the migration goes on";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_page_list_every_code() {
        let page = include_str!("../../docs/cli.md");
        for exit in [
            Exit::Success,
            Exit::Error,
            Exit::Usage,
            Exit::MigrationFailed,
            Exit::Cancelled,
            Exit::NeedsDecision,
            Exit::TimedOut,
            Exit::Interrupted,
        ] {
            assert!(page.contains(&format!("\n| {} |", exit.code())), "{exit:?}");
            assert!(HELP.contains(&format!("\n  {:<4} ", exit.code())), "{exit:?}");
        }
    }
}
