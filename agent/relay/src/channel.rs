//! What a channel is called, and the token that opens it.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChannelKind {
    /// The hypervisor's main stream with its return path.
    Memory,
    /// One of several channels beside the main one.
    Multifd,
    /// Pages that a guest waits for in post-copy.
    Preempt,
    /// The main stream anew, after a post-copy lost it.
    Recovery,
    /// A disk's contents.
    Disk,
    /// A file that belongs to the guest.
    File,
}

impl ChannelKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Memory,
        Self::Multifd,
        Self::Preempt,
        Self::Recovery,
        Self::Disk,
        Self::File,
    ];

    /// The byte that means it in a header.
    pub fn code(self) -> u8 {
        match self {
            Self::Memory => 1,
            Self::Multifd => 2,
            Self::Preempt => 3,
            Self::Recovery => 4,
            Self::Disk => 5,
            Self::File => 6,
        }
    }

    /// The kind that a header's byte means.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl fmt::Display for ChannelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Multifd => "multifd",
            Self::Preempt => "preempt",
            Self::Recovery => "recovery",
            Self::Disk => "disk",
            Self::File => "file",
        })
    }
}

/// A channel's name within its migration. A name whose channel has ended may be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Channel {
    /// What it carries.
    pub kind: ChannelKind,
    /// Which of its kind, from 0.
    pub number: u16,
}

impl Channel {
    /// A channel.
    pub fn new(kind: ChannelKind, number: u16) -> Self {
        Self { kind, number }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.number)
    }
}

/// The length of a token in bytes.
pub const TOKEN: usize = 32;

/// Opens one channel, once. The destination's agent makes it. Its text in JSON is 64 hexadecimal digits; it never
/// shows in `Debug`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(#[serde(with = "crate::hex")] [u8; TOKEN]);

impl Token {
    /// A new one from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = [0; TOKEN];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
                Ok(some) => filled += some,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(bytes))
    }

    /// The token with these bytes: from whoever carries it in another form.
    pub fn from_bytes(bytes: [u8; TOKEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be carried in another form.
    pub fn as_bytes(&self) -> &[u8; TOKEN] {
        &self.0
    }

    /// Whether they are the same, in a time that does not tell where they differ.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_bytes_are_one_to_one() {
        for code in 0..=u8::MAX {
            if let Some(kind) = ChannelKind::of_code(code) {
                assert_eq!(kind.code(), code);
            }
        }
        for kind in ChannelKind::ALL {
            assert_eq!(ChannelKind::of_code(kind.code()), Some(kind));
        }
    }

    #[test]
    fn tokens_differ_are_carried_whole_and_do_not_show() {
        let [one, other] = [Token::generate().unwrap(), Token::generate().unwrap()];
        assert!(!one.is(&other));
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(text.len(), 2 * TOKEN + 2);
        assert!(serde_json::from_str::<Token>(&text).unwrap().is(&one));
        assert_eq!(format!("{one:?}"), "Token(..)");
        assert!(serde_json::from_str::<Token>("\"00\"").is_err());
    }
}
