//! The credentials of this moment: replaced by what renews them, taken up at each new handshake.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Credentials, TlsError};
use crate::identity::{PeerIdentity, TrustDomain};

/// Credentials that may be replaced while they are used. Connections that stand keep those of their handshake; all
/// clones see the same ones.
#[derive(Clone, Debug)]
pub struct CurrentCredentials {
    holder: watch::Sender<Credentials>,
    /// Never changes: a program does not become another one while it runs.
    whose: Arc<(PeerIdentity, TrustDomain)>,
}

impl CurrentCredentials {
    /// The first ones.
    pub fn new(first: Credentials) -> Self {
        let whose = Arc::new((first.identity().clone(), first.domain().clone()));
        Self {
            holder: watch::Sender::new(first),
            whose,
        }
    }

    /// Those of this moment.
    pub fn get(&self) -> Credentials {
        self.holder.borrow().clone()
    }

    /// Whose they are.
    pub fn identity(&self) -> &PeerIdentity {
        &self.whose.0
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.whose.1
    }

    /// Puts others in their place, for the next handshakes.
    ///
    /// # Errors
    /// [`TlsError::OtherIdentity`] if they are those of another program; the old ones stay.
    pub fn replace(&self, next: Credentials) -> Result<(), TlsError> {
        if next.identity() != self.identity() || next.domain() != self.domain() {
            return Err(TlsError::OtherIdentity {
                origin: next.pem().chain.origin.clone(),
                found: next.identity().uri(next.domain()),
                expected: self.identity().uri(self.domain()),
            });
        }
        self.holder.send_replace(next);
        Ok(())
    }

    /// Tells of each replacement.
    pub fn changes(&self) -> watch::Receiver<Credentials> {
        self.holder.subscribe()
    }
}
