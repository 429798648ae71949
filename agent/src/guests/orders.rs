//! The orders to start a guest and to stop it.

use std::sync::Arc;

use godwit_crds::virtual_machine::GuestState;
use godwit_handover::Epoch;
use tracing::{info, warn};

use super::error::GuestError;
use super::launch::LaunchOrder;
use super::manager::Inner;
use super::record::Standing;
use super::retire::Spoken;
use super::slot::{Process, Slot};
use super::types::{GuestView, StartRequest};
use crate::clock::now_micros;
use crate::hypervisor::{RunState, Start};

impl Inner {
    pub(super) async fn start(self: Arc<Self>, request: StartRequest) -> Result<GuestView, GuestError> {
        let locked = self.lock(&request.identity.uid).await;
        let slot = &locked.slot;
        self.check_journals(&slot.uid)?;
        self.check_handed_on(&slot.uid, request.epoch)?;
        if let Some(ended) = slot.ended() {
            self.check_ended(&ended, &request)?;
            self.check_record(&request).await?;
            return self.start_fresh(slot, request).await;
        }
        let standing = slot.here(|here| {
            if here.entry.identity != request.identity {
                return Err(GuestError::Conflict(format!(
                    "This host knows guest {} as {}/{}",
                    slot.uid, here.entry.identity.namespace, here.entry.identity.name
                )));
            }
            if let Some(terms) = here.entry.standing.arriving() {
                return Err(GuestError::Protected {
                    migration: terms.migration.clone(),
                });
            }
            here.check_epoch(request.epoch)?;
            Ok((
                here.process.clone(),
                here.since_micros(),
                here.protected.clone(),
                here.entry.boot_id != self.boot_id,
            ))
        })?;
        match standing.transpose()? {
            None => self.check_record(&request).await?,
            Some((Process::Alive(guest), since, protected, _)) => {
                let state = guest.run_state().await.map_err(GuestError::Hypervisor)?;
                match (state, since, protected) {
                    // The first start was cut short before the guest was let run.
                    (RunState::Paused, None, None) => self.let_run(slot, &*guest).await?,
                    (RunState::ShutDown | RunState::Panicked | RunState::Broken, _, None)
                        if request.again =>
                    {
                        self.check_record(&request).await?;
                        self.destroy_and_forget(slot).await?;
                        return self.start_fresh(slot, request).await;
                    }
                    (_, _, Some(terms)) if request.again => {
                        return Err(GuestError::Protected {
                            migration: terms.migration,
                        });
                    }
                    (_, _, _) => {}
                }
                return self.view(slot);
            }
            Some((Process::Gone(_), _, Some(terms), _)) => {
                return Err(GuestError::Protected {
                    migration: terms.migration,
                });
            }
            Some((Process::Gone(_), _, None, rebooted)) if !request.again && rebooted => {
                return Err(GuestError::HostRebooted { epoch: request.epoch });
            }
            Some((Process::Gone(why), _, None, _)) if !request.again => {
                return Err(GuestError::ProcessGone {
                    epoch: request.epoch,
                    why,
                });
            }
            Some((Process::Gone(_), _, None, _)) => {
                self.check_record(&request).await?;
                self.forget(slot).await?;
            }
            Some((Process::Silent | Process::Launching, ..)) => {
                return Err(GuestError::silent(&slot.uid));
            }
        }
        self.start_fresh(slot, request).await
    }

    pub(super) async fn start_fresh(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        request: StartRequest,
    ) -> Result<GuestView, GuestError> {
        let guest = self
            .launch(
                slot,
                LaunchOrder {
                    identity: request.identity,
                    epoch: request.epoch,
                    definition: request.definition,
                    start: Start::Boot,
                    standing: Standing::Launching,
                },
            )
            .await?;
        self.let_run(slot, &*guest).await?;
        self.view(slot)
    }

    /// Lets a guest run for the first time and notes since when.
    pub(super) async fn let_run(
        &self,
        slot: &Slot,
        guest: &dyn crate::hypervisor::Guest,
    ) -> Result<(), GuestError> {
        guest.resume().await.map_err(GuestError::Hypervisor)?;
        info!(guest = %slot.uid, "the guest runs");
        self.note_since(slot, now_micros()).await;
        Ok(())
    }

    /// Notes since when a guest has run. The guest runs whether or not this can be written.
    pub(super) async fn note_since(&self, slot: &Slot, since: i64) {
        let entry = slot.here(|here| {
            if let Standing::Held { since_micros, .. } = &mut here.entry.standing {
                *since_micros = Some(since);
            }
            here.state = GuestState::Running;
            here.entry.clone()
        });
        self.changed();
        if let Ok(Some(entry)) = entry
            && let Err(error) = self.store(entry).await
        {
            warn!(guest = %slot.uid, %error, "since when the guest has run could not be kept");
        }
    }

    pub(super) async fn stop(self: Arc<Self>, uid: &str, epoch: Epoch) -> Result<(), GuestError> {
        let locked = self.lock(uid).await;
        self.check_journals(uid)?;
        if let Some(ended) = locked.slot.ended() {
            return self.drop_note(&locked.slot, &ended, epoch).await;
        }
        let allowed = locked.slot.here(|here| {
            if let Some(terms) = here.protected.as_ref().or(here.entry.standing.arriving()) {
                return Err(GuestError::Protected {
                    migration: terms.migration.clone(),
                });
            }
            here.check_epoch(epoch)
        })?;
        match allowed {
            // Whoever is told that nothing is here forgets the guest's record, by which that migration ends.
            None if self.journals.get().map(|journals| journals.speak_of(uid)) == Some(Spoken::Unended) => {
                Err(GuestError::Conflict(
                    "A migration of the guest has not ended on this host".into(),
                ))
            }
            None => Ok(()),
            Some(allowed) => {
                allowed?;
                self.destroy_and_forget(&locked.slot).await
            }
        }
    }
}
