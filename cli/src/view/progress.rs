//! One line that says how far a migration is: for the live bar and for logs.

use godwit_crds::VirtualMachineMigration;
use godwit_crds::migration::Progress;

use crate::outcome::{Outcome, cancelled_too_late, outcome};
use crate::text::{MESSAGE, WORD, clean};
use crate::units;

/// The phase, or what stands in for it.
pub fn stage(migration: &VirtualMachineMigration) -> String {
    match migration.status.as_ref().and_then(|s| s.phase) {
        Some(phase) => format!("{phase:?}"),
        None => "Not seen yet".into(),
    }
}

/// Percent done, 0 to 100, for the bar.
pub fn percent(migration: &VirtualMachineMigration) -> u64 {
    let text = migration
        .status
        .as_ref()
        .and_then(|s| s.progress.as_ref())
        .map(|p| p.percent.as_str());
    let digits: String = text
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse::<u64>().unwrap_or(0).min(100)
}

/// Figures of the transfer on one line; empty before there are any.
pub fn figures(migration: &VirtualMachineMigration) -> String {
    migration
        .status
        .as_ref()
        .and_then(|s| s.progress.as_ref())
        .map(transfer)
        .unwrap_or_default()
}

/// What the transfer came to, once it is over: estimates of what is left mean nothing then.
pub fn summary(migration: &VirtualMachineMigration) -> String {
    let Some(progress) = migration.status.as_ref().and_then(|s| s.progress.as_ref()) else {
        return String::new();
    };
    let passes = match progress.iteration {
        1 => "1 pass".to_owned(),
        n => format!("{n} passes"),
    };
    format!(
        "{} for {} of guest memory, {passes}, {}/s at last",
        units::bytes(progress.transferred_bytes),
        units::bytes(progress.total_bytes),
        units::bytes(progress.bytes_per_second),
    )
}

/// The whole line: phase, percent, figures, and what else a person should hear of at once.
pub fn line(migration: &VirtualMachineMigration) -> String {
    if outcome(migration.status.as_ref()).ended() {
        return stage(migration);
    }
    let mut parts = vec![format!("{:<9}", stage(migration))];
    if migration.status.as_ref().is_some_and(|s| s.progress.is_some()) {
        parts.push(format!("{:>3}%", percent(migration)));
        parts.push(figures(migration));
    }
    if let Some(remark) = remark(migration) {
        parts.push(remark);
    }
    parts.join("  ").trim_end().to_owned()
}

/// What a person should hear of while the migration goes on.
pub fn remark(migration: &VirtualMachineMigration) -> Option<String> {
    let status = migration.status.as_ref();
    if let Outcome::NeedsDecision(cause) = outcome(status) {
        return Some(format!(
            "needs a decision: {}: {}",
            clean(&cause.reason, WORD),
            clean(&cause.message, MESSAGE)
        ));
    }
    if let Some(cause) = cancelled_too_late(status) {
        return Some(format!("too late to cancel: {}", clean(&cause.message, MESSAGE)));
    }
    (migration.spec.cancel && !outcome(status).ended()).then(|| "cancelling".into())
}

/// What matters most comes first: a narrow terminal cuts the rest.
fn transfer(progress: &Progress) -> String {
    let mut text = format!("{}/s", units::bytes(progress.bytes_per_second));
    if let Some(seconds) = progress.estimated_seconds {
        text.push_str(&format!(", about {} to go", whole_seconds(seconds)));
    }
    text.push_str(&format!(
        ", {} sent, {} of {} left",
        units::bytes(progress.transferred_bytes),
        units::bytes(progress.remaining_bytes),
        units::bytes(progress.total_bytes),
    ));
    if progress.dirty_bytes_per_second > 0 {
        text.push_str(&format!(
            ", guest dirties {}/s",
            units::bytes(progress.dirty_bytes_per_second)
        ));
    }
    if progress.iteration > 0 {
        text.push_str(&format!(", pass {}", progress.iteration));
    }
    text
}

/// An estimate: more digits than seconds would lie.
fn whole_seconds(seconds: i64) -> String {
    match seconds.clamp(0, i64::MAX / 1_000_000) {
        s @ 0..=59 => format!("{s} s"),
        s => units::span(s * 1_000_000),
    }
}
