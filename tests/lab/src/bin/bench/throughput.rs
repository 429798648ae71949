//! How fast memory travels, against the same guest moved by hand.

use std::time::Duration;

use anyhow::Context as _;
use godwit_lab::Lab;

use crate::by_hand::{HandGuest, Protection, Recipe};
use crate::rows::{Bound, Row, ratios};
use crate::setting::{self, Kind, Way};

/// 768 MiB that cannot be compressed, and nothing else to do: what the guest changes would be sent again, by chance
/// more or less of it.
pub const HEAVY: Kind = Kind {
    name: "throughput",
    memory: "1Gi",
    interval: Duration::from_millis(100),
    options: "godwit.fill=768M godwit.dirty=0 godwit.scrub=0",
};

/// What each host may send, in Mbit/s, where it is limited.
const LINK: u32 = 2000;

const MIB: f64 = 1_048_576.0;

/// Measures with a limited link (where there is one to limit) and without a limit.
pub async fn measure(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let guest = setting::start(lab, HEAVY).await?;
    let host = lab.hosts.first().context("the lab has no hosts")?;
    let recipe = Recipe::of(host, &guest, lab.pool())?;
    let mut by_hand = HandGuest::start(lab, HEAVY.name, recipe, HEAVY.interval)?;
    let mut race = Race {
        lab,
        guest: &guest,
        by_hand: &mut by_hand,
        moves: 0,
    };
    let mut rows = Vec::new();
    // One round to warm up: memory that a process has never touched is slow.
    race.run(1).await?;
    if lab.network.separate() {
        for number in 1..=lab.hosts.len() {
            lab.network.shape(number, Some(LINK))?;
        }
        let speeds = race.run(rounds).await;
        // Also after a failure: what is measured next has no limit.
        for number in 1..=lab.hosts.len() {
            lab.network.shape(number, None)?;
        }
        let speeds = speeds?;
        rows.push(Row::of(
            "throughput-vs-qmp",
            "×",
            &speeds.ratios(),
            Some(Bound::AtLeast(0.97)),
        )?);
        rows.push(Row::of("throughput", "MiB/s", &speeds.godwit, None)?);
        rows.push(Row::of("throughput-qmp", "MiB/s", &speeds.by_hand, None)?);
    }
    let speeds = race.run(rounds).await?;
    rows.push(Row::of(
        "throughput-vs-qmp-unshaped",
        "×",
        &speeds.ratios(),
        None,
    )?);
    rows.push(Row::of("throughput-unshaped", "MiB/s", &speeds.godwit, None)?);
    rows.push(Row::of(
        "throughput-qmp-unshaped",
        "MiB/s",
        &speeds.by_hand,
        None,
    )?);
    setting::remove(lab, &guest).await?;
    Ok(rows)
}

/// Speeds in MiB/s, of the same rounds.
#[derive(Default)]
struct Speeds {
    godwit: Vec<f64>,
    by_hand: Vec<f64>,
}

impl Speeds {
    fn ratios(&self) -> Vec<f64> {
        ratios(&self.godwit, &self.by_hand)
    }
}

/// The two guests, moved in turn.
struct Race<'a> {
    lab: &'a Lab,
    guest: &'a godwit_lab::guest::Guest,
    by_hand: &'a mut HandGuest,
    moves: usize,
}

impl Race<'_> {
    /// Moves each of them so many times; who comes first changes with each round.
    async fn run(&mut self, rounds: usize) -> anyhow::Result<Speeds> {
        let mut speeds = Speeds::default();
        for _ in 0..rounds {
            self.moves += 1;
            if self.moves.is_multiple_of(2) {
                speeds.by_hand.push(self.by_hand()?);
                speeds.godwit.push(self.godwit().await?);
            } else {
                speeds.godwit.push(self.godwit().await?);
                speeds.by_hand.push(self.by_hand()?);
            }
        }
        Ok(speeds)
    }

    async fn godwit(&mut self) -> anyhow::Result<f64> {
        let to = self
            .lab
            .hosts
            .get(self.moves % 2)
            .context("there are two hosts")?;
        let name = format!("throughput-{}", self.moves);
        let moved = setting::move_to(self.lab, self.guest, &name, to, Way::Plain).await?;
        self.guest.wait_for_ticks(2, Duration::from_secs(20))?;
        speed(moved.bytes()?, moved.hypervisor_millis()?)
    }

    fn by_hand(&mut self) -> anyhow::Result<f64> {
        let lab = self.lab;
        let by_hand = &mut *self.by_hand;
        let moved = tokio::task::block_in_place(|| by_hand.move_on(lab, Protection::None, 1))?;
        by_hand.guest.wait_for_ticks(2, Duration::from_secs(20))?;
        speed(moved.bytes, moved.millis)
    }
}

/// MiB/s, by QEMU's own count and time on both sides: what stands around it is measured as overhead.
pub fn speed(bytes: u64, millis: u64) -> anyhow::Result<f64> {
    let seconds = Duration::from_millis(millis).as_secs_f64();
    let bytes = u32::try_from(bytes >> 10).context("more than 4 TiB")?;
    Ok(f64::from(bytes) * 1024.0 / MIB / seconds)
}
