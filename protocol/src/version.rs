//! Protocol versions: what this program speaks, and how two programs settle on one.

use tonic::metadata::MetadataMap;

use crate::error::{Category, Fault};
use crate::reason;

/// The oldest version that this program speaks; at most one behind [`NEWEST`].
pub const OLDEST: u32 = 1;
/// The newest version that this program speaks.
pub const NEWEST: u32 = 2;
/// From this version on agents have the guest's record decide: orders that an older one does not know are not given.
pub const ARBITRATION: u32 = 2;
/// The metadata key in which every call but Hello names the settled version.
pub const KEY: &str = "godwit-protocol";

/// A range of versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

/// What this program speaks.
pub const OURS: Versions = Versions {
    oldest: OLDEST,
    newest: NEWEST,
};

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

/// The newest version that both sides speak.
///
/// # Errors
/// A fault of category Version that names both ranges.
pub fn settle(ours: Versions, theirs: Versions) -> Result<u32, Fault> {
    let newest = ours.newest.min(theirs.newest);
    let sensible = theirs.oldest >= 1 && theirs.oldest <= theirs.newest;
    if sensible && newest >= ours.oldest.max(theirs.oldest) {
        Ok(newest)
    } else {
        Err(refusal(format!(
            "No protocol version in common: this side speaks {ours}, the other {theirs}; upgrade the older program"
        )))
    }
}

/// Checks that a call names the version that Hello settled on its connection (`None`: no Hello yet).
///
/// # Errors
/// A fault of category Version that names the versions that would do.
pub fn check(metadata: Option<&[u8]>, settled: Option<u32>) -> Result<(), Fault> {
    let Some(settled) = settled else {
        return Err(refusal(format!(
            "Say Hello first: no protocol version is settled; this side speaks {OURS}"
        )));
    };
    let named = metadata
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .and_then(|text| text.parse::<u32>().ok());
    match named {
        Some(version) if version == settled => Ok(()),
        Some(version) => Err(refusal(format!(
            "The call names protocol version {version}, but {settled} was settled; this side speaks {OURS}"
        ))),
        None => Err(refusal(format!(
            "The call names no protocol version; {settled} was settled"
        ))),
    }
}

fn refusal(message: String) -> Fault {
    Fault::new(Category::Version, reason::PROTOCOL_VERSION_UNSUPPORTED, message)
}

/// Names the settled version in each call of a client.
#[derive(Clone, Debug)]
pub struct Tag {
    settled: u32,
}

impl Tag {
    /// For calls on a connection where this version was settled.
    pub fn new(settled: u32) -> Self {
        Self { settled }
    }

    fn write(&self, metadata: &mut MetadataMap) {
        metadata.insert(KEY, self.settled.into());
    }
}

impl tonic::service::Interceptor for Tag {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        self.write(request.metadata_mut());
        Ok(request)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn versions(oldest: u32, newest: u32) -> Versions {
        Versions { oldest, newest }
    }

    #[test]
    fn the_newest_common_version_is_settled() {
        for (ours, theirs, expected) in [
            (versions(1, 1), versions(1, 1), 1),
            (versions(1, 2), versions(1, 1), 1),
            (versions(1, 1), versions(1, 2), 1),
            (versions(1, 2), versions(2, 3), 2),
            (versions(2, 3), versions(1, 2), 2),
            (versions(1, 2), versions(1, 2), 2),
        ] {
            assert_eq!(settle(ours, theirs).unwrap(), expected, "{ours} with {theirs}");
        }
    }

    #[test]
    fn without_a_common_version_both_ranges_are_named() {
        for (ours, theirs) in [(versions(1, 2), versions(3, 4)), (versions(3, 4), versions(1, 2))] {
            let fault = settle(ours, theirs).unwrap_err();
            assert_eq!(fault.category, Category::Version);
            assert_eq!(fault.reason, reason::PROTOCOL_VERSION_UNSUPPORTED);
            assert!(
                fault.message.contains("1 to 2") && fault.message.contains("3 to 4"),
                "{}",
                fault.message
            );
        }
    }

    #[test]
    fn a_senseless_range_is_refused() {
        assert!(settle(OURS, versions(0, 0)).is_err());
        assert!(settle(OURS, versions(0, 1)).is_err());
        assert!(settle(OURS, versions(2, 1)).is_err());
    }

    #[test]
    fn this_program_speaks_at_most_two_versions() {
        assert!((1..=2).contains(&(OURS.oldest..=OURS.newest).count()));
    }

    #[test]
    fn only_the_settled_version_passes() {
        assert!(check(Some(b"1"), Some(1)).is_ok());
        assert!(
            check(Some(b"2"), Some(1))
                .unwrap_err()
                .message
                .contains("2, but 1")
        );
        assert!(check(None, Some(1)).is_err());
        assert!(check(Some(b"x"), Some(1)).is_err());
        assert!(check(Some(b"\xff"), Some(1)).is_err());
        assert!(check(Some(b"1"), None).unwrap_err().message.contains("Hello"));
    }
}
