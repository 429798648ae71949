//! Opening a tap device, so that a hypervisor needs no right to `/dev/net/tun`: it gets the opened descriptor.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, ioctl, opcode};

/// The longest name of a network device, with its NUL.
const NAME: usize = 16;
/// A tap device's frames, without packet information, with virtio's header: what hypervisors expect.
const FLAGS: u16 = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// The kernel's `struct ifreq`, of which this call reads the name and the flags.
#[repr(C)]
#[derive(Debug)]
struct Request {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// Opens an existing tap device, for this agent's user or root.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let mut request = Request {
        name: [0; NAME],
        flags: FLAGS,
        rest: [0; 22],
    };
    if name.is_empty() || name.len() >= NAME || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a network device",
        ));
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let device = rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )?;
    attach(&device, request)?;
    Ok(device)
}

#[allow(
    unsafe_code,
    reason = "the kernel's TUNSETIFF has no safe wrapper in the libraries used here"
)]
fn attach(device: &OwnedFd, request: Request) -> io::Result<()> {
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
    const {
        assert!(
            size_of::<Request>() == 40,
            "the size of the kernel's struct ifreq"
        )
    };
    // SAFETY: TUNSETIFF is a valid opcode for /dev/net/tun, whatever the size in its number says it reads and writes
    // one `struct ifreq`, and `Request` has that structure's size and layout.
    unsafe { ioctl(device, Setter::<TUNSETIFF, Request>::new(request)) }?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failing test may panic")]
mod tests {
    use super::*;
    use crate::taps::{IpCommand, Taps};

    #[test]
    fn a_name_that_is_none_is_refused() {
        for bad in ["", "abcdefghijklmnop", "a\0b"] {
            assert_eq!(open(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[tokio::test]
    async fn a_tap_on_a_bridge_is_made_opened_and_removed() {
        if !rustix::process::geteuid().is_root() || std::fs::metadata("/dev/net/tun").is_err() {
            eprintln!("skipped: needs root and /dev/net/tun");
            return;
        }
        let (bridge, tap) = (
            format!("gwb{}", std::process::id()),
            format!("gwt{}", std::process::id()),
        );
        let ip = |arguments: &[&str]| {
            std::process::Command::new("ip")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        };
        if !ip(&["link", "add", &bridge, "type", "bridge"]) {
            eprintln!("skipped: no bridge can be made here");
            return;
        }
        let outcome = async {
            let missing = IpCommand.create(&tap, "gw-no-bridge", Some(70_000)).await;
            assert!(
                matches!(missing, Err(crate::taps::TapError::Bridge { .. })),
                "{missing:?}"
            );
            assert!(!ip(&["link", "show", "dev", &tap]), "nothing is left of it");
            IpCommand.create(&tap, &bridge, Some(70_000)).await.unwrap();
            let opened = open(&tap).unwrap();
            assert!(open(&tap).is_err(), "one opens it at a time");
            drop(opened);
            IpCommand.delete(&tap).await.unwrap();
            IpCommand.delete(&tap).await.unwrap();
            assert!(!ip(&["link", "show", "dev", &tap]));
        };
        let outcome = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(outcome)).await;
        ip(&["link", "delete", "dev", &bridge]);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }
}
