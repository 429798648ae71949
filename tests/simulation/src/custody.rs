//! The guests of a host, as its agent keeps them: what outlives the agent, and its part of the handover.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use godwit_agent::guests::{Definition, GuestError, GuestIdentity, Held, Role};
use godwit_agent::hypervisor::{Guest, RunState, StreamAbilities};
use godwit_agent::migration::{Custody, Records};
use godwit_handover::{Gates, Terms};

use crate::qemu::{Handle, Mood, Qemu, Yard};
use crate::sim::{Life, Place};

/// Every feature that QEMU has.
const GATES: Gates = Gates {
    seal: true,
    hold_before_switchover: true,
    keep_destination_paused: true,
    inactivate_disks: true,
};

/// The one guest's name, in the namespace [`NAMESPACE`].
pub const GUEST: &str = "web";
/// Its namespace.
pub const NAMESPACE: &str = "default";

/// What a host keeps about a guest over a restart of its agent.
#[derive(Clone)]
pub struct Kept {
    /// What the host has to do with it.
    pub role: Role,
    /// The terms under which it arrives.
    pub terms: Option<Terms>,
    /// The epoch under which the host holds it, or at which the source does.
    pub epoch: u64,
    /// Its process.
    pub qemu: Arc<Qemu>,
}

/// What a host has: it outlives its agent.
pub struct Cellar {
    /// Which host.
    pub host: Place,
    /// Where processes come to be.
    pub yard: Yard,
    kept: Mutex<BTreeMap<String, Kept>>,
    /// What the next process here will do otherwise than usual.
    pub next_mood: Mutex<Mood>,
}

impl Cellar {
    /// A host without guests.
    pub fn new(host: Place, yard: &Yard) -> Arc<Self> {
        Arc::new(Self {
            host,
            yard: yard.clone(),
            kept: Mutex::default(),
            next_mood: Mutex::default(),
        })
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap()
    }

    /// The guest runs here, and always has.
    pub fn hold(&self, guest: &str, epoch: u64) {
        let qemu = Qemu::launch(&self.yard, self.host, None, Mood::default());
        qemu.boot();
        let kept = Kept {
            role: Role::Held,
            terms: None,
            epoch,
            qemu,
        };
        self.kept().insert(guest.into(), kept);
    }

    /// The agent has ended: the protection of guests that leave was its own, and comes back with the journals.
    pub fn agent_ended(&self) {
        for kept in self.kept().values_mut() {
            match kept.role {
                Role::Leaving { .. } => kept.role = Role::Held,
                Role::Held | Role::Arriving { .. } => {}
            }
        }
    }

    /// What is kept of a guest.
    pub fn of(&self, guest: &str) -> Option<Kept> {
        self.kept().get(guest).cloned()
    }

    /// Everything that is kept.
    pub fn all(&self) -> Vec<(String, Kept)> {
        let kept = self.kept();
        kept.iter()
            .map(|(uid, kept)| (uid.clone(), kept.clone()))
            .collect()
    }
}

/// The guests, in the hands of one life of the agent.
pub struct Keeper {
    /// What the host has.
    pub cellar: Arc<Cellar>,
    /// Whose hands.
    pub life: Arc<Life>,
    /// What guests' records say.
    pub records: Arc<dyn Records>,
}

/// The guest's definition.
pub fn definition() -> Definition {
    Definition::parse(&serde_json::to_vec(&spec()).unwrap()).unwrap()
}

/// The same as the VirtualMachine has it.
pub fn spec() -> serde_json::Value {
    serde_json::json!({
        "machine": {"type": "pc-q35-10.0"},
        "cpu": {"count": 1, "model": "qemu64"},
        "memory": "64Mi",
        "boot": {"firmware": {}},
        "persistence": "Transient"
    })
}

impl Keeper {
    fn held(&self, guest: &str) -> Option<Held> {
        let kept = self.cellar.of(guest)?;
        kept.qemu.alive().then(|| Held {
            identity: GuestIdentity {
                uid: guest.into(),
                namespace: NAMESPACE.into(),
                name: GUEST.into(),
            },
            definition: definition(),
            epoch: kept.epoch,
            guest: Arc::new(Handle {
                qemu: kept.qemu,
                life: self.life.clone(),
            }),
            directory: "/nowhere".into(),
            role: kept.role,
        })
    }

