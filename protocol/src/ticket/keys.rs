//! The keys that tickets are signed with and checked by.

use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// The most public keys that are held at a time: one that is used, one that will be, some that were.
pub const MOST_KEYS: usize = 8;
/// The length of a key's seed and of its public half, in bytes.
const LENGTH: usize = 32;

/// What a key is called by: the first half of its public half's SHA-256, so that no two keys share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 16]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a key or a ticket was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system has none to give.
    #[error("the system gives no random bytes")]
    NoRandomness,
    /// It is not the secret half of a key.
    #[error("it is no Ed25519 key")]
    NoKey,
    /// The terms of a migration have a name that no ticket can hold.
    #[error("a name in the migration's terms is too long for a ticket")]
    Terms,
    /// More keys than are ever in use together.
    #[error("there are more than {MOST_KEYS} keys")]
    TooMany,
}

/// The secret half: it signs tickets. It never shows itself in a log.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: KeyId,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn generate() -> Result<Self, KeyError> {
        Ed25519KeyPair::generate()
            .map_err(|_| KeyError::NoRandomness)
            .and_then(Self::of)
    }

    /// The key of this seed.
    ///
    /// # Errors
    /// [`KeyError::NoKey`].
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|_| KeyError::NoKey)
            .and_then(Self::of)
    }

    fn of(pair: Ed25519KeyPair) -> Result<Self, KeyError> {
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| KeyError::NoKey)?;
        let id = id_of(&public);
        Ok(Self { pair, id })
    }

    /// What the key is made from; whoever has it can sign tickets.
    ///
    /// # Errors
    /// [`KeyError::NoKey`].
    pub fn seed(&self) -> Result<[u8; LENGTH], KeyError> {
        let seed = self.pair.seed().map_err(|_| KeyError::NoKey)?;
        let bytes = seed.as_be_bytes().map_err(|_| KeyError::NoKey)?;
        bytes.as_ref().try_into().map_err(|_| KeyError::NoKey)
    }

    /// What it is called by.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Its public half, good until then (Unix time in seconds).
    ///
    /// # Errors
    /// [`KeyError::NoKey`].
    pub fn public(&self, until: u64) -> Result<PublicKey, KeyError> {
        let bytes = self
            .pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| KeyError::NoKey)?;
        Ok(PublicKey::new(bytes, until))
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], KeyError> {
        let signature = self.pair.try_sign(bytes).map_err(|_| KeyError::NoKey)?;
        signature.as_ref().try_into().map_err(|_| KeyError::NoKey)
    }
}

fn id_of(public: &[u8; LENGTH]) -> KeyId {
    let mut id = KeyId([0; 16]);
    let digest = digest::digest(&digest::SHA256, public);
    for (to, from) in id.0.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    id
}

/// The public half: it checks tickets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    bytes: [u8; LENGTH],
    id: KeyId,
    until: u64,
}

impl PublicKey {
    /// A key, and until when tickets are taken that it signed (Unix time in seconds).
    pub fn new(bytes: [u8; LENGTH], until: u64) -> Self {
        Self {
            bytes,
            id: id_of(&bytes),
            until,
        }
    }

    /// What it is called by.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Until when tickets are taken that it signed, Unix time in seconds.
    pub fn until(&self) -> u64 {
        self.until
    }

    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.bytes
    }

    pub(super) fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes)
            .verify(bytes, signature)
            .is_ok()
    }
}

/// The keys that tickets are checked by; at most [`MOST_KEYS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicKeys(Vec<PublicKey>);

impl PublicKeys {
    /// These keys.
    ///
    /// # Errors
    /// [`KeyError::TooMany`].
    pub fn new(keys: Vec<PublicKey>) -> Result<Self, KeyError> {
        if keys.len() > MOST_KEYS {
            return Err(KeyError::TooMany);
        }
        Ok(Self(keys))
    }

    /// The key of that id.
    pub fn get(&self, id: KeyId) -> Option<&PublicKey> {
        self.0.iter().find(|key| key.id == id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }
}
