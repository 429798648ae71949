//! Tickets: the controller's word that one host may give one guest to another, once, in one migration.
//!
//! In managed direct only the controller gives orders. Peer to peer the source's agent orders the destination's, and
//! its certificate gives it no right to do so: the controller signs a ticket for exactly this migration, the source
//! shows it with Prepare, and the destination checks it. A source that was taken over can therefore move only guests
//! that someone ordered to move, from itself, to the host that was named.
//!
//! A ticket is a fixed layout and no protobuf message, because what is signed must have one encoding only, and
//! because its signature can be checked before anything of it is parsed:
//!
//! ```text
//!  0  format, 1        17  act        26  not before      42  nonce, 16 bytes
//!  1  key id, 16       18  epoch      34  expiry          58  migration, guest, source, destination
//! the end  signature, 64 bytes
//! ```
//! Numbers are big-endian, 8 bytes; the two instants are Unix time in seconds. Each of the four names is preceded by its
//! length in one byte. The Ed25519 signature is made over a text that names this use of the key and then over
//! everything before the signature, so that nothing else that the key may ever sign can be taken for a ticket.

mod keys;
mod published;

use aws_lc_rs::{digest, rand};
use godwit_handover::Terms;

use crate::convert;
use crate::error::{Category, Fault};
use crate::reason;

pub use keys::{KeyError, KeyId, MOST_KEYS, PublicKey, PublicKeys, SigningKey};
pub use published::{LONGEST_PUBLISHED, PUBLISHED_IN, PUBLISHED_UNDER, PublishedError};

/// How long a ticket can be used, in seconds: from the order to drive a migration to the destination's Prepare. A
/// migration that has been taken on needs none.
pub const LIFETIME: u64 = 600;
/// How far the clocks of the controller and of a destination may be apart, in seconds. A ticket is taken so much
/// before its beginning and after its end.
pub const CLOCK_TOLERANCE: u64 = 60;
/// The longest ticket, in bytes.
pub const LONGEST: usize =
    NAMES + 2 * (1 + convert::LONGEST_UID) + 2 * (1 + convert::LONGEST_NAME) + SIGNATURE;

const FORMAT: u8 = 1;
const NAMES: usize = 58;
const SIGNATURE: usize = 64;
const PURPOSE: &[u8] = b"godwit migration ticket, format 1\0";

/// What a ticket allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// The source may order the destination to receive the guest.
    Receive,
}

impl Act {
    fn code(self) -> u8 {
        match self {
            Self::Receive => 1,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        (code == Self::Receive.code()).then_some(Self::Receive)
    }
}

/// A ticket that was made, or one whose signature was good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The migration, its guest under its epoch, and the two hosts.
    pub terms: Terms,
    /// What it allows.
    pub act: Act,
    /// From when on it can be used, Unix time in seconds.
    pub not_before: u64,
    /// Until when, Unix time in seconds.
    pub expiry: u64,
    /// Tells this ticket from every other.
    pub nonce: Nonce,
}

/// What tells tickets apart: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nonce(pub [u8; 16]);

/// What the destination itself knows, for a ticket to be held against.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The host at the other end, by its certificate.
    pub peer: &'a str,
    /// This host.
    pub host: &'a str,
    /// The terms that the order carries.
    pub terms: &'a Terms,
    /// What is to be done.
    pub act: Act,
}

/// Why a ticket is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// There is none.
    #[error("the order of a source's agent needs a ticket from the controller, and there is none")]
    Missing,
    /// It has more bytes than any ticket.
    #[error("the ticket is longer than any can be")]
    TooLong,
    /// It is none, or one of another format.
    #[error("the ticket cannot be read by this version")]
    Unreadable,
    /// No such key is published.
    #[error("the ticket is signed with a key that the controller has not published")]
    UnknownKey,
    /// The key's time is over.
    #[error("the ticket is signed with a key whose time is over")]
    RetiredKey,
    /// Somebody else made it, or it was altered.
    #[error("the ticket's signature is not the controller's")]
    BadSignature,
    /// It is valid for longer than the controller would say.
    #[error("the ticket is valid for longer than any may be")]
    LivesTooLong,
    /// Its time has not come.
    #[error("the ticket is not valid yet; compare the clocks of this host and of the controller")]
    NotYetValid,
    /// Its time is over.
    #[error(
        "the ticket has expired; if it was made just now, compare the clocks of this host and of the controller"
    )]
    Expired,
    /// It is for another destination.
    #[error("the ticket is for another destination")]
    OtherDestination,
    /// It was given to another source than the one that shows it.
    #[error("the ticket was given to another source")]
    OtherSource,
    /// It is for another migration.
    #[error("the ticket is for another migration")]
    OtherMigration,
    /// It is for another guest.
    #[error("the ticket is for another guest")]
    OtherGuest,
    /// It is for another epoch of the guest.
    #[error("the ticket is for another epoch of the guest")]
    OtherEpoch,
    /// It allows something else.
    #[error("the ticket is for something else")]
    OtherAct,
}