    /// The guest is stopped and forgotten, unless a migration has it.
    ///
    /// # Errors
    /// As the agent's.
    pub async fn stop(&self, guest: &str, epoch: u64) -> Result<(), GuestError> {
        let Some(kept) = self.cellar.of(guest) else {
            return Ok(());
        };
        match kept.role {
            Role::Leaving { migration } | Role::Arriving { migration } => {
                return Err(GuestError::Protected { migration });
            }
            Role::Held if kept.epoch != epoch => {
                return Err(GuestError::StaleEpoch {
                    known: kept.epoch,
                    given: epoch,
                });
            }
            Role::Held => {}
        }
        if kept.qemu.alive() {
            self.cellar.yard.sim.judge.stopped_for_good(&kept.qemu.name);
        }
        let handle = Handle {
            qemu: kept.qemu,
            life: self.life.clone(),
        };
        // There is nothing that it could refuse.
        let _ = handle.destroy(Duration::ZERO).await;
        self.cellar.kept().remove(guest);
        Ok(())
    }

    /// Starts the guest for the first time under this epoch, as an agent does: what is known of it here, and its record, read
    /// fresh, stand against it.
    ///
    /// # Errors
    /// As the agent's.
    pub async fn start(&self, guest: &str, epoch: u64) -> Result<RunState, GuestError> {
        match self.cellar.of(guest) {
            Some(Kept {
                role: Role::Arriving { migration },
                ..
            }) => return Err(GuestError::Protected { migration }),
            Some(kept) if kept.epoch > epoch => {
                return Err(GuestError::StaleEpoch {
                    known: kept.epoch,
                    given: epoch,
                });
            }
            Some(kept) if kept.epoch < epoch => {
                return Err(GuestError::Conflict("held under an earlier epoch".into()));
            }
            Some(kept) if kept.qemu.alive() => return Ok(kept.qemu.run()),
            Some(_) => {
                return Err(GuestError::ProcessGone {
                    epoch,
                    why: "it has died".into(),
                });
            }
            None => {}
        }
        let record = self.records.read(guest).await;
        let mine = record.as_ref().is_some_and(|record| {
            record.holder == self.life.place.name() && record.epoch == epoch && record.migration.is_none()
        });
        if !mine {
            return Err(GuestError::Conflict(format!("the record says {record:?}")));
        }
        self.pass("starts the guest afresh").await;
        let qemu = Qemu::launch(&self.cellar.yard, self.cellar.host, None, Mood::default());
        let kept = Kept {
            role: Role::Held,
            terms: None,
            epoch,
            qemu: qemu.clone(),
        };
        self.cellar.kept().insert(guest.into(), kept);
        self.pass("has launched it").await;
        self.cellar.yard.sim.judge.starts_afresh(&qemu.name, epoch);
        qemu.boot();
        self.pass("has started it").await;
        Ok(qemu.run())
    }

    async fn pass(&self, what: &str) {
        self.cellar.yard.sim.pass(&self.life, what).await;
    }

    /// `again`: for a source that is recovered, whose guest may stand in any state.
    async fn protected(&self, terms: &Terms, again: bool) -> Result<Held, GuestError> {
        let kept = self.cellar.of(&terms.guest).ok_or_else(|| GuestError::NotHere {
            uid: terms.guest.clone(),
        })?;
        if kept.epoch != terms.epoch {
            return Err(GuestError::StaleEpoch {
                known: kept.epoch,
                given: terms.epoch,
            });
        }
        match &kept.role {
            Role::Held => {}
            Role::Leaving { migration } if *migration == terms.migration => {}
            Role::Leaving { migration } => {
                return Err(GuestError::Protected {
                    migration: migration.clone(),
                });
            }
            Role::Arriving { .. } => {
                return Err(GuestError::Conflict("the guest is only arriving".into()));
            }
        }
        if !kept.qemu.alive() {
            return Err(GuestError::NotRunning("gone".into()));
        }
        let run = kept.qemu.run();
        let repeated = matches!(kept.role, Role::Leaving { .. });
        if !again && !repeated && !matches!(run, RunState::Running | RunState::Paused) {
            return Err(GuestError::NotRunning(format!("{run:?}")));
        }
        if let Some(kept) = self.cellar.kept().get_mut(&terms.guest) {
            kept.role = Role::Leaving {
                migration: terms.migration.clone(),
            };
        }
        self.held(&terms.guest)
            .ok_or_else(|| GuestError::NotRunning("gone".into()))
    }
}

#[async_trait]
impl Custody for Keeper {
    fn gates(&self) -> Option<Gates> {
        Some(GATES)
    }

    fn streams(&self) -> Option<StreamAbilities> {
        Some(StreamAbilities {
            encrypts: true,
            connections: 1,
            several_encrypted: false,
        })
    }

    async fn protect(&self, terms: &Terms) -> Result<Held, GuestError> {
        self.pass("protects the guest").await;
        self.protected(terms, false).await
    }

