//! What is shown while a migration is followed: a live bar for a person at a terminal, lines for anything else.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use godwit_crds::VirtualMachineMigration;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::CliError;
use crate::output;
use crate::view::progress;

/// Where progress goes.
pub enum Report {
    /// A bar on the terminal.
    Bar(ProgressBar),
    /// A line on standard output whenever it would say something new.
    Lines {
        /// The last one.
        last: String,
    },
    /// Lines on standard error, because standard output is for the object.
    Aside {
        /// The last one.
        last: String,
    },
}

impl Report {
    /// A bar if both outputs are terminals, else lines. `json` keeps standard output free.
    pub fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        if terminal && !json {
            let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix:<9} [{bar:24}] {pos:>3}%  {wide_msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            Self::Bar(bar)
        } else if json {
            Self::Aside { last: String::new() }
        } else {
            Self::Lines { last: String::new() }
        }
    }

    /// Shows how far it is.
    pub fn show(&mut self, migration: &VirtualMachineMigration) -> Result<(), CliError> {
        match self {
            Self::Bar(bar) => {
                bar.set_prefix(progress::stage(migration));
                bar.set_position(progress::percent(migration));
                bar.set_message(progress::remark(migration).unwrap_or_else(|| progress::figures(migration)));
                Ok(())
            }
            Self::Lines { .. } | Self::Aside { .. } => self.say(progress::line(migration)),
        }
    }

    /// Says something beside the progress, once.
    pub fn note(&mut self, words: &str) -> Result<(), CliError> {
        match self {
            Self::Bar(bar) => {
                bar.println(words);
                Ok(())
            }
            Self::Lines { .. } | Self::Aside { .. } => self.say(words.to_owned()),
        }
    }

    /// Takes the bar off the screen; what comes next is the result.
    pub fn finish(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { .. } | Self::Aside { .. } => {}
        }
    }

    fn say(&mut self, words: String) -> Result<(), CliError> {
        match self {
            Self::Bar(_) => {}
            Self::Lines { last } => {
                if *last != words {
                    output::line(&words)?;
                    *last = words;
                }
            }
            Self::Aside { last } => {
                if *last != words {
                    writeln!(io::stderr(), "{words}")?;
                    *last = words;
                }
            }
        }
        Ok(())
    }
}
