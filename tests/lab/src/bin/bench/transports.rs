//! The ways in which a guest's memory may travel, against each other: in plain text, encrypted by QEMU, and tunnelled.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_lab::Lab;
use godwit_lab::guest::Guest;

use crate::by_hand::{HandGuest, Protection, Recipe, Taken};
use crate::downtime::{self, LIGHT, TICKS_AROUND};
use crate::libvirt::{LibvirtGuest, Mode};
use crate::rows::{Bound, Row, ratios};
use crate::setting::{self, Kind, Way};
use crate::throughput::{HEAVY, speed};

/// What each host may send, in Mbit/s, where it is limited.
const LINK: u32 = 5000;

/// Over how many connections memory is spread where it is over several.
const SEVERAL: u32 = 4;

/// What tunnelling may add to the time from STOP to RESUME.
const MOST_MILLIS: f64 = 5.0;

const PATIENCE: Duration = Duration::from_secs(20);

/// Measures without a limit: tunnelled against plain text and against QEMU's own encryption, as godwit uses it with
/// this QEMU and as it is fastest.
///
/// # Errors
/// When a migration fails.
pub async fn unshaped(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let contenders = [
        Contender::Godwit(Way::Tunnelled, 1),
        Contender::Godwit(Way::Plain, 1),
        Contender::Godwit(Way::QemuTls, 1),
        Contender::HandTls(1),
    ];
    let [tunnelled, plain, encrypted, tls] = speeds(lab, "transports", contenders, rounds).await?;
    let at_least = |bound| Some(Bound::AtLeast(bound));
    Ok(vec![
        Row::of(
            "tunnel-vs-native",
            "×",
            &ratios(&tunnelled, &plain),
            at_least(0.75),
        )?,
        Row::of(
            "tunnel-vs-qemu-tls",
            "×",
            &ratios(&tunnelled, &tls),
            at_least(2.5),
        )?,
        Row::of(
            "tunnel-vs-native-encrypted",
            "×",
            &ratios(&tunnelled, &encrypted),
            None,
        )?,
        Row::of("tunnel-throughput", "MiB/s", &tunnelled, None)?,
        Row::of("native-throughput", "MiB/s", &plain, None)?,
        Row::of("qemu-tls-throughput", "MiB/s", &tls, None)?,
        Row::of("native-encrypted-throughput", "MiB/s", &encrypted, None)?,
    ])
}

/// The same with four connections each. Native and encrypted is by hand alone: godwit refuses that with QEMU 10.0.
///
/// # Errors
/// When a migration fails.
pub async fn several(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let contenders = [
        Contender::Godwit(Way::Tunnelled, SEVERAL),
        Contender::Godwit(Way::Plain, SEVERAL),
        Contender::HandTls(SEVERAL),
    ];
    let [tunnelled, plain, tls] = speeds(lab, "transports-4", contenders, rounds).await?;
    let at_least = |bound| Some(Bound::AtLeast(bound));
    Ok(vec![
        Row::of(
            "tunnel-vs-native-4",
            "×",
            &ratios(&tunnelled, &plain),
            at_least(0.75),
        )?,
        Row::of(
            "tunnel-vs-qemu-tls-4",
            "×",
            &ratios(&tunnelled, &tls),
            at_least(2.5),
        )?,
        Row::of("tunnel-throughput-4", "MiB/s", &tunnelled, None)?,
        Row::of("native-throughput-4", "MiB/s", &plain, None)?,
        Row::of("qemu-tls-throughput-4", "MiB/s", &tls, None)?,
    ])
}

/// Measures on a link of 5 Gbit/s: tunnelled against plain text.
///
/// # Errors
/// When hosts have no links of their own, or a migration fails.
pub async fn shaped(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    ensure!(
        lab.network.separate(),
        "tunnel-vs-native-5g needs root: hosts are loopback addresses of one machine, so links cannot be shaped"
    );
    shape(lab, Some(LINK))?;
    let contenders = [
        Contender::Godwit(Way::Tunnelled, 1),
        Contender::Godwit(Way::Plain, 1),
    ];
    let speeds = speeds(lab, "transports-5g", contenders, rounds).await;
    shape(lab, None)?;
    let [tunnelled, plain] = speeds?;
    Ok(vec![
        Row::of(
            "tunnel-vs-native-5g",
            "×",
            &ratios(&tunnelled, &plain),
            Some(Bound::AtLeast(0.95)),
        )?,
        Row::of("tunnel-throughput-5g", "MiB/s", &tunnelled, None)?,
        Row::of("native-throughput-5g", "MiB/s", &plain, None)?,
    ])
}

