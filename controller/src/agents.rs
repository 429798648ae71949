//! The way to the agents: one connection for each host, kept warm for the next migration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use godwit_protocol::{AgentClient, Dial, Fault};

/// A connection, and which one it is: a caller that found it dead drops exactly that one.
#[derive(Clone, Debug)]
pub struct Connection {
    /// What to call the agent with.
    pub client: AgentClient,
    number: u64,
    endpoint: String,
}

#[derive(Default)]
struct Slot {
    /// Held while a connection is made, so that one is made at a time.
    connection: tokio::sync::Mutex<(u64, Option<Connection>)>,
}

/// The connections.
pub struct Agents {
    dial: Arc<dyn Dial>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

impl Agents {
    /// None is made yet.
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self {
            dial,
            slots: Mutex::default(),
        }
    }

    /// A connection to the agent of `host`, the one at hand if it leads to `endpoint`.
    ///
    /// # Errors
    /// What [`Dial::dial`] says.
    pub async fn connect(&self, host: &str, endpoint: &str) -> Result<Connection, Fault> {
        let slot = self.slot(host);
        let mut held = slot.connection.lock().await;
        if let Some(connection) = held
            .1
            .as_ref()
            .filter(|connection| connection.endpoint == endpoint)
        {
            return Ok(connection.clone());
        }
        let client = self.dial.dial(endpoint, host).await?;
        held.0 += 1;
        let connection = Connection {
            client,
            number: held.0,
            endpoint: endpoint.to_owned(),
        };
        held.1 = Some(connection.clone());
        tracing::debug!(host, endpoint, "connected");
        Ok(connection)
    }

    /// The connection was found dead: the next caller makes a new one.
    pub async fn dropped(&self, host: &str, dead: &Connection) {
        let slot = self.slot(host);
        let mut held = slot.connection.lock().await;
        if held
            .1
            .as_ref()
            .is_some_and(|connection| connection.number == dead.number)
        {
            held.1 = None;
        }
    }

    fn slot(&self, host: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(host.to_owned()).or_default().clone()
    }
}
