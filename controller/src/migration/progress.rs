//! How far a transfer is, in figures for programs and in words for people.

use std::time::Duration;

use godwit_crds::migration::Progress;
use godwit_protocol::Progress as Figures;

/// What may still travel while the guest is stopped, of the time that the user allows for that; the rest of it
/// is for devices and the handover itself.
const MEMORY_SHARE_PERCENT: u128 = 80;

/// The figures as they stand in a status, with the time that the hypervisor has taken so far.
pub fn progress(figures: &Figures, hypervisor_millis: Option<u64>, budget: Duration) -> Progress {
    Progress {
        percent: percent(figures.total_bytes, figures.remaining_bytes),
        total_bytes: whole(figures.total_bytes),
        transferred_bytes: whole(figures.transferred_bytes),
        remaining_bytes: whole(figures.remaining_bytes),
        dirty_bytes_per_second: whole(figures.dirty_bytes_per_second),
        bytes_per_second: whole(figures.bytes_per_second),
        iteration: whole(figures.iteration),
        estimated_seconds: estimated_seconds(figures, budget),
        hypervisor_millis: hypervisor_millis.map(whole),
        transferred: bytes(figures.transferred_bytes),
        speed: format!("{}/s", bytes(figures.bytes_per_second)),
    }
}

/// The same figures once the guest has moved: nothing is left.
pub fn complete(mut progress: Progress) -> Progress {
    progress.percent = "100 %".into();
    progress.remaining_bytes = 0;
    progress.estimated_seconds = None;
    progress
}

fn whole(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

/// The share of memory that the destination has and that is not known to be stale. Never 100 % before the end:
/// the last part travels while the guest is stopped.
fn percent(total: u64, remaining: u64) -> String {
    if total == 0 {
        return "0 %".into();
    }
    let share = u128::from(total.saturating_sub(remaining)) * 100 / u128::from(total);
    format!("{} %", share.min(99))
}

/// Seconds until what is left fits the allowed downtime, rounded up; `None` if the guest makes memory stale as
/// fast as it is sent, or nothing is known about the speed.
pub fn estimated_seconds(figures: &Figures, budget: Duration) -> Option<i64> {
    if figures.total_bytes == 0 || figures.bytes_per_second == 0 {
        return None;
    }
    let fits = u128::from(figures.bytes_per_second) * budget.as_micros() * MEMORY_SHARE_PERCENT / 100_000_000;
    let excess = u128::from(figures.remaining_bytes).saturating_sub(fits);
    if excess == 0 {
        return Some(0);
    }
    let gain = figures
        .bytes_per_second
        .checked_sub(figures.dirty_bytes_per_second)
        .filter(|gain| *gain > 0)?;
    i64::try_from(excess.div_ceil(u128::from(gain))).ok()
}

/// A number of bytes for people: `512 B`, `1.2 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = "KiB";
    for next in UNITS.iter().skip(1) {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    if tenths >= 1000 || tenths % 10 == 0 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    fn figures(total: u64, remaining: u64, speed: u64, dirty: u64) -> Figures {
        Figures {
            total_bytes: total,
            transferred_bytes: total - remaining,
            remaining_bytes: remaining,
            dirty_bytes_per_second: dirty,
            bytes_per_second: speed,
            iteration: 1,
        }
    }

    #[test]
    fn bytes_for_people() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (1_288_490_189, "1.2 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn percent_reaches_the_end_only_at_the_end() {
        assert_eq!(percent(0, 0), "0 %");
        assert_eq!(percent(1000, 1000), "0 %");
        assert_eq!(percent(1000, 580), "42 %");
        assert_eq!(percent(1000, 0), "99 %");
        assert_eq!(percent(1000, 2000), "0 %");
        let done = complete(progress(
            &figures(1000, 10, 10, 0),
            Some(77),
            Duration::from_millis(300),
        ));
        assert_eq!(
            (
                done.percent.as_str(),
                done.remaining_bytes,
                done.estimated_seconds,
                done.hypervisor_millis
            ),
            ("100 %", 0, None, Some(77))
        );
    }

    #[test]
    fn the_estimate_counts_what_the_guest_makes_stale() {
        let budget = Duration::from_secs(1);
        // 100 MB/s: 80 MB fit the budget. 1080 MB left: 1000 MB at 100 MB/s, or at 50 MB/s with a busy guest.
        assert_eq!(
            estimated_seconds(&figures(2 << 30, 1_080_000_000, 100_000_000, 0), budget),
            Some(10)
        );
        assert_eq!(
            estimated_seconds(&figures(2 << 30, 1_080_000_000, 100_000_000, 50_000_000), budget),
            Some(20)
        );
        assert_eq!(
            estimated_seconds(&figures(2 << 30, 80_000_000, 100_000_000, 0), budget),
            Some(0)
        );
        assert_eq!(
            estimated_seconds(&figures(2 << 30, 80_000_001, 100_000_000, 0), budget),
            Some(1)
        );
    }

    #[test]
    fn no_estimate_where_none_can_be_made() {
        let budget = Duration::from_millis(300);
        assert_eq!(estimated_seconds(&figures(0, 0, 0, 0), budget), None);
        assert_eq!(estimated_seconds(&figures(1 << 30, 1 << 30, 0, 0), budget), None);
        assert_eq!(
            estimated_seconds(&figures(1 << 30, 1 << 30, 1000, 1000), budget),
            None
        );
        assert_eq!(
            estimated_seconds(&figures(1 << 30, 1 << 30, 1000, 2000), budget),
            None
        );
        assert_eq!(
            estimated_seconds(&figures(u64::MAX, u64::MAX, 1, 0), budget),
            None
        );
    }
}
