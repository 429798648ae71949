//! One run: a world, what users ask of it, what goes wrong, and what must be so in the end.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use godwit_agent::guests::Role;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::administrator;
use crate::clock;
use crate::dice::Dice;
use crate::faults::{self, Fault};
use crate::qemu::Mood;
use crate::sim::{Place, Sim, Strike};
use crate::world::{EPOCH, World};

/// How long everything may take that follows once nothing is wrong any more.
const BOUNDED: Duration = Duration::from_secs(150);
/// The same where a person has to say something, once a host's Lease has run out.
const BOUNDED_BY_A_PERSON: Duration = Duration::from_secs(400);
/// How long nothing may be written once everything has ended.
const AT_REST: Duration = Duration::from_secs(12);
/// How soon that is so.
const QUIET_WITHIN: Duration = Duration::from_secs(60);

/// What is wanted of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// That it comes to its end.
    Succeed,
    /// It is cancelled after so many milliseconds.
    Cancel(u64),
    /// Its object is deleted after so many milliseconds.
    Delete(u64),
    /// The source's stream breaks late.
    Fail,
}

/// A migration that a user asks for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// `ManagedDirect` or `PeerToPeer`.
    pub flow: &'static str,
    /// What is wanted of it.
    pub end: End,
    /// The source reaches the switchover unsealed.
    pub unsealed: bool,
    /// `handoff: Strict`.
    pub strict: bool,
    /// Its stream goes through the tunnel.
    pub tunnelled: bool,
}

impl Wish {
    fn transport(&self) -> &'static str {
        if self.tunnelled { "Tunnelled" } else { "Native" }
    }
}

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The migrations, one after another.
    pub wishes: Vec<Wish>,
    /// What goes wrong, and when, in milliseconds.
    pub faults: Vec<(u64, Fault)>,
    /// At how many points a process is killed.
    pub crashes: Vec<usize>,
    /// What the sweep does.
    pub strike: Option<Strike>,
    /// The cluster has no key for tickets yet.
    pub first: bool,
    /// A host that is gone for good.
    pub loss: Option<Loss>,
}

/// The loss of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// After so many milliseconds; `None` where the sweep says when.
    pub at: Option<(u64, Place)>,
    /// It is found in the end, and switched on.
    pub back: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let dice = Dice::new(seed ^ 0xF1A7);
        let wishes = (0..dice.within(1, 2))
            .map(|_| Wish {
                flow: dice.one(&["ManagedDirect", "PeerToPeer"]),
                end: match dice.within(1, 10) {
                    1..=2 => End::Cancel(dice.within(0, 2500)),
                    3 => End::Delete(dice.within(0, 2500)),
                    4 => End::Fail,
                    _ => End::Succeed,
                },
                unsealed: dice.percent(25),
                strict: dice.percent(20),
                tunnelled: dice.percent(40),
            })
            .collect();
        let faults = (0..dice.within(0, 4))
            .map(|_| (dice.within(0, 4000), Fault::draw(&dice)))
            .collect();
        let crashes = (0..dice.within(0, 2))
            .map(|_| usize::try_from(dice.within(0, 400)).unwrap())
            .collect();
        Self {
            seed,
            wishes,
            faults,
            crashes,
            strike: None,
            first: dice.percent(5),
            loss: dice.percent(15).then(|| Loss {
                at: Some((dice.within(0, 6000), dice.one(&Place::HOSTS))),
                back: dice.percent(50),
            }),
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Everything that was wrong.
    pub violations: Vec<String>,
    /// A sum over everything that was written down, line by line.
    pub sum: u64,
    /// How many lines that is.
    pub lines: usize,
    /// How many points there were, how many writes, events of watches, and lists.
    pub counts: [usize; 4],
    /// Which of the points are the tunnel's.
    pub tunnel: Vec<usize>,
    /// Which are a host's.
    pub hosts: Vec<usize>,
    /// The virtual time that it took.
    pub took: Duration,
    /// The phases in which the migrations ended.
    pub phases: Vec<String>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Whatever panics in a run is a violation of that run: a task's panic would be lost else.
fn catch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
    }));
}

/// Runs a plan. To be called once in a process: tokio counts its runtimes, and what a `select!` looks at first hangs on
/// that number too.
pub fn run(plan: &Plan, loud: bool) -> Outcome {
    catch_panics();
    // A thread that has not asked for chance before.
    std::thread::scope(|scope| scope.spawn(|| run_here(plan, loud)).join().unwrap())
}

fn run_here(plan: &Plan, loud: bool) -> Outcome {
    clock::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let mut outcome = runtime.block_on(async {
        clock::begin();
        play(plan, loud).await
    });
    drop(runtime);
    clock::end();
    outcome.violations.extend(PANICS.take());
    outcome
}

