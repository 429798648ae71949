//! Sockets as the data path wants them.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use socket2::SockRef;

/// What a UNIX socket may hold that was sent and not yet read, in bytes (the kernel doubles it). A sender is held to its
/// own socket's measure. Whatever is on its way when the guest is stopped has yet to travel while it stands still, so it
/// is little here and in [`UNSENT`]: with 1 MiB here, 4 MiB at the source and no bound there it stood still some 20 ms
/// longer.
const HYPERVISOR_BUFFER: usize = 256 * 1024;

/// What a TCP socket takes beyond what it may send now, in bytes. What is sent and not acknowledged does not count, so
/// that a long way is filled as before.
const UNSENT: u32 = 128 * 1024;

/// How often a silent peer is asked within the time that it may be silent.
const PROBES: u32 = 4;

/// The socket to a hypervisor: none where the descriptor is something else.
pub(crate) fn hypervisor(descriptor: OwnedFd) -> io::Result<Option<UnixStream>> {
    if !is(&descriptor, &[AddressFamily::UNIX])? {
        return Ok(None);
    }
    let socket = UnixStream::from(descriptor);
    // Whoever passed it on may have worked with it in another way.
    socket.set_nonblocking(false)?;
    sockopt::set_socket_send_buffer_size(&socket, HYPERVISOR_BUFFER)?;
    Ok(Some(socket))
}

/// A connection to another host that someone else has accepted: none where the descriptor is something else.
pub(crate) fn peer(descriptor: OwnedFd, silence: Duration) -> io::Result<Option<TcpStream>> {
    if !is(&descriptor, &[AddressFamily::INET, AddressFamily::INET6])? {
        return Ok(None);
    }
    let socket = TcpStream::from(descriptor);
    socket.set_nonblocking(false)?;
    prepare(&socket, silence)?;
    Ok(Some(socket))
}

/// Prepares a connection to another host. A host that acknowledges nothing, or takes nothing, for the time of silence
/// is given up. The buffers are left to the kernel, which fits them to the link.
pub(crate) fn prepare(socket: &TcpStream, silence: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT)?;
    let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, millis)?;
    let between = (silence / (PROBES + 1)).max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(socket, between)?;
    sockopt::set_tcp_keepintvl(socket, between)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(())
}

/// Connects to a hypervisor that listens at a path, waiting no longer than this for it to take the connection.
pub(crate) fn connect_unix(path: &Path, within: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let within = within.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(within))?;
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
    sockopt::set_socket_send_buffer_size(&socket, HYPERVISOR_BUFFER)?;
    Ok(UnixStream::from(socket))
}

/// Whether it is a listening UNIX socket.
pub(crate) fn listens(descriptor: &OwnedFd) -> io::Result<bool> {
    match sockopt::socket_acceptconn(descriptor) {
        Ok(listens) => Ok(listens && sockopt::socket_domain(descriptor)? == AddressFamily::UNIX),
        Err(rustix::io::Errno::NOTSOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is(descriptor: &OwnedFd, families: &[AddressFamily]) -> io::Result<bool> {
    let family = match sockopt::socket_domain(descriptor) {
        Ok(family) => family,
        Err(rustix::io::Errno::NOTSOCK) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let stream = sockopt::socket_type(descriptor)? == SocketType::STREAM;
    Ok(stream && !sockopt::socket_acceptconn(descriptor)? && families.contains(&family))
}
