//! How much room this host gives to what a hypervisor sends into a tunnel.
//!
//! A UNIX socket's sender is held to its own socket's buffer. The agent makes the socket of a stream over one connection
//! and asks for [`WANTED`], which the host caps (`net.core.wmem_max`); over several connections the hypervisor makes
//! them, and has the host's default (`net.core.wmem_default`). A socket is asked, not the kernel's settings: it tells
//! what it gets, in whatever network the agent is.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt;

/// In bytes. With less a stream is slower than it could be: with the usual 208 KiB half as fast. With more the guest
/// stands still for longer: what it holds when the guest is stopped has yet to travel.
pub const WANTED: usize = 512 << 10;
/// What a socket has then: the kernel doubles what it grants, for its own bookkeeping.
const GRANTED: usize = 2 * WANTED;

/// What sockets get, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// One for which [`WANTED`] is asked.
    pub asked: usize,
    /// One for which nothing is asked.
    pub default: usize,
}

/// Asks a socket.
///
/// # Errors
/// When there is none to be had.
pub fn probe() -> io::Result<Buffers> {
    let (socket, _peer) = UnixStream::pair()?;
    let default = sockopt::socket_send_buffer_size(&socket)?;
    sockopt::set_socket_send_buffer_size(&socket, WANTED)?;
    let asked = sockopt::socket_send_buffer_size(&socket)?;
    Ok(Buffers { asked, default })
}

impl Buffers {
    /// What is too small, and what to set; empty where nothing is.
    pub fn lacks(&self) -> Vec<String> {
        let kibibytes = |bytes: usize| bytes / 1024;
        let mut lacks = Vec::new();
        if self.asked < GRANTED {
            lacks.push(format!(
                "a tunnelled stream over one connection gets a send buffer of {} KiB: set net.core.wmem_max to {WANTED}",
                kibibytes(self.asked)
            ));
        }
        if self.default < GRANTED {
            lacks.push(format!(
                "a tunnelled stream over several connections gets send buffers of {} KiB: set net.core.wmem_default \
                 to {GRANTED}",
                kibibytes(self.default)
            ));
        }
        lacks
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_socket_tells_what_the_host_gives() {
        let found = probe().unwrap();
        assert!(found.asked >= found.default && found.default > 0, "{found:?}");
        let usual = Buffers {
            asked: 416 << 10,
            default: 208 << 10,
        };
        let lacks = usual.lacks();
        assert!(lacks.len() == 2, "{lacks:?}");
        assert!(
            lacks
                .iter()
                .any(|each| each.contains("416 KiB: set net.core.wmem_max to 524288"))
        );
        assert!(
            lacks
                .iter()
                .any(|each| each.contains("208 KiB: set net.core.wmem_default to 1048576"))
        );
        let large = Buffers {
            asked: GRANTED,
            default: GRANTED,
        };
        assert!(large.lacks().is_empty());
        // Half of it asked for, and doubled.
        let halved = Buffers {
            asked: WANTED,
            ..large
        };
        assert_eq!(halved.lacks().len(), 1);
    }
}
