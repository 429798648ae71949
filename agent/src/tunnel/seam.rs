//! What a migration asks of its host's tunnels. [`HostTunnels`](super::HostTunnels) are the host's own; a simulation has
//! others, whose relays are played.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use godwit_handover::Channel;

use super::TunnelError;
use crate::hypervisor::{Guest, Stream};

/// The tunnels of a host as its migrations use them.
pub type Tunnels = Arc<dyn Relays>;

/// Which migrations go on.
pub type GoesOn<'a> = &'a (dyn Fn(&str) -> bool + Send + Sync);

/// The relays of a host, one for each migration whose stream is tunnelled. A relay outlives the agent that started it.
#[async_trait]
pub trait Relays: Debug + Send + Sync {
    /// The destination's end: starts a relay that lets `source` open the channels of a stream over so many
    /// connections, with the secret that is drawn here.
    ///
    /// # Errors
    /// [`TunnelError`].
    async fn expect(
        &self,
        migration: &str,
        source: &str,
        connections: u32,
    ) -> Result<Box<dyn Entry>, TunnelError>;

    /// The source's end: starts a relay and has it open the channels at `destination`, at once where there is one;
    /// where there are several, as soon as the hypervisor of `guest` connects to where the stream leads.
    ///
    /// # Errors
    /// [`TunnelError`]: there is no stream then, and no relay is left.
    async fn open(
        &self,
        migration: &str,
        destination: &str,
        channel: &Channel,
        stream: (u32, &dyn Guest),
        within: Duration,
    ) -> Result<Stream, TunnelError>;

    /// Why a channel of a migration did not come to be, if one did not while this agent listened.
    fn failure(&self, migration: &str) -> Option<String>;

    /// Ends a migration's relay, also one that an earlier agent started, and removes what it leaves, also in the
    /// guest's directory if there is still one. A stream that is still up is cut.
    async fn close(&self, migration: &str, guest: Option<&Path>);

    /// Ends what an agent that crashed left of migrations that are over, or were not begun: relays and sockets. Those
    /// of migrations that go on stay.
    async fn tidy(&self, goes_on: GoesOn<'_>);
}

/// A destination's end before the source has come.
#[async_trait]
pub trait Entry: Send + Sync {
    /// Where it is and with which token it opens.
    fn channel(&self) -> &Channel;

    /// Has the hypervisor listen where it makes several connections itself.
    ///
    /// # Errors
    /// [`TunnelError`], if it does not, or its relay could not reach it.
    async fn listen(self: Box<Self>, hypervisor: &dyn Guest) -> Result<Box<dyn Entry>, TunnelError>;

    /// Waits until the source's relay has opened every channel. Answers the hypervisor's end of it where it has to be
    /// given one. Whoever calls sets the deadline.
    ///
    /// # Errors
    /// [`TunnelError::Gone`] if this host's relay ends before that.
    async fn admit(self: Box<Self>) -> Result<Option<Stream>, TunnelError>;
}
