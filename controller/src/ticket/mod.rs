//! The controller's tickets: the keys that sign them, where those are kept, and the signing.
//!
//! The secret keys lie in a Secret of the controller's namespace, [`SECRET`]; what they are checked by lies beside it
//! in a ConfigMap, [`PUBLISHED_IN`](godwit_protocol::ticket::PUBLISHED_IN), that agents may read and only the
//! controller may write. An agent so needs no word from a controller that may be down just then, and an agent that was
//! taken over can neither sign nor publish.
//!
//! Both objects are made by whoever installs godwit; the controller may read and change those two by name, and make
//! none. (Whoever may make a Secret can have the token of any account in that namespace written into it, that of the
//! signer of identities too; a controller must not be able to become a host.)

mod keys;
pub mod ring;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use godwit_handover::Terms;
use godwit_protocol::ticket::{Act, Ticket};
use godwit_protocol::{Category, Fault, reason};
use tokio_util::sync::CancellationToken;

use ring::Ring;

pub use keys::{KEPT_UNDER, Keys, KeysError, SECRET};

/// How often the keys are looked after. Far more often than they change: somebody may have emptied the Secret so that
/// no ticket that was made before is taken any more.
const LOOKED_AFTER: Duration = Duration::from_secs(600);
/// The same after a failure.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Signs tickets. Cheap to clone.
#[derive(Clone)]
pub struct Tickets(Arc<Inner>);

struct Inner {
    keys: Keys,
    /// The keys that are published: none other signs.
    ring: Mutex<Option<Arc<Ring>>>,
    /// Held while the keys are looked after, so that this is done once at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Tickets {
    /// Tickets signed with these keys.
    pub fn new(keys: Keys) -> Self {
        Self(Arc::new(Inner {
            keys,
            ring: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// A ticket that lets the source of these terms order their destination to receive the guest, from now on.
    ///
    /// # Errors
    /// Unavailable/TicketKeysUnavailable: there is no key, or it cannot be published, for now.
    pub async fn sign(&self, terms: &Terms) -> Result<Vec<u8>, Fault> {
        let ring = match self.ring() {
            Some(ring) => ring,
            None => {
                let _turn = self.0.turn.lock().await;
                match self.ring() {
                    Some(ring) => ring,
                    None => self.look_after().await.map_err(|error| unavailable(&error))?,
                }
            }
        };
        let now = now();
        let key = ring
            .signing(now)
            .ok_or_else(|| unavailable(&"the time of every key is over"))?;
        Ticket::new(terms.clone(), Act::Receive, now)
            .and_then(|ticket| ticket.sign(key))
            .map_err(|error| unavailable(&error))
    }

    /// Looks after the keys until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let outcome = {
                let _turn = self.0.turn.lock().await;
                self.look_after().await
            };
            let pause = match outcome {
                Ok(_) => LOOKED_AFTER,
                Err(error) => {
                    let causes: Vec<_> =
                        std::iter::successors(std::error::Error::source(&error), |cause| cause.source())
                            .map(ToString::to_string)
                            .collect();
                    tracing::warn!(%error, causes = causes.join(": "), "the keys for tickets were not looked after");
                    AGAIN_AFTER
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn ring(&self) -> Option<Arc<Ring>> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look_after(&self) -> Result<Arc<Ring>, KeysError> {
        let ring = Arc::new(self.0.keys.turn(now()).await?);
        *self.0.ring.lock().unwrap_or_else(PoisonError::into_inner) = Some(ring.clone());
        Ok(ring)
    }
}

fn unavailable(why: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        Category::Unavailable,
        reason::TICKET_KEYS_UNAVAILABLE,
        format!("No ticket can be signed: {why}"),
    )
}

/// Unix time in seconds.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
