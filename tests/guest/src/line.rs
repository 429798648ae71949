//! The lines a test guest writes to its serial port: how they are written and how they are read again.
//!
//! A line is `<kind> <field>... *<crc>\n`, with a CRC-16 over everything before the ` *`, so that a line of which
//! bytes were lost, doubled or mixed with another's is known to be broken. Lines are short because each byte costs
//! an exit from the guest.
//!
//! There is no host mark in a line: a guest cannot know on which host it runs. The host is marked by whoever reads
//! the serial port, and that is better evidence, since it tells which hypervisor process sent the byte.

use std::fmt::Write as _;

/// The longest line that any kind can make, newline included, in bytes.
pub const LONGEST: usize = 96;

/// Whether the guest's memory still held its pattern when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryState {
    /// No page that was looked at since boot differed from its pattern.
    Intact,
    /// At least one page differed since boot. A guest never goes back from this.
    Corrupt,
}

/// One line of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The first line after a boot.
    Hello {
        /// Pages of 4096 bytes that are filled with the pattern and checked.
        pages: u64,
        /// Time between two ticks, in milliseconds.
        interval_ms: u64,
        /// Time since the guest's kernel started, in microseconds of its own clock.
        uptime_us: u64,
    },
    /// The guest lives. Each tick's number is one more than that of the tick before, however late it comes.
    Tick {
        /// Counts from 1 after each boot.
        tick: u64,
        /// The guest's wall clock, microseconds since 1970.
        wall_us: u64,
        /// The guest's monotonic clock, microseconds. It stands still while the guest is stopped.
        mono_us: u64,
        /// What checking memory has found so far.
        memory: MemoryState,
    },
    /// All of the memory was checked once, from the first page to the last.
    Check {
        /// The last tick written before this check began: every page was looked at after that tick.
        since_tick: u64,
        /// Pages that were looked at.
        pages: u64,
        /// Pages that differed from their pattern.
        bad: u64,
        /// The first page that differed. It is 0 where `bad` is 0.
        first_bad: u64,
        /// The guest's monotonic clock at the end of the check, microseconds.
        mono_us: u64,
    },
    /// A command was understood and is being done.
    Accepted {
        /// The command's first word.
        command: String,
    },
    /// Something that the guest was told makes no sense to it.
    Refused {
        /// What it was about: the first word of a command or the name of an option.
        what: String,
    },
    /// A boot-sector guest's tick; it has no clock and keeps nothing in memory.
    Count {
        /// Counts from 1 after each boot, and begins again at 0 after 2^32 - 1.
        tick: u32,
    },
}

/// The bytes are no line of a guest, or one that was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

impl Line {
    /// The tick's number, for the lines that are ticks.
    #[must_use]
    pub fn tick(&self) -> Option<u64> {
        match self {
            Self::Tick { tick, .. } => Some(*tick),
            Self::Count { tick } => Some(u64::from(*tick)),
            Self::Hello { .. } | Self::Check { .. } | Self::Accepted { .. } | Self::Refused { .. } => None,
        }
    }

    /// The line as it goes to the serial port, with its newline.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(LONGEST);
        // Writing into a `String` cannot fail.
        let _ = match self {
            Self::Hello {
                pages,
                interval_ms,
                uptime_us,
            } => {
                write!(text, "H {pages} {interval_ms} {uptime_us}")
            }
            Self::Tick {
                tick,
                wall_us,
                mono_us,
                memory,
            } => {
                write!(text, "T {tick} {wall_us} {mono_us} {}", memory.word())
            }
            Self::Check {
                since_tick,
                pages,
                bad: 0,
                first_bad: _,
                mono_us,
            } => {
                write!(text, "C ok {since_tick} {pages} {mono_us}")
            }
            Self::Check {
                since_tick,
                pages,
                bad,
                first_bad,
                mono_us,
            } => {
                write!(text, "C bad {since_tick} {pages} {bad} {first_bad} {mono_us}")
            }
            Self::Accepted { command } => write!(text, "A {}", word(command)),
            Self::Refused { what } => write!(text, "R {}", word(what)),
            Self::Count { tick } => {
                // Its own check, which eight instructions of a boot sector can compute.
                let _ = writeln!(text, "B {tick:08x} {:08x}", !tick);
                return text;
            }
        };
        let check = crc16(text.as_bytes());
        let _ = writeln!(text, " *{check:04x}");
        text
    }

    /// Reads a line, given without its newline.
    ///
    /// # Errors
    /// [`Garbled`] if the bytes are not exactly what [`Line::encode`] writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Garbled> {
        let text = std::str::from_utf8(bytes).map_err(|_| Garbled)?;
        if let Some(rest) = text.strip_prefix("B ") {
            return parse_count(rest);
        }
        let (body, check) = text.rsplit_once(" *").ok_or(Garbled)?;
        if check.len() != 4 || u16::from_str_radix(check, 16) != Ok(crc16(body.as_bytes())) {
            return Err(Garbled);
        }
        let mut fields = Fields(body.split(' '));
        let line = match fields.word()? {
            "H" => Self::Hello {
                pages: fields.number()?,
                interval_ms: fields.number()?,
                uptime_us: fields.number()?,
            },
            "T" => Self::Tick {
                tick: fields.number()?,
                wall_us: fields.number()?,
                mono_us: fields.number()?,
                memory: MemoryState::from_word(fields.word()?)?,
            },
            "C" => match fields.word()? {
                "ok" => Self::Check {
                    since_tick: fields.number()?,
                    pages: fields.number()?,
                    bad: 0,
                    first_bad: 0,
                    mono_us: fields.number()?,
                },
                "bad" => Self::Check {
                    since_tick: fields.number()?,
                    pages: fields.number()?,
                    bad: fields.number()?,
                    first_bad: fields.number()?,
                    mono_us: fields.number()?,
                },
                _ => return Err(Garbled),
            },
            "A" => Self::Accepted {
                command: fields.word()?.to_owned(),
            },
            "R" => Self::Refused {
                what: fields.word()?.to_owned(),
            },
            _ => return Err(Garbled),
        };
        fields.end()?;
        Ok(line)
    }
}

