//! What goes wrong in a run of chance: drawn from the seed beforehand, each at its time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use crate::clock;
use crate::dice::Dice;
use crate::qemu::Act;
use crate::sim::Place;
use crate::world::World;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process is killed, and started again after so many milliseconds.
    Crash(Place, u64),
    /// Messages do not arrive, in one direction, for so many milliseconds.
    Cut(Place, Place, u64),
    /// The same in both.
    CutBoth(Place, Place, u64),
    /// A host reaches nobody, and nobody it.
    Isolate(Place, u64),
    /// Messages take longer, by up to so many milliseconds, for so long.
    Slow(u64, u64),
    /// The API server is down.
    ApiDown(u64),
    /// So many writes are applied, and their answers are lost.
    LoseAnswers(usize),
    /// So many requests are refused.
    Refuse(usize),
    /// The guest's hypervisor on a host dies.
    HypervisorDies(Place),
    /// It does not answer.
    HypervisorHangs(Place, u64),
    /// Its stream breaks after the last byte was sent.
    FailsLate(Place),
    /// It tells nothing by itself for so long.
    Mute(Place, u64),
    /// A host loses its power, and is up again.
    Reboot(Place, u64),
    /// So many syncs of a host's journals fail.
    DiskFails(Place, usize),
    /// A host's disk takes its time.
    DiskSlow(Place, u64),
    /// A second controller believes for so long that it leads.
    Second(u64),
    /// The leader changes: the old one is told to end, or killed, and the other takes over.
    Leader(bool),
    /// Somebody sets the clocks.
    Clocks(i64),
    /// The guest does this by itself, where it runs.
    Guest(Act),
    /// A user deletes the guest, whatever goes on.
    GuestDeleted,
    /// The relays of a host die.
    RelaysDie(Place),
    /// Somebody deletes a host's object, where the API server lets him.
    HostDeleted(Place),
}

impl Fault {
    /// Draws one.
    pub fn draw(dice: &Dice) -> Self {
        let host = dice.one(&Place::HOSTS);
        let long = dice.one(&[200, 1500, 4000, 12_000, 35_000]);
        let pair = dice.one(&[
            (Place::Controller, Place::A),
            (Place::Controller, Place::B),
            (Place::A, Place::B),
            (Place::A, Place::Api),
            (Place::B, Place::Api),
            (Place::Controller, Place::Api),
        ]);
        let (one, other) = if dice.percent(50) { pair } else { (pair.1, pair.0) };
        match dice.within(1, 50) {
            1..=6 => Self::Crash(host, dice.one(&[1, 50, 800, 3000, 20_000])),
            7..=9 => Self::Crash(Place::Controller, dice.one(&[1, 800, 5000, 40_000])),
            10..=12 => Self::Cut(one, other, long),
            13..=15 => Self::CutBoth(one, other, long),
            16..=17 => Self::Isolate(host, long),
            18 => Self::Slow(dice.one(&[50, 400, 3000]), long),
            19..=20 => Self::ApiDown(long),
            21..=22 => Self::LoseAnswers(usize::try_from(dice.within(1, 6)).unwrap()),
            23 => Self::Refuse(usize::try_from(dice.within(1, 20)).unwrap()),
            24..=25 => Self::HypervisorDies(host),
            26..=27 => Self::HypervisorHangs(host, dice.one(&[300, 3000, 8000, 30_000])),
            28..=30 => Self::FailsLate(host),
            31 => Self::Mute(host, long),
            32 => Self::Reboot(host, dice.one(&[1000, 20_000])),
            33..=34 => Self::DiskFails(host, usize::try_from(dice.within(1, 2)).unwrap()),
            35 => Self::DiskSlow(host, long),
            36..=37 => Self::Second(dice.one(&[2000, 10_000, 40_000])),
            38..=39 => Self::Leader(dice.percent(50)),
            40 => Self::Clocks(dice.one(&[-3600, 3600])),
            41..=42 => Self::GuestDeleted,
            43..=45 => Self::RelaysDie(host),
            46..=47 => Self::HostDeleted(host),
            _ => Self::Guest(dice.one(&[Act::PowersOff, Act::Panics, Act::DiskFails, Act::Resets])),
        }
    }

