//! From a connection to an open channel: connect, handshake, header and answer, all within one deadline.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;

use super::pump::RECEIVE;
use super::socket;
use crate::header::{self, Header, Refusal};
use crate::hello::{ALPN_TUNNEL, server_name};
use crate::limits::{Limits, REASON};
use crate::order::OpenFailure;
use crate::tls::{Inbox, Session, SessionError, Step, Trust};

/// How long the other side may take to read why it was turned away.
const FAREWELL: Duration = Duration::from_secs(1);

/// A channel that is open.
pub(crate) struct Open {
    /// The connection.
    pub(crate) socket: TcpStream,
    /// Its TLS.
    pub(crate) session: Session,
    /// What was received and not yet decrypted.
    pub(crate) inbox: Inbox,
    /// What was received behind the header or the answer.
    pub(crate) early: Vec<u8>,
    /// Whether the other side has ended its direction already.
    pub(crate) ended: bool,
}

/// Opens a channel from the source.
///
/// # Errors
/// [`OpenFailure`].
pub(crate) fn connect(
    destination: SocketAddr,
    trust: &Trust,
    header: &Header,
    limits: &Limits,
) -> Result<Open, OpenFailure> {
    let deadline = Instant::now() + limits.opening;
    let socket = TcpStream::connect_timeout(&destination, remaining(deadline)?).map_err(|error| {
        if error.kind() == ErrorKind::TimedOut {
            OpenFailure::Deadline
        } else {
            OpenFailure::Connect(short(&error))
        }
    })?;
    socket::prepare(&socket, limits.silence).map_err(|error| OpenFailure::Connect(short(&error)))?;
    let name = ServerName::try_from(server_name(header.migration))
        .map_err(|error| OpenFailure::Handshake(short(&error)))?;
    let connection = UnbufferedClientConnection::new(Arc::clone(&trust.client), name)
        .map_err(|error| OpenFailure::Handshake(short(&error)))?;
    let mut opening = Opening::new(socket, Session::client(connection), deadline);
    opening.handshake()?;
    opening.say(&header.encode())?;
    let [answer] = opening.hear::<1>()?;
    match header::verdict(answer) {
        Some(Ok(())) => opening.done(),
        Some(Err(refusal)) => Err(OpenFailure::Refused(refusal)),
        None => Err(OpenFailure::Handshake(format!(
            "the answer {answer} means nothing"
        ))),
    }
}

/// Takes a connection at the destination, of which these bytes have been read. `admit` judges the header and says
/// where the channel leads.
///
/// # Errors
/// [`OpenFailure`], and whatever `admit` gave before it came to that.
pub(crate) fn accept<T>(
    socket: TcpStream,
    read: &[u8],
    trust: &Trust,
    limits: &Limits,
    admit: impl FnOnce(Result<Header, Refusal>, Instant) -> Result<T, Refusal>,
) -> Result<(Open, T), (OpenFailure, Option<T>)> {
    let deadline = Instant::now() + limits.opening;
    let begin = || -> Result<_, OpenFailure> {
        let connection = UnbufferedServerConnection::new(Arc::clone(&trust.server))
            .map_err(|error| OpenFailure::Handshake(short(&error)))?;
        let mut opening = Opening::new(socket, Session::server(connection), deadline);
        if !opening.inbox.push(read) {
            return Err(OpenFailure::Handshake("its beginning is too long".to_owned()));
        }
        opening.handshake()?;
        let header = opening.hear::<{ header::LENGTH }>()?;
        Ok((opening, header))
    };
    let (mut opening, header) = begin().map_err(|failure| (failure, None))?;
    match admit(Header::decode(&header), deadline) {
        Ok(to) => {
            let said = opening.say(&[header::answer(Ok(()))]);
            match said.and_then(|()| opening.done()) {
                Ok(open) => Ok((open, to)),
                Err(failure) => Err((failure, Some(to))),
            }
        }
        Err(refusal) => {
            opening.turn_away(refusal);
            Err((OpenFailure::Refused(refusal), None))
        }
    }
}

/// A text that says why, of bounded length: parts of it may come from a peer.
pub(crate) fn short(error: &dyn std::fmt::Display) -> String {
    let mut text = error.to_string();
    if text.len() > REASON {
        let end = (0..=REASON).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
    }
    text
}

fn remaining(deadline: Instant) -> Result<Duration, OpenFailure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(OpenFailure::Deadline);
    }
    Ok(left)
}

