//! The destination, seen from the driver: connected to again and again, and watched.

use std::sync::Arc;
use std::time::Duration;

use godwit_handover::Terms;
use godwit_protocol::{AgentClient, Category, Dial, Fault, Update};
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Between two attempts to reach the other agent: the first pause, and the longest.
const RECONNECT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// What is heard of the destination.
#[derive(Debug)]
pub(super) enum Heard {
    /// It can be given orders over this connection.
    Connected(Box<AgentClient>),
    /// Its whole state.
    Update(Box<Update>),
    /// It cannot be heard.
    Silent(Fault),
}

/// Watches the destination and connects again for ever; ends when nobody listens.
pub(super) async fn watch(terms: Terms, endpoint: String, dial: Arc<dyn Dial>, heard: mpsc::Sender<Heard>) {
    let mut again_after = RECONNECT[0];
    loop {
        let fault = match watch_once(&terms, &endpoint, &*dial, &heard).await {
            Ok(()) => {
                again_after = RECONNECT[0];
                Fault::new(
                    Category::Unavailable,
                    "AgentUnreachable",
                    format!("The agent on {} ended the watch", terms.destination),
                )
            }
            Err(fault) => fault,
        };
        if heard.send(Heard::Silent(fault)).await.is_err() {
            return;
        }
        sleep(again_after).await;
        again_after = (again_after * 2).min(RECONNECT[1]);
    }
}

/// Watches until the connection breaks. `Ok` if anything was heard before that.
async fn watch_once(
    terms: &Terms,
    endpoint: &str,
    dial: &dyn Dial,
    heard: &mpsc::Sender<Heard>,
) -> Result<(), Fault> {
    let client = dial.dial(endpoint, &terms.destination).await?;
    let mut updates = client.watch_migration(&terms.migration).await?;
    if heard.send(Heard::Connected(Box::new(client))).await.is_err() {
        return Ok(());
    }
    let mut anything = false;
    while let Some(update) = updates.next().await {
        match update {
            Ok(update) => {
                anything = true;
                if heard.send(Heard::Update(Box::new(update))).await.is_err() {
                    return Ok(());
                }
            }
            Err(_) if anything => return Ok(()),
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}
