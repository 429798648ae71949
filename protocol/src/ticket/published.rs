//! How the controller publishes the keys that its tickets are checked by: a line for each,
//! `ed25519 <public key, 64 hex digits> <until, Unix time in seconds>`. It is short and made for people's eyes too.

use super::keys::{MOST_KEYS, PublicKey, PublicKeys};

/// The ConfigMap of godwit's namespace in which they are published.
pub const PUBLISHED_IN: &str = "godwit-ticket-keys";
/// Under which key of its data.
pub const PUBLISHED_UNDER: &str = "keys";
/// The longest publication, in bytes.
pub const LONGEST_PUBLISHED: usize = MOST_KEYS * 96;
const KIND: &str = "ed25519";

/// Why a publication cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    /// It is longer than the most keys need.
    #[error("it is longer than {LONGEST_PUBLISHED} bytes")]
    TooLong,
    /// A line is none of a key's.
    #[error("line {0} is not `ed25519`, 64 hex digits, and a Unix time in seconds")]
    Line(usize),
    /// It has too many keys.
    #[error("it has more than {MOST_KEYS} keys")]
    TooMany,
}

impl PublicKeys {
    /// The keys as they are published.
    pub fn publish(&self) -> String {
        self.iter()
            .map(|key| {
                let digits: String = key.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{KIND} {digits} {}\n", key.until())
            })
            .collect()
    }

    /// The keys that were published so.
    ///
    /// # Errors
    /// [`PublishedError`]; one line that cannot be read makes the whole unreadable.
    pub fn read_published(text: &str) -> Result<Self, PublishedError> {
        if text.len() > LONGEST_PUBLISHED {
            return Err(PublishedError::TooLong);
        }
        let keys = text
            .lines()
            .enumerate()
            .map(|(number, line)| key(line).ok_or(PublishedError::Line(number + 1)))
            .collect::<Result<_, _>>()?;
        Self::new(keys).map_err(|_| PublishedError::TooMany)
    }
}

fn key(line: &str) -> Option<PublicKey> {
    let mut words = line.split(' ');
    let (kind, digits, until) = (words.next()?, words.next()?, words.next()?);
    if kind != KIND || words.next().is_some() || digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    if !digits.bytes().chain(until.bytes()).all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(PublicKey::new(bytes, until.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_is_read() {
        let keys = |count: u8| {
            let keys = (0..count)
                .map(|n| PublicKey::new([n; 32], u64::MAX - u64::from(n)))
                .collect();
            PublicKeys::new(keys)
        };
        for count in 0..=8 {
            let keys = keys(count).unwrap();
            let text = keys.publish();
            assert!(text.len() <= LONGEST_PUBLISHED);
            assert_eq!(PublicKeys::read_published(&text), Ok(keys));
        }
        assert!(keys(9).is_err());
    }

    #[test]
    fn r15_a_publication_is_bounded_and_read_whole_or_not_at_all() {
        let line = PublicKeys::new(vec![PublicKey::new([7; 32], 9)])
            .unwrap()
            .publish();
        assert_eq!(
            PublicKeys::read_published(&line.repeat(MOST_KEYS + 1)),
            Err(PublishedError::TooMany)
        );
        assert_eq!(
            PublicKeys::read_published(&"x".repeat(LONGEST_PUBLISHED + 1)),
            Err(PublishedError::TooLong)
        );
        for bad in [
            "\n".to_owned(),
            line.replace("ed25519", "rsa"),
            line.replace(" 9", " -9"),
            line.replace(" 9", " +9"),
            line.replace(" 9", ""),
            line.replace(" 9", " 9 9"),
            line.replace(" 07", " 7"),
            line.replace(" 07", " +7"),
            line.replace(" 0707", " é07"),
            line.replace('\n', "\r"),
        ] {
            assert!(PublicKeys::read_published(&bad).is_err(), "{bad:?}");
            assert_eq!(
                PublicKeys::read_published(&format!("{line}{bad}")),
                Err(PublishedError::Line(2)),
                "{bad:?}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_read_panics(text in ".{0,900}") {
            let _ = PublicKeys::read_published(&text);
        }
    }
}
