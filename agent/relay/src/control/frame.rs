//! One message: four bytes of length, JSON, and a descriptor beside the first byte where one belongs to it.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::MESSAGE;

/// Why no message can be read, or none sent. The connection is no use afterwards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The other side has gone away, between two messages.
    #[error("the other side has closed the connection")]
    Closed,
    /// It is longer than any that is allowed.
    #[error("a message of {0} bytes is longer than any that is allowed")]
    TooLong(usize),
    /// More than one descriptor came along.
    #[error("a message came with more than one descriptor")]
    Descriptors,
    /// The socket fails, or its time is up.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends a message.
///
/// # Errors
/// [`FrameError::TooLong`], before anything is sent, or [`FrameError::Io`].
pub(crate) fn send<T: Serialize>(
    mut stream: &UnixStream,
    message: &T,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::from)?;
    let length = bytes.len() - 4;
    let prefix = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    if length > MESSAGE {
        return Err(FrameError::TooLong(length));
    }
    if let Some(first) = bytes.first_chunk_mut::<4>() {
        *first = prefix.to_be_bytes();
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        // The space is for one.
        beside.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = loop {
        let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL);
        match sent {
            Ok(sent) => break sent,
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    };
    Ok(stream.write_all(bytes.get(sent..).unwrap_or_default())?)
}

/// A message as it came: what cannot be read as a `T` is told by the inner error, and the next one can be received.
pub(crate) struct Received<T> {
    /// What it says.
    pub(crate) message: Result<T, serde_json::Error>,
    /// What came along.
    pub(crate) descriptor: Option<OwnedFd>,
}

/// Waits for the next message.
///
/// # Errors
/// [`FrameError`].
pub(crate) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<Received<T>, FrameError> {
    let mut descriptor = None;
    let mut prefix = [0; 4];
    fill(stream, &mut prefix, &mut descriptor, true)?;
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MESSAGE {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    fill(stream, &mut body, &mut descriptor, false)?;
    Ok(Received {
        message: serde_json::from_slice(&body),
        descriptor,
    })
}

fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptor: &mut Option<OwnedFd>,
    first: bool,
) -> Result<(), FrameError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(rest)],
            &mut beside,
            RecvFlags::CMSG_CLOEXEC,
        );
        let received = match received {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                for passed in passed {
                    if descriptor.replace(passed).is_some() {
                        return Err(FrameError::Descriptors);
                    }
                }
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(FrameError::Descriptors);
        }
        match received.bytes {
            0 if first && filled == 0 => return Err(FrameError::Closed),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            some => filled += some,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use std::os::fd::AsFd as _;

    use proptest::prelude::*;

    use super::*;
    use crate::channel::{Channel, ChannelKind, Token};
    use crate::order::{Opening, Order};

    fn order() -> Order {
        Order::Expect {
            opening: Opening {
                channel: Channel::new(ChannelKind::Multifd, 3),
                token: Token::from_bytes([5; 32]),
            },
            path: Some("/run/x".into()),
        }
    }

    #[test]
    fn messages_arrive_with_what_comes_along() {
        let (near, far) = UnixStream::pair().unwrap();
        send(&near, &order(), None).unwrap();
        send(&near, &order(), Some(far.as_fd())).unwrap();
        send(&near, &order(), None).unwrap();
        let with = [false, true, false].map(|_| {
            let received = receive::<Order>(&far).unwrap();
            assert!(matches!(received.message.unwrap(), Order::Expect { .. }));
            received.descriptor.is_some()
        });
        assert_eq!(with, [false, true, false]);
        drop(near);
        assert!(matches!(receive::<Order>(&far), Err(FrameError::Closed)));
    }

    #[test]
    fn what_is_too_long_is_refused_before_room_is_made_for_it() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(matches!(receive::<Order>(&far), Err(FrameError::TooLong(_))));
        let long = "x".repeat(MESSAGE);
        assert!(matches!(send(&near, &long, None), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn two_descriptors_are_too_many() {
        let (near, far) = UnixStream::pair().unwrap();
        let two = [near.as_fd(), far.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&two)));
        rustix::net::sendmsg(
            &near,
            &[IoSlice::new(&[0, 0, 0, 2, b'{', b'}'])],
            &mut beside,
            SendFlags::empty(),
        )
        .unwrap();
        assert!(matches!(receive::<Order>(&far), Err(FrameError::Descriptors)));
    }

    #[test]
    fn a_message_that_breaks_off_is_not_an_end() {
        for cut in 1..8 {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(&[0, 0, 0, 4, b'n', b'u', b'l', b'l'][..cut])
                .unwrap();
            drop(near);
            assert!(matches!(receive::<Order>(&far), Err(FrameError::Io(_))), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_order_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // Neither panics nor blocks: the sender is gone.
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(&bytes).unwrap();
            drop(near);
            while let Ok(received) = receive::<Order>(&far) {
                drop(received.message);
            }
        }

        #[test]
        fn a_changed_order_is_an_order_or_refused_and_the_next_one_is_read(at in 0..100_usize, to: u8) {
            let mut bytes = serde_json::to_vec(&order()).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(&u32::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
            near.write_all(&bytes).unwrap();
            send(&near, &order(), None).unwrap();
            drop(receive::<Order>(&far).unwrap().message);
            let next = receive::<Order>(&far).unwrap().message.unwrap();
            let as_sent = matches!(next, Order::Expect { .. });
            prop_assert!(as_sent);
        }
    }
}
