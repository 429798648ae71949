//! Which keys sign tickets, and when one takes over from another.
//!
//! A key is published for [`LEAD`] before it signs, signs for [`TERM`], and tickets that it signed are taken for
//! [`GRACE`] more: that is what is left for a controller that could not make its successor in time. So there are one
//! to four keys at any time, and nobody who learnt an old one can use it for long.

use godwit_protocol::ticket::{CLOCK_TOLERANCE, KeyError, LIFETIME, PublicKeys, SigningKey};

/// How long a key is published before it signs, in seconds: the agents' time to learn it.
pub const LEAD: u64 = 3600;
/// How long a key signs, in seconds.
pub const TERM: u64 = 24 * 3600;
/// How long tickets of a key are still taken after its term, in seconds.
pub const GRACE: u64 = 24 * 3600;
/// The longest text of a ring, in bytes.
const LONGEST: usize = 8 * 96;

/// A key and when it was made, Unix time in seconds.
#[derive(Debug)]
struct Held {
    key: SigningKey,
    made: u64,
}

impl Held {
    fn until(&self) -> u64 {
        self.made.saturating_add(LEAD + TERM + GRACE)
    }

    /// Whether all of a ticket's time lies within the key's.
    fn may_sign(&self, now: u64) -> bool {
        now.saturating_add(LIFETIME) <= self.until()
    }
}

/// The keys, the oldest first.
#[derive(Debug, Default)]
pub struct Ring {
    keys: Vec<Held>,
}

/// Why a ring cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// It has more than a ring can have.
    #[error("it is longer than any ring of keys")]
    TooLong,
    /// A line is none of a key's.
    #[error("line {0} is not a key as this version writes them")]
    Line(usize),
}

