//! The test guests and the observer on a real QEMU: what they say about a guest that is well, that moves, that is
//! damaged and that ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use godwit_guest::line::Line;
use godwit_guest::pattern::{PAGE_BYTES, Pattern};
use godwit_lab::boot_sector::BootSector;
use godwit_lab::cache;
use godwit_lab::console::type_at;
use godwit_lab::initramfs::{KERNEL_OPTIONS, write_initramfs};
use godwit_lab::observer::{Observer, Seen};
use serde_json::{Value, json};

const INTERVAL: Duration = Duration::from_millis(5);
/// More than that between two ticks is no 5 ms, on a machine that several guests share.
const USUAL_GAP_NS: u64 = 50_000_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory of this test alone, removed with all that is in it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "godwit-guest-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A QEMU process under test, killed when dropped.
struct Qemu {
    process: Child,
    qmp: BufReader<UnixStream>,
    serial: PathBuf,
    console: PathBuf,
    started: Instant,
}

impl Qemu {
    fn start(place: &Place, name: &str, options: &[&str]) -> Self {
        let started = Instant::now();
        let console = place.file(&format!("{name}.log"));
        let (qmp, serial) = (
            place.file(&format!("{name}.qmp")),
            place.file(&format!("{name}.serial")),
        );
        let process = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-accel",
                "tcg",
                "-cpu",
                "qemu64",
                "-smp",
                "1",
            ])
            .args(["-machine", "pc-q35-10.0"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .arg("-chardev")
            .arg(format!(
                "socket,id=serial,path={},server=on,wait=off,logfile={},logappend=on",
                serial.display(),
                console.display()
            ))
            .args(["-device", "isa-serial,chardev=serial"])
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .expect("start qemu-system-x86_64");
        let qmp = BufReader::new(connect(&qmp));
        let mut qemu = Self {
            process,
            qmp,
            serial,
            console,
            started,
        };
        qemu.qmp.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        qemu.read_message();
        qemu.call("qmp_capabilities", json!({}));
        qemu
    }

    fn read_message(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "QEMU closed QMP");
        serde_json::from_str(&line).unwrap()
    }

    fn call(&mut self, command: &str, arguments: Value) -> Value {
        let message = json!({"execute": command, "arguments": arguments});
        self.qmp
            .get_mut()
            .write_all(format!("{message}\n").as_bytes())
            .unwrap();
        loop {
            let mut answer = self.read_message();
            if answer.get("event").is_none() {
                assert!(answer.get("error").is_none(), "{command}: {answer}");
                return answer["return"].take();
            }
        }
    }

    fn wait_for_event(&mut self, name: &str) -> Value {
        loop {
            let message = self.read_message();
            if message["event"] == name {
                return message["data"].clone();
            }
        }
    }

    /// Tells the guest something over its serial port.
    fn tell(&self, command: &str) {
        let deadline = Instant::now() + PATIENCE;
        // A process that was just started is about to make its sockets.
        while !self.serial.exists() {
            assert!(Instant::now() < deadline, "{}", self.serial.display());
            std::thread::sleep(Duration::from_millis(2));
        }
        type_at(&self.serial, command).unwrap();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connects to a socket that a process which was just started is about to make.
fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The initramfs, made once for all tests in this file.
fn initramfs() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let workspace = cache::workspace();
        let path = workspace.join("target/guest/initramfs");
        write_initramfs(&workspace, &path).unwrap();
        path
    })
}

fn linux(place: &Place, name: &str, guest_options: &str, more: &[&str]) -> Qemu {
    let (kernel, initramfs) = (cache::kernel().unwrap(), initramfs());
    let append = format!("{KERNEL_OPTIONS} {guest_options}");
    let mut options = vec!["-m", "256M", "-kernel", kernel.to_str().unwrap()];
    options.extend(["-initrd", initramfs.to_str().unwrap(), "-append", &append]);
    options.extend(more);
    Qemu::start(place, name, &options)
}

fn boot_sector(place: &Place, name: &str, sector: BootSector, more: &[&str]) -> Qemu {
    let disk = place.file("boot.img");
    std::fs::write(&disk, sector.image()).unwrap();
    let blockdev = format!(
        "driver=raw,node-name=boot,file.driver=file,file.filename={}",
        disk.display()
    );
    let mut options = vec![
        "-m",
        "64M",
        "-blockdev",
        &blockdev,
        "-device",
        "virtio-blk-pci,drive=boot",
    ];
    options.extend(more);
    Qemu::start(place, name, &options)
}

