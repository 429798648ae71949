//! Keeps what is known about a guest true, by its hypervisor's events.

use std::sync::{Arc, Weak};

use godwit_crds::virtual_machine::GuestState;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

use super::manager::Inner;
use super::slot::{Process, Slot};
use crate::hypervisor::{Guest, GuestEvent, GuestEventKind, RunState};

impl Inner {
    /// Notes that the guest's process lives and follows its events from now on.
    pub(super) fn attach(self: &Arc<Self>, slot: &Arc<Slot>, guest: &Arc<dyn Guest>) {
        let events = guest.subscribe();
        let task = tokio::spawn(follow(Arc::downgrade(self), slot.clone(), guest.clone(), events));
        let old = slot.here(|here| {
            here.process = Process::Alive(guest.clone());
            here.note = None;
            here.watcher.replace(task.abort_handle())
        });
        if let Ok(Some(Some(old))) = old {
            old.abort();
        }
    }

    /// Asks the guest what it does.
    async fn ask(self: &Arc<Self>, slot: &Slot, guest: &Arc<dyn Guest>) {
        match guest.run_state().await {
            Ok(state) => {
                self.show(slot, state);
                if state == RunState::ShutDown {
                    self.consider_ended(slot);
                }
            }
            Err(error) => warn!(guest = %slot.uid, %error, "the guest does not say what it does"),
        }
    }

    /// The guest's process is gone, by its pidfd.
    fn died(self: &Arc<Self>, slot: &Slot, guest: &Arc<dyn Guest>) {
        let noted = slot.here(|here| {
            let same = matches!(&here.process, Process::Alive(current) if Arc::ptr_eq(current, guest));
            if !same || here.ending {
                return false;
            }
            let why = if here.state == GuestState::ShutOff {
                "it ended after the guest had powered off"
            } else {
                here.state = GuestState::Crashed;
                "it ended by itself"
            };
            here.process = Process::Gone(why.into());
            here.note = Some(format!("The guest's process is gone: {why}"));
            true
        });
        if matches!(noted, Ok(Some(true))) {
            warn!(guest = %slot.uid, "the guest's process is gone");
        }
        self.changed();
        self.consider_ended(slot);
    }
}

async fn follow(
    inner: Weak<Inner>,
    slot: Arc<Slot>,
    guest: Arc<dyn Guest>,
    mut events: Receiver<GuestEvent>,
) {
    if let Some(inner) = inner.upgrade() {
        inner.ask(&slot, &guest).await;
    }
    loop {
        let event = events.recv().await;
        let Some(inner) = inner.upgrade() else { return };
        match event {
            Ok(event) => match event.kind {
                GuestEventKind::Resumed => inner.show(&slot, RunState::Running),
                GuestEventKind::ShutDown => {
                    inner.show(&slot, RunState::ShutDown);
                    inner.consider_ended(&slot);
                }
                GuestEventKind::Panicked => inner.show(&slot, RunState::Panicked),
                GuestEventKind::IoError { .. } => inner.show(&slot, RunState::IoError),
                GuestEventKind::Stopped => {
                    // In a migration the stop is the migration's own, and this is no moment for questions.
                    let leaving = slot.here(|here| (here.protected.is_some(), here.state));
                    match leaving {
                        // It comes after the word that the guest has ended, which it does not take back.
                        Ok(Some((true, GuestState::ShutOff | GuestState::Crashed))) => {}
                        Ok(Some((true, _))) => inner.show(&slot, RunState::Paused),
                        Ok(Some((false, _)) | None) | Err(_) => inner.ask(&slot, &guest).await,
                    }
                }
                GuestEventKind::Reset
                | GuestEventKind::Stream(_)
                | GuestEventKind::DirtyPagesCollected { .. } => {}
                GuestEventKind::Died => return inner.died(&slot, &guest),
            },
            Err(RecvError::Lagged(_)) => inner.ask(&slot, &guest).await,
            Err(RecvError::Closed) => return,
        }
    }
}