    /// Lets it happen, and end.
    pub async fn happen(self, world: Arc<World>) {
        let sim = world.sim.clone();
        sim.note("fault", format!("{self:?}"));
        let wait = |millis| sleep(Duration::from_millis(millis));
        match self {
            Self::Crash(place, down) => {
                sim.kill(place);
                wait(down).await;
                start(&world, place).await;
            }
            Self::Cut(one, other, long) => {
                sim.cut(one, other);
                wait(long).await;
                sim.mend(one, other);
            }
            Self::CutBoth(one, other, long) => {
                sim.cut(one, other);
                sim.cut(other, one);
                wait(long).await;
                sim.mend(one, other);
                sim.mend(other, one);
            }
            Self::Isolate(host, long) => {
                let others = [Place::Api, Place::Controller, Place::Second, Place::A, Place::B];
                for other in others.into_iter().filter(|other| *other != host) {
                    sim.cut(host, other);
                    sim.cut(other, host);
                }
                wait(long).await;
                for other in others.into_iter().filter(|other| *other != host) {
                    sim.mend(host, other);
                    sim.mend(other, host);
                }
            }
            Self::Slow(by, long) => {
                sim.slow_down(by);
                wait(long).await;
                sim.slow_down(0);
            }
            Self::ApiDown(long) => {
                world.api.down(true);
                wait(long).await;
                world.api.down(false);
            }
            Self::LoseAnswers(count) => world.api.lose_answers(count),
            Self::Refuse(count) => world.api.refuse(count),
            Self::HypervisorDies(host) => {
                for (_, kept) in world.host(host).cellar.all() {
                    kept.qemu.kill(false);
                }
            }
            Self::HypervisorHangs(host, long) => {
                let all = world.host(host).cellar.all();
                all.iter().for_each(|(_, kept)| kept.qemu.hang(true));
                wait(long).await;
                all.iter().for_each(|(_, kept)| kept.qemu.hang(false));
            }
            Self::FailsLate(host) => {
                world.host(host).cellar.next_mood.lock().unwrap().fails_to_load = sim.dice.percent(30);
                for (_, kept) in world.host(host).cellar.all() {
                    kept.qemu.mood(|mood| mood.fails_late = true);
                }
            }
            Self::Mute(host, long) => {
                let all = world.host(host).cellar.all();
                all.iter()
                    .for_each(|(_, kept)| kept.qemu.mood(|mood| mood.mute = true));
                wait(long).await;
                all.iter()
                    .for_each(|(_, kept)| kept.qemu.mood(|mood| mood.mute = false));
            }
            Self::Reboot(host, down) => {
                world.reboot(host);
                wait(down).await;
                start(&world, host).await;
            }
            Self::DiskFails(host, count) => {
                world.host(host).disk.failing.store(count, Ordering::Relaxed);
            }
            Self::DiskSlow(host, long) => {
                world.host(host).disk.slow.store(true, Ordering::Relaxed);
                wait(long).await;
                world.host(host).disk.slow.store(false, Ordering::Relaxed);
            }
            Self::Second(long) => {
                world.start_controller(Place::Second);
                wait(long).await;
                world.stop_controller(Place::Second);
            }
            Self::Leader(gently) => {
                if gently {
                    world.stop_controller(Place::Controller);
                } else {
                    sim.kill(Place::Controller);
                }
                world.start_controller(Place::Controller);
            }
            Self::Clocks(by) => clock::step(by),
            Self::GuestDeleted => world.delete_guest(),
            Self::Guest(act) => {
                for host in Place::HOSTS {
                    for (_, kept) in world.host(host).cellar.all() {
                        kept.qemu.guest_acts(act);
                    }
                }
            }
            Self::RelaysDie(host) => sim.kill(host.relay()),
            Self::HostDeleted(host) => world.delete_host(host),
        }
    }
}

/// Starts a process again.
pub async fn start(world: &Arc<World>, place: Place) {
    match place {
        Place::A | Place::B => world.start_agent(place).await,
        Place::Controller => world.start_controller(place),
        Place::Second | Place::Api | Place::RelaysOfA | Place::RelaysOfB => {}
    }
}

/// Everything is mended, and stays so.
pub async fn heal(world: &Arc<World>) {
    let sim = &world.sim;
    sim.note("fault", "none any more");
    sim.faulty.store(false, Ordering::Relaxed);
    sim.crashes.lock().unwrap().clear();
    sim.mend_all();
    world.api.heal();
    world.stop_controller(Place::Second);
    for place in Place::HOSTS {
        let host = world.host(place);
        host.disk.failing.store(0, Ordering::Relaxed);
        host.disk.slow.store(false, Ordering::Relaxed);
        for (_, kept) in host.cellar.all() {
            kept.qemu.hang(false);
            kept.qemu.mood(|mood| mood.mute = false);
        }
        // Whoever mends a disk starts its agent again: a journal that has failed once takes nothing more in that life.
        if host.disk.failed.load(Ordering::Relaxed) {
            sim.kill(place);
        }
    }
    for place in [Place::A, Place::B, Place::Controller] {
        start(world, place).await;
    }
}
