//! Peer to peer, and the API server is out of reach of the source's host, of the destination's, or of both; the two
//! still hear each other, and the controller hears them. Nothing is begun then that needs the record, and what was
//! begun ends by what the two tell each other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_lab::Lab;
use godwit_lab::network::Network;

use crate::attempt::{Attempt, End, condition, journaled, record, when_journaled};
use crate::crashes::{Held, Seal};
use crate::guest::{Guest, until};
use crate::peer_to_peer::go_does_not_arrive;

const FLOW: ControlFlow = ControlFlow::PeerToPeer;
/// A busy guest is through in a second or two if nothing holds it back.
const STAYS_HELD: Duration = Duration::from_secs(5);
/// What is not begun within half a minute is given up.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(60);
/// So slow that a busy guest's memory takes longer than that, in Mbit/s.
const SLOWER: u32 = 30;

/// From whose hosts the API server is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parted {
    Source,
    Destination,
    Both,
}

impl Parted {
    fn hosts(self) -> &'static [usize] {
        match self {
            Self::Source => &[1],
            Self::Destination => &[2],
            Self::Both => &[1, 2],
        }
    }

    fn set(self, network: &Network, parted: bool) -> anyhow::Result<()> {
        for host in self.hosts() {
            network.part_from_api(*host, parted)?;
        }
        Ok(())
    }
}

const EACH: [Parted; 3] = [Parted::Source, Parted::Destination, Parted::Both];

fn skips(lab: &Lab) -> bool {
    let skips = !lab.network.separate();
    if skips {
        println!("  skipped: links cannot be cut");
    }
    skips
}

/// Does something while the API server is out of reach, and sees to it that it is within reach afterwards.
async fn while_parted<T>(
    lab: &mut Lab,
    parted: Parted,
    deed: impl AsyncFnOnce(&mut Lab) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let network = lab.network.clone();
    parted.set(&network, true)?;
    let done = deed(lab).await.with_context(|| format!("{parted:?}"));
    parted.set(&network, false)?;
    done
}

/// Before memory travels: nothing is begun that needs the record, and the guest stays where it is. Whether that is told
/// before the API server is back depends on who has to write it.
async fn in_begin(lab: &mut Lab, parted: Parted) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let (attempt, meanwhile) = while_parted(lab, parted, async |lab| {
        let attempt = Attempt::order_driven(lab, FLOW, &guest.name, "h2").await?;
        let meanwhile = attempt.ended_within(lab, GIVEN_UP_WITHIN).await.ok();
        guest.ticks_at("h1").await?;
        Ok((attempt, meanwhile))
    })
    .await?;
    let ended = attempt.settles(lab, guest, &[End::Stays]).await?;
    let when = if meanwhile.is_some() {
        "meanwhile"
    } else {
        "afterwards"
    };
    println!("  {parted:?}, {when}: {}: {}", ended.reason, ended.message);
    lab.wait_until_ready().await
}

/// The source does not enter the switchover without a recent proof that the API server answers: it stays in pre-copy, and
/// so slow that the hypervisor does not enter it either. Once the API server is back the guest moves.
async fn in_pre_copy(lab: &mut Lab, parted: Parted) -> anyhow::Result<()> {
    let guest = Guest::start_busy(lab).await?;
    lab.network.shape(1, Some(SLOWER))?;
    let outcome = async {
        let attempt = Attempt::order_driven(lab, FLOW, &guest.name, "h2").await?;
        attempt.streams(lab).await?;
        while_parted(lab, parted, async |lab| {
            until("the stream is held back, and the status says so", async || {
                let status = attempt.status(lab).await?;
                let told = condition(&status, "Succeeded").is_some_and(|told| told.reason == "HeldBack");
                Ok(told.then_some(()))
            })
            .await?;
            // Nothing but the agent holds it back from here on.
            lab.network.shape(1, None)?;
            let since = Instant::now();
            until(
                "more memory than the guest has could have travelled",
                async || Ok((since.elapsed() > STAYS_HELD).then_some(())),
            )
            .await?;
            guest.ticks_at("h1").await?;
            let status = attempt.status(lab).await?;
            ensure!(status.failure.is_none(), "{status:?}");
            let sealed = journaled(&attempt.journal(lab, 1)?, "Sealed");
            ensure!(!sealed, "the guest was stopped without a proof of the path");
            Ok(())
        })
        .await?;
        anyhow::Ok(attempt)
    }
    .await;
    lab.network.shape(1, None)?;
    outcome?.settles(lab, guest, &[End::Moved]).await?;
    lab.wait_until_ready().await
}

