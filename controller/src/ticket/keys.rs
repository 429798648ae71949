//! The two objects that hold the keys for tickets, changed by compare-and-swap alone: any number of controllers may
//! look after them at once.

use std::collections::BTreeMap;
use std::future::Future;

use godwit_protocol::ticket::{KeyError, PUBLISHED_IN, PUBLISHED_UNDER};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, PostParams};

use super::ring::{Ring, RingError};
use crate::apply::within;

/// The Secret with the keys that sign.
pub const SECRET: &str = "godwit-ticket-key";
/// Under which key of its data.
pub const KEPT_UNDER: &str = "keys";

/// How often one change is tried when others write at the same time.
const ATTEMPTS: usize = 5;

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server could not be asked, or refused.
    #[error("the API server did not give or take {0}")]
    Api(&'static str, #[source] kube::Error),
    /// It was not installed, or somebody removed it.
    #[error("{0} is missing; install godwit's chart again")]
    Missing(&'static str),
    /// It holds what this version does not understand.
    #[error(
        "the Secret {SECRET} cannot be read ({0}); a newer controller's? Else empty it: a new key is made then"
    )]
    Unreadable(RingError),
    /// A key was not made or cannot be published.
    #[error("a key was not made")]
    Key(#[from] KeyError),
    /// Others write all the time.
    #[error("the keys were changed by others at each attempt")]
    Contended,
}

/// The keys' two objects.
pub struct Keys {
    secrets: Api<Secret>,
    published: Api<ConfigMap>,
}

impl Keys {
    /// Those of this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            published: Api::namespaced(client, namespace),
        }
    }

    /// Turns the keys where their time has come, and gives back a ring of which every key is published.
    pub(super) async fn turn(&self, now: u64) -> Result<Ring, KeysError> {
        for _ in 0..ATTEMPTS {
            if let Some(ring) = self.try_turn(now).await? {
                return Ok(ring);
            }
        }
        Err(KeysError::Contended)
    }

    /// `None` where another writer came first.
    async fn try_turn(&self, now: u64) -> Result<Option<Ring>, KeysError> {
        // The publication is read first and written last: if it has not changed in between, no other controller has
        // published a ring that is newer than the one read here.
        let published = match read(PUBLISHED_IN, self.published.get_opt(PUBLISHED_IN)).await? {
            Some(published) => published,
            None => return Err(KeysError::Missing(PUBLISHED_IN)),
        };
        let Some(mut secret) = read(SECRET, self.secrets.get_opt(SECRET)).await? else {
            return Err(KeysError::Missing(SECRET));
        };
        let mut ring = kept(&secret)?;
        if ring.turn(now)? {
            let text = ByteString(ring.write()?.into_bytes());
            secret
                .data
                .get_or_insert_default()
                .insert(KEPT_UNDER.to_owned(), text);
            if !write(SECRET, &self.secrets, &secret).await? {
                return Ok(None);
            }
            tracing::info!("the keys for tickets were turned");
        }
        let wanted = ring.public()?.publish();
        let said = published.data.as_ref().and_then(|data| data.get(PUBLISHED_UNDER));
        if said != Some(&wanted) {
            let publication = ConfigMap {
                // Nothing else is published there.
                data: Some(BTreeMap::from([(PUBLISHED_UNDER.to_owned(), wanted)])),
                binary_data: None,
                ..published
            };
            if !write(PUBLISHED_IN, &self.published, &publication).await? {
                return Ok(None);
            }
        }
        Ok(Some(ring))
    }
}

fn kept(secret: &Secret) -> Result<Ring, KeysError> {
    let bytes = secret
        .data
        .as_ref()
        .and_then(|data| data.get(KEPT_UNDER))
        .map_or(&[][..], |ByteString(bytes)| bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| KeysError::Unreadable(RingError::Line(1)))?;
    Ring::read(text).map_err(KeysError::Unreadable)
}

async fn read<K>(
    what: &'static str,
    asked: impl Future<Output = kube::Result<Option<K>>>,
) -> Result<Option<K>, KeysError> {
    within(asked).await.map_err(|error| KeysError::Api(what, error))
}

/// Replaces an object as it was read. False where another writer came first.
async fn write<K>(what: &'static str, api: &Api<K>, object: &K) -> Result<bool, KeysError>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match within(api.replace(what, &PostParams::default(), object)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
        Err(error) => Err(KeysError::Api(what, error)),
    }
}
