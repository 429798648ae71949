//! A journal's bytes: how its head and its lines are laid out, and what is believed of what is read. Pure.

use std::io;

use godwit_protocol::StreamOptions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The format that this agent writes, and the newest that it reads. The first has no word for a record that is asked to
/// decide.
pub const FORMAT: u32 = 2;
/// The size of a journal in bytes: some 120 lines, where a migration writes fewer than ten.
pub const SIZE: usize = 64 * 1024;
/// Where the lines begin.
pub(super) const HEADER: usize = 8 * SECTOR;

const MAGIC: &[u8; 8] = b"GODWITJ\0";
pub(super) const SECTOR: usize = 512;
const LINE_HEAD: usize = 8;

/// Whom a journal is about. Its place and shape stay the same in every format, so that an agent that meets a newer
/// journal knows which guest to leave alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The migration's UID.
    pub migration: String,
    /// The guest's UID.
    pub guest: String,
    /// This host's side of it.
    pub role: Role,
    /// The boot of the host in which the journal was begun.
    pub boot_id: String,
    /// How memory was to travel at the beginning.
    #[serde(default)]
    pub stream: StreamOptions,
}

/// A host's side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It sends the guest.
    Source,
    /// It receives the guest.
    Destination,
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line<E> {
    /// What the state machine asked for.
    Entry(E),
    /// The migration has ended here and everything that follows from that is done. What became of the guest later
    /// is none of this journal's business any more.
    Ended {
        /// The last report, for people.
        report: String,
    },
}

/// Why a journal's bytes are not acted on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// They are of a format that is not known here.
    Newer { format: u32, head: Box<Head> },
    /// They were altered, or a part of them is missing.
    Damaged {
        why: String,
        /// Whom they are about, where at least that can be read.
        head: Option<Box<Head>>,
    },
    /// They are no journal's at all.
    Foreign,
}

/// What a journal's bytes say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told<E> {
    pub(super) head: Head,
    pub(super) entries: Vec<E>,
    pub(super) ended: bool,
    /// Where the next line goes.
    pub(super) next: usize,
    /// Whether the write of a line was cut short there.
    pub(super) torn: bool,
}

/// Reads a whole journal. `named` is the migration that its name tells: it is believed under no other.
pub(super) fn read<E: DeserializeOwned>(bytes: &[u8], named: Option<&str>) -> Result<Told<E>, Unread> {
    let head = read_head(bytes, named)?;
    let damaged = |why: String| Unread::Damaged {
        why,
        head: Some(Box::new(head.clone())),
    };
    let read = read_lines(bytes.get(HEADER..).unwrap_or_default()).map_err(damaged)?;
    let mut entries = Vec::new();
    let mut ended = false;
    for payload in read.payloads {
        let line = serde_json::from_slice(payload)
            .map_err(|e| damaged(format!("a line has another meaning: {e}")))?;
        match line {
            Line::Entry(_) if ended => return Err(damaged("something follows its end".into())),
            Line::Entry(entry) => entries.push(entry),
            Line::Ended { .. } => ended = true,
        }
    }
    Ok(Told {
        next: HEADER + read.end,
        torn: read.torn,
        head,
        entries,
        ended,
    })
}

pub(super) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// The bytes of a journal without a line.
pub(super) fn blank(head: &Head) -> io::Result<Vec<u8>> {
    let mut content = serde_json::to_vec(head)?;
    if content.len() > HEADER - 16 {
        return Err(io::Error::other("whom it is about has too long a name"));
    }
    content.resize(HEADER - 16, 0);
    let format = FORMAT.to_le_bytes();
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&format);
    bytes.extend_from_slice(&checksum(&[&format, &content]).to_le_bytes());
    bytes.extend_from_slice(&content);
    bytes.resize(SIZE, 0);
    Ok(bytes)
}

/// Reads whom a journal is about, whatever its format.
pub(super) fn read_head(bytes: &[u8], named: Option<&str>) -> Result<Head, Unread> {
    let damaged = |why: &str| Unread::Damaged {
        why: why.into(),
        head: None,
    };
    if bytes.get(..8) != Some(MAGIC.as_slice()) {
        return Err(Unread::Foreign);
    }
    let (Some(format), Some(content)) = (number(bytes, 8), bytes.get(16..HEADER)) else {
        return Err(damaged("its head is not whole"));
    };
    if number(bytes, 12) != Some(checksum(&[&format.to_le_bytes(), content])) {
        return Err(damaged("its head's checksum does not fit"));
    }
    let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
    let head: Head = serde_json::from_slice(content.get(..end).unwrap_or_default())
        .map_err(|_| damaged("its head has another meaning"))?;
    if format > FORMAT {
        return Err(Unread::Newer {
            format,
            head: Box::new(head),
        });
    }
    if named != Some(head.migration.as_str()) {
        return Err(damaged("it is about another migration than its name says"));
    }
    if bytes.len() != SIZE {
        let why = format!("it has {} bytes where it was made with {SIZE}", bytes.len());
        return Err(Unread::Damaged {
            why,
            head: Some(Box::new(head)),
        });
    }
    Ok(head)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_le_bytes)
}

