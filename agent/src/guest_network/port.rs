//! A port of the migration address that leads to a guest: kept, so that nobody on this host listens there meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// A port that is kept.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    _socket: OwnedFd,
}

/// Why no port can be kept.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Each one of the range is in use.
    #[error("each port is in use")]
    Exhausted,
    /// The operating system refused it.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl Port {
    /// Keeps the first free port of a range.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn reserve(address: IpAddr, ports: RangeInclusive<u16>) -> Result<Self, PortError> {
        for port in ports {
            match Self::hold(SocketAddr::new(address, port)) {
                Ok(port) => return Ok(port),
                Err(Errno::ADDRINUSE) => {}
                Err(errno) => return Err(PortError::System(errno.into())),
            }
        }
        Err(PortError::Exhausted)
    }

    /// Keeps this one. Bound, and by a socket that shares it with no one, it is nobody else's; a listener is not
    /// needed, for what comes there goes on to the guest.
    pub(super) fn hold(address: SocketAddr) -> Result<Self, Errno> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &address)?;
        Ok(Self {
            address,
            _socket: socket,
        })
    }

    /// Which it is, and at which address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn a_kept_port_is_nobody_elses() {
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 7));
        // Any free one, to begin with.
        let first = TcpListener::bind((address, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let Ok(port) = Port::reserve(address, first..=first.saturating_add(20)) else {
            return;
        };
        // The standard library shares ports whose connections linger; this one does not linger.
        assert!(TcpListener::bind(port.address()).is_err());
        let alone = port.address().port();
        assert!(matches!(
            Port::reserve(address, alone..=alone),
            Err(PortError::Exhausted)
        ));
        let at = port.address();
        drop(port);
        TcpListener::bind(at).unwrap();
    }
}
