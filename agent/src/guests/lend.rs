//! Guests that are lent to migrations: protected where they run, received where they arrive.

use std::sync::Arc;

use godwit_handover::{Epoch, Terms};
use tracing::info;

use super::error::GuestError;
use super::launch::LaunchOrder;
use super::manager::Inner;
use super::record::{GuestEntry, Standing};
use super::slot::{Here, Process, Slot};
use super::types::Held;
use crate::hypervisor::RunState;

impl Inner {
    pub(super) async fn protect(self: Arc<Self>, terms: Terms) -> Result<Held, GuestError> {
        let locked = self.lock(&terms.guest).await;
        let slot = &locked.slot;
        let known = slot.here(|here| {
            self.check_protection(here, &terms)?;
            let guest = match &here.process {
                Process::Alive(guest) => guest.clone(),
                Process::Gone(why) => return Err(GuestError::NotRunning(format!("gone: {why}"))),
                Process::Silent | Process::Launching => {
                    return Err(GuestError::silent(&slot.uid));
                }
            };
            Ok((guest, here.protected.is_some(), here.since_micros().is_some()))
        })?;
        let (guest, again, started) = known.ok_or_else(|| GuestError::NotHere {
            uid: slot.uid.clone(),
        })??;
        if !again {
            match guest.run_state().await.map_err(GuestError::Hypervisor)? {
                RunState::Running => {}
                RunState::Paused if started => {}
                RunState::Paused => return Err(GuestError::NotRunning("not yet started".into())),
                other @ (RunState::StoppedForMigration
                | RunState::Incoming
                | RunState::ShutDown
                | RunState::Panicked
                | RunState::IoError
                | RunState::Broken) => return Err(GuestError::NotRunning(format!("{other:?}"))),
            }
            let blockers = guest.migration_blockers().await.map_err(GuestError::Hypervisor)?;
            if !blockers.is_empty() {
                return Err(GuestError::NotMigratable(blockers.join("; ")));
            }
        }
        self.put_protection(slot, &terms)?;
        self.changed();
        self.held(slot)
            .ok_or_else(|| GuestError::NotRunning("gone".into()))
    }

    pub(super) fn check_protection(&self, here: &Here, terms: &Terms) -> Result<(), GuestError> {
        if terms.source != self.settings.host {
            return Err(GuestError::Conflict(format!(
                "The migration's source is {}, and this is {}",
                terms.source, self.settings.host
            )));
        }
        if let Some(other) = here.entry.standing.arriving() {
            return Err(GuestError::Protected {
                migration: other.migration.clone(),
            });
        }
        here.check_epoch(terms.epoch)?;
        match &here.protected {
            None => Ok(()),
            Some(mine) if mine == terms => Ok(()),
            Some(other) if other.migration == terms.migration => Err(GuestError::Conflict(
                "The order's terms are not those of this migration".into(),
            )),
            Some(other) => Err(GuestError::Protected {
                migration: other.migration.clone(),
            }),
        }
    }

    pub(super) fn put_protection(&self, slot: &Slot, terms: &Terms) -> Result<(), GuestError> {
        slot.here(|here| {
            self.check_protection(here, terms)?;
            here.protected = Some(terms.clone());
            Ok(())
        })?
        .ok_or_else(|| GuestError::NotHere {
            uid: slot.uid.clone(),
        })?
    }

    pub(super) async fn launch_incoming(
        self: Arc<Self>,
        order: LaunchOrder,
        terms: Terms,
    ) -> Result<Held, GuestError> {
        if terms.destination != self.settings.host || terms.guest != order.identity.uid {
            return Err(GuestError::Conflict(format!(
                "The migration moves guest {} to {}, and this is {}",
                terms.guest, terms.destination, self.settings.host
            )));
        }
        let locked = self.lock(&terms.guest).await;
        let slot = &locked.slot;
        if let Some(ended) = slot.ended()
            && terms.epoch <= ended.epoch
        {
            return Err(GuestError::StaleEpoch {
                known: ended.epoch,
                given: terms.epoch,
            });
        }
        let there = slot.here(|here| match here.entry.standing.arriving() {
            Some(mine) if *mine == terms => match &here.process {
                Process::Alive(_) => Ok(()),
                Process::Gone(why) => Err(GuestError::ProcessGone {
                    epoch: terms.epoch,
                    why: why.clone(),
                }),
                Process::Silent | Process::Launching => Err(GuestError::silent(&slot.uid)),
            },
            Some(other) => Err(GuestError::NameTaken(format!(
                "Guest {} is already arriving here by migration {}",
                slot.uid, other.migration
            ))),
            None => Err(GuestError::NameTaken(format!(
                "This host already has guest {} ({}/{}), under epoch {}",
                slot.uid, here.entry.identity.namespace, here.entry.identity.name, here.entry.epoch
            ))),
        })?;
        match there {
            Some(answer) => answer?,
            None => drop(self.launch(slot, order).await?),
        }
        self.held(slot).ok_or_else(|| GuestError::ProcessGone {
            epoch: terms.epoch,
            why: "it ended at once".into(),
        })
    }

