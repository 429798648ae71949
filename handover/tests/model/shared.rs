//! A part of the world that most steps leave as it is: states that differ elsewhere have it in common, and what it hashes
//! to is worked out once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

#[derive(Debug)]
struct Part<T> {
    value: T,
    hash: OnceLock<u64>,
}

impl<T: Clone> Clone for Part<T> {
    fn clone(&self) -> Self {
        // Cloned to be changed.
        Self {
            value: self.value.clone(),
            hash: OnceLock::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Shared<T>(Arc<Part<T>>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(Part {
            value,
            hash: OnceLock::new(),
        }))
    }
}

impl<T: Hash> Shared<T> {
    fn known_hash(&self) -> u64 {
        *self.0.hash.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            self.0.value.hash(&mut hasher);
            hasher.finish()
        })
    }
}

impl<T: Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.known_hash());
    }
}

impl<T: Eq + Hash> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || self.known_hash() == other.known_hash() && self.0.value == other.0.value
    }
}

impl<T: Eq + Hash> Eq for Shared<T> {}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        let part = Arc::make_mut(&mut self.0);
        part.hash = OnceLock::new();
        &mut part.value
    }
}
