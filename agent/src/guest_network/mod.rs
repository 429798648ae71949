//! The migration network for one guest's hypervisor, for the time of one migration.
//!
//! Guests' processes live in empty network namespaces. A stream of several connections in the native transport is made
//! by the hypervisors themselves: nobody can hand those to them. For such a migration, and for no longer, the agent
//! puts one end of a cable (a veth pair) into the process's namespace; the other end stays on the host, where rules of
//! this migration's own let exactly one conversation through:
//!
//! ```text
//! source        guest ──cable──▶ rules: TCP to the peer's address and port ──▶ as from our migration address
//! destination   the peer ──▶ rules: our migration address and port, the peer's address only ──cable──▶ guest
//! ```
//! Everything else that comes out of the cable is dropped before it is routed: the host itself, its loopback, other
//! guests and every other address stay unreachable, and so does the guest for everybody but its peer. The process
//! gets no privilege; what it could do with the cable is all in the rules, which it cannot see.
//!
//! The host need not be a router: packets are passed on for the two devices concerned only, and where the agent had to
//! allow that, a rule keeps it to the cables, and it is taken back with the last of them.
//!
//! What was plugged is noted in a file of the run directory before it is made, so that an agent that comes after a
//! crash finds what there is to be taken out. The run directory and all that is made here end with the host's boot.

mod kept;
mod links;
mod plan;
mod port;
mod rules;
mod system;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::geteuid;
use tokio::sync::Mutex;
use uuid::Uuid;

use self::kept::Kept;
use self::plan::{End, Plan};
pub use self::port::{Port, PortError};
use crate::hypervisor::ProcessRecord;

/// Why a guest's hypervisor does not get the migration network.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// This host does not serve it at all.
    #[error("{0}")]
    NotServed(String),
    /// The migration's UID is none.
    #[error("The migration's UID {0:?} is not a UUID")]
    Uid(String),
    /// The addresses do not go together.
    #[error("{0}")]
    Address(String),
    /// The process is not, or no longer, the one that was meant.
    #[error("The guest's process is gone")]
    Gone,
    /// The process has the host's own network.
    #[error(
        "The guest's process is in the host's own network: its network cannot be limited to the migration's peer"
    )]
    NotIsolated,
    /// Each pair of addresses for cables is in use.
    #[error("Each address that guests could have for a migration is in use on this host")]
    Exhausted,
    /// A program refused.
    #[error("{program}: {message}")]
    Command {
        /// Which.
        program: &'static str,
        /// Its words, bounded.
        message: String,
    },
    /// The operating system refused something.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
}

fn system_error(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> PlugError {
    let action = action.into();
    move |source| PlugError::System { action, source }
}

/// With whom a guest's hypervisor is to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It sends to this address and port, as if from this host's migration address.
    Destination {
        /// This host's migration address.
        own: IpAddr,
        /// Where the destination's hypervisor is reached.
        at: SocketAddr,
    },
    /// It listens, and is reached at this host's migration address under the same port.
    Source {
        /// Where it is reached.
        at: SocketAddr,
        /// The source's migration address: nobody else gets through.
        from: IpAddr,
    },
}

/// Which end of a migration a guest here is. One host may be both, for different processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It leaves.
    Source,
    /// It arrives.
    Destination,
}

/// The handle; clones are the same.
#[derive(Clone)]
pub struct GuestNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    kept: Kept,
    /// Why nothing can be plugged here.
    missing: Option<String>,
    /// What is plugged. Held while anything is changed: forwarding is shared.
    plugged: Mutex<HashMap<String, Plugged>>,
}

struct Plugged {
    plan: Plan,
    /// Kept from others for as long as it leads to the guest.
    _port: Option<Port>,
}

impl std::fmt::Debug for GuestNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestNetwork")
            .field("missing", &self.inner.missing)
            .finish_non_exhaustive()
    }
}

impl GuestNetwork {
    /// Looks what this host can do, and what an earlier agent has noted in `directory`.
    ///
    /// # Errors
    /// If the notes cannot be read.
    pub async fn open(directory: PathBuf) -> Result<Self, PlugError> {
        let missing = if geteuid().is_root() {
            system::look().await.err().map(|error| error.to_string())
        } else {
            Some("the agent is not root, so its guests share the host's network".into())
        };
        let kept = Kept::new(directory);
        let mut plugged = HashMap::new();
        for plan in kept.all()? {
            let port = plan.listens_at().and_then(|at| Port::hold(at).ok());
            plugged.insert(plan.name(), Plugged { plan, _port: port });
        }
        Ok(Self::with(kept, missing, plugged))
    }

    /// One that plugs nothing, and says why.
    pub fn without(reason: &str) -> Self {
        Self::with(Kept::new(PathBuf::new()), Some(reason.into()), HashMap::new())
    }