async fn play(plan: &Plan, loud: bool) -> Outcome {
    let sim = Sim::new(plan.seed, plan.strike, loud);
    sim.crashes.lock().unwrap().extend(plan.crashes.iter().copied());
    let world = World::new(&sim, plan.seed, plan.first, plan.loss.is_some()).await;
    // Whoever is killed is started again.
    let warden = tokio::spawn(keep_up(world.clone()));
    let loss = plan.loss.and_then(|loss| loss.at).map(|(at, place)| {
        let world = world.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(at)).await;
            world.lose(place);
        })
    });
    let administrator = plan
        .loss
        .map(|_| tokio::spawn(administrator::look_after(world.clone())));
    let misfortune: Vec<_> = plan
        .faults
        .iter()
        .map(|&(at, fault)| {
            let world = world.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(at)).await;
                fault.happen(world).await;
            })
        })
        .collect();
    let mut asked = Vec::new();
    for (number, wish) in plan.wishes.iter().enumerate() {
        sleep(Duration::from_millis(sim.dice.within(100, 900))).await;
        let name = format!("move-{}", number + 1);
        let holder = world.record()["holder"].as_str().and_then(Place::host);
        let to = if holder == Some(Place::A) {
            Place::B
        } else {
            Place::A
        };
        prepare(&world, wish);
        world.migrate(&name, wish.flow, (wish.transport(), wish.strict), to);
        let deletes = fulfil(&world, wish, &name).await;
        asked.push((name.clone(), deletes));
        // The next one is asked for when this one has ended, or while it goes on.
        let patience = Instant::now() + Duration::from_secs(sim.dice.within(3, 30));
        while Instant::now() < patience && !ended(&world, &name) {
            sleep(Duration::from_millis(250)).await;
        }
    }
    let patience = Instant::now() + Duration::from_secs(20);
    while Instant::now() < patience && asked.iter().any(|(name, _)| !ended(&world, name)) {
        sleep(Duration::from_millis(250)).await;
    }
    misfortune.iter().for_each(tokio::task::JoinHandle::abort);
    if let Some(loss) = loss {
        loss.await.unwrap();
    }
    faults::heal(&world).await;
    come_to_rest(&world, &asked, plan.loss.map_or(BOUNDED, |_| BOUNDED_BY_A_PERSON)).await;
    let lost = Place::HOSTS.into_iter().find(|place| world.is_lost(*place));
    if let Some(place) = lost.filter(|_| plan.loss.is_some_and(|loss| loss.back)) {
        world.find(place).await;
        come_to_rest(&world, &asked, BOUNDED_BY_A_PERSON).await;
    }
    if let Some(administrator) = administrator {
        administrator.abort();
    }
    warden.abort();
    let phases = asked.iter().map(|(name, _)| phase(&world, name)).collect();
    world.end();
    let counts = [
        &sim.counts.points,
        &sim.counts.writes,
        &sim.counts.events,
        &sim.counts.lists,
    ];
    Outcome {
        violations: sim.judge.violations(),
        sum: sim.sum(),
        lines: sim.trace().len(),
        counts: counts.map(|count| count.load(std::sync::atomic::Ordering::Relaxed)),
        tunnel: sim.counts.tunnel.lock().unwrap().clone(),
        hosts: sim.counts.hosts.lock().unwrap().clone(),
        took: clock::elapsed(),
        phases,
    }
}

/// Waits until everything has ended, and then for a while in which nothing must happen.
async fn come_to_rest(world: &Arc<World>, asked: &[(String, bool)], bounded: Duration) {
    let sim = &world.sim;
    let healed = Instant::now();
    let mut unsettled = settle(world, asked);
    while !unsettled.is_empty() && healed.elapsed() < bounded {
        sleep(Duration::from_millis(500)).await;
        unsettled = settle(world, asked);
    }
    for why in unsettled {
        sim.judge.wrong(format!(
            "{} s after nothing is wrong any more: {why}",
            bounded.as_secs()
        ));
    }
    sim.note("judge", "everything has ended");
    // What was on its way comes to its end; then nothing is written any more.
    let ended_at = Instant::now();
    loop {
        let written = world.store.at_rest();
        sleep(AT_REST).await;
        if world.store.at_rest() == written {
            break;
        }
        if ended_at.elapsed() > QUIET_WITHIN {
            sim.judge
                .wrong("I9: something is written though everything has ended");
            break;
        }
    }
    for why in settle(world, asked) {
        sim.judge.wrong(format!("it did not stay settled: {why}"));
    }
}

/// Starts whoever was killed at a point, a while later.
async fn keep_up(world: Arc<World>) {
    loop {
        sleep(Duration::from_millis(world.sim.dice.within(40, 900))).await;
        for place in [Place::A, Place::B, Place::Controller] {
            if world.sim.struck(place) {
                faults::start(&world, place).await;
            }
        }
    }
}

/// How the hypervisors will behave.
fn prepare(world: &Arc<World>, wish: &Wish) {
    let dice = &world.sim.dice;
    let mood = Mood {
        converges: wish.unsealed,
        passes: dice.within(2, 12),
        fails_late: wish.end == End::Fail,
        refuses: if dice.percent(10) { 1 } else { 0 },
        ..Mood::default()
    };
    for host in &world.hosts {
        for (_, kept) in host.cellar.all() {
            let mood = mood.clone();
            kept.qemu.mood(|own| {
                *own = Mood {
                    mute: own.mute,
                    refuses: 0,
                    ..mood
                }
            });
        }
        *host.cellar.next_mood.lock().unwrap() = Mood {
            fails_late: false,
            ..mood.clone()
        };
    }
}

