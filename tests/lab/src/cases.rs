//! Runs test cases one after the other in one lab: bringing a lab up takes longer than most cases, and a static would
//! never be taken down.
//!
//! A test file sets `harness = false` and has a `main` that calls [`main`]; what is printed, and the arguments that are
//! understood (a filter, `--exact`, `--skip`, `--list`, `--ignored`, `--include-ignored`), are those of Rust's own
//! tests. Cases that take long by their nature, because a deadline has to run out, are ignored unless they are asked for.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;

use crate::{Lab, LabOptions};

/// A test case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Whether it takes long by its nature: ignored unless asked for.
    pub long: bool,
    /// What it does. It fails with an error or a panic.
    pub body: for<'a> fn(&'a mut Lab) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// What a case ends with that cannot be run on this machine: it counts as ignored, never as passed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LeftOut(pub &'static str);

/// The cases of a file, from the names of functions `async fn name(lab: &mut Lab) -> anyhow::Result<()>`; after `long:`
/// those that take long by their nature.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)? $(; long: $($long:ident),* $(,)?)?) => {
        &[
            $($crate::cases::Case { name: stringify!($name), long: false, body: |lab| Box::pin($name(lab)) },)*
            $($($crate::cases::Case { name: stringify!($long), long: true, body: |lab| Box::pin($long(lab)) },)*)?
        ]
    };
}

#[derive(Default)]
struct Arguments {
    filters: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
    /// Only the long ones.
    ignored: bool,
    /// The long ones too.
    include_ignored: bool,
}

impl Arguments {
    fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut parsed = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => parsed.exact = true,
                "--list" => parsed.list = true,
                "--ignored" => parsed.ignored = true,
                "--include-ignored" => parsed.include_ignored = true,
                "--skip" => parsed.skipped.extend(arguments.next()),
                "--format" | "--color" | "--test-threads" => {
                    // Their values would be taken for filters.
                    arguments.next();
                }
                flag if flag.starts_with('-') => {}
                filter => parsed.filters.push(filter.to_owned()),
            }
        }
        parsed
    }

    /// Whether a case is named by the filters.
    fn names(&self, name: &str) -> bool {
        let matches = |word: &String| {
            if self.exact {
                name == word
            } else {
                name.contains(word.as_str())
            }
        };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skipped.iter().any(matches)
    }

    /// Whether a case that is named is to be run, or only mentioned.
    fn runs(&self, long: bool) -> bool {
        self.include_ignored || self.ignored == long
    }
}

/// Runs the cases that the arguments ask for, in their order, in one lab, and takes it down.
#[must_use]
pub fn main(options: LabOptions, cases: &[Case]) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let (wanted, ignored): (Vec<Case>, Vec<Case>) = cases
        .iter()
        .copied()
        .filter(|case| arguments.names(case.name))
        // With `--ignored` the others are as good as not there.
        .filter(|case| case.long || !arguments.ignored)
        .partition(|case| arguments.runs(case.long));
    if arguments.list {
        for case in wanted {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", wanted.len());
    for case in &ignored {
        println!("test {} ... ignored, it takes long", case.name);
    }
    let filtered = cases.len() - wanted.len() - ignored.len();
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let Tally { failed, left_out } = match runtime {
        Ok(runtime) if !wanted.is_empty() => runtime.block_on(run(options, &wanted)),
        Ok(_) => Tally::default(),
        Err(error) => {
            println!("the tests cannot run: {error}");
            Tally::failed(1)
        }
    };
    let passed = wanted.len().saturating_sub(failed + left_out);
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {} ignored; 0 measured; {filtered} filtered out; \
         finished in {seconds:.2}s\n",
        ignored.len() + left_out
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What became of the cases that were to run.
#[derive(Default)]
struct Tally {
    failed: usize,
    left_out: usize,
}

impl Tally {
    fn failed(failed: usize) -> Self {
        Self { failed, left_out: 0 }
    }
}

/// A lab that does not come up, or cannot be taken down, counts as a failure of all or one.
async fn run(options: LabOptions, cases: &[Case]) -> Tally {
    let begun = Instant::now();
    let mut lab = match Lab::start(options).await {
        Ok(lab) => lab,
        Err(error) => {
            println!("the lab did not come up: {error:#}");
            return Tally::failed(cases.len());
        }
    };
    println!(
        "the lab is up after {:.1} s; logs: {}",
        begun.elapsed().as_secs_f64(),
        lab.records().display()
    );
    let mut failures = Vec::new();
    let mut left_out = 0;
    for case in cases {
        let begun = Instant::now();
        let outcome = AssertUnwindSafe((case.body)(&mut lab)).catch_unwind().await;
        let seconds = begun.elapsed().as_secs_f64();
        let reason = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) if error.is::<LeftOut>() => {
                println!("test {} ... ignored, {error}", case.name);
                left_out += 1;
                continue;
            }
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(panic) => Some(panic_message(panic.as_ref())),
        };
        let word = if reason.is_none() { "ok" } else { "FAILED" };
        println!("test {} ... {word} ({seconds:.1} s)", case.name);
        if let Some(reason) = reason {
            println!("  {}", reason.replace('\n', "\n  "));
            failures.push(case.name);
        }
    }
    let records = lab.records().to_owned();
    if let Err(error) = lab.stop().await {
        println!("taking the lab down failed: {error:#}");
        failures.push("taking the lab down");
    }
    if !failures.is_empty() {
        println!(
            "\nfailures:\n    {}\nlogs: {}",
            failures.join("\n    "),
            records.join("logs").display()
        );
    }
    Tally {
        failed: failures.len().min(cases.len()),
        left_out,
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Arguments {
        Arguments::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn arguments_are_those_of_rusts_own_tests() {
        assert!(parse(&[]).names("any"));
        assert!(parse(&["--nocapture", "an"]).names("any"));
        assert!(!parse(&["--exact", "an"]).names("any"));
        assert!(!parse(&["--skip", "an"]).names("any"));
        assert!(parse(&["--test-threads", "1"]).names("any"));
        let runs = |argument| [false, true].map(|long| parse(&[argument]).runs(long));
        assert_eq!(runs("any"), [true, false]);
        assert_eq!(runs("--ignored"), [false, true]);
        assert_eq!(runs("--include-ignored"), [true, true]);
    }
}