/// The bytes of a line, as they are written in one go.
pub(super) fn encode<E: Serialize>(line: &Line<E>) -> io::Result<Vec<u8>> {
    let mut payload = serde_json::to_vec(line)?;
    payload.push(b'\n');
    let length = u16::try_from(payload.len()).map_err(|_| io::Error::other("the line is too long"))?;
    let mut bytes = Vec::with_capacity(LINE_HEAD + payload.len() + SECTOR);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&(!length).to_le_bytes());
    bytes.extend_from_slice(&checksum(&[&length.to_le_bytes(), &payload]).to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    Ok(bytes)
}

struct Lines<'a> {
    payloads: Vec<&'a [u8]>,
    /// Where the next line goes.
    end: usize,
    /// Whether the write of a line was cut short there.
    torn: bool,
}

fn read_lines(bytes: &[u8]) -> Result<Lines<'_>, String> {
    let mut payloads = Vec::new();
    let mut at = 0;
    let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        if zero(rest) {
            return Ok(Lines {
                payloads,
                end: at,
                torn: false,
            });
        }
        let half = |from: usize| {
            rest.get(from..from + 2)
                .and_then(|b| b.try_into().ok())
                .map(u16::from_le_bytes)
        };
        let (Some(length), Some(complement), Some(sum)) = (half(0), half(2), number(rest, 4)) else {
            return Err(format!(
                "something stands where line {} would begin",
                payloads.len() + 1
            ));
        };
        if length != !complement || length < 2 {
            return Err(format!("line {} has no length", payloads.len() + 1));
        }
        let end = LINE_HEAD + usize::from(length);
        let next = end.next_multiple_of(SECTOR);
        let (Some(payload), Some(padding)) = (rest.get(LINE_HEAD..end), rest.get(end..next)) else {
            return Err(format!("line {} does not fit into the file", payloads.len() + 1));
        };
        if sum == checksum(&[&length.to_le_bytes(), payload]) && zero(padding) {
            payloads.push(payload);
            at += next;
            continue;
        }
        // Its last byte is a newline once it is whole: a zero there means that its write did not come so far.
        if payload.last() == Some(&0) && zero(rest.get(end..).unwrap_or_default()) {
            return Ok(Lines {
                payloads,
                end: at,
                torn: true,
            });
        }
        return Err(format!("line {} does not fit its checksum", payloads.len() + 1));
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    fn a_head() -> Head {
        Head {
            migration: "m".into(),
            guest: "guest-1".into(),
            role: Role::Source,
            boot_id: "boot".into(),
            stream: StreamOptions::PLAIN,
        }
    }

    fn with_lines(lines: &[Line<String>]) -> Vec<u8> {
        let mut bytes = blank(&a_head()).unwrap();
        let mut at = HEADER;
        for line in lines {
            let line = encode(line).unwrap();
            bytes[at..at + line.len()].copy_from_slice(&line);
            at += line.len();
        }
        bytes
    }

    fn entry(text: &str) -> Line<String> {
        Line::Entry(text.into())
    }

    fn ended() -> Line<String> {
        Line::Ended {
            report: "Released".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_the_next_line_has_its_place() {
        let bytes = with_lines(&[entry("a"), entry(&"b".repeat(SECTOR)), ended()]);
        assert_eq!(bytes.len(), SIZE);
        let told = read::<String>(&bytes, Some("m")).unwrap();
        let expected = Told {
            head: a_head(),
            entries: vec!["a".into(), "b".repeat(SECTOR)],
            ended: true,
            next: HEADER + 4 * SECTOR,
            torn: false,
        };
        assert_eq!(told, expected);
        assert_eq!(read_head(&bytes, Some("m")), Ok(a_head()));
    }

    #[test]
    fn nothing_follows_an_end() {
        let bytes = with_lines(&[ended(), entry("a")]);
        let why = "something follows its end".into();
        let head = Some(Box::new(a_head()));
        assert_eq!(
            read::<String>(&bytes, Some("m")),
            Err(Unread::Damaged { why, head })
        );
    }

    #[test]
    fn under_another_name_not_even_its_guest_is_believed() {
        let bytes = with_lines(&[entry("a")]);
        // Cut short as well: the name is what counts first.
        for bytes in [&bytes[..], &bytes[..HEADER]] {
            for named in [None, Some("other")] {
                assert!(matches!(
                    read_head(bytes, named),
                    Err(Unread::Damaged { head: None, .. })
                ));
            }
        }
        let cut = read_head(&bytes[..HEADER], Some("m"));
        assert!(matches!(cut, Err(Unread::Damaged { head: Some(_), .. })));
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let head = Head {
            boot_id: "b".repeat(HEADER),
            ..a_head()
        };
        assert!(blank(&head).is_err());
        assert!(encode(&entry(&"x".repeat(usize::from(u16::MAX)))).is_err());
    }
}
