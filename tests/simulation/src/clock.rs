//! Time and chance of a simulated thread.
//!
//! Virtual time is tokio's, paused: it goes on by itself to the next timer whenever nothing can run. What asks the
//! system instead (wall clocks in journals and statuses, the seeds of hash maps, and with them the order in which a
//! `select!` looks) is answered here with the same time and with numbers from the seed, so that a run is the same each
//! time. Both are functions of the C library that the standard library calls; a definition in the program comes before
//! the library's. Threads that are not simulated get what the kernel says.
#![allow(
    unsafe_code,
    reason = "two functions of the C library are replaced for simulated threads"
)]

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

thread_local! {
    static CHANCE: Cell<Option<u64>> = const { Cell::new(None) };
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static STEPPED: Cell<i64> = const { Cell::new(0) };
}

/// 2026-01-01, where every simulation begins.
const BEGINNING: i64 = 1_767_225_600;
/// How long the host has been up then.
const UPTIME: i64 = 1_000_000;
const NANOS: i64 = 1_000_000_000;

/// From now on this thread's chance comes from `seed`.
pub fn seed(seed: u64) {
    CHANCE.set(Some(seed));
}

/// From now on this thread's wall clock follows the virtual time. To be called in the runtime.
pub fn begin() {
    BEGAN.set(Some(Instant::now()));
}

/// This thread is simulated no more.
pub fn end() {
    CHANCE.set(None);
    BEGAN.set(None);
    STEPPED.set(0);
}

/// Somebody sets the wall clocks.
pub fn step(seconds: i64) {
    STEPPED.set(STEPPED.get() + seconds);
}

/// Virtual time since the beginning.
pub fn elapsed() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed())
}

fn virtual_nanos() -> i64 {
    // Asking tokio may ask for the time in its turn, before there is a paused clock.
    if ASKED.replace(true) {
        return 0;
    }
    let nanos = i64::try_from(elapsed().as_nanos()).unwrap_or(i64::MAX);
    ASKED.set(false);
    nanos
}

/// The next number of a thread's chance (SplitMix64).
pub fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (state, mixed ^ (mixed >> 31))
}

/// # Safety
/// As the C library's: `into` points to a place for the time, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, into: *mut libc::timespec) -> libc::c_int {
    let simulated = CHANCE.try_with(Cell::get).ok().flatten().is_some();
    let base = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => BEGINNING + STEPPED.get(),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_BOOTTIME => UPTIME,
        _ => 0,
    };
    if !simulated || base == 0 || into.is_null() {
        // SAFETY: the same call, made of the kernel; what `into` must be is the caller's promise.
        let outcome = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, into) };
        return libc::c_int::try_from(outcome).unwrap_or(-1);
    }
    let nanos = virtual_nanos();
    let time = libc::timespec {
        tv_sec: base + nanos / NANOS,
        tv_nsec: nanos % NANOS,
    };
    // SAFETY: it is not null, and by the caller's promise it points to a place for the time.
    unsafe { into.write(time) };
    0
}

/// # Safety
/// As the C library's: `into` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(into: *mut u8, length: usize, flags: libc::c_uint) -> isize {
    let Some(mut state) = CHANCE.try_with(Cell::get).ok().flatten() else {
        // SAFETY: the same call, made of the kernel; what `into` must be is the caller's promise.
        let outcome = unsafe { libc::syscall(libc::SYS_getrandom, into, length, flags) };
        return isize::try_from(outcome).unwrap_or(-1);
    };
    for place in 0..length {
        let number;
        (state, number) = next(state);
        // SAFETY: `place` is less than `length`, up to which the caller promises that bytes may be written.
        unsafe { into.add(place).write(number.to_le_bytes()[0]) };
    }
    CHANCE.set(Some(state));
    isize::try_from(length).unwrap_or(isize::MAX)
}
