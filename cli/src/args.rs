//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use godwit_crds::quantity;

use crate::exit;

/// Moves running guests between hosts, and shows how they fare.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-godwit",
    bin_name = "kubectl godwit",
    version,
    about,
    after_help = exit::HELP,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Which cluster and namespace.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as whom, in which namespace. The same words as kubectl's.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Namespace; left out, that of the context
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig; left out, its current one
    #[arg(long, global = true, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// Kubeconfig file; left out, $KUBECONFIG or ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move a running guest to another host
    #[command(after_help = exit::HELP)]
    Migrate(MigrateArgs),
    /// Show how a migration stands
    #[command(after_help = exit::HELP)]
    Status(StatusArgs),
    /// Stop a migration; the guest goes on at its source
    #[command(after_help = CANCEL_HELP)]
    Cancel(CancelArgs),
    /// Say the last word about a guest whose host is gone for good; without --fenced: show what can be said
    #[command(after_help = RESOLVE_HELP)]
    Resolve(ResolveArgs),
    /// List guests and where they run
    #[command(after_help = LIST_HELP)]
    Guests(GuestsArgs),
    /// List hosts
    #[command(after_help = LIST_HELP)]
    Hosts(HostsArgs),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion(CompletionArgs),
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The VirtualMachine to move
    #[arg(value_name = "VM", value_parser = object_name)]
    pub vm: String,
    /// The VirtualMachineHost that is to run it
    #[arg(long, value_name = "HOST", value_parser = object_name)]
    pub to: String,
    /// Have the controller drive each phase itself; left out, the source's agent drives, and goes on without the
    /// controller
    #[arg(long)]
    pub managed: bool,
    /// Move guest memory through the agents' port, by relays, instead of from hypervisor to hypervisor
    #[arg(long)]
    pub tunnelled: bool,
    /// Let guest memory cross the network unencrypted [default: it is encrypted]
    #[arg(long)]
    pub plain_text: bool,
    /// Have the destination write into the guest's record that it starts the guest, before it does: the guest stands still
    /// for two writes longer, and comes back to the source where the destination is lost before it has started it
    #[arg(long)]
    pub strict: bool,
    /// Name of the migration; left out, the server makes one that begins with the guest's
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    pub name: Option<String>,
    /// Longest stop of the guest at the switchover, between 10ms and 60s [default: the server's, 300ms]
    #[arg(long, value_name = "DURATION", value_parser = max_downtime)]
    pub max_downtime: Option<String>,
    /// Most that may travel in a second while the guest runs, for example 100Mi; 0 is no limit. Later, while memory
    /// travels: `kubectl patch vmmig NAME --type merge -p '{"spec":{"tuning":{"bandwidth":"50Mi"}}}'` [default: no limit]
    #[arg(long, value_name = "AMOUNT", value_parser = bandwidth)]
    pub bandwidth: Option<String>,

    /// Over how many connections memory is spread, 1 to 16; from 2 on with --tunnelled [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=16))]
    pub parallel_connections: Option<i32>,
    /// Follow the migration to its end
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, for example 90s, 10m or 2h [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = timeout, requires = "wait")]
    pub timeout: Option<Duration>,
    /// Print the object; with --wait: as it is at the end
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ObjectFormat>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The VirtualMachineMigration
    #[arg(value_name = "NAME", value_parser = object_name)]
    pub name: String,
    /// Follow it to its end; the exit code then says how it ended
    #[arg(short, long)]
    pub watch: bool,
    /// How long to watch, for example 90s, 10m or 2h [default: without end]
    #[arg(long, value_name = "DURATION", value_parser = timeout, requires = "watch")]
    pub timeout: Option<Duration>,
    /// Print the object; with --watch: as it is at the end
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ObjectFormat>,
}

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The VirtualMachineMigration
    #[arg(value_name = "NAME", value_parser = object_name)]
    pub name: String,
    /// Wait until it has ended
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, for example 90s, 10m or 2h [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = timeout, requires = "wait")]
    pub timeout: Option<Duration>,
}

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// The VirtualMachine
    #[arg(value_name = "VM", value_parser = object_name)]
    pub vm: String,
    /// A host that you have made sure runs nothing any more: it is off, or cut off from the guest's disks and networks
    /// for good. If that is not so, the guest may run twice. May be given twice
    #[arg(long, value_name = "HOST", value_parser = object_name)]
    pub fenced: Vec<String>,
    /// Give the guest's memory up for lost, where it is, and start it afresh from its disks on another host
    #[arg(long, requires = "fenced", conflicts_with = "resume_source")]
    pub cold_start: bool,
    /// The host on which it is started afresh; left out, one with room
    #[arg(long, value_name = "HOST", requires = "cold_start", value_parser = object_name)]
    pub on: Option<String>,
    /// Let the source's image go on: only of a strict migration whose destination is fenced and has not started the guest
    #[arg(long, requires = "fenced")]
    pub resume_source: bool,
    /// Why, for whoever reads it later
    #[arg(long, value_name = "TEXT", requires = "fenced")]
    pub note: Option<String>,
    /// Wait until it is carried out, or refused
    #[arg(long, requires = "fenced")]
    pub wait: bool,
    /// How long to wait, for example 90s, 10m or 2h [default: 2m]
    #[arg(long, value_name = "DURATION", value_parser = timeout, requires = "wait")]
    pub timeout: Option<Duration>,
    /// Print the object; with --wait: as it is at the end
    #[arg(short, long, value_name = "FORMAT", requires = "fenced")]
    pub output: Option<ObjectFormat>,
}

