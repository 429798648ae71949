//! The first words on a channel, inside TLS: the source's header and the destination's answer of one byte.
//!
//! A header has one fixed length, so that nothing a peer sends is ever a length.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::channel::{Channel, ChannelKind, TOKEN, Token};

/// How a header begins.
const MAGIC: [u8; 4] = *b"GDWT";

/// The version spoken here.
pub const VERSION: u8 = 1;

/// A header's length in bytes: magic 4, version 1, kind 1, number 2 (the higher byte first), migration 16, token 32.
pub const LENGTH: usize = 4 + 1 + 1 + 2 + 16 + TOKEN;

/// Which channel a connection wants to be.
#[derive(Clone, Debug)]
pub struct Header {
    /// The migration's UID.
    pub migration: Uuid,
    /// The channel.
    pub channel: Channel,
    /// What opens it.
    pub token: Token,
}

/// Why the destination's relay does not take a channel. Each is a byte of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    /// It does not begin as a header does.
    #[error("what came is not a channel's header")]
    NotAHeader,
    /// It is of a version that is not spoken here.
    #[error("the header's version is not spoken by the destination's relay")]
    Version,
    /// The kind is none that is known.
    #[error("the channel's kind is not known to the destination's relay")]
    UnknownKind,
    /// It belongs to another migration.
    #[error("the channel is of another migration")]
    WrongMigration,
    /// The destination's agent gave no such token.
    #[error("the token is not one that the destination's agent gave")]
    UnknownToken,
    /// The token has opened a channel already.
    #[error("the token was used before")]
    UsedToken,
    /// The token is for a channel of another kind; it is spent now.
    #[error("the token is for a channel of another kind")]
    WrongKind,
    /// The token is for a channel with another number; it is spent now.
    #[error("the token is for a channel with another number")]
    WrongNumber,
    /// No channel is awaited any more, or the relay carries as many as it may.
    #[error("there is one channel too many")]
    TooManyChannels,
    /// The destination's hypervisor cannot be reached.
    #[error("the destination's hypervisor cannot be reached")]
    Unreachable,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 10] = [
        Self::NotAHeader,
        Self::Version,
        Self::UnknownKind,
        Self::WrongMigration,
        Self::UnknownToken,
        Self::UsedToken,
        Self::WrongKind,
        Self::WrongNumber,
        Self::TooManyChannels,
        Self::Unreachable,
    ];

    fn code(self) -> u8 {
        match self {
            Self::NotAHeader => 1,
            Self::Version => 2,
            Self::UnknownKind => 3,
            Self::WrongMigration => 4,
            Self::UnknownToken => 5,
            Self::UsedToken => 6,
            Self::WrongKind => 7,
            Self::WrongNumber => 8,
            Self::TooManyChannels => 9,
            Self::Unreachable => 10,
        }
    }
}

/// The byte that says that a channel is open.
const ACCEPTED: u8 = 0;

impl Header {
    /// As it travels.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let number = self.channel.number.to_be_bytes();
        let fields: [&[u8]; 6] = [
            &MAGIC,
            &[VERSION],
            &[self.channel.kind.code()],
            &number,
            self.migration.as_bytes(),
            self.token.as_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// What the bytes mean.
    ///
    /// # Errors
    /// [`Refusal::NotAHeader`], [`Refusal::Version`] or [`Refusal::UnknownKind`].
    pub fn decode(bytes: &[u8; LENGTH]) -> Result<Self, Refusal> {
        let (magic, rest) = split::<4>(bytes)?;
        if magic != MAGIC {
            return Err(Refusal::NotAHeader);
        }
        let ([version], rest) = split::<1>(rest)?;
        if version != VERSION {
            return Err(Refusal::Version);
        }
        let ([kind], rest) = split::<1>(rest)?;
        let (number, rest) = split::<2>(rest)?;
        let (migration, rest) = split::<16>(rest)?;
        let (token, _) = split::<TOKEN>(rest)?;
        let kind = ChannelKind::of_code(kind).ok_or(Refusal::UnknownKind)?;
        Ok(Self {
            migration: Uuid::from_bytes(migration),
            channel: Channel::new(kind, u16::from_be_bytes(number)),
            token: Token::from_bytes(token),
        })
    }
}

fn split<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Refusal> {
    let (first, rest) = bytes.split_first_chunk::<N>().ok_or(Refusal::NotAHeader)?;
    Ok((*first, rest))
}

/// The byte that answers a header.
pub fn answer(verdict: Result<(), Refusal>) -> u8 {
    match verdict {
        Ok(()) => ACCEPTED,
        Err(refusal) => refusal.code(),
    }
}

/// What an answering byte means; none where it means nothing.
pub fn verdict(answer: u8) -> Option<Result<(), Refusal>> {
    if answer == ACCEPTED {
        return Some(Ok(()));
    }
    Refusal::ALL
        .into_iter()
        .find(|refusal| refusal.code() == answer)
        .map(Err)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: ChannelKind, number: u16, migration: u128, token: [u8; TOKEN]) -> Header {
        Header {
            migration: Uuid::from_u128(migration),
            channel: Channel::new(kind, number),
            token: Token::from_bytes(token),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in prop::sample::select(ChannelKind::ALL.to_vec()),
            number: u16,
            migration: u128,
            token: [u8; TOKEN],
        ) {
            let written = header(kind, number, migration, token);
            let read = Header::decode(&written.encode()).unwrap();
            prop_assert_eq!(read.channel, written.channel);
            prop_assert_eq!(read.migration, written.migration);
            prop_assert!(read.token.is(&written.token));
        }

        #[test]
        fn any_bytes_are_a_header_or_refused(bytes in prop::array::uniform32(any::<u8>()), more in prop::array::uniform24(any::<u8>())) {
            let mut all = [0; LENGTH];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            match Header::decode(&all) {
                Ok(header) => prop_assert_eq!(header.encode(), all),
                Err(refusal) => prop_assert_eq!(refusal, Refusal::NotAHeader),
            }
        }

        #[test]
        fn one_changed_byte_changes_the_meaning_or_is_refused(at in 0..LENGTH, change in 1..=u8::MAX) {
            let mut bytes = header(ChannelKind::Memory, 7, 9, [3; TOKEN]).encode();
            bytes[at] ^= change;
            match (Header::decode(&bytes), at) {
                (Err(refusal), 0..4) => prop_assert_eq!(refusal, Refusal::NotAHeader),
                (Err(refusal), 4) => prop_assert_eq!(refusal, Refusal::Version),
                (Err(refusal), 5) => prop_assert_eq!(refusal, Refusal::UnknownKind),
                (Ok(header), 5..) => prop_assert_eq!(header.encode(), bytes),
                (read, at) => prop_assert!(false, "{at}: {read:?}"),
            }
        }
    }

    #[test]
    fn answers_and_refusals_are_one_to_one() {
        for byte in 0..=u8::MAX {
            if let Some(meaning) = verdict(byte) {
                assert_eq!(answer(meaning), byte);
            }
        }
        assert_eq!(verdict(answer(Ok(()))), Some(Ok(())));
        for refusal in Refusal::ALL {
            assert_eq!(verdict(answer(Err(refusal))), Some(Err(refusal)));
        }
    }
}
