//! One TLS connection as a thing that turns bytes into bytes, for either role.
//!
//! It does no I/O. Both of a channel's threads use it in turn, under a lock that is held for the cryptography only.

use std::ops::Range;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

use super::in_place;

/// What TLS adds to a record of at most 16 KiB: header, kind of content, tag; and some to spare.
const RECORD_EXTRA: usize = 64;

/// The most plaintext in a record.
const RECORD: usize = 16 * 1024;

/// Room for a change of keys, an alert, or what else TLS says by itself.
const SPARE: usize = 1024;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// What came is not what may come, or the peer says so of what we sent.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// What is to be sent does not fit the room for it.
    #[error("there is no room for what is to be sent: {0}")]
    Room(String),
    /// The connection is in a state in which this cannot be.
    #[error("the connection is not open for it")]
    NotOpen,
    /// The library has decrypted something that was not in the inbox. It does not.
    #[error("plaintext lies elsewhere than in what was received")]
    Elsewhere,
}

impl From<EncryptError> for SessionError {
    fn from(error: EncryptError) -> Self {
        Self::Room(error.to_string())
    }
}

impl From<EncodeError> for SessionError {
    fn from(error: EncodeError) -> Self {
        Self::Room(error.to_string())
    }
}

/// Received bytes that TLS has not yet taken.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// One of this size, which is touched only as far as it is used.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            buffer: vec![0; size].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Where to receive into. Empty only if TLS leaves a whole buffer lying.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were received into the space.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.end = self.buffer.len().min(self.end + bytes);
    }

    /// Takes bytes that were received elsewhere; whether there was room for them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let room = self.space().get_mut(..bytes.len());
        let fits = room.map(|room| room.copy_from_slice(bytes)).is_some();
        if fits {
            self.filled(bytes.len());
        }
        fits
    }

    /// The plaintext at a place. None where nothing was received.
    pub(crate) fn plain(&self, place: &Range<usize>) -> Option<&[u8]> {
        self.buffer.get(..self.end)?.get(place.clone())
    }

    fn waiting(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.start..self.end).unwrap_or_default()
    }

    fn discard(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
    }
}

/// How a connection stands once it has taken what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The handshake goes on.
    Handshake,
    /// It is open.
    Open,
    /// The peer has ended its direction in order: nothing more comes.
    Ended,
}

trait Records {
    type Data;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn has_something_to_send(&self) -> bool;
}

impl Records for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn has_something_to_send(&self) -> bool {
        self.wants_write()
    }
}

impl Records for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(input)
    }

    fn has_something_to_send(&self) -> bool {
        self.wants_write()
    }
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// A TLS connection.
pub(crate) struct Session {
    connection: Connection,
    state: Aside,
}

/// What is kept beside the library's connection.
#[derive(Default)]
struct Aside {
    /// What TLS wants sent before anything else.
    pending: Vec<u8>,
    /// A copy of what the inbox still holds: the library refers into it when a handshake message has come in part,
    /// so that it must be shown the same bytes when the other thread calls.
    rest: Vec<u8>,
    /// The peer has ended its direction.
    ended: bool,
    /// It is no use any more. The library must not be shown again what it choked on.
    failed: bool,
}

/// What to do to the sending direction.
enum Seal<'a> {
    Data(&'a [u8]),
    End,
}

impl Session {
    pub(crate) fn client(connection: UnbufferedClientConnection) -> Self {
        Self {
            connection: Connection::Client(connection),
            state: Aside::default(),
        }
    }

    pub(crate) fn server(connection: UnbufferedServerConnection) -> Self {
        Self {
            connection: Connection::Server(connection),
            state: Aside::default(),
        }
    }

    /// The room that so much plaintext needs once it is encrypted.
    pub(crate) fn sealed_size(plain: usize) -> usize {
        plain + (plain / RECORD + 1) * RECORD_EXTRA + SPARE
    }

