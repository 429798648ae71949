//! Whether the hypervisor works: looked at when the agent starts, and again for as long as it does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::guests::Guests;
use crate::hypervisor::{Hypervisor, HypervisorFacts};

/// How often a broken hypervisor is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What was last seen of the hypervisor: what it is, or why it does not work.
pub type Seen = Result<Arc<HypervisorFacts>, String>;

/// Looks after the hypervisor.
pub struct Health {
    hypervisor: Arc<dyn Hypervisor>,
    guests: Guests,
    seen: watch::Sender<Seen>,
}

impl Health {
    /// Looks for the first time.
    pub async fn look(hypervisor: Arc<dyn Hypervisor>, guests: Guests) -> Self {
        let health = Self {
            hypervisor,
            guests,
            seen: watch::Sender::new(Err("It has not been tried yet".into())),
        };
        health.probe().await;
        health
    }

    /// What was last seen.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Tries a broken hypervisor again and again, and a working one when a launch has shown that it may not be.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let broken = self.seen.borrow().is_err();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.guests.hypervisor_suspected() => {}
                () = tokio::time::sleep(TRY_AGAIN), if broken => {}
            }
            self.probe().await;
        }
    }

    async fn probe(&self) {
        let seen = match self.hypervisor.probe().await {
            Ok(facts) => {
                info!(name = %facts.name, version = %facts.version, accelerator = %facts.accelerator, "the hypervisor works");
                Ok(Arc::new(facts))
            }
            Err(error) => {
                warn!(%error, "the hypervisor does not work; it is tried again");
                Err(error.to_string())
            }
        };
        self.guests
            .set_facts(seen.as_ref().ok().map(|facts| facts.as_ref().clone()));
        self.seen
            .send_if_modified(|old| std::mem::replace(old, seen.clone()) != seen);
    }
}