fn last_tick(lines: &[Seen]) -> u64 {
    lines.iter().rev().find_map(|seen| seen.line.tick()).unwrap_or(0)
}

/// A check of all memory that began after `tick` has ended.
fn checked_since(tick: u64) -> impl FnMut(&[Seen]) -> bool {
    move |lines| {
        lines
            .iter()
            .any(|seen| matches!(seen.line, Line::Check { since_tick, .. } if since_tick >= tick))
    }
}

fn ticks_at(host: &str, lines: &[Seen]) -> usize {
    lines
        .iter()
        .filter(|seen| seen.host == host && seen.line.tick().is_some())
        .count()
}

fn migrate(source: &mut Qemu, destination: &mut Qemu, place: &Place) {
    let uri = format!("unix:{}", place.file("migration").display());
    for qemu in [&mut *source, &mut *destination] {
        let capabilities = json!([{"capability": "events", "state": true}]);
        qemu.call("migrate-set-capabilities", json!({"capabilities": capabilities}));
    }
    source.call("migrate-set-parameters", json!({"max-bandwidth": 0}));
    destination.call("migrate-incoming", json!({"uri": uri}));
    source.call("migrate", json!({"uri": uri}));
    loop {
        let event = source.wait_for_event("MIGRATION");
        let status = event["status"].as_str().unwrap().to_owned();
        assert_ne!(status, "failed", "{}", source.call("query-migrate", json!({})));
        if status == "completed" {
            return;
        }
    }
}

#[test]
fn a_linux_guest_counts_checks_its_memory_and_moves() {
    let place = Place::new();
    let guest_options = "godwit.fill=96M godwit.working_set=16M godwit.dirty=8M godwit.scrub=0";
    initramfs();
    let observer = Observer::start(INTERVAL);
    let mut source = linux(&place, "a", guest_options, &[]);
    observer.follow("a", &source.console);
    assert!(
        observer.wait_until(PATIENCE, |lines| !lines.is_empty()),
        "the guest never spoke"
    );
    let boot = source.started.elapsed();
    assert!(matches!(
        observer.lines()[0].line,
        Line::Hello {
            pages: 24_576,
            interval_ms: 5,
            ..
        }
    ));
    assert!(observer.wait_until(PATIENCE, |lines| last_tick(lines) >= 400));
    let before = observer.verdict();
    assert!(before.counter_continuous(), "{before:?}");
    println!(
        "boot {} ms, median gap {} us, p99 {} us",
        boot.as_millis(),
        before.median_gap_ns / 1000,
        before.p99_gap_ns / 1000
    );
    assert!(
        before.median_gap_ns < USUAL_GAP_NS,
        "{} ns between ticks",
        before.median_gap_ns
    );

    let asked_at = last_tick(&observer.lines());
    source.tell("check\n");
    assert!(observer.wait_until(PATIENCE, checked_since(asked_at)));
    assert!(observer.verdict().memory_intact());

    let mut destination = linux(&place, "b", guest_options, &["-incoming", "defer"]);
    observer.follow("b", &destination.console);
    migrate(&mut source, &mut destination, &place);
    assert!(observer.wait_until(PATIENCE, |lines| ticks_at("b", lines) >= 200));
    assert!(
        !observer.verdict().memory_intact(),
        "nothing was checked since the move"
    );
    let asked_at = last_tick(&observer.lines());
    destination.tell("check\n");
    assert!(observer.wait_until(PATIENCE, checked_since(asked_at)));

    let verdict = observer.verdict();
    assert!(verdict.counter_continuous(), "{verdict:?}");
    assert!(verdict.memory_intact(), "{verdict:?}");
    let [moved] = verdict.moves.as_slice() else {
        panic!("{:?}", verdict.moves)
    };
    println!(
        "silent for {} us, {moved:?}, {} lines cut",
        moved.silence_ns / 1000,
        verdict.cut_lines
    );
    assert_eq!((moved.from.as_str(), moved.to.as_str()), ("a", "b"));
    assert!(moved.silence_ns < 20_000_000_000);
}

