//! The only program of a Linux test guest. It runs as process 1 from an initramfs, fills memory with a known pattern
//! and from then on does, at every tick: write a line to the serial port, dirty some memory, check some memory, and
//! look for a command.
//!
//! Commands, one a line, on the same serial port:
//! * `check` looks at all of memory as fast as the ticks allow and then writes the outcome;
//! * `dirty 50M` sets how many bytes are dirtied per second;
//! * `poweroff`, `reset`, `panic` do what they say; a panic is also reported to the machine's pvpanic device.

mod panic_device;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use godwit_guest::line::{Line, MemoryState};
use godwit_guest::memory::{Memory, Pass};
use godwit_guest::options::{BadOption, Options, size};
use godwit_guest::pattern::{PAGE_BYTES, Pattern};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};

/// Pages that are written or checked between two looks at the clock: a fraction of a millisecond even when emulated.
const BATCH_PAGES: u64 = 32;

/// How far behind its rate dirtying or checking may fall and still make up for it, in nanoseconds.
const LONGEST_DEBT_NS: u64 = 100_000_000;

/// A command longer than this is no command.
const LONGEST_COMMAND: usize = 64;

const SERIAL_PORT: &str = "/dev/ttyS0";

fn main() -> std::io::Result<()> {
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    let mut serial = open_serial()?;
    match Options::parse(&std::fs::read_to_string("/proc/cmdline")?) {
        Ok(options) => Guest::start(&options, serial)?.run(),
        Err(BadOption(what)) => {
            serial.write_all(Line::Refused { what }.encode().as_bytes())?;
            rustix::termios::tcdrain(&serial)?;
            reboot(RebootCommand::PowerOff)?;
            Ok(())
        }
    }
}

/// Opens the serial port so that bytes go through it unchanged, writing waits for room and reading never waits.
fn open_serial() -> std::io::Result<File> {
    let no_controlling_terminal = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
    let serial = File::options()
        .read(true)
        .write(true)
        .custom_flags(no_controlling_terminal)
        .open(SERIAL_PORT)?;
    let mut settings = tcgetattr(&serial)?;
    settings.make_raw();
    settings.set_speed(115_200)?;
    settings.special_codes[SpecialCodeIndex::VMIN] = 0;
    settings.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(&serial, OptionalActions::Now, &settings)?;
    Ok(serial)
}

struct Guest {
    serial: File,
    memory: Memory,
    state: MemoryState,
    tick: u64,
    interval_ns: u64,
    dirty: Rate,
    scrub: Rate,
    pass: Pass,
    /// The check under way was asked for by a command: it is done as fast as the ticks allow.
    hurry: bool,
    command: Vec<u8>,
}

impl Guest {
    fn start(options: &Options, mut serial: File) -> std::io::Result<Self> {
        let pages = options
            .fill
            .div_ceil(PAGE_BYTES)
            .max(options.working_set.div_ceil(PAGE_BYTES));
        let hello = Line::Hello {
            pages,
            interval_ms: options.interval_ms,
            uptime_us: now(ClockId::Boottime) / 1000,
        };
        serial.write_all(hello.encode().as_bytes())?;
        let memory = Memory::fill(Pattern::new(options.seed), options.fill, options.working_set);
        let started = now(ClockId::Monotonic);
        Ok(Self {
            serial,
            memory,
            state: MemoryState::Intact,
            tick: 0,
            interval_ns: options.interval_ms * 1_000_000,
            dirty: Rate::new(options.dirty, started),
            scrub: Rate::new(options.scrub, started),
            pass: Pass::new(0),
            hurry: false,
            command: Vec::new(),
        })
    }

    fn run(mut self) -> std::io::Result<()> {
        let mut deadline = now(ClockId::Monotonic);
        loop {
            self.write_tick()?;
            deadline += self.interval_ns;
            // A tick that came too late is not made up for: the ticks after it keep their distance.
            deadline = deadline.max(now(ClockId::Monotonic));
            // Work ends early enough that the next tick is not late by it.
            let until = deadline - self.interval_ns / 4;
            self.dirty_memory(until);
            self.check_memory(until)?;
            self.read_commands()?;
            sleep_until(deadline);
        }
    }

    fn write(&mut self, line: &Line) -> std::io::Result<()> {
        self.serial.write_all(line.encode().as_bytes())
    }

    fn write_tick(&mut self) -> std::io::Result<()> {
        self.tick += 1;
        let line = Line::Tick {
            tick: self.tick,
            wall_us: now(ClockId::Realtime) / 1000,
            mono_us: now(ClockId::Monotonic) / 1000,
            memory: self.state,
        };
        self.write(&line)
    }

    fn dirty_memory(&mut self, until: u64) {
        loop {
            let at = now(ClockId::Monotonic);
            let pages = self.dirty.due(at).min(BATCH_PAGES);
            if pages == 0 || at >= until {
                return;
            }
            self.memory.dirty(pages);
            self.dirty.done(pages);
        }
    }

