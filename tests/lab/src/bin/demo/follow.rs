//! Follows a VirtualMachineMigration to its end and shows its phases as they pass.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use godwit_crds::migration::{MigrationPhase, Progress};
use godwit_crds::{ConditionStatus, VirtualMachineMigration, VirtualMachineMigrationStatus};
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::screen::{Screen, bar};

/// A migration that takes longer than this, at the rate to which the demonstration limits the link, hangs.
const PATIENCE: Duration = Duration::from_secs(40);

/// How often a live line is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// A migration that has succeeded.
pub struct Moved {
    /// Its last status.
    pub status: VirtualMachineMigrationStatus,
    /// From `applied` until this program saw that it had succeeded.
    pub took: Duration,
}

/// Follows the migration of that name, of which `kubectl apply` was begun at `applied`.
///
/// # Errors
/// When it ends otherwise than well, or not in time.
pub async fn follow(
    api: &Api<VirtualMachineMigration>,
    name: &str,
    applied: Instant,
    screen: &Screen,
) -> anyhow::Result<Moved> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut objects = std::pin::pin!(watcher(api.clone(), config).applied_objects());
    let mut shown = Shown::default();
    let mut draw = tokio::time::interval(DRAW_EVERY);
    loop {
        let left = PATIENCE.saturating_sub(applied.elapsed());
        let object = tokio::select! {
            object = objects.try_next() => object?.context("the API server has ended the watch")?,
            _ = draw.tick() => {
                if let Some(words) = shown.bar() {
                    screen.live(&words);
                }
                continue;
            }
            () = tokio::time::sleep(left) => {
                bail!("migration {name} has not ended {PATIENCE:?} after it was applied; phase {:?}", shown.last);
            }
        };
        let Some(status) = object.status else { continue };
        shown.show(&status, screen);
        if has(&status, "Failed") {
            let failure = status.failure.context("it failed and does not say why")?;
            bail!(
                "migration {name} failed in phase {:?}: {}: {}",
                failure.phase,
                failure.reason,
                failure.message
            );
        }
        if has(&status, "NeedsDecision") {
            bail!("migration {name} waits for a decision: {:?}", status.conditions);
        }
        if has(&status, "Succeeded") {
            let took = applied.elapsed();
            screen
                .line("Succeeded  the guest runs at the destination, and its process at the source is gone");
            return Ok(Moved { status, took });
        }
    }
}

fn has(status: &VirtualMachineMigrationStatus, type_: &str) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
}

/// What has been shown already.
#[derive(Default)]
struct Shown {
    last: Option<MigrationPhase>,
    progress: Option<Progress>,
}

impl Shown {
    fn show(&mut self, status: &VirtualMachineMigrationStatus, screen: &Screen) {
        for times in &status.timeline {
            if self.last.is_none_or(|last| last < times.phase) {
                self.last = Some(times.phase);
                let text = format!("{:<10} {}", format!("{:?}", times.phase), meaning(times.phase));
                // The status is written behind what happens: its own times tell when that was.
                match times.started_at.parse() {
                    Ok(at) => screen.line_of(at, &text),
                    Err(_) => screen.line(&text),
                }
            }
        }
        if status.progress != self.progress {
            self.progress.clone_from(&status.progress);
            if let (false, Some(words)) = (screen.terminal(), self.bar()) {
                screen.line(&words);
            }
        }
    }

    /// The transfer, while it lasts.
    fn bar(&self) -> Option<String> {
        let progress = self
            .progress
            .as_ref()
            .filter(|_| self.last == Some(MigrationPhase::Perform))?;
        let percent = progress.percent.trim_end_matches([' ', '%']).parse().unwrap_or(0);
        let estimate = progress
            .estimated_seconds
            .map(|seconds| format!(", about {seconds} s to go"))
            .unwrap_or_default();
        Some(format!(
            "           {} {} {} sent, {}{estimate}",
            bar(percent),
            progress.percent,
            progress.transferred,
            progress.speed
        ))
    }
}

fn meaning(phase: MigrationPhase) -> &'static str {
    match phase {
        MigrationPhase::Pending => "seen, not begun",
        MigrationPhase::Begin => "the source checks the guest and protects it against changes",
        MigrationPhase::Prepare => "the destination makes itself ready to receive",
        MigrationPhase::Perform => "guest memory travels while the guest runs",
        MigrationPhase::Finish => "the destination takes the guest over",
        MigrationPhase::Confirm => "the source lets go",
        MigrationPhase::Succeeded | MigrationPhase::Failed | MigrationPhase::Cancelled => "",
    }
}
