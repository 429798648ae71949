//! Guests that end by themselves, and what is kept of them.

use super::*;

/// What the migrations' journals say, as a test wants it.
struct Said(Mutex<Spoken>);

impl Said {
    fn nothing() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Spoken::Nothing)))
    }

    fn say(&self, spoken: Spoken) {
        *self.0.lock().unwrap() = spoken;
    }
}

impl Journals for Said {
    fn speak_of(&self, _guest: &str) -> Spoken {
        self.0.lock().unwrap().clone()
    }

    fn handed_on(&self, _guest: &str) -> Option<u64> {
        None
    }
}

fn transient(epoch: u64, again: bool) -> StartRequest {
    let mut spec: serde_json::Value = serde_json::from_slice(definition("128Mi").json()).unwrap();
    spec["persistence"] = "Transient".into();
    StartRequest {
        definition: Definition::parse(&serde_json::to_vec(&spec).unwrap()).unwrap(),
        ..request(epoch, again)
    }
}

impl World {
    /// A manager that knows what the journals say.
    async fn settled(&self) -> Guests {
        let guests = self.agent().await;
        guests.settle(Said::nothing());
        guests
    }

    /// Waits until only the note is left of the guest, and gives it.
    async fn forgotten(&self, guests: &Guests) -> GuestEntry {
        let mut changes = guests.changes();
        let wait = async {
            loop {
                if let Some(entry) = self.record().read::<GuestEntry>().unwrap()
                    && entry.is_forgotten()
                {
                    return entry;
                }
                // The note is written before the change is told.
                changes.changed().await.unwrap();
            }
        };
        let entry = tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
        assert!(self.process().is_none(), "a process is left");
        assert!(!self.path("run/guests").join(UID).exists(), "a directory is left");
        assert!(
            self.taps.there.lock().unwrap().is_empty(),
            "a network device is left"
        );
        assert_eq!((guests.memory_in_use(), guests.cpus_in_use()), (0, 0));
        entry
    }

    fn power_off(&self) {
        let process = self.process().unwrap();
        process.set(RunState::ShutDown);
        process.emit(GuestEventKind::ShutDown);
    }
}

#[tokio::test]
async fn a_transient_guest_that_powers_off_is_forgotten_and_not_started_twice() {
    let world = World::new();
    let guests = world.settled().await;
    guests.start(transient(2, false)).await.unwrap();
    world.power_off();
    let note = world.forgotten(&guests).await;
    assert_eq!((note.epoch, note.definition.as_str()), (2, ""));
    shown(&guests, GuestState::ShutOff).await;

    // Neither before nor after a restart of the agent does an order under the same epoch start it.
    for guests in [guests, world.settled().await] {
        let error = guests.start(transient(2, false)).await.unwrap_err();
        assert!(matches!(&error, GuestError::ProcessGone { epoch: 2, why } if why.contains("transient")));
        assert!(matches!(
            guests.start(transient(1, true)).await,
            Err(GuestError::StaleEpoch { known: 2, given: 1 })
        ));
        assert!(matches!(
            guests
                .launch_incoming(&identity(UID, "web"), &definition("128Mi"), &arriving("m"))
                .await,
            Err(GuestError::StaleEpoch { known: 2, given: 1 })
        ));
        assert!(matches!(
            guests
                .protect(&Terms {
                    epoch: 2,
                    ..leaving("m")
                })
                .await,
            Err(GuestError::NotHere { .. })
        ));
        assert_eq!(guests.list()[0].state, GuestState::ShutOff);
        assert!(matches!(
            guests.stop(&identity(UID, "web"), 1).await,
            Err(GuestError::StaleEpoch { .. })
        ));
    }
    assert_eq!(world.hypervisor.launched(), 1);

    let guests = world.settled().await;
    guests.stop(&identity(UID, "web"), 2).await.unwrap();
    world.assert_nothing_left();
    assert!(guests.list().is_empty());
}

#[tokio::test]
async fn a_transient_guest_whose_process_dies_is_forgotten_and_a_later_epoch_starts_it() {
    let world = World::new();
    let guests = world.settled().await;
    guests.start(transient(1, false)).await.unwrap();
    world.process().unwrap().die();
    world.forgotten(&guests).await;
    shown(&guests, GuestState::Crashed).await;
    assert!(guests.start(transient(1, false)).await.is_err());
    assert_eq!(
        guests.start(transient(2, false)).await.unwrap().state,
        GuestState::Running
    );
    world.power_off();
    world.forgotten(&guests).await;
    assert_eq!(
        guests.start(transient(2, true)).await.unwrap().state,
        GuestState::Running
    );
}