#[test]
fn the_move_and_the_source_that_goes_on_are_told_apart() {
    let place = Place::new();
    let observer = Observer::start(INTERVAL);
    let mut source = linux(&place, "a", "", &[]);
    observer.follow("a", &source.console);
    assert!(observer.wait_until(PATIENCE, |lines| last_tick(lines) >= 50));
    let mut destination = linux(&place, "b", "", &["-incoming", "defer"]);
    observer.follow("b", &destination.console);
    migrate(&mut source, &mut destination, &place);
    assert!(observer.wait_until(PATIENCE, |lines| ticks_at("b", lines) >= 50));
    assert!(
        observer.verdict().counter_continuous(),
        "{:?}",
        observer.verdict()
    );
    // What must never happen, done on purpose.
    let ticks_before = ticks_at("a", &observer.lines());
    source.call("cont", json!({}));
    assert!(observer.wait_until(PATIENCE, |lines| ticks_at("a", lines) >= ticks_before + 20));
    let verdict = observer.verdict();
    assert!(!verdict.counter_continuous());
    assert!(verdict.doubled.len() >= 20, "{verdict:?}");
    assert_eq!(
        verdict.garbled,
        [],
        "two copies running are no damage to their lines"
    );
}

#[test]
fn one_changed_bit_in_a_guests_memory_is_found() {
    let place = Place::new();
    let ram = place.file("ram");
    let backend = format!(
        "memory-backend-file,id=ram,size=256M,share=on,mem-path={}",
        ram.display()
    );
    let observer = Observer::start(INTERVAL);
    let guest = linux(
        &place,
        "a",
        "godwit.fill=16M",
        &["-object", &backend, "-machine", "pc-q35-10.0,memory-backend=ram"],
    );
    observer.follow("a", &guest.console);
    assert!(observer.wait_until(PATIENCE, checked_since(1)));
    assert!(observer.verdict().memory_intact());

    // Page 3000 is behind the working set: nobody writes it, and it is there once.
    let page: Vec<u8> = Pattern::new(1)
        .page(3000, 0)
        .words()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let mut memory = File::options().read(true).write(true).open(&ram).unwrap();
    let mut bytes = Vec::new();
    memory.read_to_end(&mut bytes).unwrap();
    let size = usize::try_from(PAGE_BYTES).unwrap();
    let at = bytes
        .chunks_exact(size)
        .position(|chunk| chunk == page)
        .expect("the page is in the guest's memory")
        * size;
    memory.seek(SeekFrom::Start(at as u64 + 77)).unwrap();
    memory.write_all(&[bytes[at + 77] ^ 0x10]).unwrap();

    guest.tell("check\n");
    assert!(observer.wait_until(PATIENCE, |lines| {
        lines.iter().any(|seen| {
            matches!(
                seen.line,
                Line::Check {
                    bad: 1,
                    first_bad: 3000,
                    ..
                }
            )
        })
    }));
    let verdict = observer.verdict();
    assert!(verdict.counter_continuous(), "{verdict:?}");
    assert!(!verdict.memory_intact());
    assert_eq!(verdict.memory.first_bad, Some(3000));
}

#[test]
fn a_linux_guest_resets_powers_off_and_panics_when_told() {
    let place = Place::new();
    let observer = Observer::start(INTERVAL);
    let mut guest = linux(&place, "a", "", &[]);
    observer.follow("a", &guest.console);
    let counting_after = |boots: u64| {
        observer.wait_until(PATIENCE, |lines| {
            let hellos = lines
                .iter()
                .filter(|seen| matches!(seen.line, Line::Hello { .. }))
                .count();
            hellos as u64 == boots && lines.last().is_some_and(|seen| seen.line.tick().is_some())
        })
    };
    assert!(counting_after(1));
    guest.tell("nonsense\nreset\n");
    assert_eq!(guest.wait_for_event("RESET")["reason"], "guest-reset");
    assert!(counting_after(2));
    assert_eq!(observer.verdict().boots, 2);
    assert_eq!(observer.verdict().garbled, []);
    assert!(observer.lines().iter().any(|seen| seen.line
        == Line::Refused {
            what: "nonsense".to_owned()
        }));
    guest.tell("poweroff\n");
    assert_eq!(guest.wait_for_event("SHUTDOWN")["reason"], "guest-shutdown");
    assert!(guest.process.wait().unwrap().success());

    let mut guest = linux(&place, "p", "panic=-1", &[]);
    observer.follow("p", &guest.console);
    assert!(counting_after(3));
    guest.tell("panic\n");
    // With panic=-1 the kernel resets the machine at once.
    assert_eq!(guest.wait_for_event("RESET")["guest"], true);
    drop(guest);

    let mut guest = linux(&place, "q", "", &["-device", "pvpanic", "-action", "panic=pause"]);
    observer.follow("q", &guest.console);
    assert!(observer.wait_until(PATIENCE, |lines| ticks_at("q", lines) >= 5));
    guest.tell("panic\n");
    assert_eq!(guest.wait_for_event("GUEST_PANICKED")["action"], "pause");
}

