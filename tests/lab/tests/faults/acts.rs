//! What the guest does by itself while memory travels.
//!
//! Nobody can pause it by hand: the VirtualMachine has no field for that, and the monitor's socket serves one client, the
//! agent. What becomes of a guest that is paused all the same is among the agent's own tests.

use anyhow::ensure;
use godwit_crds::virtual_machine::GuestState;
use godwit_lab::Lab;

use crate::attempt::{Attempt, End};
use crate::crashes::SLOWER;
use crate::guest::{Guest, until};

/// The guest ends by itself in the middle of its migration: it stays where it is, as it is.
async fn ends_by_itself(lab: &mut Lab, word: &str, reason: &str, state: GuestState) -> anyhow::Result<()> {
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(SLOWER))?;
    let outcome = async {
        let attempt = Attempt::order(lab, &guest.name, "h2").await?;
        attempt.streams(lab).await?;
        guest.types(lab, 1, &format!("{word}\n"))?;
        anyhow::Ok(attempt)
    }
    .await;
    let ended = match &outcome {
        Ok(attempt) => attempt.ended(lab).await,
        Err(_) => Err(anyhow::anyhow!("not ordered")),
    };
    lab.network.shape(1, None)?;
    outcome?;
    let ended = ended?;
    println!("  {}: {}", ended.reason, ended.message);
    ensure!(ended.end == End::Stays && ended.reason == reason, "{ended:?}");
    let object = guest.state(lab, state).await?;
    ensure!(object.status.and_then(|status| status.host).as_deref() == Some("h1"));
    guest.nothing_left(lab, 2).await?;
    ensure!(guest.ticks("h2") == 0, "it ran at the destination");
    guest.remove(lab).await
}

pub async fn the_guest_powers_off(lab: &mut Lab) -> anyhow::Result<()> {
    ends_by_itself(lab, "poweroff", "GuestPoweredOff", GuestState::ShutOff).await
}

pub async fn the_guest_panics(lab: &mut Lab) -> anyhow::Result<()> {
    ends_by_itself(lab, "panic", "GuestPanicked", GuestState::Crashed).await
}

/// A reset is the guest's own business: it moves while it starts again.
pub async fn the_guest_resets(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(SLOWER))?;
    let outcome = async {
        let attempt = Attempt::order(lab, &guest.name, "h2").await?;
        attempt.streams(lab).await?;
        let before = guest.observer.verdict().boots;
        guest.types(lab, 1, "reset\n")?;
        until("the guest starts again", async || {
            Ok((guest.observer.verdict().boots > before).then_some(()))
        })
        .await?;
        anyhow::Ok(attempt)
    }
    .await;
    lab.network.shape(1, None)?;
    let attempt = outcome?;
    let ended = attempt.ended(lab).await?;
    println!("  {}: {}", ended.reason, ended.message);
    ensure!(ended.end == End::Moved, "{ended:?}");
    guest.ticks_at("h2").await?;
    guest.nothing_left(lab, 1).await?;
    guest.remove(lab).await
}