/// Measures tunnelled and plain text against libvirt's ways, without a limit: by QEMU's count and time, and how long
/// who gave the order waits.
///
/// # Errors
/// When libvirt is not there, or a migration fails.
pub async fn beside_libvirt(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let contenders = [
        Contender::Godwit(Way::Tunnelled, 1),
        Contender::Godwit(Way::Plain, 1),
        Contender::Libvirt(Mode::Native),
        Contender::Libvirt(Mode::Tunnelled),
        Contender::Libvirt(Mode::TunnelledTls),
    ];
    let names = [
        "tunnel",
        "native",
        "libvirt-native",
        "libvirt-tunnelled",
        "libvirt-tunnelled-tls",
    ];
    let taken = race(lab, "libvirt", contenders, rounds).await?;
    let speeds = speeds_of(&taken)?;
    let [tunnelled, plain, theirs @ ..] = &speeds;
    let [native, ..] = theirs;
    let mut rows = Vec::new();
    for (name, theirs) in names.iter().skip(2).zip(theirs) {
        let id = format!("tunnel-vs-{name}");
        rows.push(Row::of(id, "×", &ratios(tunnelled, theirs), None)?);
    }
    rows.push(Row::of(
        "native-vs-libvirt-native",
        "×",
        &ratios(plain, native),
        None,
    )?);
    for (name, speeds) in names.iter().zip(&speeds) {
        let id = format!("{}-throughput", beside(name));
        rows.push(Row::of(id, "MiB/s", speeds, None)?);
    }
    for (name, taken) in names.iter().zip(&taken) {
        let whole: Vec<f64> = taken.iter().map(|taken| taken.took.as_secs_f64()).collect();
        rows.push(Row::of(format!("{}-whole", beside(name)), "s", &whole, None)?);
    }
    Ok(rows)
}

/// Measures what tunnelling adds to the downtime of a guest that changes a little of its memory all the time.
///
/// # Errors
/// When a migration fails.
pub async fn downtime(lab: &Lab, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let kind = Kind {
        name: "tunnel-downtime",
        ..LIGHT
    };
    let contenders = [
        Contender::Godwit(Way::Tunnelled, 1),
        Contender::Godwit(Way::Plain, 1),
    ];
    let mut race = Race::start(lab, kind, TICKS_AROUND, &contenders).await?;
    let [tunnelled, plain] = race.run(contenders, rounds).await?;
    race.end().await?;
    let stops = |taken: &[Taken]| -> anyhow::Result<Vec<f64>> {
        let stops = taken.iter().map(|taken| downtime::millis(taken.stop_to_resume));
        stops.collect()
    };
    let (tunnelled, plain) = (stops(&tunnelled)?, stops(&plain)?);
    Ok(vec![
        downtime::added("tunnel-downtime-added", &tunnelled, &plain, MOST_MILLIS)?,
        Row::of("tunnel-stop-to-resume", "ms", &tunnelled, None)?,
        Row::of("native-stop-to-resume", "ms", &plain, None)?,
    ])
}

/// What these rows of godwit's are called, which other measurements have as well.
fn beside(name: &str) -> String {
    match name {
        "tunnel" | "native" => format!("beside-libvirt-{name}"),
        other => other.to_owned(),
    }
}

/// Speeds in MiB/s, by QEMU's own count and time; of each contender as many as there are rounds.
async fn speeds<const CONTENDERS: usize>(
    lab: &Lab,
    name: &'static str,
    contenders: [Contender; CONTENDERS],
    rounds: usize,
) -> anyhow::Result<[Vec<f64>; CONTENDERS]> {
    speeds_of(&race(lab, name, contenders, rounds).await?)
}

/// Has them move the heavy guest in turn.
async fn race<const CONTENDERS: usize>(
    lab: &Lab,
    name: &'static str,
    contenders: [Contender; CONTENDERS],
    rounds: usize,
) -> anyhow::Result<[Vec<Taken>; CONTENDERS]> {
    let mut race = Race::start(lab, Kind { name, ..HEAVY }, 2, &contenders).await?;
    let taken = race.run(contenders, rounds).await?;
    race.end().await?;
    Ok(taken)
}