#[tokio::test]
async fn a_persistent_guest_stays_however_it_ends_and_so_does_a_panicked_one() {
    let world = World::new();
    let guests = world.settled().await;
    guests.start(request(1, false)).await.unwrap();
    world.power_off();
    shown(&guests, GuestState::ShutOff).await;
    world.process().unwrap().die();
    // Whatever would be done about its end is done when the next order has had its turn.
    assert!(guests.start(request(1, false)).await.is_err());
    assert!(!world.entry().definition.is_empty());
    let guests = world.settled().await;
    assert_eq!(guests.list()[0].state, GuestState::Crashed);
    assert!(!world.entry().definition.is_empty());
    guests.stop(&identity(UID, "web"), 1).await.unwrap();

    guests.start(transient(1, false)).await.unwrap();
    let process = world.process().unwrap();
    process.set(RunState::Panicked);
    process.emit(GuestEventKind::Panicked);
    shown(&guests, GuestState::Crashed).await;
    guests
        .inner
        .consider_ended(&guests.inner.lock(UID).await.slot.clone());
    assert_eq!(
        guests.start(transient(1, false)).await.unwrap().state,
        GuestState::Crashed
    );
    assert!(world.process().is_some());
}

#[tokio::test]
async fn a_migration_keeps_a_transient_guest_that_has_ended() {
    let world = World::new();
    let guests = world.agent().await;
    let said = Said::nothing();
    guests.settle(said.clone());
    guests.start(transient(1, false)).await.unwrap();
    guests.protect(&leaving("m")).await.unwrap();
    world.power_off();
    shown(&guests, GuestState::ShutOff).await;
    assert!(guests.held(UID).is_some());

    // The protection is not on disk: after a restart nothing is forgotten before the journals are known.
    let restarted = world.agent().await;
    shown(&restarted, GuestState::ShutOff).await;
    restarted.protect_again(&leaving("m")).await.unwrap().unwrap();
    restarted.settle(Said::nothing());
    assert!(matches!(
        restarted.stop(&identity(UID, "web"), 1).await,
        Err(GuestError::Protected { .. })
    ));
    assert!(world.process().is_some());

    // Neither is one whose migration has let go of it and has not ended.
    said.say(Spoken::Unended);
    guests.unprotect(UID, "m").await;
    assert!(matches!(
        guests.inner.forget_ended(UID).await,
        super::retire::Attempt::Again
    ));
    assert!(world.process().is_some());
    said.say(Spoken::Nothing);
    world.forgotten(&guests).await;
}

#[tokio::test]
async fn a_guest_of_which_an_unread_journal_speaks_is_left_alone() {
    let world = World::new();
    let guests = world.agent().await;
    let said = Said::nothing();
    guests.settle(said.clone());
    guests.start(transient(1, false)).await.unwrap();
    said.say(Spoken::Unread {
        newer: true,
        message: "Journal m was written by a newer version".into(),
    });
    let error = guests.stop(&identity(UID, "web"), 1).await.unwrap_err();
    assert_eq!(error.reason(), "JournalNewer");
    assert_eq!(
        guests.start(transient(1, false)).await.unwrap_err().reason(),
        "JournalNewer"
    );
    world.power_off();
    shown(&guests, GuestState::ShutOff).await;
    assert!(matches!(
        guests.inner.forget_ended(UID).await,
        super::retire::Attempt::Again
    ));
    assert!(world.process().is_some());
    said.say(Spoken::Nothing);
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn an_end_that_was_noted_before_a_crash_of_the_agent_is_brought_to_its_end() {
    // Noted, and the process still waits.
    let world = World::new();
    let guests = world.agent().await;
    guests.start(transient(1, false)).await.unwrap();
    world.power_off();
    let note = |entry: &mut GuestEntry| {
        let Standing::Held {
            process,
            since_micros,
            ..
        } = entry.standing.clone()
        else {
            panic!("{entry:?}")
        };
        entry.standing = Standing::Ended {
            process: Some(process),
            since_micros,
            ending: super::record::Ending::PoweredOff,
            why: "it powered itself off".into(),
        };
    };
    world.rewrite(note);
    let guests = world.settled().await;
    world.forgotten(&guests).await;
    assert_eq!(guests.list()[0].state, GuestState::ShutOff);

    // Noted, and the process is gone already.
    let world = World::new();
    world.agent().await.start(transient(1, false)).await.unwrap();
    world.rewrite(note);
    world.process().unwrap().die();
    let guests = world.settled().await;
    world.forgotten(&guests).await;
    assert_eq!(guests.list()[0].state, GuestState::ShutOff, "as it was noted");
    assert!(guests.start(transient(1, false)).await.is_err());

    // A process that cannot be ended is ended later.
    let world = World::new();
    let guests = world.settled().await;
    guests.start(transient(1, false)).await.unwrap();
    let process = world.process().unwrap();
    *process.fail_destroy.lock().unwrap() = true;
    world.power_off();
    assert!(matches!(
        guests.inner.forget_ended(UID).await,
        super::retire::Attempt::Again
    ));
    assert!(world.process().is_some());
    *process.fail_destroy.lock().unwrap() = false;
    world.forgotten(&guests).await;
}
