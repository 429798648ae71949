//! TLS 1.3 between two hosts that know each other by name.

mod in_place;
mod session;
mod trust;

pub(crate) use session::{Inbox, Session, SessionError, Step};
pub(crate) use trust::Trust;
