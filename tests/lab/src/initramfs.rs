//! The initramfs of a Linux test guest: the guest's program as `/init`, and the few directories it mounts things on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The target the guest's program is built for. It is named on purpose: with it, flags for the guest's program do not
/// reach build scripts, and the directory of the product is known.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Kernel options for every Linux test guest; the guest's own (`godwit.…`) come behind them.
///
/// * `quiet loglevel=1`: the serial port is for the guest's lines alone.
/// * `tsc=reliable`: no watchdog that could find the clock wanting after a move, and change it.
/// * `no_timer_check`: on a busy machine an emulated timer comes late, and a kernel that counts its ticks at boot stops for
///   good.
/// * `cryptomgr.notests`, `initcall_blacklist`: what takes long when emulated and is of no use here, a sixth of the
///   boot's CPU time. Names that a kernel does not know do no harm.
/// * `init_on_alloc=0`: memory that is filled at once need not be cleared first.
pub const KERNEL_OPTIONS: &str = "quiet loglevel=1 tsc=reliable no_timer_check cryptomgr.notests init_on_alloc=0 \
     initcall_blacklist=init_kprobe_trace,load_system_certificate_list,btf_vmlinux_init";

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Builds the guest's program, or finds it built and up to date, and gives its path.
///
/// It is linked statically, as there is nothing else in the guest, and small, as the guest unpacks it at boot. It has a
/// target directory of its own (`target/guest`), so that its flags do not make cargo build everything else anew.
///
/// # Errors
/// When cargo cannot be run or the program does not compile; cargo's own words go to standard error.
pub fn build_program(workspace: &Path) -> anyhow::Result<PathBuf> {
    let directory = workspace.join("target/guest");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--package",
            "godwit-guest",
            "--target",
            TARGET,
            "--profile",
            "guest",
        ])
        .args(["--config", r#"profile.guest.inherits="release""#])
        .args(["--config", "profile.guest.lto=true"])
        .args(["--config", "profile.guest.codegen-units=1"])
        .args(["--config", r#"profile.guest.panic="abort""#])
        .args(["--config", r#"profile.guest.strip="symbols""#])
        .arg("--target-dir")
        .arg(&directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("run cargo to build the guest's program")?;
    if !status.success() {
        bail!("cargo could not build godwit-guest ({status})");
    }
    Ok(directory.join(TARGET).join("guest/godwit-guest"))
}

/// Builds the guest's program and writes an initramfs with it to `path`. Whoever reads `path` meanwhile sees either
/// the old file or the new one.
///
/// # Errors
/// When the program cannot be built, or a file cannot be read or written.
pub fn write_initramfs(workspace: &Path, path: &Path) -> anyhow::Result<()> {
    let program = build_program(workspace)?;
    let program = std::fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    std::fs::write(&partial, archive(&program)).with_context(|| format!("write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("write {}", path.display()))
}

/// The archive as bytes: cpio's "newc" format, not compressed, which the kernel unpacks fastest.
#[must_use]
pub fn archive(program: &[u8]) -> Vec<u8> {
    let mut archive = Archive {
        bytes: Vec::with_capacity(program.len() + 4096),
        next_inode: 1,
    };
    for directory in ["dev", "proc", "sys"] {
        archive.add(directory, DIRECTORY, (0, 0), &[]);
    }
    // The kernel opens it as standard input, output and error of process 1 before anything is mounted.
    archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    archive.add("init", EXECUTABLE, (0, 0), program);
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}

struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        // No file here comes near 4 GiB, the format's limit.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.next_inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time of change: none, so that the same program gives the same archive
            size,
            0, // device on which the file lay
            0,
            device.0,
            device.1,
            name_size,
            0, // checksum, not used in this variant
        ];
        self.next_inode += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents each end on a multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Name, mode, device, content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive by the format's description.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let content_at = (110 + name_size).next_multiple_of(4);
            let content = bytes[content_at..content_at + size].to_vec();
            entries.push((name, field(1), (field(9), field(10)), content));
            bytes = &bytes[(content_at + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn the_archive_holds_the_program_and_a_console() {
        let entries = read(&archive(b"12345"));
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["dev", "proc", "sys", "dev/console", "init", "TRAILER!!!"]);
        assert_eq!(entries[3].1, 0o020_600);
        assert_eq!(entries[3].2, (5, 1));
        assert_eq!(entries[4].1, 0o100_755);
        assert_eq!(entries[4].3, b"12345");
    }

    #[test]
    fn the_same_program_gives_the_same_archive() {
        assert_eq!(archive(b"x"), archive(b"x"));
        assert_eq!(archive(b"x").len() % 4, 0);
    }
}
