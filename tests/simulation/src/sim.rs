//! What all parts of a simulated world share: who lives, which links are cut, what is written down, and the points at
//! which a process can be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::clock;
use crate::dice::Dice;
use crate::judge::Judge;

/// Somewhere that a message comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The API server.
    Api,
    /// The controller.
    Controller,
    /// A second controller, which believes that it leads too.
    Second,
    /// The agent of host `a`.
    A,
    /// The agent of host `b`.
    B,
    /// The relays of host `a`.
    RelaysOfA,
    /// The relays of host `b`.
    RelaysOfB,
}

impl Place {
    /// Those that are processes of ours.
    pub const PROCESSES: [Self; 4] = [Self::Controller, Self::Second, Self::A, Self::B];
    /// The hosts.
    pub const HOSTS: [Self; 2] = [Self::A, Self::B];

    /// The host of that name.
    pub fn host(name: &str) -> Option<Self> {
        Self::HOSTS.into_iter().find(|host| host.name() == name)
    }

    /// Its name; that of a host.
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Controller => "controller",
            Self::Second => "second",
            Self::A => "host-a",
            Self::B => "host-b",
            Self::RelaysOfA => "relay-a",
            Self::RelaysOfB => "relay-b",
        }
    }

    /// The host on which this process runs.
    pub fn of_host(self) -> Option<Self> {
        match self {
            Self::A | Self::RelaysOfA => Some(Self::A),
            Self::B | Self::RelaysOfB => Some(Self::B),
            Self::Api | Self::Controller | Self::Second => None,
        }
    }

    /// The relays of this host.
    pub fn relay(self) -> Self {
        if self == Self::A {
            Self::RelaysOfA
        } else {
            Self::RelaysOfB
        }
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One life of a process: from its start to its crash. What a dead one does has no effect.
#[derive(Debug)]
pub struct Life {
    /// Which process.
    pub place: Place,
    dead: watch::Sender<bool>,
}

impl Life {
    /// A new life.
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            place,
            dead: watch::Sender::new(false),
        })
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        *self.dead.borrow()
    }

    /// Ends it.
    pub fn end(&self) {
        self.dead.send_replace(true);
    }

    /// Waits for its end.
    pub async fn over(&self) {
        // The sender is this.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }
}

/// When the sweep has a process killed, and what else it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// At the point of this number the process that comes to it is killed.
    Crash(usize),
    /// At the point of this number, which is one of a host's, that host loses its power for good.
    Lose(usize),
    /// The write of this number (of those to the API server) is applied and answered with an error.
    Unanswered(usize),
    /// The event of this number that a watch would bring is lost; the watch breaks a while later.
    DropEvent(usize),
    /// The list of this number shows how it was before the last changes.
    StaleList(usize),
}

/// What is counted, so that a sweep knows how many points there are.
#[derive(Debug, Default)]
pub struct Counts {
    /// Points at which a process can be killed.
    pub points: AtomicUsize,
    /// Writes that the API server has taken.
    pub writes: AtomicUsize,
    /// Events that watches have brought.
    pub events: AtomicUsize,
    /// Lists.
    pub lists: AtomicUsize,
    /// Which of the points are the tunnel's: a relay's own, or an agent's at which it deals with one.
    pub tunnel: Mutex<Vec<usize>>,
    /// Which of the points are a host's: its agent's, or its relays'.
    pub hosts: Mutex<Vec<usize>>,
}

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// A process.
    Process(Place),
    /// A host, for good.
    Host(Place),
}

type Killer = Box<dyn Fn(Blow) + Send>;

#[derive(Default)]
struct Links {
    cut: BTreeSet<(Place, Place)>,
    /// Extra milliseconds of each message.
    slow: u64,
    since: BTreeMap<(Place, Place), Instant>,
}

/// What all parts share.
pub struct Sim {
    /// Chance.
    pub dice: Dice,
    /// Who judges.
    pub judge: Judge,
    /// Counts.
    pub counts: Counts,
    /// What the sweep does in this run.
    pub strike: Option<Strike>,
    /// Points at which a process is killed, in a run of chance.
    pub crashes: Mutex<BTreeSet<usize>>,
    /// Whether faults are being made.
    pub faulty: AtomicBool,
    /// Who was killed at a point, and not by a fault that starts it again.
    struck: Mutex<BTreeSet<Place>>,
    /// How a process is killed.
    killer: Mutex<Option<Killer>>,
    trace: Mutex<Vec<String>>,
    loud: bool,
    links: Mutex<Links>,
    relinked: watch::Sender<u64>,
}

impl Sim {
    /// A world without anything in it. A loud one says at once what it writes down.
    pub fn new(seed: u64, strike: Option<Strike>, loud: bool) -> Arc<Self> {
        Arc::new(Self {
            dice: Dice::new(seed),
            judge: Judge::default(),
            counts: Counts::default(),
            strike,
            crashes: Mutex::default(),
            faulty: AtomicBool::new(true),
            struck: Mutex::default(),
            killer: Mutex::default(),
            trace: Mutex::default(),
            loud,
            links: Mutex::default(),
            relinked: watch::Sender::new(0),
        })
    }

