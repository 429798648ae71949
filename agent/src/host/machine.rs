//! What the host has: processors and memory.

use std::io;

/// Processors and memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Processors that may be used.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
}

impl Machine {
    /// Asks the kernel.
    pub fn look() -> io::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let memory = memory(&std::fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("/proc/meminfo says no MemTotal"))?;
        Ok(Self { cpus, memory })
    }
}

fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        assert_eq!(
            memory("MemTotal:       24683520 kB\nMemFree: 1 kB\n"),
            Some(24_683_520 * 1024)
        );
        assert_eq!(memory("MemFree: 1 kB\n"), None);
        assert!(Machine::look().unwrap().memory > 0);
    }
}