fn lost(error: &io::Error) -> OpenFailure {
    // The socket's own time limit is the deadline.
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        OpenFailure::Deadline
    } else {
        OpenFailure::Lost(short(error))
    }
}

struct Opening {
    socket: TcpStream,
    session: Session,
    inbox: Inbox,
    plain: Vec<u8>,
    ended: bool,
    deadline: Instant,
}

impl Opening {
    fn new(socket: TcpStream, session: Session, deadline: Instant) -> Self {
        Self {
            socket,
            session,
            inbox: Inbox::new(RECEIVE),
            plain: Vec::new(),
            ended: false,
            deadline,
        }
    }

    /// Takes what was received; what TLS wants sent is sent.
    fn step(&mut self) -> Result<Step, OpenFailure> {
        match self.session.open(&mut self.inbox, &mut self.plain) {
            Ok(step) => {
                let pending = self.session.pending();
                self.send(&pending)?;
                self.ended |= step == Step::Ended;
                Ok(step)
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// Tells the other side what was wrong with what it said, as far as TLS has a word for it.
    fn fail(&mut self, error: &SessionError) -> OpenFailure {
        let alert = self.session.pending();
        if self.send(&alert).is_ok() {
            self.farewell();
        }
        OpenFailure::Handshake(short(error))
    }

    fn handshake(&mut self) -> Result<(), OpenFailure> {
        // It may be over with it: a short stream ends before its header is judged.
        while self.step()? == Step::Handshake {
            self.receive()?;
        }
        if self.session.alpn() != Some(ALPN_TUNNEL) {
            return Err(OpenFailure::Handshake(
                "the other side does not speak of a tunnel".to_owned(),
            ));
        }
        Ok(())
    }

    fn say(&mut self, plain: &[u8]) -> Result<(), OpenFailure> {
        let mut sealed = vec![0; Session::sealed_size(plain.len())];
        match self.session.seal(plain, &mut sealed) {
            Ok(length) => self.send(sealed.get(..length).unwrap_or_default()),
            Err(error) => Err(OpenFailure::Handshake(short(&error))),
        }
    }

    /// The first `N` bytes that the other side says.
    fn hear<const N: usize>(&mut self) -> Result<[u8; N], OpenFailure> {
        loop {
            if let Some((first, rest)) = self.plain.split_first_chunk::<N>() {
                let first = *first;
                self.plain = rest.to_vec();
                return Ok(first);
            }
            if self.ended {
                return Err(OpenFailure::Lost(
                    "it ended the connection and had not said all".to_owned(),
                ));
            }
            self.receive()?;
            self.step()?;
        }
    }

    fn receive(&mut self) -> Result<(), OpenFailure> {
        loop {
            let left = remaining(self.deadline)?;
            self.socket
                .set_read_timeout(Some(left))
                .map_err(|error| lost(&error))?;
            match self.socket.read(self.inbox.space()) {
                Ok(0) => return Err(OpenFailure::Lost("it closed the connection".to_owned())),
                Ok(bytes) => {
                    self.inbox.filled(bytes);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), OpenFailure> {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let left = remaining(self.deadline)?;
            self.socket
                .set_write_timeout(Some(left))
                .map_err(|error| lost(&error))?;
            match self.socket.write(rest) {
                Ok(some) => sent += some,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(())
    }

    /// The open channel, without a time limit from here on.
    fn done(self) -> Result<Open, OpenFailure> {
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&self.socket, None).map_err(|error| lost(&error))?;
        }
        Ok(Open {
            socket: self.socket,
            session: self.session,
            inbox: self.inbox,
            early: self.plain,
            ended: self.ended,
        })
    }

    fn turn_away(&mut self, refusal: Refusal) {
        let said = self.say(&[header::answer(Err(refusal))]);
        let mut end = vec![0; Session::sealed_size(0)];
        let ended = said.and_then(|()| {
            let length = self.session.end(&mut end).unwrap_or_default();
            self.send(end.get(..length).unwrap_or_default())
        });
        if ended.is_ok() {
            self.farewell();
        }
    }

    /// Lets the other side read what it was told: a socket that is closed with something unread in it takes back
    /// what it sent.
    fn farewell(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let until = self.deadline.min(Instant::now() + FAREWELL);
        let mut scrap = [0; 1024];
        while let Ok(left) = remaining(until) {
            if self.socket.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match self.socket.read(&mut scrap) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}