#[test]
fn a_linux_guest_refuses_an_option_it_does_not_know() {
    let place = Place::new();
    let observer = Observer::start(INTERVAL);
    let mut guest = linux(&place, "a", "godwit.fil=1M", &[]);
    observer.follow("a", &guest.console);
    assert_eq!(guest.wait_for_event("SHUTDOWN")["reason"], "guest-shutdown");
    assert!(observer.wait_until(PATIENCE, |lines| !lines.is_empty()));
    assert_eq!(
        observer.lines()[0].line,
        Line::Refused {
            what: "godwit.fil=1M".to_owned()
        }
    );
}

#[test]
fn a_boot_sector_counts_moves_and_powers_off() {
    let place = Place::new();
    let observer = Observer::start(INTERVAL);
    let mut source = boot_sector(&place, "a", BootSector::default(), &[]);
    observer.follow("a", &source.console);
    assert!(
        observer.wait_until(PATIENCE, |lines| !lines.is_empty()),
        "the guest never spoke"
    );
    let boot = source.started.elapsed();
    assert!(observer.wait_until(PATIENCE, |lines| last_tick(lines) >= 200));
    let mut destination = boot_sector(&place, "b", BootSector::default(), &["-incoming", "defer"]);
    observer.follow("b", &destination.console);
    migrate(&mut source, &mut destination, &place);
    assert!(observer.wait_until(PATIENCE, |lines| ticks_at("b", lines) >= 200));
    let verdict = observer.verdict();
    assert!(verdict.counter_continuous(), "{verdict:?}");
    let [moved] = verdict.moves.as_slice() else {
        panic!("{:?}", verdict.moves)
    };
    println!(
        "boot {} ms, median gap {} us, silent for {} us",
        boot.as_millis(),
        verdict.median_gap_ns / 1000,
        moved.silence_ns / 1000
    );
    assert!(
        verdict.median_gap_ns < USUAL_GAP_NS,
        "{} ns between ticks",
        verdict.median_gap_ns
    );
    destination.tell("p");
    assert_eq!(destination.wait_for_event("SHUTDOWN")["reason"], "guest-shutdown");
    assert!(destination.process.wait().unwrap().success());
}

#[test]
fn a_boot_sector_resets_panics_and_ends_by_itself() {
    let place = Place::new();
    let observer = Observer::start(INTERVAL);
    let mut guest = boot_sector(
        &place,
        "a",
        BootSector::default(),
        &["-device", "pvpanic", "-action", "panic=pause"],
    );
    observer.follow("a", &guest.console);
    assert!(observer.wait_until(PATIENCE, |lines| last_tick(lines) >= 20));
    guest.tell("r");
    assert_eq!(guest.wait_for_event("RESET")["reason"], "guest-reset");
    assert!(observer.wait_until(PATIENCE, |lines| {
        let ticks: Vec<_> = lines.iter().filter_map(|seen| seen.line.tick()).collect();
        // It counts from the beginning again.
        let again = ticks.windows(2).position(|pair| pair[1] < pair[0]);
        again.is_some() && ticks.last() >= Some(&3)
    }));
    guest.tell("x");
    assert_eq!(guest.wait_for_event("GUEST_PANICKED")["action"], "pause");
    drop(guest); // its disk is needed

    let ending = BootSector {
        interval_ms: 10,
        power_off_after: Some(30),
        writes: false,
    };
    let mut guest = boot_sector(&place, "e", ending, &[]);
    observer.follow("e", &guest.console);
    assert_eq!(guest.wait_for_event("SHUTDOWN")["reason"], "guest-shutdown");
    assert!(guest.process.wait().unwrap().success());
    assert!(observer.wait_until(PATIENCE, |lines| {
        lines
            .last()
            .is_some_and(|seen| seen.host == "e" && seen.line == Line::Count { tick: 30 })
    }));
}