fn speeds_of<const CONTENDERS: usize>(
    taken: &[Vec<Taken>; CONTENDERS],
) -> anyhow::Result<[Vec<f64>; CONTENDERS]> {
    let mut speeds = [const { Vec::new() }; CONTENDERS];
    for (speeds, taken) in speeds.iter_mut().zip(taken) {
        for one in taken {
            speeds.push(speed(one.bytes, one.millis)?);
        }
    }
    Ok(speeds)
}

fn shape(lab: &Lab, megabits: Option<u32>) -> anyhow::Result<()> {
    for number in 1..=lab.hosts.len() {
        lab.network.shape(number, megabits)?;
    }
    Ok(())
}

/// Who moves a guest, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// Godwit, over so many connections.
    Godwit(Way, u32),
    /// A person who knows how QEMU's encryption is fastest, over so many connections.
    HandTls(u32),
    /// libvirt.
    Libvirt(Mode),
}

/// The same guest once for each who moves it: from host to host, each time in another way.
struct Race<'a> {
    lab: &'a Lab,
    guest: Guest,
    by_hand: Option<HandGuest>,
    by_libvirt: Option<LibvirtGuest>,
    /// How often a guest ticks between two moves.
    ticks: u64,
    /// How often godwit has moved its guest.
    moves: usize,
}

impl<'a> Race<'a> {
    async fn start(lab: &'a Lab, kind: Kind, ticks: u64, contenders: &[Contender]) -> anyhow::Result<Self> {
        let guest = setting::start(lab, kind).await?;
        let by_hand = if contenders
            .iter()
            .any(|contender| matches!(contender, Contender::HandTls(_)))
        {
            let host = lab.hosts.first().context("the lab has no hosts")?;
            let recipe = Recipe::of(host, &guest, lab.pool())?;
            Some(HandGuest::start(lab, kind.name, recipe, kind.interval)?)
        } else {
            None
        };
        let by_libvirt = if contenders
            .iter()
            .any(|contender| matches!(contender, Contender::Libvirt(_)))
        {
            Some(LibvirtGuest::start(lab, kind).await?)
        } else {
            None
        };
        Ok(Self {
            lab,
            guest,
            by_hand,
            by_libvirt,
            ticks,
            moves: 0,
        })
    }

    /// So many rounds after one that does not count; who comes first changes with each.
    async fn run<const CONTENDERS: usize>(
        &mut self,
        contenders: [Contender; CONTENDERS],
        rounds: usize,
    ) -> anyhow::Result<[Vec<Taken>; CONTENDERS]> {
        let mut taken = [const { Vec::new() }; CONTENDERS];
        for round in 0..=rounds {
            for step in 0..CONTENDERS {
                let at = (round + step) % CONTENDERS;
                let (contender, taken) = contenders.get(at).zip(taken.get_mut(at)).context("a contender")?;
                let moved = self.move_on(*contender).await?;
                if round > 0 {
                    taken.push(moved);
                }
            }
        }
        Ok(taken)
    }

    async fn move_on(&mut self, contender: Contender) -> anyhow::Result<Taken> {
        match contender {
            Contender::Godwit(way, connections) => {
                self.moves += 1;
                let to = self
                    .lab
                    .hosts
                    .get(self.moves % 2)
                    .context("there are two hosts")?;
                let name = format!("{}-{}", self.guest.name, self.moves);
                let moved = setting::move_over(self.lab, &self.guest, &name, to, way, connections).await?;
                self.guest.wait_for_ticks(self.ticks, PATIENCE)?;
                moved.taken()
            }
            Contender::HandTls(connections) => {
                let lab = self.lab;
                let by_hand = self.by_hand.as_mut().context("a guest by hand")?;
                let taken =
                    tokio::task::block_in_place(|| by_hand.move_on(lab, Protection::QemuTls, connections))?;
                by_hand.guest.wait_for_ticks(self.ticks, PATIENCE)?;
                Ok(taken)
            }
            Contender::Libvirt(mode) => {
                let by_libvirt = self.by_libvirt.as_mut().context("a guest of libvirt's")?;
                let taken = by_libvirt.move_on(mode).await?;
                by_libvirt.guest.wait_for_ticks(self.ticks, PATIENCE)?;
                Ok(taken)
            }
        }
    }

    async fn end(self) -> anyhow::Result<()> {
        setting::remove(self.lab, &self.guest).await
    }
}