    async fn find_leaving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        self.pass("looks for the leaving guest").await;
        match self.protected(terms, true).await {
            Ok(held) => Ok(Some(held)),
            Err(GuestError::NotRunning(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn unprotect(&self, terms: &Terms) {
        self.pass("ends the protection").await;
        if let Some(kept) = self.cellar.kept().get_mut(&terms.guest)
            && kept.role
                == (Role::Leaving {
                    migration: terms.migration.clone(),
                })
        {
            kept.role = Role::Held;
        }
    }

    async fn launch_incoming(
        &self,
        _identity: &GuestIdentity,
        _definition: &Definition,
        terms: &Terms,
    ) -> Result<Held, GuestError> {
        self.pass("launches a process").await;
        // What is left of a guest that this host held once and whose process is gone is no obstacle.
        if let Some(known) = self.cellar.of(&terms.guest)
            && known.qemu.alive()
        {
            return Err(GuestError::NameTaken("the guest is here already".into()));
        }
        let mood = self.cellar.next_mood.lock().unwrap().clone();
        let qemu = Qemu::launch(&self.cellar.yard, self.cellar.host, Some(&terms.migration), mood);
        let kept = Kept {
            role: Role::Arriving {
                migration: terms.migration.clone(),
            },
            terms: Some(terms.clone()),
            epoch: terms.epoch,
            qemu,
        };
        self.cellar.kept().insert(terms.guest.clone(), kept);
        self.pass("has launched it").await;
        self.held(&terms.guest)
            .ok_or_else(|| GuestError::HypervisorUnavailable("it has died".into()))
    }

    async fn find_arriving(&self, terms: &Terms) -> Result<Option<Held>, GuestError> {
        self.pass("looks for the arriving guest").await;
        let Some(held) = self.held(&terms.guest) else {
            return Ok(None);
        };
        let mine = match &held.role {
            Role::Arriving { migration } => *migration == terms.migration,
            // Taken over, and the journal was not told yet.
            Role::Held => held.epoch == terms.epoch + 1,
            Role::Leaving { .. } => false,
        };
        if mine {
            Ok(Some(held))
        } else {
            Err(GuestError::Conflict("none of this migration's business".into()))
        }
    }

    async fn take_over(&self, terms: &Terms, _since_micros: Option<i64>) -> Result<(), GuestError> {
        self.pass("takes the guest over").await;
        {
            let mut kept = self.cellar.kept();
            let kept = kept.get_mut(&terms.guest).ok_or_else(|| GuestError::NotHere {
                uid: terms.guest.clone(),
            })?;
            match &kept.role {
                Role::Arriving { migration } if *migration == terms.migration => {
                    kept.role = Role::Held;
                    kept.epoch = terms.epoch + 1;
                }
                Role::Held if kept.epoch == terms.epoch + 1 => {}
                Role::Held | Role::Leaving { .. } | Role::Arriving { .. } => {
                    return Err(GuestError::Conflict("none of this migration's business".into()));
                }
            }
        }
        self.pass("has taken it over").await;
        Ok(())
    }

    async fn discard_incoming(&self, terms: &Terms) -> Result<(), GuestError> {
        let Some(known) = self.cellar.of(&terms.guest) else {
            return Ok(());
        };
        let mine = matches!(&known.role, Role::Arriving { migration } if *migration == terms.migration);
        if !mine {
            return Err(GuestError::Conflict("it is not arriving".into()));
        }
        let handle = Handle {
            qemu: known.qemu,
            life: self.life.clone(),
        };
        // There is nothing that it could refuse.
        let _ = handle.destroy(Duration::ZERO).await;
        self.cellar.kept().remove(&terms.guest);
        Ok(())
    }

    async fn release(&self, terms: &Terms) -> Result<(), GuestError> {
        let Some(known) = self.cellar.of(&terms.guest) else {
            return Ok(());
        };
        let mine = matches!(&known.role, Role::Leaving { migration } if *migration == terms.migration);
        if !mine {
            return Err(GuestError::Conflict("it does not leave".into()));
        }
        let handle = Handle {
            qemu: known.qemu,
            life: self.life.clone(),
        };
        let _ = handle.destroy(Duration::ZERO).await;
        self.cellar.kept().remove(&terms.guest);
        Ok(())
    }

    fn arriving(&self) -> Vec<Terms> {
        let all = self.cellar.all();
        let arriving = all.into_iter().filter_map(|(_, kept)| match kept.role {
            Role::Arriving { .. } => kept.terms,
            Role::Leaving { .. } | Role::Held => None,
        });
        arriving.collect()
    }
}
