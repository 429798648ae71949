//! What a process does between fork and exec to confine itself.
//!
//! Only system calls stand here, on what was prepared before the fork: nothing is allocated and no lock is taken.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, openat};
use rustix::io::{Errno, write};
use rustix::process::{Resource, Rlimit, setrlimit, setsid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use super::Wall;
use super::root::Root;

/// The host's name as a guest's process sees it.
const HOST_NAME: &[u8] = b"guest";

/// Capabilities have numbers of 6 bits.
const CAPABILITIES: u32 = 64;

/// Everything that is needed after the fork.
pub(super) struct Plan {
    pub(super) user: Option<u32>,
    pub(super) root: Option<Root>,
    /// Gets the wall's number if one cannot be built.
    pub(super) verdict: OwnedFd,
}

#[allow(unsafe_code, reason = "a hook between fork and exec has no safe form")]
pub(super) fn before_exec(command: &mut Command, plan: Plan) {
    let hook = move || {
        build(&plan).map_err(|(wall, errno)| {
            let _ = write(&plan.verdict, &[wall as u8]);
            io::Error::from(errno)
        })
    };
    // SAFETY: the hook only makes system calls, which are safe between fork and exec, on memory that was prepared
    // before; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(hook);
    }
}

fn build(plan: &Plan) -> Result<(), (Wall, Errno)> {
    let at = |wall| move |errno| (wall, errno);
    // An interrupt for the agent is not for its guests; and a group of its own would not do: when the agent ends, the
    // kernel sends SIGHUP, which ends QEMU, to every group that this leaves without a parent in its session and in
    // which a process is stopped.
    setsid().map_err(at(Wall::Session))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(at(Wall::CoreDumps))?;
    dump_no_memory().map_err(at(Wall::CoreDumps))?;
    if let Some(root) = &plan.root {
        unshare().map_err(at(Wall::Namespaces))?;
        rustix::system::sethostname(HOST_NAME).map_err(at(Wall::Namespaces))?;
        root.enter().map_err(at(Wall::Files))?;
    }
    if let Some(user) = plan.user {
        empty_bounding_set().map_err(at(Wall::BoundingSet))?;
        become_user(user).map_err(at(Wall::User))?;
        give_up_capabilities().map_err(at(Wall::Capabilities))?;
    }
    set_no_new_privs(true).map_err(at(Wall::NoNewPrivileges))
}

/// The limit does not hold where the kernel pipes core dumps to a program; what is in one is settled here, and inherited.
fn dump_no_memory() -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(CWD, c"/proc/self/coredump_filter", flags, Mode::empty()) {
        Ok(filter) => write(&filter, b"0").map(drop),
        // A kernel without core dumps.
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[allow(
    unsafe_code,
    reason = "the safe form is deprecated, for what no flag given here does"
)]
fn unshare() -> Result<(), Errno> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNET;
    // SAFETY: unsafe because of `FILES`, which is not among the flags; and a forked child has one thread.
    unsafe { unshare_unsafe(flags) }
}

fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel knows no capability of this number, nor of any higher one.
            Err(Errno::INVAL) if number > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn become_user(user: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// What another user is left of them are those that could be inherited.
fn give_up_capabilities() -> Result<(), Errno> {
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}