    /// The application protocol that was agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.connection {
            Connection::Client(connection) => connection.alpn_protocol(),
            Connection::Server(connection) => connection.alpn_protocol(),
        }
    }

    /// Takes all that can be taken of what was received, and appends the plaintext in it.
    ///
    /// # Errors
    /// [`SessionError`]: the connection is no use any more. [`Session::pending`] may have a word for the peer.
    pub(crate) fn open(&mut self, inbox: &mut Inbox, plain: &mut Vec<u8>) -> Result<Step, SessionError> {
        self.take(inbox, |payload| plain.extend_from_slice(payload))
    }

    /// Takes all that can be taken of what was received, and leaves the plaintext in the inbox, until more is
    /// received there: appends its places, in order.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub(crate) fn open_in_place(
        &mut self,
        inbox: &mut Inbox,
        places: &mut Vec<Range<usize>>,
    ) -> Result<Step, SessionError> {
        let buffer = inbox.buffer.as_ptr();
        // What the library is shown of a record stands for all of it.
        let step = in_place::note(buffer, places, || self.take(inbox, |_| ()))?;
        if places.iter().all(|place| inbox.plain(place).is_some()) {
            Ok(step)
        } else {
            Err(SessionError::Elsewhere)
        }
    }

    fn take(&mut self, inbox: &mut Inbox, payload: impl FnMut(&[u8])) -> Result<Step, SessionError> {
        match &mut self.connection {
            Connection::Client(connection) => open(connection, &mut self.state, inbox, payload),
            Connection::Server(connection) => open(connection, &mut self.state, inbox, payload),
        }
    }

    /// Encrypts plaintext, behind what TLS wants to be sent by itself; the number of bytes to be sent. With no
    /// plaintext, only the latter.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) fn seal(&mut self, plain: &[u8], sealed: &mut [u8]) -> Result<usize, SessionError> {
        self.write(&Seal::Data(plain), sealed)
    }

    /// Ends the sending direction in order.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) fn end(&mut self, sealed: &mut [u8]) -> Result<usize, SessionError> {
        self.write(&Seal::End, sealed)
    }

    /// What TLS wants to be sent: during the handshake, or about a connection that is no use any more.
    pub(crate) fn pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state.pending)
    }

    fn write(&mut self, what: &Seal<'_>, sealed: &mut [u8]) -> Result<usize, SessionError> {
        match &mut self.connection {
            Connection::Client(connection) => write(connection, &mut self.state, what, sealed),
            Connection::Server(connection) => write(connection, &mut self.state, what, sealed),
        }
    }
}

fn open<C: Records>(
    connection: &mut C,
    aside: &mut Aside,
    inbox: &mut Inbox,
    mut payload: impl FnMut(&[u8]),
) -> Result<Step, SessionError> {
    let step = loop {
        let UnbufferedStatus {
            mut discard, state, ..
        } = connection.process(inbox.waiting());
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                aside.failed = true;
                collect_alert(connection, aside);
                return Err(error.into());
            }
        };
        let step = match state {
            ConnectionState::ReadTraffic(mut records) => {
                while let Some(record) = records.next_record() {
                    let record = record?;
                    payload(record.payload);
                    discard += record.discard;
                }
                None
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(&mut data, &mut aside.pending)?;
                None
            }
            ConnectionState::TransmitTlsData(data) => {
                // It is in `pending`, before which nothing else is sent.
                data.done();
                None
            }
            ConnectionState::PeerClosed => {
                aside.ended = true;
                None
            }
            ConnectionState::Closed => Some(Step::Ended),
            ConnectionState::WriteTraffic(_) if aside.ended => Some(Step::Ended),
            ConnectionState::WriteTraffic(_) => Some(Step::Open),
            ConnectionState::BlockedHandshake => Some(Step::Handshake),
            // Early data is neither offered nor accepted.
            ConnectionState::ReadEarlyData(_) | _ => return Err(SessionError::NotOpen),
        };
        inbox.discard(discard);
        if let Some(step) = step {
            break step;
        }
    };
    aside.rest.clear();
    aside.rest.extend_from_slice(inbox.waiting());
    Ok(step)
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, pending: &mut Vec<u8>) -> Result<(), SessionError> {
    let at = pending.len();
    pending.resize(at + largest_message(), 0);
    let encoded = data.encode(pending.get_mut(at..).unwrap_or_default())?;
    pending.truncate(at + encoded);
    Ok(())
}

/// What TLS wants to say about its failure. Nothing received is looked at for it.
fn collect_alert<C: Records>(connection: &mut C, aside: &mut Aside) {
    while connection.has_something_to_send() {
        match connection.process(&mut []).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                if encode(&mut data, &mut aside.pending).is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// No message of the handshake is longer, in the library's own bounds: a chain of certificates is the longest.
fn largest_message() -> usize {
    128 * 1024
}

fn write<C: Records>(
    connection: &mut C,
    aside: &mut Aside,
    what: &Seal<'_>,
    sealed: &mut [u8],
) -> Result<usize, SessionError> {
    if aside.failed {
        return Err(SessionError::NotOpen);
    }
    let mut used = aside.pending.len();
    let room = sealed
        .get_mut(..used)
        .ok_or_else(|| SessionError::Room(format!("{used} bytes are waiting")))?;
    room.copy_from_slice(&aside.pending);
    aside.pending.clear();
    loop {
        let room = sealed.get_mut(used..).unwrap_or_default();
        match connection.process(&mut aside.rest).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let sealed = match what {
                    Seal::Data(plain) => traffic.encrypt(plain, room)?,
                    Seal::End => traffic.queue_close_notify(room)?,
                };
                return Ok(used + sealed);
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => used += data.encode(room)?,
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => aside.ended = true,
            Ok(
                ConnectionState::Closed
                | ConnectionState::BlockedHandshake
                | ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | _,
            ) => return Err(SessionError::NotOpen),
            Err(error) => {
                aside.failed = true;
                return Err(error.into());
            }
        }
    }
}