    fn check_memory(&mut self, until: u64) -> std::io::Result<()> {
        if self.memory.pages() == 0 && !self.hurry {
            return Ok(());
        }
        loop {
            let at = now(ClockId::Monotonic);
            let due = self.scrub.due(at);
            let pages = if self.hurry {
                BATCH_PAGES
            } else {
                due.min(BATCH_PAGES)
            };
            if pages == 0 || at >= until {
                return Ok(());
            }
            self.scrub.done(pages.min(due));
            let found = self.memory.check(&mut self.pass, pages);
            if Memory::seen_bad(&self.pass) {
                self.state = MemoryState::Corrupt;
            }
            if let Some(found) = found {
                let line = Line::Check {
                    since_tick: self.pass.since_tick,
                    pages: self.memory.pages(),
                    bad: found.bad,
                    first_bad: found.first_bad,
                    mono_us: now(ClockId::Monotonic) / 1000,
                };
                self.write(&line)?;
                self.pass = Pass::new(self.tick);
                self.hurry = false;
                return Ok(());
            }
        }
    }

    fn read_commands(&mut self) -> std::io::Result<()> {
        let mut bytes = [0; LONGEST_COMMAND];
        let count = self.serial.read(&mut bytes)?;
        for byte in bytes.iter().take(count) {
            match byte {
                b'\n' | b'\r' => {
                    let command = String::from_utf8_lossy(&std::mem::take(&mut self.command)).into_owned();
                    self.obey(&command)?;
                }
                byte if self.command.len() <= LONGEST_COMMAND => self.command.push(*byte),
                _ => {}
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: &str) -> std::io::Result<()> {
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        let name = words.first().copied().unwrap_or_default().to_owned();
        let accepted = Line::Accepted {
            command: name.clone(),
        };
        match words.as_slice() {
            [] => {}
            ["check"] => {
                self.write(&accepted)?;
                // From the first page again: what is asked for is memory as it is from now on.
                self.pass = Pass::new(self.tick);
                self.hurry = true;
            }
            ["dirty", rate] if size(rate).is_some() => {
                self.write(&accepted)?;
                self.dirty = Rate::new(size(rate).unwrap_or(0), now(ClockId::Monotonic));
            }
            ["poweroff"] => self.end(&accepted, RebootCommand::PowerOff)?,
            ["reset"] => self.end(&accepted, RebootCommand::Restart)?,
            ["panic"] => {
                self.write(&accepted)?;
                rustix::termios::tcdrain(&self.serial)?;
                panic_device::report()?;
                std::fs::write("/proc/sysrq-trigger", "c")?;
            }
            _ => self.write(&Line::Refused { what: name })?,
        }
        Ok(())
    }

    fn end(&mut self, line: &Line, how: RebootCommand) -> std::io::Result<()> {
        self.write(line)?;
        rustix::termios::tcdrain(&self.serial)?;
        reboot(how)?;
        Ok(())
    }
}

/// So many bytes per second, paid out in whole pages.
struct Rate {
    bytes_per_second: u64,
    /// Up to when pages have been paid out, in nanoseconds.
    paid_until: u64,
}

impl Rate {
    fn new(bytes_per_second: u64, now: u64) -> Self {
        Self {
            bytes_per_second,
            paid_until: now,
        }
    }

    /// Pages that are due at `now`. What is older than the longest debt is forgiven.
    fn due(&mut self, now: u64) -> u64 {
        self.paid_until = self.paid_until.max(now.saturating_sub(LONGEST_DEBT_NS));
        let elapsed = now.saturating_sub(self.paid_until);
        elapsed.saturating_mul(self.bytes_per_second) / (PAGE_BYTES * 1_000_000_000)
    }

    fn done(&mut self, pages: u64) {
        if let Some(time) = (pages * PAGE_BYTES * 1_000_000_000).checked_div(self.bytes_per_second) {
            self.paid_until += time;
        }
    }
}

/// A clock's time in nanoseconds.
fn now(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn sleep_until(deadline: u64) {
    let at = Timespec {
        tv_sec: i64::try_from(deadline / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(deadline % 1_000_000_000).unwrap_or(0),
    };
    // Woken early by a signal, the next tick comes early; nothing sends signals to process 1 here.
    let _ = clock_nanosleep_absolute(ClockId::Monotonic, &at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_pays_out_what_is_due_and_no_more() {
        let mut rate = Rate::new(100 * PAGE_BYTES, 0);
        assert_eq!(rate.due(9_999_999), 0);
        assert_eq!(rate.due(10_000_000), 1);
        rate.done(1);
        assert_eq!(rate.due(10_000_000), 0);
        assert_eq!(rate.due(50_000_000), 4);
        assert_eq!(rate.due(10_000_000_000), 10, "a long stop is not made up for");
    }

    #[test]
    fn no_rate_is_never_due() {
        let mut rate = Rate::new(0, 0);
        assert_eq!(rate.due(1 << 60), 0);
        rate.done(1);
    }
}
