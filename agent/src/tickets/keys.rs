//! The keys that tickets are checked by: where they are read, and when.

use std::time::Duration;

use async_trait::async_trait;
use godwit_protocol::ticket::{KeyId, PUBLISHED_IN, PUBLISHED_UNDER, PublicKeys};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::time::Instant;

/// Keys that were read so lately are not read again for a key that is among them.
const FRESH: Duration = Duration::from_secs(60);
/// They are read no more often than this, whatever tickets come.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// The same after a failure: a source that waits for its answer is not kept waiting each time.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Where the controller publishes its keys.
#[async_trait]
pub trait PublishedKeys: Send + Sync {
    /// The keys as they are now.
    async fn read(&self) -> Result<PublicKeys, Unread>;
}

/// Why the keys were not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The API server.
    #[error("the API server: {0}")]
    Api(#[source] Box<kube::Error>),
    /// Nothing is published.
    #[error(
        "the ConfigMap {PUBLISHED_IN} is missing or empty; the controller fills it, and godwit's chart makes it"
    )]
    Missing,
    /// It is not what a controller publishes.
    #[error("the ConfigMap {PUBLISHED_IN} cannot be read: {0}")]
    Unreadable(String),
}

/// The ConfigMap in godwit's namespace. By the API server's rules only the controller writes it.
pub struct FromConfigMap {
    api: Api<ConfigMap>,
}

impl FromConfigMap {
    /// The one in this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
        }
    }
}

#[async_trait]
impl PublishedKeys for FromConfigMap {
    async fn read(&self) -> Result<PublicKeys, Unread> {
        let published = self
            .api
            .get_opt(PUBLISHED_IN)
            .await
            .map_err(|error| Unread::Api(Box::new(error)))?;
        let data = published.and_then(|map| map.data).unwrap_or_default();
        let text = data.get(PUBLISHED_UNDER).ok_or(Unread::Missing)?;
        PublicKeys::read_published(text).map_err(|error| Unread::Unreadable(error.to_string()))
    }
}

/// What is known of the keys.
#[derive(Debug, Default)]
pub struct Known {
    keys: Option<PublicKeys>,
    /// When they were last read.
    read: Option<Instant>,
    /// When that was last tried in vain, since they were last read.
    failed: Option<Instant>,
}

impl Known {
    /// Whether to read the keys before a ticket is judged that names this one.
    pub fn to_be_read(&self, id: KeyId, now: Instant) -> bool {
        let over =
            |since: Option<Instant>, pause| since.is_none_or(|since| now.duration_since(since) >= pause);
        let pause = if self.has(id) { FRESH } else { AT_MOST_EVERY };
        over(self.read, pause) && over(self.failed, AFTER_FAILURE)
    }

    /// They were read, or not.
    pub fn was_read(&mut self, keys: Option<PublicKeys>, now: Instant) {
        match keys {
            Some(keys) => {
                *self = Self {
                    keys: Some(keys),
                    read: Some(now),
                    failed: None,
                }
            }
            None => self.failed = Some(now),
        }
    }

    /// The keys to judge a ticket by that names this one: after a failure those of the last time, if it is among
    /// them. `None`: whether the controller has published this key is not known.
    pub fn judging(&self, id: KeyId) -> Option<&PublicKeys> {
        self.keys
            .as_ref()
            .filter(|_| self.failed.is_none() || self.has(id))
    }

    fn has(&self, id: KeyId) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.get(id).is_some())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use godwit_protocol::ticket::PublicKey;

    use super::*;

    fn keys(bytes: &[u8]) -> PublicKeys {
        let keys = bytes.iter().map(|b| PublicKey::new([*b; 32], 1)).collect();
        PublicKeys::new(keys).unwrap()
    }

    fn id(byte: u8) -> KeyId {
        PublicKey::new([byte; 32], 1).id()
    }

    #[test]
    fn known_keys_are_read_again_after_a_while_and_unknown_ones_at_once() {
        let start = Instant::now();
        let mut known = Known::default();
        assert!(known.to_be_read(id(1), start));
        assert!(known.judging(id(1)).is_none());
        known.was_read(Some(keys(&[1])), start);
        assert!(!known.to_be_read(id(1), start + FRESH / 2));
        assert!(known.to_be_read(id(1), start + FRESH));
        assert!(known.to_be_read(id(2), start + AT_MOST_EVERY));
        // It was looked for just now: it is known that there is none.
        assert!(known.judging(id(2)).unwrap().get(id(2)).is_none());
    }

    #[test]
    fn r15_made_up_key_ids_cause_no_flood_of_reads() {
        let start = Instant::now();
        let mut known = Known::default();
        let mut reads = 0;
        for millis in 0..10_000 {
            let now = start + Duration::from_millis(millis);
            if known.to_be_read(id(9), now) {
                known.was_read(Some(keys(&[1])), now);
                reads += 1;
            }
        }
        assert_eq!(reads, 10);
    }

    #[test]
    fn without_the_api_server_the_keys_of_the_last_time_do() {
        let start = Instant::now();
        let mut known = Known::default();
        known.was_read(Some(keys(&[1])), start);
        let later = start + FRESH;
        known.was_read(None, later);
        assert!(known.judging(id(1)).is_some());
        assert!(known.judging(id(2)).is_none());
        assert!(!known.to_be_read(id(2), later + AFTER_FAILURE / 2));
        assert!(known.to_be_read(id(2), later + AFTER_FAILURE));
        known.was_read(Some(keys(&[2])), later + AFTER_FAILURE);
        assert!(known.judging(id(2)).is_some());
        // The controller took it back.
        assert!(known.judging(id(1)).unwrap().get(id(1)).is_none());
    }
}
