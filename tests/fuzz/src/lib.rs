//! What reads bytes that another program wrote, each with what must hold whatever they are: they are read within
//! their bounds or refused, and nothing falls. A broken promise is a panic.
//!
//! `tests/changed.rs` feeds every target with made-up bytes and with changed good ones, in each run of the tests;
//! the program `fuzz` lets libFuzzer look for bytes that reach what no others have reached.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a finding is a panic"
)]

pub mod disk;
pub mod monitor;
pub mod ticket;
pub mod tunnel;
pub mod wire;

/// Something that reads bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Reads the bytes, and panics where it breaks a promise.
    pub read: fn(&[u8]),
    /// Good ones, as godwit's own programs write them. Reading one panics unless it is taken.
    pub good: fn() -> Vec<Vec<u8>>,
    /// The longest bytes that are worth trying.
    pub longest: usize,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("order", wire::order, wire::orders, 4096),
    target("request", wire::request, wire::requests, 4096),
    target("update", wire::update, wire::updates, 2048),
    target("answer", wire::answer, wire::answers, 256),
    target("detail", wire::detail, wire::details, 4096),
    target("certificate", wire::certificate, wire::certificates, 2048),
    target("ticket", ticket::ticket, ticket::tickets, 1024),
    target("ticket-keys", ticket::keys, ticket::publications, 1024),
    target("header", tunnel::header, tunnel::headers, 64),
    target("hello", tunnel::hello, tunnel::hellos, 2048),
    target("relay", tunnel::relay, tunnel::messages, 2048),
    target("monitor", monitor::line, monitor::lines, 2048),
    target("definition", disk::definition, disk::definitions, 2048),
    target("journal", disk::journal, disk::journals, 4096),
];

const fn target(name: &'static str, read: fn(&[u8]), good: fn() -> Vec<Vec<u8>>, longest: usize) -> Target {
    Target {
        name,
        read,
        good,
        longest,
    }
}

/// The target of this name.
pub fn named(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

fn is_uid(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        && !text.starts_with(['-', '.'])
}