impl Ring {
    /// The ring that this text holds: a line for each key, its seed in hex and when it was made. An empty text is an
    /// empty ring.
    ///
    /// # Errors
    /// [`RingError`]; nothing of a ring that is not understood is used.
    pub fn read(text: &str) -> Result<Self, RingError> {
        if text.len() > LONGEST {
            return Err(RingError::TooLong);
        }
        let mut keys = text
            .lines()
            .enumerate()
            .map(|(number, line)| held(line).ok_or(RingError::Line(number + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        keys.sort_by_key(|held| held.made);
        Ok(Self { keys })
    }

    /// The ring as text. Whoever reads it can sign tickets.
    ///
    /// # Errors
    /// [`KeyError::NoKey`].
    pub fn write(&self) -> Result<String, KeyError> {
        let mut text = String::new();
        for held in &self.keys {
            for byte in held.key.seed()? {
                text.push_str(&format!("{byte:02x}"));
            }
            text.push_str(&format!(" {}\n", held.made));
        }
        Ok(text)
    }

    /// Drops the keys whose time is over, and makes one where the newest has had its term. Says whether anything has
    /// changed. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn turn(&mut self, now: u64) -> Result<bool, KeyError> {
        let before = self.keys.len();
        // One that was made far in the future is from a controller whose clock was wrong: it would stay for ever.
        self.keys.retain(|held| {
            now < held.until().saturating_add(CLOCK_TOLERANCE) && held.made <= now.saturating_add(LEAD)
        });
        let due = self
            .keys
            .last()
            .is_none_or(|newest| now.saturating_sub(newest.made) >= TERM);
        if due {
            self.keys.push(Held {
                key: SigningKey::generate()?,
                made: now,
            });
        }
        Ok(due || self.keys.len() != before)
    }

    /// The key that signs: the newest that has been published for long enough. At the very beginning there is none,
    /// and the oldest signs at once.
    pub fn signing(&self, now: u64) -> Option<&SigningKey> {
        let mut able = self.keys.iter().filter(|held| held.may_sign(now));
        let known = |held: &&Held| held.made.saturating_add(LEAD) <= now;
        able.clone()
            .rfind(known)
            .or_else(|| able.next())
            .map(|held| &held.key)
    }

    /// What the agents check tickets by.
    ///
    /// # Errors
    /// [`KeyError::TooMany`].
    pub fn public(&self) -> Result<PublicKeys, KeyError> {
        let keys = self
            .keys
            .iter()
            .map(|held| held.key.public(held.until()))
            .collect::<Result<_, _>>()?;
        PublicKeys::new(keys)
    }
}

fn held(line: &str) -> Option<Held> {
    let (digits, made) = line.split_once(' ')?;
    if digits.len() != 64 || !digits.bytes().chain(made.bytes()).all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut seed = [0; 32];
    for (at, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(Held {
        key: SigningKey::from_seed(&seed).ok()?,
        made: made.parse().ok()?,
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use godwit_handover::Terms;
    use godwit_protocol::ticket::{Act, Expected, KeyId, Ticket};

    use super::*;

    const START: u64 = 1_800_000_000;

    fn terms() -> Terms {
        Terms {
            migration: "m".into(),
            guest: "g".into(),
            epoch: 1,
            source: "a".into(),
            destination: "b".into(),
            strict: false,
        }
    }

    fn sign(ring: &Ring, now: u64) -> Vec<u8> {
        let key = ring.signing(now).unwrap();
        Ticket::new(terms(), Act::Receive, now)
            .unwrap()
            .sign(key)
            .unwrap()
    }

    fn taken(ticket: &[u8], keys: &PublicKeys, now: u64) -> bool {
        let terms = terms();
        let expected = Expected {
            peer: "a",
            host: "b",
            terms: &terms,
            act: Act::Receive,
        };
        Ticket::verify(ticket, keys, now, expected).is_ok()
    }

    fn ids(ring: &Ring) -> Vec<KeyId> {
        ring.keys.iter().map(|held| held.key.id()).collect()
    }

    #[test]
    fn the_first_key_signs_at_once() {
        let mut ring = Ring::default();
        assert!(ring.signing(START).is_none());
        assert!(ring.turn(START).unwrap());
        assert!(!ring.turn(START + 1).unwrap());
        assert!(taken(&sign(&ring, START), &ring.public().unwrap(), START));
    }

    #[test]
    fn r2_a_key_is_published_an_hour_before_it_signs_and_signs_for_a_day() {
        let mut ring = Ring::default();
        ring.turn(START).unwrap();
        let first = ids(&ring)[0];
        assert!(!ring.turn(START + TERM - 1).unwrap());
        assert!(ring.turn(START + TERM).unwrap());
        let second = ids(&ring)[1];
        let signing = |now| ring.signing(now).unwrap().id();
        assert_eq!(signing(START + TERM + LEAD - 1), first);
        assert_eq!(signing(START + TERM + LEAD), second);
    }

    #[test]
    fn r2_an_old_key_ends() {
        let mut ring = Ring::default();
        ring.turn(START).unwrap();
        let first = ring.write().unwrap();
        let published = ring.public().unwrap();
        // Somebody kept it and goes on signing.
        let kept = Ring::read(&first).unwrap();
        let end = START + LEAD + TERM + GRACE;
        let key = &kept.keys[0].key;
        for (now, good) in [(end - 1, true), (end + CLOCK_TOLERANCE, false)] {
            let ticket = Ticket::new(terms(), Act::Receive, now)
                .unwrap()
                .sign(key)
                .unwrap();
            assert_eq!(taken(&ticket, &published, now), good);
        }
        assert!(kept.signing(end).is_none());
        ring.turn(end + CLOCK_TOLERANCE).unwrap();
        assert!(!ids(&ring).contains(&key.id()));
    }

    /// A month of hourly turns, with a controller that is away now and then.
    #[test]
    fn every_ticket_is_taken_for_its_whole_time_through_a_month_of_rotations() {
        let mut ring = Ring::default();
        let mut signers = std::collections::BTreeSet::new();
        for hour in 0..24 * 30 {
            let now = START + hour * 3600;
            // Away for 20 hours a week.
            if hour % 168 >= 20 || hour == 0 {
                ring.turn(now).unwrap();
            }
            assert!(ring.keys.len() <= 4, "{}", ring.keys.len());
            let ticket = sign(&ring, now);
            signers.insert(ring.signing(now).unwrap().id());
            let published = ring.public().unwrap();
            assert!(taken(&ticket, &published, now));
            assert!(taken(&ticket, &published, now + LIFETIME));
            // An agent that last read the keys nearly an hour ago knows the one that signs.
            let mut later = Ring::read(&ring.write().unwrap()).unwrap();
            let soon = now + LEAD - 1;
            later.turn(soon).unwrap();
            assert!(taken(&sign(&later, soon), &published, soon));
        }
        assert!((25..=31).contains(&signers.len()), "{}", signers.len());
    }

    #[test]
    fn after_a_long_absence_there_is_a_new_key_at_once() {
        let mut ring = Ring::default();
        ring.turn(START).unwrap();
        let now = START + 10 * TERM;
        assert!(ring.turn(now).unwrap());
        assert_eq!(ring.keys.len(), 1);
        assert!(taken(&sign(&ring, now), &ring.public().unwrap(), now));
    }

    #[test]
    fn a_key_from_a_wrong_clock_goes() {
        let mut ring = Ring::default();
        ring.turn(START + 1000 * TERM).unwrap();
        let wrong = ids(&ring)[0];
        assert!(ring.turn(START).unwrap());
        assert!(ring.keys.len() == 1 && ids(&ring)[0] != wrong);
        // A clock that was a little ahead does no harm.
        assert!(!ring.turn(START - 100).unwrap());
        assert!(ring.signing(START - 100).is_some());
    }

    #[test]
    fn a_ring_is_read_as_it_was_written_or_not_at_all() {
        let mut ring = Ring::default();
        ring.turn(START).unwrap();
        ring.turn(START + TERM).unwrap();
        let text = ring.write().unwrap();
        assert_eq!(ids(&Ring::read(&text).unwrap()), ids(&ring));
        assert!(Ring::read("").unwrap().keys.is_empty());
        assert_eq!(Ring::read(&text.repeat(8)).unwrap_err(), RingError::TooLong);
        for bad in ["x", "\n", " 1", "00 1"] {
            assert_eq!(
                Ring::read(&format!("{text}{bad}")).unwrap_err(),
                RingError::Line(3),
                "{bad:?}"
            );
        }
        for bad in [
            text.replace(' ', "  "),
            text.replace(' ', " +"),
            text.replace(' ', ""),
        ] {
            assert_eq!(Ring::read(&bad).unwrap_err(), RingError::Line(1), "{bad:?}");
        }
    }

    #[test]
    fn a_ring_does_not_show_its_seeds() {
        let mut ring = Ring::default();
        ring.turn(START).unwrap();
        let text = ring.write().unwrap();
        let seed = ring.keys[0].key.seed().unwrap();
        let shown = format!("{ring:?}");
        assert!(
            !shown.contains(&text[..64]) && !shown.contains(&format!("{seed:?}")),
            "{shown}"
        );
    }
}