    /// Who kills processes.
    pub fn kill_by(&self, killer: impl Fn(Blow) + Send + 'static) {
        *self.killer.lock().unwrap() = Some(Box::new(killer));
    }

    /// Lets go of who kills processes.
    pub fn disarm(&self) {
        *self.killer.lock().unwrap() = None;
    }

    /// Writes something down.
    pub fn note(&self, place: impl Display, what: impl Display) {
        let now = clock::elapsed();
        let line = format!(
            "{:>4}.{:03} {place:<11}{what}",
            now.as_secs(),
            now.subsec_millis()
        );
        if self.loud {
            eprintln!("{line}");
        }
        self.trace.lock().unwrap().push(line);
    }

    /// What was written down.
    pub fn trace(&self) -> Vec<String> {
        self.trace.lock().unwrap().clone()
    }

    /// A sum over it, line by line.
    pub fn sum(&self) -> u64 {
        let mut sum = 0;
        for byte in self.trace.lock().unwrap().iter().flat_map(|line| line.bytes()) {
            (sum, _) = clock::next(sum ^ u64::from(byte));
            sum = sum.rotate_left(5);
        }
        sum
    }

    /// A process comes to a point at which it can be killed. True where it is dead: then it does nothing more.
    pub fn reach(&self, life: &Life, what: impl Display) -> bool {
        if life.is_over() {
            return true;
        }
        let number = self.counts.points.fetch_add(1, Ordering::Relaxed);
        let words = what.to_string();
        let relay = matches!(life.place, Place::RelaysOfA | Place::RelaysOfB);
        if relay || words.contains("relay") {
            self.counts.tunnel.lock().unwrap().push(number);
        }
        self.note(life.place, words);
        if let Some(host) = life.place.of_host() {
            self.counts.hosts.lock().unwrap().push(number);
            if self.strike == Some(Strike::Lose(number)) {
                self.note(life.place, format!("is gone for good at point {number}"));
                self.strike_down(Blow::Host(host));
            }
        }
        let swept = self.strike == Some(Strike::Crash(number));
        let by_chance = self.faulty.load(Ordering::Relaxed) && self.crashes.lock().unwrap().remove(&number);
        if swept || by_chance {
            self.note(life.place, format!("is killed at point {number}"));
            self.struck.lock().unwrap().insert(life.place);
            self.kill(life.place);
        }
        life.is_over()
    }

    /// The same for what can wait for ever.
    pub async fn pass(&self, life: &Life, what: impl Display) {
        if self.reach(life, what) {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a process was killed at a point since this was asked last.
    pub fn struck(&self, place: Place) -> bool {
        self.struck.lock().unwrap().remove(&place)
    }

    /// Kills a process.
    pub fn kill(&self, place: Place) {
        self.strike_down(Blow::Process(place));
    }

    fn strike_down(&self, blow: Blow) {
        let killer = self.killer.lock().unwrap();
        if let Some(killer) = &*killer {
            killer(blow);
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap()
    }

    /// Cuts a link in one direction.
    pub fn cut(&self, from: Place, to: Place) {
        let mut links = self.links();
        links.cut.insert((from, to));
        links.since.entry((from, to)).or_insert_with(Instant::now);
        drop(links);
        self.relinked.send_modify(|n| *n += 1);
    }

    /// Mends it.
    pub fn mend(&self, from: Place, to: Place) {
        let mut links = self.links();
        links.cut.remove(&(from, to));
        links.since.remove(&(from, to));
        drop(links);
        self.relinked.send_modify(|n| *n += 1);
    }

    /// Mends every link.
    pub fn mend_all(&self) {
        let mut links = self.links();
        *links = Links::default();
        drop(links);
        self.relinked.send_modify(|n| *n += 1);
    }

    /// Every message takes that much longer.
    pub fn slow_down(&self, millis: u64) {
        self.links().slow = millis;
    }

    /// Whether messages do not arrive.
    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        self.links().cut.contains(&(from, to))
    }

    /// A message is on its way; it arrives late where the link is cut and mended.
    pub async fn travel(&self, from: Place, to: Place) {
        let slow = self.links().slow;
        let millis = self.dice.within(1, 3) + if slow > 0 { self.dice.within(0, slow) } else { 0 };
        sleep(Duration::from_millis(millis)).await;
        let mut relinked = self.relinked.subscribe();
        while self.is_cut(from, to) {
            // The sender is this.
            let _ = relinked.changed().await;
        }
    }

    /// Waits until nothing has gone through between the two, in one direction or the other, for so long.
    pub async fn silent_for(&self, one: Place, other: Place, long: Duration) {
        let mut relinked = self.relinked.subscribe();
        loop {
            let since = {
                let links = self.links();
                let there = links.since.get(&(one, other)).copied();
                let back = links.since.get(&(other, one)).copied();
                match (there, back) {
                    (Some(there), Some(back)) => Some(there.min(back)),
                    (one, other) => one.or(other),
                }
            };
            match since {
                Some(since) if since.elapsed() >= long => return,
                Some(since) => {
                    tokio::select! {
                        biased;
                        _ = relinked.changed() => {}
                        () = tokio::time::sleep_until(since + long) => {}
                    }
                }
                None => {
                    let _ = relinked.changed().await;
                }
            }
        }
    }
}