impl MemoryState {
    fn word(self) -> &'static str {
        match self {
            Self::Intact => "ok",
            Self::Corrupt => "bad",
        }
    }

    fn from_word(word: &str) -> Result<Self, Garbled> {
        match word {
            "ok" => Ok(Self::Intact),
            "bad" => Ok(Self::Corrupt),
            _ => Err(Garbled),
        }
    }
}

/// The fields of a line, taken one after the other.
struct Fields<'a>(std::str::Split<'a, char>);

impl<'a> Fields<'a> {
    fn word(&mut self) -> Result<&'a str, Garbled> {
        self.0.next().filter(|word| !word.is_empty()).ok_or(Garbled)
    }

    fn number(&mut self) -> Result<u64, Garbled> {
        self.word()?.parse().map_err(|_| Garbled)
    }

    fn end(mut self) -> Result<(), Garbled> {
        self.0.next().map_or(Ok(()), |_| Err(Garbled))
    }
}

/// Makes of any text a word that is safe inside a line: printable, without spaces, bounded, never empty.
fn word(text: &str) -> String {
    let mut word: String = text.chars().filter(char::is_ascii_graphic).take(32).collect();
    if word.is_empty() {
        word.push('?');
    }
    word
}

fn parse_count(fields: &str) -> Result<Line, Garbled> {
    let (count, complement) = fields.split_once(' ').ok_or(Garbled)?;
    let hex = |digits: &str| {
        if digits.len() == 8 {
            u32::from_str_radix(digits, 16).map_err(|_| Garbled)
        } else {
            Err(Garbled)
        }
    };
    let tick = hex(count)?;
    if hex(complement)? == !tick {
        Ok(Line::Count { tick })
    } else {
        Err(Garbled)
    }
}

/// CRC-16/CCITT-FALSE: polynomial 0x1021, started at 0xFFFF.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Line> {
        vec![
            Line::Hello {
                pages: 196_608,
                interval_ms: 5,
                uptime_us: 700_000,
            },
            Line::Tick {
                tick: 1,
                wall_us: 1_795_374_123_456_789,
                mono_us: 1,
                memory: MemoryState::Intact,
            },
            Line::Tick {
                tick: u64::MAX,
                wall_us: u64::MAX,
                mono_us: u64::MAX,
                memory: MemoryState::Corrupt,
            },
            Line::Check {
                since_tick: 9,
                pages: 4,
                bad: 0,
                first_bad: 0,
                mono_us: 77,
            },
            Line::Check {
                since_tick: 9,
                pages: 4,
                bad: 2,
                first_bad: 1,
                mono_us: 77,
            },
            Line::Accepted {
                command: "check".to_owned(),
            },
            Line::Refused {
                what: "godwit.fil".to_owned(),
            },
            Line::Count { tick: 42 },
        ]
    }

    #[test]
    fn the_check_value_is_the_published_one() {
        assert_eq!(crc16(b"123456789"), 0x29B1);
    }

    #[test]
    fn what_is_written_is_read_again_and_is_short() {
        for line in every_kind() {
            let text = line.encode();
            assert!(text.len() <= LONGEST, "{text}");
            assert_eq!(
                Line::parse(text.trim_end_matches('\n').as_bytes()),
                Ok(line),
                "{text}"
            );
        }
        let usual = Line::Tick {
            tick: 1_000_000,
            wall_us: 1_795_374_123_456_789,
            mono_us: 3_600_000_000,
            memory: MemoryState::Intact,
        };
        assert!(usual.encode().len() <= 60, "{}", usual.encode());
    }

    #[test]
    fn a_lost_doubled_or_changed_byte_is_noticed() {
        for line in every_kind() {
            let text = line.encode();
            let bytes = text.trim_end_matches('\n').as_bytes();
            for at in 0..bytes.len() {
                let (before, after) = bytes.split_at(at);
                let lost = [before, &after[1..]].concat();
                assert_eq!(Line::parse(&lost), Err(Garbled), "lost {at} of {text}");
                let doubled = [before, &after[..1], after].concat();
                assert_eq!(Line::parse(&doubled), Err(Garbled), "doubled {at} of {text}");
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                assert_eq!(Line::parse(&changed), Err(Garbled), "changed {at} of {text}");
            }
        }
    }

    #[test]
    fn a_word_cannot_break_its_line() {
        let line = Line::Refused {
            what: "a b\n*c".to_owned(),
        }
        .encode();
        assert_eq!(
            Line::parse(line.trim_end().as_bytes()),
            Ok(Line::Refused {
                what: "ab*c".to_owned()
            })
        );
        assert_eq!(line.matches('\n').count(), 1);
        let none = Line::Refused { what: " ".to_owned() }.encode();
        assert_eq!(
            Line::parse(none.trim_end().as_bytes()),
            Ok(Line::Refused { what: "?".to_owned() })
        );
    }
}