impl TicketError {
    /// The stable word for it, of the table in `docs/conditions.md`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => reason::TICKET_MISSING,
            Self::TooLong | Self::Unreadable | Self::BadSignature | Self::LivesTooLong => {
                reason::TICKET_INVALID
            }
            Self::UnknownKey | Self::RetiredKey => reason::TICKET_KEY_UNKNOWN,
            Self::NotYetValid => reason::TICKET_NOT_YET_VALID,
            Self::Expired => reason::TICKET_EXPIRED,
            Self::OtherDestination
            | Self::OtherSource
            | Self::OtherMigration
            | Self::OtherGuest
            | Self::OtherEpoch
            | Self::OtherAct => reason::TICKET_FOR_ANOTHER,
        }
    }
}

impl From<TicketError> for Fault {
    fn from(error: TicketError) -> Self {
        Self::new(Category::Forbidden, error.reason(), format!("Refused: {error}"))
    }
}

impl Ticket {
    /// A ticket for these terms from now (Unix time in seconds) until [`LIFETIME`] later, with a nonce of its own.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn new(terms: Terms, act: Act, now: u64) -> Result<Self, KeyError> {
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self {
            terms,
            act,
            not_before: now,
            expiry: now.saturating_add(LIFETIME),
            nonce: Nonce(nonce),
        })
    }

    /// The ticket's bytes, signed.
    ///
    /// # Errors
    /// [`KeyError::Terms`] where a name is longer than names can be.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, KeyError> {
        self.sign_act(key, self.act.code())
    }

    fn sign_act(&self, key: &SigningKey, act: u8) -> Result<Vec<u8>, KeyError> {
        let Terms {
            migration,
            guest,
            epoch,
            source,
            destination,
            // The guest's record says it, and is read at the same time.
            strict: _,
        } = &self.terms;
        let mut bytes = Vec::with_capacity(LONGEST);
        bytes.push(FORMAT);
        bytes.extend(key.id().0);
        bytes.push(act);
        for number in [*epoch, self.not_before, self.expiry] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(self.nonce.0);
        for (name, longest) in [
            (migration, convert::LONGEST_UID),
            (guest, convert::LONGEST_UID),
            (source, convert::LONGEST_NAME),
            (destination, convert::LONGEST_NAME),
        ] {
            let length = u8::try_from(name.len()).map_err(|_| KeyError::Terms)?;
            if name.len() > longest {
                return Err(KeyError::Terms);
            }
            bytes.push(length);
            bytes.extend(name.as_bytes());
        }
        let signature = key.sign(&signed(&bytes))?;
        bytes.extend(signature);
        Ok(bytes)
    }

    /// The key that these bytes say they were signed with. It proves nothing; it says which key is needed.
    ///
    /// # Errors
    /// [`TicketError`] where the bytes are no ticket's.
    pub fn key_id(bytes: &[u8]) -> Result<KeyId, TicketError> {
        if bytes.is_empty() {
            return Err(TicketError::Missing);
        }
        if bytes.len() > LONGEST {
            return Err(TicketError::TooLong);
        }
        let mut reader = Reader(bytes);
        match reader.array()? {
            [FORMAT] => Ok(KeyId(reader.array()?)),
            [_] => Err(TicketError::Unreadable),
        }
    }

    /// Judges a ticket: its length, its key, its signature, and only then what it says. `now` is Unix time in seconds.
    /// Whether it was used before is for the caller to know.
    ///
    /// # Errors
    /// [`TicketError`], one for each reason to refuse it.
    pub fn verify(
        bytes: &[u8],
        keys: &PublicKeys,
        now: u64,
        expected: Expected<'_>,
    ) -> Result<Self, TicketError> {
        let key = keys.get(Self::key_id(bytes)?).ok_or(TicketError::UnknownKey)?;
        if now >= key.until().saturating_add(CLOCK_TOLERANCE) {
            return Err(TicketError::RetiredKey);
        }
        let at = bytes
            .len()
            .checked_sub(SIGNATURE)
            .ok_or(TicketError::Unreadable)?;
        let (body, signature) = bytes.split_at(at);
        if !key.verifies(&signed(body), signature) {
            return Err(TicketError::BadSignature);
        }
        let ticket = Self::read(body)?;
        ticket.check_time(now)?;
        ticket.check_terms(expected)?;
        Ok(ticket)
    }

    /// Reads what was signed.
    fn read(body: &[u8]) -> Result<Self, TicketError> {
        let mut reader = Reader(body);
        let [_format] = reader.array()?;
        let [..]: [u8; 16] = reader.array()?;
        let [act] = reader.array()?;
        let epoch = reader.number()?;
        let not_before = reader.number()?;
        let expiry = reader.number()?;
        let nonce = Nonce(reader.array()?);
        let terms = convert::terms(Some(crate::wire::Terms {
            migration: reader.name()?,
            guest: reader.name()?,
            epoch,
            source: reader.name()?,
            destination: reader.name()?,
            strict: false,
        }))
        .map_err(|_| TicketError::Unreadable)?;
        if !reader.0.is_empty() {
            return Err(TicketError::Unreadable);
        }
        Ok(Self {
            terms,
            // A later controller may sign for acts that this version does not know.
            act: Act::of_code(act).ok_or(TicketError::OtherAct)?,
            not_before,
            expiry,
            nonce,
        })
    }

    fn check_time(&self, now: u64) -> Result<(), TicketError> {
        match self.expiry.checked_sub(self.not_before) {
            Some(length) if length <= LIFETIME => {}
            Some(_) | None => return Err(TicketError::LivesTooLong),
        }
        if now.saturating_add(CLOCK_TOLERANCE) < self.not_before {
            return Err(TicketError::NotYetValid);
        }
        if now >= self.forgotten_at() {
            return Err(TicketError::Expired);
        }
        Ok(())
    }

    fn check_terms(&self, expected: Expected<'_>) -> Result<(), TicketError> {
        let Terms {
            migration,
            guest,
            epoch,
            source,
            destination,
            strict: _,
        } = &self.terms;
        let terms = expected.terms;
        let refusals = [
            (
                destination != expected.host || *destination != terms.destination,
                TicketError::OtherDestination,
            ),
            (
                source != expected.peer || *source != terms.source,
                TicketError::OtherSource,
            ),
            (*migration != terms.migration, TicketError::OtherMigration),
            (*guest != terms.guest, TicketError::OtherGuest),
            (*epoch != terms.epoch, TicketError::OtherEpoch),
            (self.act != expected.act, TicketError::OtherAct),
        ];
        match refusals.into_iter().find(|(refused, _)| *refused) {
            Some((_, why)) => Err(why),
            None => Ok(()),
        }
    }

    /// Tells a ticket's bytes from every other's: their SHA-256.
    pub fn digest(bytes: &[u8]) -> [u8; 32] {
        let mut digest = [0; 32];
        for (to, from) in digest
            .iter_mut()
            .zip(digest::digest(&digest::SHA256, bytes).as_ref())
        {
            *to = *from;
        }
        digest
    }

    /// From when on it is refused for its age alone, so that nobody need remember it any more; Unix time in seconds by
    /// the destination's clock.
    pub fn forgotten_at(&self) -> u64 {
        self.expiry.saturating_add(CLOCK_TOLERANCE)
    }
}

/// What is signed: the use of the key, and what the ticket says.
fn signed(body: &[u8]) -> Vec<u8> {
    [PURPOSE, body].concat()
}

/// Takes bytes from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TicketError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TicketError::Unreadable)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TicketError> {
        self.take(N)?.try_into().map_err(|_| TicketError::Unreadable)
    }

    fn number(&mut self) -> Result<u64, TicketError> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self) -> Result<String, TicketError> {
        let [length] = self.array()?;
        let bytes = self.take(length.into())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| TicketError::Unreadable)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests;
