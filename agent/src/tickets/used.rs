//! The tickets that were used here, remembered until each is refused for its age alone.
//!
//! One file of sectors, of 512 bytes each, so that writing one harms no other:
//!
//! ```text
//! the first   GODWITU\0 · format · not before · checksum
//! each other  nonce · forgotten at · the ticket's digest · checksum
//! ```
//! A use is on the medium before it is answered for. A last sector that does not fit was never answered for, and is
//! taken as not written. Where another one does not fit, what was used is not known any more: the file is put aside,
//! and no ticket is taken that may have been used before that, which ends by itself once those have expired. The same
//! mark, "not before", keeps a clock that was set back from making tickets good again that were forgotten already.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use godwit_protocol::ticket::{CLOCK_TOLERANCE, LIFETIME, Nonce};

use crate::state::{StateError, durable};

/// The file's name in the agent's state directory.
pub const FILE: &str = "used-tickets";
/// The format that this agent writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"GODWITU\0";
const SECTOR: usize = 512;
/// The most uses that are remembered: far more than a host can receive guests while tickets live.
const MOST: usize = 65_536;
/// The largest file that is read: forgotten ones lie in it too for a while.
const LARGEST: u64 = (4 * MOST * SECTOR) as u64;
/// So many forgotten ones may lie in the file, beside as many as are remembered.
const SLACK: usize = 64;

/// One use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The ticket's.
    pub nonce: Nonce,
    /// From when on it need not be remembered, Unix time in seconds.
    pub forgotten_at: u64,
    /// Of the whole ticket.
    pub digest: [u8; 32],
}

/// Why a use was not remembered; the ticket is not to be taken then.
#[derive(Debug, thiserror::Error)]
pub enum UsedError {
    /// Another ticket of this nonce was used before.
    #[error("another ticket with this nonce was used before")]
    OtherUse,
    /// It may have been used before.
    #[error(
        "this host does not know any more whether the ticket was used before; it takes those that are made from Unix time {from} on"
    )]
    Forgotten {
        /// Unix time in seconds.
        from: u64,
    },
    /// There are too many.
    #[error("more tickets were used lately than this host remembers")]
    TooMany,
    /// The disk.
    #[error("the use of the ticket was not written down: {0}")]
    State(#[from] StateError),
}

/// The memory.
#[derive(Debug)]
pub struct Used {
    path: PathBuf,
    /// What can be appended to; `None` after a failure: the next use writes the file anew.
    file: Option<File>,
    uses: HashMap<Nonce, Use>,
    /// How many lie in the file.
    written: usize,
    /// Tickets that are forgotten by then are not taken, whatever the clock says.
    not_before: u64,
}

/// What a file holds.
struct Content {
    uses: Vec<Use>,
    not_before: u64,
    whole: bool,
}

