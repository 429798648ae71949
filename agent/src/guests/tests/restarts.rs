//! What an agent finds when it starts: a host that was rebooted, guests that went on, launches that were cut short.

use super::*;

#[tokio::test]
async fn after_a_reboot_the_host_says_so() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    world.rewrite(|entry| {
        entry.boot_id = "of yesterday".into();
        if let Standing::Held { process, .. } = &mut entry.standing {
            process.boot_id = "of yesterday".into();
        }
    });
    let guests = world.agent().await;
    assert!(guests.list()[0].note.as_ref().unwrap().contains("rebooted"));
    let error = guests.start(request(1, false)).await.unwrap_err();
    assert_eq!(error.reason(), "HostRebooted");
    assert_eq!(
        guests.start(request(1, true)).await.unwrap().state,
        GuestState::Running
    );
}

#[tokio::test]
async fn a_restarted_agent_finds_its_guest_and_leaves_it_alone() {
    let world = World::new();
    let view = world.agent().await.start(request(1, false)).await.unwrap();
    let guests = world.agent().await;
    assert_eq!(guests.list(), [view]);
    assert_eq!(guests.held(UID).unwrap().definition, definition("128Mi"));
    assert_eq!(guests.memory_in_use(), 128 << 20);
    let process = world.process().unwrap();
    assert_eq!(
        *process.resumes.lock().unwrap(),
        1,
        "nothing was resumed by the recovery"
    );
    process.set(RunState::Paused);
    process.emit(GuestEventKind::Stopped);
    shown(&guests, GuestState::Paused).await;
    assert_eq!(
        guests.start(request(1, false)).await.unwrap().state,
        GuestState::Paused,
        "a paused guest stays paused"
    );
}

#[tokio::test]
async fn a_launch_that_was_recorded_and_not_begun_leaves_nothing() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    world.rewrite(|entry| entry.standing = Standing::Launching);
    let guests = world.agent().await;
    assert!(guests.list().is_empty());
    world.assert_nothing_left();
    // It never ran, so an ordinary order starts it.
    assert_eq!(
        guests.start(request(1, false)).await.unwrap().state,
        GuestState::Running
    );
}

#[tokio::test]
async fn a_process_whose_launch_was_not_recorded_is_found_and_ended() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.rewrite(|entry| entry.standing = Standing::Launching);
    assert!(world.process().is_some());
    let guests = world.agent().await;
    world.assert_nothing_left();
    assert!(guests.list().is_empty());

    receive(&guests, "m").await.unwrap();
    world.rewrite(|entry| entry.standing = Standing::LaunchingIncoming { terms: arriving("m") });
    let guests = world.agent().await;
    world.assert_nothing_left();
    assert!(guests.arriving().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_may_be_the_launched_one_is_left_alone_until_it_answers() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.rewrite(|entry| entry.standing = Standing::Launching);
    *world.hypervisor.unresponsive.lock().unwrap() = true;
    let guests = world.agent().await;
    assert_eq!(guests.list()[0].state, GuestState::Unknown);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap_err().reason(),
        "HypervisorUnresponsive"
    );
    assert!(world.process().is_some());
    *world.hypervisor.unresponsive.lock().unwrap() = false;
    let mut changes = guests.changes();
    while !guests.list().is_empty() {
        changes.changed().await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_start_that_was_cut_short_is_finished_by_the_next_order() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.process().unwrap().set(RunState::Paused);
    world.rewrite(|entry| {
        if let Standing::Held { since_micros, .. } = &mut entry.standing {
            *since_micros = None;
        }
    });
    let guests = world.agent().await;
    assert_eq!(
        guests.list()[0].state,
        GuestState::Paused,
        "the recovery starts nothing"
    );
    assert!(matches!(
        guests.protect(&leaving("m")).await,
        Err(GuestError::NotRunning(_))
    ));
    let view = guests.start(request(1, false)).await.unwrap();
    assert_eq!(view.state, GuestState::Running);
    assert_eq!(world.hypervisor.launched(), 1);
    assert!(matches!(
        world.entry().standing,
        Standing::Held {
            since_micros: Some(_),
            ..
        }
    ));
}

#[tokio::test]
async fn a_run_that_was_not_noted_is_noted_at_the_restart() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    world.rewrite(|entry| {
        if let Standing::Held { since_micros, .. } = &mut entry.standing {
            *since_micros = None;
        }
    });
    assert!(world.agent().await.list()[0].since_micros.is_some());
    assert!(matches!(
        world.entry().standing,
        Standing::Held {
            since_micros: Some(_),
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_answer_is_asked_again() {
    let world = World::new();
    world.agent().await.start(request(1, false)).await.unwrap();
    *world.hypervisor.unresponsive.lock().unwrap() = true;
    let guests = world.agent().await;
    assert_eq!(guests.list()[0].state, GuestState::Unknown);
    assert!(guests.held(UID).is_none());
    assert_eq!(guests.memory_in_use(), 128 << 20, "it may well live");
    assert_eq!(
        guests.start(request(1, true)).await.unwrap_err().reason(),
        "HypervisorUnresponsive"
    );
    *world.hypervisor.unresponsive.lock().unwrap() = false;
    shown(&guests, GuestState::Running).await;
    assert_eq!(world.hypervisor.launched(), 1);
}

#[tokio::test]
async fn a_record_that_is_damaged_or_newer_is_left_alone() {
    for (content, reason) in [
        ("godwit-record 2 of another time", "JournalNewer"),
        ("torn", "JournalDamaged"),
    ] {
        let world = World::new();
        world.agent().await.start(request(1, false)).await.unwrap();
        let whole = fs::read(world.record().path()).unwrap();
        fs::write(world.record().path(), format!("{content}\n")).unwrap();
        let guests = world.agent().await;
        assert_eq!(guests.list()[0].state, GuestState::Unknown);
        assert!(guests.list()[0].note.is_some());
        assert_eq!(guests.start(request(1, true)).await.unwrap_err().reason(), reason);
        assert_eq!(
            guests.stop(&identity(UID, "web"), 1).await.unwrap_err().reason(),
            reason
        );
        assert_eq!(receive(&guests, "m").await.err().unwrap().reason(), reason);
        guests.discard_incoming(UID, "m").await.unwrap_err();
        assert!(world.process().is_some(), "its process lives");
        // The record is put right, and the guest is there again.
        fs::write(world.record().path(), whole).unwrap();
        assert_eq!(world.agent().await.list()[0].state, GuestState::Running);
    }
}

#[tokio::test]
async fn left_over_directories_are_removed_unless_a_process_uses_them() {
    let world = World::new();
    drop(world.agent().await);
    let unused = world.path("run/guests").join(UID);
    fs::create_dir(&unused).unwrap();
    fs::write(unused.join("console.log"), "").unwrap();
    let used = world.path("run/guests").join(OTHER);
    fs::create_dir(&used).unwrap();
    let _process = std::os::unix::net::UnixListener::bind(used.join("qmp.sock")).unwrap();
    let guests = world.agent().await;
    assert!(!unused.exists());
    assert!(used.exists());
    // And nothing is launched into it.
    let request = StartRequest {
        identity: identity(OTHER, "other"),
        ..request(1, false)
    };
    assert_eq!(guests.start(request).await.unwrap_err().reason(), "NameTaken");
    assert!(used.join("qmp.sock").exists());
}