    fn with(kept: Kept, missing: Option<String>, plugged: HashMap<String, Plugged>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kept,
                missing,
                plugged: Mutex::new(plugged),
            }),
        }
    }

    /// Whether this host can plug; the error says why not.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn served(&self) -> Result<(), &str> {
        self.inner.missing.as_deref().map_or(Ok(()), Err)
    }

    /// Gives a process the migration network, as far as its peer, and answers where in its namespace it is: at the
    /// destination it must listen there. What was plugged for this side of the migration before is taken out first.
    /// `port` is kept until the end.
    ///
    /// # Errors
    /// [`PlugError`]: then nothing is left.
    pub async fn plug(
        &self,
        migration: &str,
        process: &ProcessRecord,
        peer: Peer,
        port: Option<Port>,
    ) -> Result<Ipv4Addr, PlugError> {
        self.served()
            .map_err(|why| PlugError::NotServed(format!("The migration network is not to be had: {why}")))?;
        let uid = parse(migration)?;
        let (own, end) = ends(peer)?;
        let namespace = system::namespace_of(process)?;
        let mut plugged = self.inner.plugged.lock().await;
        if let Some(old) = plugged.get(&plan::name(uid, end.side())) {
            let old = old.plan.clone();
            self.take_out(&mut plugged, &old).await?;
        }
        let devices = system::devices().await?;
        let uplink = system::uplink(&devices, own, end.peer()).await?;
        let slot = plan::free_slot(
            plugged.values().map(|one| one.plan.slot),
            &devices
                .iter()
                .flat_map(|one| one.addresses.clone())
                .collect::<Vec<_>>(),
        )
        .ok_or(PlugError::Exhausted)?;
        let shared = plugged
            .values()
            .any(|one| one.plan.uplink == uplink.name && one.plan.restore_forwarding);
        let plan = Plan {
            migration: uid,
            end,
            own,
            restore_forwarding: shared || !system::forwards(&uplink.name)?,
            uplink: uplink.name,
            mtu: uplink.mtu,
            slot,
        };
        self.inner.kept.write(&plan)?;
        let address = plan.guest_address();
        plugged.insert(
            plan.name(),
            Plugged {
                plan: plan.clone(),
                _port: port,
            },
        );
        if let Err(error) = system::make(&plan, namespace).await {
            if let Err(error) = self.take_out(&mut plugged, &plan).await {
                tracing::warn!(%error, migration, "what was half plugged is not taken out; it is tried again");
            }
            return Err(error);
        }
        tracing::info!(migration, device = %plan.device(), "the guest's hypervisor has the migration network for this migration");
        Ok(address)
    }

    /// Takes the network out again. Where none was plugged nothing is done.
    ///
    /// # Errors
    /// [`PlugError`]: something may be left. It is noted still.
    pub async fn unplug(&self, migration: &str, side: Side) -> Result<(), PlugError> {
        // What is no UID was never plugged.
        let Ok(uid) = parse(migration) else {
            return Ok(());
        };
        let mut plugged = self.inner.plugged.lock().await;
        let found = plugged.get(&plan::name(uid, side));
        let Some(plan) = found.map(|one| one.plan.clone()) else {
            return Ok(());
        };
        self.take_out(&mut plugged, &plan).await
    }

    /// Takes out what was plugged for migrations of which nothing is known any more.
    pub async fn tidy(&self, alive: impl Fn(&str) -> bool) {
        let mut plugged = self.inner.plugged.lock().await;
        let plans: Vec<_> = plugged.values().map(|one| one.plan.clone()).collect();
        for plan in plans {
            if alive(&plan.migration.to_string()) {
                continue;
            }
            match self.take_out(&mut plugged, &plan).await {
                Ok(()) => {
                    tracing::info!(migration = %plan.migration, "a migration network that was left was taken out");
                }
                Err(error) => {
                    tracing::warn!(%error, migration = %plan.migration, "a migration network is left")
                }
            }
        }
    }

    async fn take_out(&self, plugged: &mut HashMap<String, Plugged>, plan: &Plan) -> Result<(), PlugError> {
        let name = plan.name();
        let needed = plugged
            .values()
            .any(|one| one.plan.name() != name && one.plan.uplink == plan.uplink);
        system::undo(plan, needed).await?;
        self.inner.kept.remove(plan)?;
        plugged.remove(&name);
        tracing::info!(migration = %plan.migration, "the migration network was taken out");
        Ok(())
    }
}

fn parse(migration: &str) -> Result<Uuid, PlugError> {
    Uuid::parse_str(migration).map_err(|_| PlugError::Uid(migration.into()))
}

/// The addresses, if cables can lead there.
fn ends(peer: Peer) -> Result<(Ipv4Addr, End), PlugError> {
    let only_v4 = || {
        PlugError::Address(
            "Several connections from hypervisor to hypervisor need migration addresses of IPv4; a tunnel does not"
                .into(),
        )
    };
    match peer {
        Peer::Destination {
            own: IpAddr::V4(own),
            at: SocketAddr::V4(at),
        } => Ok((own, End::Source { to: at })),
        Peer::Source {
            at: SocketAddr::V4(at),
            from: IpAddr::V4(from),
        } => Ok((
            *at.ip(),
            End::Destination {
                port: at.port(),
                from,
            },
        )),
        Peer::Destination { .. } | Peer::Source { .. } => Err(only_v4()),
    }
}

impl Plan {
    /// Where others see the guest listen.
    fn listens_at(&self) -> Option<SocketAddr> {
        match self.end {
            End::Source { .. } => None,
            End::Destination { port, .. } => Some(SocketAddrV4::new(self.own, port).into()),
        }
    }
}