impl Used {
    /// Opens the memory in this directory, or begins it. `now` is Unix time in seconds.
    pub fn open(directory: &Path, now: u64) -> Result<Self, StateError> {
        let path = directory.join(FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| StateError::System { action, path, source }
        };
        let bytes = match fs::metadata(&path) {
            Ok(data) if data.len() > LARGEST => vec![0],
            Ok(_) => fs::read(&path).map_err(failed("read"))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("look at")(error)),
        };
        let mut used = Self {
            file: None,
            uses: HashMap::new(),
            written: 0,
            not_before: 0,
            path: path.clone(),
        };
        if !bytes.is_empty() {
            match decode(&bytes, &path)? {
                Some(content) => {
                    used.not_before = content.not_before;
                    used.written = content.uses.len();
                    used.uses = content.uses.into_iter().map(|this| (this.nonce, this)).collect();
                    if content.whole {
                        let file = OpenOptions::new()
                            .append(true)
                            .open(&path)
                            .map_err(failed("open"))?;
                        used.file = Some(file);
                    }
                }
                None => {
                    let aside = directory.join(format!("{FILE}.damaged"));
                    fs::rename(&path, &aside).map_err(failed("put aside"))?;
                    used.not_before = now.saturating_add(LIFETIME + 2 * CLOCK_TOLERANCE);
                    tracing::error!(
                        path = %aside.display(),
                        "the memory of used tickets is damaged and was put aside; for some minutes no source's ticket is taken"
                    );
                }
            }
        }
        if used.file.is_none() {
            used.rewrite(now)?;
        }
        Ok(used)
    }

    /// Remembers a use. True: it is the first of this ticket; false: the very same ticket was used before. When this
    /// returns, it is on the medium. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`UsedError`]: the ticket is not to be taken. A later try may succeed.
    pub fn remember(&mut self, this: Use, now: u64) -> Result<bool, UsedError> {
        match self.uses.get(&this.nonce) {
            Some(before) if *before == this => return Ok(false),
            Some(_) => return Err(UsedError::OtherUse),
            None => {}
        }
        if this.forgotten_at <= self.not_before {
            return Err(UsedError::Forgotten {
                from: self.not_before.saturating_sub(LIFETIME + CLOCK_TOLERANCE),
            });
        }
        self.forget(now);
        if self.uses.len() >= MOST {
            return Err(UsedError::TooMany);
        }
        let outcome = if self.written > 2 * self.uses.len() + SLACK {
            self.file = None;
            self.rewrite(now).and_then(|()| self.append(this))
        } else if self.file.is_none() {
            self.rewrite(now).and_then(|()| self.append(this))
        } else {
            self.append(this)
        };
        outcome?;
        self.uses.insert(this.nonce, this);
        Ok(true)
    }

    /// As after a failed write.
    #[cfg(test)]
    pub(super) fn lose_file(&mut self) {
        self.file = None;
    }

    /// Forgets what is too old to be taken.
    fn forget(&mut self, now: u64) {
        let before = self.uses.len();
        self.uses.retain(|_, this| this.forgotten_at > now);
        if self.uses.len() != before {
            self.not_before = self.not_before.max(now);
        }
    }

    fn append(&mut self, this: Use) -> Result<(), StateError> {
        // Whatever happens, a file that took a part of it takes nothing after it.
        let Some(mut file) = self.file.take() else {
            return Err(self.failed("write", ErrorKind::NotFound.into()));
        };
        file.write_all(&sector(&of_use(this)))
            .and_then(|()| file.sync_data())
            .map_err(|error| self.failed("write", error))?;
        self.file = Some(file);
        self.written += 1;
        Ok(())
    }

    /// Writes the file anew, with what is remembered now.
    fn rewrite(&mut self, now: u64) -> Result<(), StateError> {
        self.forget(now);
        let temporary = self.path.with_extension("new");
        let mut bytes = sector(&of_head(self.not_before));
        for this in self.uses.values() {
            bytes.extend(sector(&of_use(*this)));
        }
        let written = (|| {
            durable::write(&temporary, &[&bytes])?;
            fs::rename(&temporary, &self.path)?;
            durable::sync_name(&self.path)?;
            OpenOptions::new().append(true).open(&self.path)
        })();
        match written {
            Ok(file) => {
                self.file = Some(file);
                self.written = self.uses.len();
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(self.failed("write", error))
            }
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> StateError {
        StateError::System {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

fn of_head(not_before: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT.to_be_bytes());
    bytes.extend(not_before.to_be_bytes());
    bytes
}

fn of_use(this: Use) -> Vec<u8> {
    let mut bytes = this.nonce.0.to_vec();
    bytes.extend(this.forgotten_at.to_be_bytes());
    bytes.extend(this.digest);
    bytes
}

/// A sector with this content, its checksum, and zeros.
fn sector(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.extend(crc32fast::hash(content).to_be_bytes());
    bytes.resize(SECTOR, 0);
    bytes
}

/// The first bytes of a sector whose checksum fits and whose rest is zeros.
fn content<const N: usize>(sector: &[u8]) -> Option<[u8; N]> {
    let (content, rest) = sector.split_at_checked(N)?;
    let (sum, zeros) = rest.split_at_checked(4)?;
    let fits = crc32fast::hash(content).to_be_bytes() == *sum && zeros.iter().all(|byte| *byte == 0);
    content.try_into().ok().filter(|_| fits)
}

/// What these bytes hold; `None` where they are damaged.
///
/// # Errors
/// [`StateError::Newer`].
fn decode(bytes: &[u8], path: &Path) -> Result<Option<Content>, StateError> {
    let (head, rest) = bytes.split_at(bytes.len().min(SECTOR));
    if let (Some(magic), Some(format)) = (head.get(..8), head.get(8..12).and_then(|b| b.try_into().ok())) {
        let version = u32::from_be_bytes(format);
        if magic == MAGIC && version > FORMAT {
            return Err(StateError::Newer {
                path: path.to_path_buf(),
                version,
                known: FORMAT,
            });
        }
    }
    let Some(not_before) = content::<20>(head)
        .filter(|_| head.len() == SECTOR)
        .filter(|head| head.starts_with(MAGIC) && head.get(8..12) == Some(&FORMAT.to_be_bytes()))
        .and_then(|head| head.get(12..)?.try_into().ok())
        .map(u64::from_be_bytes)
    else {
        return Ok(None);
    };
    let mut uses = Vec::new();
    let mut sectors = rest.chunks(SECTOR).peekable();
    while let Some(sector) = sectors.next() {
        let this = (sector.len() == SECTOR).then(|| a_use(sector)).flatten();
        match this {
            Some(this) => uses.push(this),
            None if sectors.peek().is_none() => {
                return Ok(Some(Content {
                    uses,
                    not_before,
                    whole: false,
                }));
            }
            None => return Ok(None),
        }
    }
    Ok(Some(Content {
        uses,
        not_before,
        whole: true,
    }))
}

fn a_use(sector: &[u8]) -> Option<Use> {
    let content = content::<56>(sector)?;
    Some(Use {
        nonce: Nonce(content.get(..16)?.try_into().ok()?),
        forgotten_at: u64::from_be_bytes(content.get(16..24)?.try_into().ok()?),
        digest: content.get(24..)?.try_into().ok()?,
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn a(byte: u8, forgotten_at: u64) -> Use {
        Use {
            nonce: Nonce([byte; 16]),
            forgotten_at,
            digest: [byte; 32],
        }
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn r2_a_use_is_remembered_over_a_restart() {
        let directory = directory();
        let mut used = Used::open(directory.path(), NOW).unwrap();
        assert!(used.remember(a(1, NOW + 100), NOW).unwrap());
        assert!(!used.remember(a(1, NOW + 100), NOW).unwrap());
        drop(used);
        let mut used = Used::open(directory.path(), NOW).unwrap();
        assert!(!used.remember(a(1, NOW + 100), NOW).unwrap());
        assert!(used.remember(a(2, NOW + 100), NOW).unwrap());
        let other = Use {
            digest: [9; 32],
            ..a(2, NOW + 100)
        };
        assert!(matches!(used.remember(other, NOW), Err(UsedError::OtherUse)));
        drop(used);
        let used = Used::open(directory.path(), NOW).unwrap();
        assert_eq!(used.uses.len(), 2);
    }

    #[test]
    fn a_torn_last_sector_was_never_answered_for() {
        let directory = directory();
        let mut used = Used::open(directory.path(), NOW).unwrap();
        for byte in 1..=3 {
            used.remember(a(byte, NOW + 100), NOW).unwrap();
        }
        drop(used);
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), 4 * SECTOR);
        let zeros = {
            let mut bytes = whole.clone();
            bytes[3 * SECTOR + 20..].fill(0);
            bytes
        };
        for torn in [&whole[..3 * SECTOR + 1], &whole[..4 * SECTOR - 1], &zeros] {
            fs::write(&path, torn).unwrap();
            let mut used = Used::open(directory.path(), NOW).unwrap();
            assert_eq!((used.uses.len(), used.not_before), (2, 0));
            assert!(used.remember(a(3, NOW + 100), NOW).unwrap());
            drop(used);
            assert_eq!(Used::open(directory.path(), NOW).unwrap().uses.len(), 3);
        }
    }

    #[test]
    fn r2_after_damage_nothing_is_taken_that_may_have_been_used() {
        let directory = directory();
        let path = directory.path().join(FILE);
        let mut used = Used::open(directory.path(), NOW).unwrap();
        for byte in 1..=3 {
            used.remember(a(byte, NOW + 100), NOW).unwrap();
        }
        drop(used);
        let whole = fs::read(&path).unwrap();
        // Everything but the last sector; the format's own bytes may also read as a newer format.
        for at in (0..8)
            .chain(12..70)
            .chain(SECTOR..SECTOR + 70)
            .chain([700, 3 * SECTOR - 1])
        {
            let mut altered = whole.clone();
            altered[at] ^= 0x40;
            fs::write(&path, &altered).unwrap();
            let mut used = Used::open(directory.path(), NOW).unwrap();
            // The latest ticket that can have been used before, by a clock that is ahead as far as is borne.
            let latest = NOW + LIFETIME + 2 * CLOCK_TOLERANCE;
            let outcome = used.remember(a(1, latest), NOW);
            assert!(
                matches!(outcome, Err(UsedError::Forgotten { .. })),
                "byte {at}: {outcome:?}"
            );
            assert!(used.remember(a(9, latest + 1), NOW).unwrap());
            // And a restart does not help.
            drop(used);
            let mut used = Used::open(directory.path(), NOW).unwrap();
            assert!(used.remember(a(1, latest), NOW).is_err());
        }
        assert!(directory.path().join("used-tickets.damaged").exists());
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let directory = directory();
        let path = directory.path().join(FILE);
        fs::write(&path, [&MAGIC[..], &2u32.to_be_bytes(), b"whatever"].concat()).unwrap();
        assert!(matches!(
            Used::open(directory.path(), NOW),
            Err(StateError::Newer { version: 2, .. })
        ));
    }

    #[test]
    fn what_has_expired_is_forgotten_and_the_file_stays_small() {
        let directory = directory();
        let mut used = Used::open(directory.path(), NOW).unwrap();
        for number in 0u16..1000 {
            let mut this = a(0, NOW + u64::from(number) + 5);
            this.nonce.0[..2].copy_from_slice(&number.to_be_bytes());
            assert!(used.remember(this, NOW + u64::from(number)).unwrap());
        }
        assert!(used.uses.len() <= 6, "{}", used.uses.len());
        let size = fs::metadata(directory.path().join(FILE)).unwrap().len();
        assert!(size <= (90 * SECTOR) as u64, "{size}");
    }

    #[test]
    fn r2_a_clock_that_is_set_back_does_not_make_a_used_ticket_good() {
        let directory = directory();
        let mut used = Used::open(directory.path(), NOW).unwrap();
        assert!(used.remember(a(1, NOW + 100), NOW).unwrap());
        // The first is forgotten at this.
        assert!(used.remember(a(2, NOW + 300), NOW + 200).unwrap());
        assert!(matches!(
            used.remember(a(1, NOW + 100), NOW),
            Err(UsedError::Forgotten { .. })
        ));
        assert!(!used.remember(a(2, NOW + 300), NOW).unwrap());
    }

    #[test]
    fn a_full_disk_refuses_and_room_makes_it_go_on() {
        let directory = directory();
        let mut used = Used::open(directory.path(), NOW).unwrap();
        used.remember(a(1, NOW + 100), NOW).unwrap();
        used.file = Some(OpenOptions::new().append(true).open("/dev/full").unwrap());
        let error = used.remember(a(2, NOW + 100), NOW).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(used.uses.len(), 1);
        // The place for the new file is taken by a directory.
        let blocked = used.path.with_extension("new");
        fs::create_dir(&blocked).unwrap();
        assert!(used.remember(a(2, NOW + 100), NOW).is_err());
        fs::remove_dir(&blocked).unwrap();
        assert!(used.remember(a(2, NOW + 100), NOW).unwrap());
        drop(used);
        assert_eq!(Used::open(directory.path(), NOW).unwrap().uses.len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_agent_fall(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3 * SECTOR),
            good: bool,
        ) {
            let mut file = Vec::new();
            if good {
                file = sector(&of_head(7));
            }
            file.extend(bytes);
            let _ = decode(&file, Path::new("x"));
        }
    }
}