/// Go is said and obeyed without the API server. Where the source's host does not reach it, the source's copy is kept
/// until it does; whoever reaches it writes down who has the guest.
async fn before_go(lab: &mut Lab, parted: Parted) -> anyhow::Result<()> {
    let held = Held::before_go(lab, FLOW, Seal::Unsealed).await?;
    let done = while_parted(lab, parted, async |lab| {
        held.release();
        held.guest.ticks_at("h2").await?;
        if parted == Parted::Destination {
            // Nobody waits for it.
            return when_journaled(held.attempt.journal(lab, 1)?, "Released", || {}).await;
        }
        let journal = held.attempt.journal(lab, 1)?;
        ensure!(
            !journaled(&journal, "Released"),
            "the source has let go without the record"
        );
        held.guest.process(lab, 1).context("the source's copy is kept")?;
        Ok(())
    })
    .await;
    held.release();
    done?;
    let Held { guest, attempt, .. } = held;
    attempt.is_complete(lab).await?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    lab.wait_until_ready().await
}

/// Go was said and does not arrive: the guest stands still, whoever reaches the API server, until it does.
async fn go_is_lost(lab: &mut Lab, parted: Parted) -> anyhow::Result<()> {
    let held = go_does_not_arrive(lab, Seal::Unsealed).await?;
    let done = while_parted(lab, parted, async |lab| {
        held.attempt.needs_decision(lab, "PeerUnreachable").await?;
        let journals = (held.attempt.journal(lab, 1)?, held.attempt.journal(lab, 2)?);
        ensure!(
            !journaled(&journals.0, "AbortIntent") && !journaled(&journals.1, "ContIssued"),
            "somebody has decided"
        );
        lab.network.part_agents(1, 2, false)?;
        held.guest.ticks_at("h2").await
    })
    .await;
    if done.is_err() {
        // It may have been passed on already.
        let _ = lab.network.part_agents(1, 2, false);
    }
    done?;
    let Held { guest, attempt, .. } = held;
    attempt.is_complete(lab).await?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    lab.wait_until_ready().await
}

/// The guest has just been let run at the destination.
async fn after_cont(lab: &mut Lab, parted: Parted) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let attempt = Attempt::order_driven(lab, FLOW, &guest.name, "h2").await?;
    let network = lab.network.clone();
    let cut = when_journaled(attempt.journal(lab, 2)?, "ContIssued", move || {
        parted.set(&network, true)
    })
    .await;
    let seen = async {
        guest.ticks_at("h2").await?;
        let released = journaled(&attempt.journal(lab, 1)?, "Released");
        let advanced = record(lab, &guest.uid).await?.spec.epoch == 2;
        ensure!(advanced || !released, "let go without the record");
        anyhow::Ok(())
    }
    .await;
    parted.set(&lab.network, false)?;
    cut??;
    seen?;
    attempt.is_complete(lab).await?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    lab.wait_until_ready().await
}

pub async fn the_api_server_is_out_of_reach_when_go_is_said(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    for parted in EACH {
        before_go(lab, parted)
            .await
            .with_context(|| format!("{parted:?}"))?;
    }
    Ok(())
}

pub async fn the_api_server_is_out_of_reach_after_cont(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    after_cont(lab, Parted::Both).await
}

pub async fn the_api_server_is_out_of_reach_in_begin(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    for parted in EACH {
        in_begin(lab, parted)
            .await
            .with_context(|| format!("{parted:?}"))?;
    }
    Ok(())
}

pub async fn the_api_server_is_out_of_reach_while_memory_travels(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    for parted in [Parted::Source, Parted::Both] {
        in_pre_copy(lab, parted)
            .await
            .with_context(|| format!("{parted:?}"))?;
    }
    Ok(())
}

pub async fn the_api_server_is_out_of_reach_and_go_is_lost(lab: &mut Lab) -> anyhow::Result<()> {
    if skips(lab) {
        return Ok(());
    }
    for parted in EACH {
        go_is_lost(lab, parted)
            .await
            .with_context(|| format!("{parted:?}"))?;
    }
    Ok(())
}
