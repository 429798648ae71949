//! Which accelerator agents found to work on this machine, remembered until the next boot: finding out that one does
//! not work takes an agent seconds, and a run of tests starts many agents.

use std::path::PathBuf;

use crate::cache;

/// What to configure: what an agent found since this boot, else to find out.
#[must_use]
pub fn choice() -> String {
    std::fs::read_to_string(file())
        .ok()
        .and_then(|text| remembered(&text, &boot()))
        .unwrap_or_else(|| "auto".to_owned())
}

/// Remembers what an agent found.
pub fn remember(accelerator: &str) {
    // Where it cannot be kept it will be found out again.
    let _ = std::fs::create_dir_all(cache::directory());
    let _ = std::fs::write(file(), format!("{} {accelerator}\n", boot()));
}

fn file() -> PathBuf {
    cache::directory().join("accelerator")
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn remembered(text: &str, boot: &str) -> Option<String> {
    let (of_boot, accelerator) = text.trim().split_once(' ')?;
    (of_boot == boot && ["kvm", "tcg"].contains(&accelerator)).then(|| accelerator.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_found_since_this_boot_counts() {
        assert_eq!(remembered("b tcg\n", "b").as_deref(), Some("tcg"));
        assert_eq!(remembered("a kvm\n", "b"), None);
        assert_eq!(remembered("b other\n", "b"), None);
        assert_eq!(remembered("", "b"), None);
    }
}
