//! A migration that was brought to a moment and is held there.

use std::time::Duration;

use anyhow::{bail, ensure};
use godwit_crds::Decision;
use godwit_crds::migration::Transport;
use godwit_lab::cases::LeftOut;
use godwit_lab::{Lab, processes};
use rustix::process::Signal;

use super::judge::{Judge, ask_for_monitors};
use super::point::{Deed, Point, clear};
use super::table::{self, Cell};
use super::way::{Way, no_relay_is_left};
use crate::attempt::{Attempt, End, journaled, record};
use crate::crashes::{MOST_MISSED, SLOW, Seal, agent, missed};
use crate::guest::{Guest, until, until_within};

const SEALED: Point = Point::of(1, "source.journaled.Sealed");
/// The guest was stopped, and that cannot be written down.
const UNWRITTEN: Point = Point::of(1, "source.written.Sealed");
/// A migration that does not come by a point has passed it, or comes to its end by another way.
const COMES_WITHIN: Duration = Duration::from_secs(30);

/// A migration of a guest from host 1 to host 2.
pub struct Scene {
    pub guest: Guest,
    pub attempt: Attempt,
    pub way: Way,
    pub judge: Judge,
}

impl Scene {
    /// Orders a move and waits until these points are reached, of which some may hold it there.
    pub async fn set(lab: &mut Lab, way: Way, seal: Seal, armed: &[(Point, Deed)]) -> anyhow::Result<Self> {
        if !lab.network.separate() {
            return Err(LeftOut("links cannot be cut").into());
        }
        for _ in 0..MOST_MISSED {
            fresh(lab).await?;
            let guest = match seal {
                Seal::Sealed => Guest::start_busy(lab).await?,
                Seal::Unsealed => Guest::start(lab).await?,
            };
            let judge = Judge::watch(lab, &guest);
            SEALED.arm(lab, Deed::Pass)?;
            for (point, deed) in armed {
                point.arm(lab, *deed)?;
            }
            if seal == Seal::Sealed {
                lab.network.shape(1, Some(SLOW))?;
            }
            let ordered = Scene::order(lab, way, &guest).await;
            let reached = until_within(COMES_WITHIN, "all points are reached", async || {
                for (point, _) in armed {
                    if !point.is_reached(lab)? {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
            .await;
            if seal == Seal::Sealed {
                lab.network.shape(1, None)?;
            }
            let attempt = ordered?;
            let sealed = SEALED.is_reached(lab)? || UNWRITTEN.is_reached(lab)?;
            if reached.is_ok() && sealed == (seal == Seal::Sealed) {
                return Ok(Self {
                    guest,
                    attempt,
                    way,
                    judge,
                });
            }
            fresh(lab).await?;
            missed(lab, attempt, guest).await?;
        }
        bail!("{armed:?} was missed {MOST_MISSED} times")
    }

    /// Orders a guest's move to host 2.
    pub async fn order(lab: &Lab, way: Way, guest: &Guest) -> anyhow::Result<Attempt> {
        Attempt::order_over(lab, way.flow, way.transport, &guest.name, "h2").await
    }

    pub fn journaled(&self, lab: &mut Lab, host: usize, entry: &str) -> anyhow::Result<bool> {
        Ok(journaled(&self.attempt.journal(lab, host)?, entry))
    }

    pub async fn decision(&self, lab: &Lab) -> anyhow::Result<Decision> {
        Ok(record(lab, &self.guest.uid).await?.spec.decision)
    }

    /// Waits until the guest runs at the destination by the destination's own commitment: nobody has said Go.
    pub async fn commits_itself(&self, lab: &mut Lab) -> anyhow::Result<()> {
        self.guest.ticks_at("h2").await?;
        let decision = self.decision(lab).await?;
        ensure!(decision == Decision::Committed, "{decision:?}");
        ensure!(
            self.journaled(lab, 2, "CommitIntent")?,
            "it runs without a commitment of its own"
        );
        Ok(())
    }

    /// Waits until the guest runs at the source because the record said Aborted when the source asked it.
    pub async fn comes_back(&self, lab: &mut Lab) -> anyhow::Result<()> {
        until("the record is decided", async || {
            Ok((self.decision(lab).await? != Decision::None).then_some(()))
        })
        .await?;
        let decision = self.decision(lab).await?;
        ensure!(decision == Decision::Aborted, "{decision:?}");
        self.guest.ticks_at("h1").await?;
        ensure!(
            self.journaled(lab, 1, "Arbitrating")? && !self.journaled(lab, 1, "GoSent")?,
            "the source has not promised that it never says Go"
        );
        ensure!(self.guest.ticks("h2") == 0, "it ran at the destination");
        Ok(())
    }

    /// The end, and the judgement of it: where the guest runs, that it ran nowhere else, and that nothing is left.
    pub async fn ends(self, lab: &mut Lab, cell: Cell) -> anyhow::Result<End> {
        let ended = self.attempt.ended(lab).await?;
        if ended.end != End::Lost {
            let host = if ended.end == End::Moved { "h2" } else { "h1" };
            self.guest.ticks_at(host).await?;
        }
        let elsewhere = self.guest.ticks("h2");
        ensure!(
            ended.end == End::Moved || elsewhere == 0,
            "it ran at the destination: {ended:?}"
        );
        let silence = self.guest.observer.verdict().longest_silence;
        let silence = silence.map(|silence| Duration::from_nanos(silence.length_ns));
        let ended = self.attempt.settles(lab, self.guest, cell.expected).await?;
        if self.way.transport == Transport::Tunnelled {
            no_relay_is_left(lab).await?;
        }
        println!("  {:?}, {}: {}", ended.end, ended.reason, ended.message);
        self.judge.agrees(ended.end)?;
        table::note_over(cell, self.way.transport, ended.end, silence);
        clear(lab)?;
        Ok(ended.end)
    }
}

/// Everybody is there and nothing is armed, whatever an earlier case has left; and the judge is listened to.
pub async fn fresh(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab)?;
    ask_for_monitors(lab)?;
    for number in 1..=lab.hosts.len() {
        match agent(lab, number) {
            Ok(seen) => {
                processes::signal(&seen, Signal::CONT);
            }
            Err(_) => lab.restart_agent(number)?,
        }
    }
    lab.start_controller()?;
    lab.wait_until_ready().await
}

/// Waits until an agent that was to die is gone.
pub async fn is_gone(lab: &mut Lab, point: Point) -> anyhow::Result<()> {
    point.reached(lab).await?;
    until("the agent is dead", async || {
        Ok(agent(lab, point.host).is_err().then_some(()))
    })
    .await
}