    pub(super) async fn take_over(
        self: Arc<Self>,
        uid: &str,
        migration: &str,
        epoch: Epoch,
        since: Option<i64>,
    ) -> Result<(), GuestError> {
        let locked = self.lock(uid).await;
        let slot = &locked.slot;
        let conflict = |what: String| Err(GuestError::Conflict(what));
        let entry = slot
            .here(|here| match &here.entry.standing {
                Standing::Arriving { terms, process } if terms.migration == migration => {
                    if epoch != terms.epoch + 1 {
                        return conflict(format!(
                            "After epoch {} comes {}, not {epoch}",
                            terms.epoch,
                            terms.epoch + 1
                        ));
                    }
                    let standing = Standing::Held {
                        process: process.clone(),
                        since_micros: since,
                        arrived_by: Some(migration.to_owned()),
                    };
                    Ok(Some(GuestEntry {
                        standing,
                        epoch,
                        ..here.entry.clone()
                    }))
                }
                Standing::Held {
                    arrived_by: Some(by), ..
                } if by == migration && here.entry.epoch == epoch => Ok(None),
                Standing::Arriving { .. }
                | Standing::LaunchingIncoming { .. }
                | Standing::Held { .. }
                | Standing::Ended { .. }
                | Standing::Launching => conflict(format!(
                    "Guest {uid} is not arriving here by migration {migration}"
                )),
            })?
            .ok_or_else(|| GuestError::NotHere { uid: uid.into() })??;
        let Some(entry) = entry else { return Ok(()) };
        self.store(entry.clone()).await?;
        slot.here(|here| here.entry = entry)?;
        self.changed();
        info!(guest = uid, migration, epoch, "the guest has been taken over");
        // It may have come in an end of its own.
        self.consider_ended(slot);
        Ok(())
    }

    pub(super) async fn discard_incoming(
        self: Arc<Self>,
        uid: &str,
        migration: &str,
    ) -> Result<(), GuestError> {
        let locked = self.lock(uid).await;
        let mine = locked.slot.here(|here| match &here.entry.standing {
            Standing::Arriving { terms, .. } | Standing::LaunchingIncoming { terms } => {
                Ok(terms.migration == migration)
            }
            Standing::Held {
                arrived_by: Some(by), ..
            } if by == migration => Err(GuestError::Conflict(format!(
                "Guest {uid} has arrived by migration {migration} and is this host's now; it is not discarded"
            ))),
            Standing::Held { .. } | Standing::Ended { .. } | Standing::Launching => Ok(false),
        })?;
        match mine.transpose()? {
            Some(true) => self.destroy_and_forget(&locked.slot).await,
            Some(false) | None => Ok(()),
        }
    }

    pub(super) async fn release(self: Arc<Self>, uid: &str, migration: &str) -> Result<(), GuestError> {
        let locked = self.lock(uid).await;
        let mine = locked.slot.here(|here| match &here.protected {
            Some(terms) if terms.migration == migration => Ok(()),
            Some(_) | None => Err(GuestError::Conflict(format!(
                "Guest {uid} does not leave by migration {migration}; it is kept"
            ))),
        })?;
        match mine.transpose()? {
            Some(()) => self.destroy_and_forget(&locked.slot).await,
            None => Ok(()),
        }
    }

    pub(super) fn held(&self, slot: &Slot) -> Option<Held> {
        let held = slot.here(|here| match &here.process {
            Process::Alive(guest) => Some(Held {
                identity: here.entry.identity.clone(),
                definition: here.definition.clone(),
                epoch: here.entry.epoch,
                guest: guest.clone(),
                directory: self.directory(&slot.uid),
                role: here.role(),
            }),
            Process::Launching | Process::Silent | Process::Gone(_) => None,
        });
        held.ok().flatten().flatten()
    }
}
