//! An agent's orders, one after the other.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Relay;
use super::channels::{self, Hypervisor};
use crate::control::{Received, receive};
use crate::data;
use crate::limits::HELLO;
use crate::order::{Answer, Order, OrderRefusal, Said};

/// Serves an agent until it goes, or says what no agent says.
pub(super) fn serve(relay: &Arc<Relay>, stream: &UnixStream) {
    while let Ok(Received { message, descriptor }) = receive::<Order>(stream) {
        let (answer, close) = match message {
            Ok(order) => {
                let close = matches!(order, Order::Close);
                (carry_out(relay, order, descriptor), close)
            }
            Err(error) => {
                let why = data::short(&error);
                (Answer::Refused(OrderRefusal::Unreadable(why)), false)
            }
        };
        relay.say(&Said::Answer(answer));
        if close {
            relay.closing.store(true, Ordering::Release);
            return;
        }
    }
}

fn carry_out(relay: &Arc<Relay>, order: Order, descriptor: Option<OwnedFd>) -> Answer {
    let done = |result: Result<(), OrderRefusal>| match result {
        Ok(()) => Answer::Done,
        Err(refusal) => Answer::Refused(refusal),
    };
    match (order, descriptor) {
        (Order::Begin(begin), None) => done(relay.channels().begin(begin)),
        (Order::Renew(credentials), None) => done(relay.channels().renew(&credentials)),
        (Order::Status, None) => Answer::Status(relay.channels().status()),
        (Order::Close, None) => Answer::Done,
        (Order::Open(opening), Some(descriptor)) => {
            done(hypervisor(descriptor).and_then(|hypervisor| channels::open(relay, opening, hypervisor)))
        }
        (Order::Expect { opening, path }, descriptor) => {
            done(place(path, descriptor).and_then(|hypervisor| relay.channels().expect(&opening, hypervisor)))
        }
        (Order::Listen { path, uid, channels }, descriptor) => {
            done(channels::listen(relay, channels, uid, || {
                match (path, descriptor) {
                    (Some(path), None) => {
                        let listener = UnixListener::bind(&path).map_err(|error| system(&error))?;
                        Ok((listener, Some(path)))
                    }
                    (None, Some(descriptor)) => Ok((listening(descriptor)?, None)),
                    (Some(_), Some(_)) | (None, None) => Err(OrderRefusal::Socket),
                }
            }))
        }
        (Order::Arrived { read }, Some(descriptor)) => {
            if read.len() > HELLO {
                return Answer::Refused(OrderRefusal::Unreadable("too much was read".to_owned()));
            }
            done(peer(relay, descriptor).and_then(|socket| channels::arrived(relay, socket, read)))
        }
        (Order::Open(_) | Order::Arrived { .. }, None)
        | (Order::Begin(_) | Order::Renew(_) | Order::Status | Order::Close, Some(_)) => {
            Answer::Refused(OrderRefusal::Socket)
        }
    }
}

pub(super) fn system(error: &io::Error) -> OrderRefusal {
    OrderRefusal::System(data::short(error))
}

fn hypervisor(descriptor: OwnedFd) -> Result<UnixStream, OrderRefusal> {
    data::hypervisor(descriptor)
        .map_err(|error| system(&error))?
        .ok_or(OrderRefusal::Socket)
}

fn peer(relay: &Relay, descriptor: OwnedFd) -> Result<TcpStream, OrderRefusal> {
    data::peer(descriptor, relay.limits.silence)
        .map_err(|error| system(&error))?
        .ok_or(OrderRefusal::Socket)
}

fn place(path: Option<std::path::PathBuf>, descriptor: Option<OwnedFd>) -> Result<Hypervisor, OrderRefusal> {
    match (path, descriptor) {
        (Some(path), None) => Ok(Hypervisor::Listens(path)),
        (None, Some(descriptor)) => Ok(Hypervisor::Socket(hypervisor(descriptor)?)),
        (Some(_), Some(_)) | (None, None) => Err(OrderRefusal::Socket),
    }
}

fn listening(descriptor: OwnedFd) -> Result<UnixListener, OrderRefusal> {
    let listens = data::listens(&descriptor).map_err(|error| system(&error))?;
    if !listens {
        return Err(OrderRefusal::Socket);
    }
    let listener = UnixListener::from(descriptor);
    listener.set_nonblocking(false).map_err(|error| system(&error))?;
    Ok(listener)
}