async fn fulfil(world: &Arc<World>, wish: &Wish, name: &str) -> bool {
    match wish.end {
        End::Succeed | End::Fail => false,
        End::Cancel(after) => {
            sleep(Duration::from_millis(after)).await;
            world.cancel(name);
            false
        }
        End::Delete(after) => {
            sleep(Duration::from_millis(after)).await;
            world.delete(name);
            true
        }
    }
}

fn phase(world: &World, name: &str) -> String {
    let migration = world.migration(name).unwrap_or(Value::Null);
    if migration.is_null() {
        return "gone".into();
    }
    let phase = migration["status"]["phase"].as_str().unwrap_or("Pending");
    phase.to_owned()
}

fn ended(world: &World, name: &str) -> bool {
    ["Succeeded", "Failed", "Cancelled", "gone"].contains(&phase(world, name).as_str())
}

/// What is not as it must be once nothing is wrong any more and everything has ended.
fn settle(world: &Arc<World>, asked: &[(String, bool)]) -> Vec<String> {
    let mut missing = Vec::new();
    let mut want = |so: bool, words: String| {
        if !so {
            missing.push(words);
        }
    };
    let record = world.record();
    let holder = record["holder"].as_str().unwrap_or_default().to_owned();
    let epoch = record["epoch"].as_u64().unwrap_or(0);
    for (name, deleted) in asked {
        let phase = phase(world, name);
        want(ended(world, name), format!("I6: {name} has not ended: {phase}"));
        want(
            !deleted || phase == "gone",
            format!("I6: {name} was deleted and is not gone"),
        );
        if let Some(migration) = world.migration(name) {
            let armed = record["migration"]["uid"] == migration["metadata"]["uid"];
            let advanced =
                armed && record["decision"] == "Committed" && holder == record["migration"]["destination"];
            let lost = migration["status"]["failure"]["reason"] == "GuestLost" || world.sim.judge.is_lost();
            if armed {
                want(
                    (phase == "Succeeded") == advanced || lost,
                    format!("I4: {name} is {phase}, and the record says {record}"),
                );
            }
        }
    }
    let armed = &record["migration"];
    want(
        armed.is_null() || record["decision"] != "None",
        format!("I6: the record is not decided: {record}"),
    );
    let alive = world.sim.judge.alive();
    if world.sim.judge.is_deleted() {
        want(
            alive.is_empty(),
            format!("I6: the guest was deleted, and processes are left: {alive:?}"),
        );
        want(
            // By the record a host that is gone would learn how the guest's migration ended.
            !world.has_guest()
                && (record.is_null() || Place::HOSTS.into_iter().any(|place| world.is_lost(place))),
            format!("I6: the guest was deleted and is not gone: {record}"),
        );
    } else if world.sim.judge.is_lost() {
        want(
            !Place::host(&holder).is_some_and(|place| world.is_lost(place)),
            format!("I6: the guest is lost with {holder}, and is not started afresh"),
        );
        want(
            alive
                .iter()
                .all(|(_, copy)| copy.migration.is_none() || copy.host == holder),
            format!("I6: the guest is lost, and processes are left: {alive:?}"),
        );
    } else {
        want(
            alive.len() == 1,
            format!("I6: not one process is left: {alive:?}"),
        );
        let running: Vec<_> = alive.iter().filter(|(_, copy)| copy.running).collect();
        let over = world.sim.judge.is_over();
        want(
            running.len() == usize::from(!over),
            format!("I2: the guest does not run, or runs though it has ended ({over}): {alive:?}"),
        );
        let there: Vec<_> = if over { alive.iter().collect() } else { running };
        if let [(name, copy)] = &there[..] {
            want(
                copy.host == holder,
                format!("I4: {name} has the guest, and the record says {record}"),
            );
        }
        if let Some(place) = Place::host(&holder) {
            let kept = world.host(place).cellar.of(&world.guest);
            want(
                kept.as_ref()
                    .is_some_and(|kept| kept.role == Role::Held && kept.epoch == epoch),
                format!(
                    "I6: {holder} does not hold the guest at epoch {epoch}: {:?}",
                    kept.map(|kept| (kept.role, kept.epoch))
                ),
            );
        }
    }
    for place in Place::HOSTS.into_iter().filter(|place| !world.is_lost(*place)) {
        let active = world.active(place);
        want(
            active.as_ref().is_some_and(Vec::is_empty),
            format!("I6: {place} has migrations that have not ended: {active:?}"),
        );
        let unresolved = world.unresolved(place);
        want(
            unresolved.is_empty(),
            format!("I6: {place} has what cannot be acted on: {unresolved:?}"),
        );
    }
    want(
        world.network.listeners() == 0,
        format!("I6: {} ports are open", world.network.listeners()),
    );
    let relays = world.burrow.left();
    want(relays.is_empty(), format!("I6: relays are left: {relays:?}"));
    want(record.is_null() || epoch >= EPOCH, "the epoch has shrunk".into());
    missing
}
