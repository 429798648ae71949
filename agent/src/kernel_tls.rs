//! Whether this host's kernel could encrypt a stream itself.
//!
//! A connected socket on which the kernel does TLS could be given to a hypervisor that writes plain text: a tunnel's
//! security without a relay's copies. That is not served yet; what is here is the fact, found out when the agent begins,
//! and the one place ([`encryptor`]) where it is to decide once it is.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// What the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelTls {
    /// It takes TLS on a socket.
    Present,
    /// It has none.
    Missing {
        /// Why, and what would change it.
        why: &'static str,
    },
    /// It is not known.
    Unknown {
        /// What was in the way.
        why: String,
    },
}

/// Who encrypts a stream from hypervisor to hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryptor {
    /// The hypervisors themselves, with TLS of their own.
    Hypervisor,
}

/// Who encrypts a stream on a host whose kernel said this: the hypervisor, whatever the kernel can do, as long as
/// handing such a socket on has not been shown to work.
pub fn encryptor(kernel: &KernelTls) -> Encryptor {
    match kernel {
        KernelTls::Present | KernelTls::Missing { .. } | KernelTls::Unknown { .. } => Encryptor::Hypervisor,
    }
}

/// Asks the kernel, by a connection of this process with itself. Nothing is encrypted.
pub fn probe() -> KernelTls {
    match connected() {
        Ok((socket, _other)) => read(ask(rustix::fd::AsFd::as_fd(&socket))),
        Err(why) => KernelTls::Unknown {
            why: format!("no connection to try it on: {why}"),
        },
    }
}

/// What the kernel's answer means.
fn read(answer: Result<(), Errno>) -> KernelTls {
    match answer {
        Ok(()) => KernelTls::Present,
        Err(Errno::NOENT) => KernelTls::Missing {
            why: "its module `tls` is not loaded and cannot be loaded from here, or it was built without",
        },
        Err(Errno::NOPROTOOPT) => KernelTls::Missing {
            why: "it is older than upper layer protocols, or not Linux's",
        },
        Err(why) => KernelTls::Unknown {
            why: format!("the kernel did not take the question: {why}"),
        },
    }
}

/// Both ends of a connection: the kernel takes TLS on no other socket.
fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    Ok((socket, other))
}

#[allow(
    unsafe_code,
    reason = "the kernel's TCP_ULP has no safe wrapper in the libraries used here"
)]
fn ask(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    const NAME: &[u8; 3] = b"tls";
    // SAFETY: the descriptor is open for the length of the call, and the kernel reads as many bytes of `NAME` as it is
    // told that there are.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_ULP,
            NAME.as_ptr().cast(),
            3,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        let why = io::Error::last_os_error();
        Err(Errno::from_io_error(&why).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answers_are_told_apart() {
        assert_eq!(read(Ok(())), KernelTls::Present);
        for none in [Errno::NOENT, Errno::NOPROTOOPT] {
            assert!(matches!(read(Err(none)), KernelTls::Missing { .. }), "{none}");
        }
        // Of the kernel these tell nothing: the socket, or a rule in between, was in the way.
        for other in [
            Errno::NOTCONN,
            Errno::PERM,
            Errno::ACCESS,
            Errno::EXIST,
            Errno::NOMEM,
        ] {
            assert!(matches!(read(Err(other)), KernelTls::Unknown { .. }), "{other}");
        }
    }

    #[test]
    fn this_machines_kernel_answers_as_it_lists_what_it_has() {
        let found = probe();
        let listed = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp");
        let listed = listed.is_ok_and(|all| all.split_whitespace().any(|one| one == "tls"));
        // Asking loads the module where that is possible, so that it is listed afterwards.
        match found {
            KernelTls::Present => assert!(listed, "it is taken and not listed"),
            KernelTls::Missing { why } => assert!(!listed, "it is listed, and {why}"),
            KernelTls::Unknown { why } => panic!("nothing stands in the way here: {why}"),
        }
    }

    #[test]
    fn hypervisors_encrypt_whatever_the_kernel_can() {
        let missing = KernelTls::Missing { why: "" };
        let unknown = KernelTls::Unknown { why: String::new() };
        for kernel in [KernelTls::Present, missing, unknown] {
            assert_eq!(encryptor(&kernel), Encryptor::Hypervisor);
        }
    }
}