/// Arguments of `guests`.
#[derive(Debug, Args)]
pub struct GuestsArgs {
    /// Those of every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// More columns, or the objects
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ListFormat>,
}

/// Arguments of `hosts`.
#[derive(Debug, Args)]
pub struct HostsArgs {
    /// More columns, or the objects
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<ListFormat>,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    pub shell: Shell,
}

// No doc comments on the variants below: clap would turn each `--help` into pages of lists.
/// How one object is printed.
#[allow(missing_docs, reason = "the word itself is what the user writes")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    Json,
}

/// How a list is printed.
#[allow(missing_docs, reason = "the word itself is what the user writes")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    Json,
    Wide,
}

/// The shells for which there is a completion script.
#[allow(missing_docs, reason = "the word itself is what the user writes")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

const LIST_HELP: &str = "\
Exit codes:
  0    success
  1    error: the API server refused or did not answer
  2    wrong command line";

const CANCEL_HELP: &str = "\
Cancelling twice is the same as cancelling once. Once the handover has begun it is too late.

Exit codes:
  0    asked for; with --wait: the migration ended and the guest did not move
  1    too late: the guest has moved; or an error, as with every command
  2    wrong command line
  5    the migration needs a decision
  6    timed out waiting; the cancellation stays asked for
  130  stopped watching by Ctrl-C; the cancellation stays asked for";

const RESOLVE_HELP: &str = "\
With --fenced alone nothing is given up: godwit does what follows from the fence, and else goes on waiting. What was said
stays as a VirtualMachineResolution (`kubectl get vmres`), with who said it and what became of it.

Exit codes:
  0    said; with --wait: carried out
  1    refused, or an error, as with every command
  2    wrong command line
  5    without --fenced: a migration of the guest waits for a decision
  6    timed out waiting; the word stands
  130  stopped watching by Ctrl-C; the word stands";

const COMPLETION_HELP: &str = "\
The script completes the program's own name, `kubectl-godwit`:
  bash  source <(kubectl-godwit completion bash)
  zsh   kubectl-godwit completion zsh > \"${fpath[1]}/_kubectl-godwit\"
  fish  kubectl-godwit completion fish > ~/.config/fish/completions/kubectl-godwit.fish";

/// What every object's name must look like; refused here, a slip does not become a request to another path.
fn object_name(text: &str) -> Result<String, String> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| edge(c) || c == '-' || c == '.';
    if text.is_empty() || text.len() > 253 {
        return Err("a name has 1 to 253 characters".into());
    }
    if text.starts_with(edge) && text.ends_with(edge) && text.chars().all(inner) {
        Ok(text.into())
    } else {
        Err(
            "a name has lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit"
                .into(),
        )
    }
}

/// The same bounds as the server's, so that a slip is told as a slip.
fn max_downtime(text: &str) -> Result<String, String> {
    match quantity::duration(text) {
        Some(d) if d >= Duration::from_millis(10) && d <= Duration::from_secs(60) => Ok(text.into()),
        Some(_) => Err("it lies between 10ms and 60s".into()),
        None => Err("write whole milliseconds or seconds, for example 300ms or 2s".into()),
    }
}

/// A time to wait: whole milliseconds, seconds, minutes or hours, more than none and at most a week.
fn timeout(text: &str) -> Result<Duration, String> {
    const HINT: &str = "write a whole number with ms, s, m or h, for example 90s or 10m";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = match digits.bytes().all(|b| b.is_ascii_digit()) {
        true => digits.parse().map_err(|_| HINT.to_owned())?,
        false => return Err(HINT.into()),
    };
    let millis = match text.get(digits.len()..) {
        Some("ms") => Some(number),
        Some("s") => number.checked_mul(1_000),
        Some("m") => number.checked_mul(60_000),
        Some("h") => number.checked_mul(3_600_000),
        Some(_) | None => return Err(HINT.into()),
    };
    match millis {
        Some(m @ 1..=604_800_000) => Ok(Duration::from_millis(m)),
        Some(_) | None => Err("it lies between 1ms and 168h".into()),
    }
}

fn bandwidth(text: &str) -> Result<String, String> {
    match quantity::bandwidth(text) {
        Some(_) => Ok(text.into()),
        None => Err("write whole KiB, MiB or GiB in a second, for example 100Mi, or 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn names() {
        for good in ["a", "web1", "node-b.example", "9"] {
            assert_eq!(object_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "ä", &"a".repeat(254)] {
            assert!(object_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn downtimes() {
        for good in ["10ms", "300ms", "2s", "60s", "60000ms"] {
            assert_eq!(max_downtime(good).as_deref(), Ok(good));
        }
        for bad in ["9ms", "61s", "0s", "300", "1m", "", "ms", "-1s"] {
            assert!(max_downtime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bandwidths() {
        for good in ["0", "64Ki", "100Mi", "2Gi"] {
            assert_eq!(bandwidth(good).as_deref(), Ok(good));
        }
        for bad in ["", "100", "100M", "-1Mi", "1.5Mi"] {
            assert!(bandwidth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timeouts() {
        for (text, seconds) in [
            ("1s", 1),
            ("90s", 90),
            ("10m", 600),
            ("2h", 7200),
            ("168h", 604_800),
        ] {
            assert_eq!(timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(timeout("250ms"), Ok(Duration::from_millis(250)));
        for bad in [
            "",
            "10",
            "m",
            "0s",
            "169h",
            "1d",
            "1.5s",
            "-1s",
            "+1s",
            "99999999999999999999h",
            "5m30s",
        ] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
