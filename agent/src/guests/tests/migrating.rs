//! What a migration does with a guest: protects it, lets it go, receives it.

use super::*;

#[tokio::test]
async fn a_protected_guest_takes_orders_from_its_migration_only() {
    let world = World::new();
    let guests = world.agent().await;
    assert!(matches!(
        guests.protect(&leaving("m")).await,
        Err(GuestError::NotHere { .. })
    ));
    guests.start(request(1, false)).await.unwrap();
    *world.process().unwrap().blockers.lock().unwrap() = vec!["a device".into()];
    assert_eq!(
        guests.protect(&leaving("m")).await.err().unwrap().reason(),
        "GuestNotMigratable"
    );
    world.process().unwrap().blockers.lock().unwrap().clear();
    assert!(
        matches!(guests.protect(&arriving("m")).await, Err(GuestError::Conflict(_))),
        "this host is not its source"
    );

    let held = guests.protect(&leaving("m")).await.unwrap();
    assert_eq!(
        held.role,
        Role::Leaving {
            migration: "m".into()
        }
    );
    guests.protect(&leaving("m")).await.unwrap();
    assert!(matches!(
        guests.protect(&leaving("n")).await,
        Err(GuestError::Protected { .. })
    ));
    let other_terms = Terms {
        destination: "elsewhere".into(),
        ..leaving("m")
    };
    assert!(matches!(
        guests.protect(&other_terms).await,
        Err(GuestError::Conflict(_))
    ));
    assert_eq!(
        guests.stop(&identity(UID, "web"), 1).await.unwrap_err().reason(),
        "AnotherMigrationActive"
    );
    guests.unprotect(UID, "n").await;
    assert!(matches!(
        guests.stop(&identity(UID, "web"), 1).await,
        Err(GuestError::Protected { .. })
    ));
    assert!(matches!(
        guests.release(UID, "n").await,
        Err(GuestError::Conflict(_))
    ));
    guests.unprotect(UID, "m").await;
    assert!(
        matches!(guests.release(UID, "m").await, Err(GuestError::Conflict(_))),
        "it is no longer the migration's"
    );
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_has_left_is_forgotten() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    guests.protect(&leaving("m")).await.unwrap();
    guests.release(UID, "m").await.unwrap();
    world.assert_nothing_left();
    guests.release(UID, "m").await.unwrap();

    // Its process may be dead by then, and the agent another one.
    guests.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    let guests = world.agent().await;
    assert!(guests.protect_again(&leaving("m")).await.unwrap().is_none());
    assert!(matches!(
        guests.start(request(1, true)).await,
        Err(GuestError::Protected { .. })
    ));
    guests.release(UID, "m").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_process_that_cannot_be_ended_is_not_forgotten() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    *world.process().unwrap().fail_destroy.lock().unwrap() = true;
    assert!(guests.stop(&identity(UID, "web"), 1).await.is_err());
    assert!(guests.held(UID).is_some());
    assert!(world.record().read::<GuestEntry>().unwrap().is_some());
    *world.process().unwrap().fail_destroy.lock().unwrap() = false;
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn an_arriving_guest_waits_and_is_taken_over_once() {
    let world = World::new();
    let guests = world.agent().await;
    let held = receive(&guests, "m").await.unwrap();
    assert_eq!(
        held.role,
        Role::Arriving {
            migration: "m".into()
        }
    );
    receive(&guests, "m").await.unwrap();
    assert_eq!(
        *world.hypervisor.launches.lock().unwrap(),
        [(UID.to_owned(), Start::Incoming)]
    );
    assert_eq!(receive(&guests, "n").await.err().unwrap().reason(), "NameTaken");
    assert!(matches!(
        guests.start(request(1, false)).await,
        Err(GuestError::Protected { .. })
    ));
    assert!(matches!(
        guests.stop(&identity(UID, "web"), 1).await,
        Err(GuestError::Protected { .. })
    ));
    guests.discard_incoming(UID, "n").await.unwrap();
    assert!(
        world.process().is_some(),
        "another migration's copy is left alone"
    );
    assert_eq!(guests.arriving(), [arriving("m")]);

    // The agent restarts in between.
    let guests = world.agent().await;
    assert_eq!(guests.arriving(), [arriving("m")]);
    assert_eq!(
        *world.process().unwrap().resumes.lock().unwrap(),
        0,
        "this manager never lets it run"
    );
    assert!(matches!(
        guests.take_over(UID, "n", 2, None).await,
        Err(GuestError::Conflict(_))
    ));
    assert!(matches!(
        guests.take_over(UID, "m", 3, None).await,
        Err(GuestError::Conflict(_))
    ));
    guests.take_over(UID, "m", 2, Some(7)).await.unwrap();
    guests.take_over(UID, "m", 2, Some(8)).await.unwrap();
    assert!(guests.arriving().is_empty());
    assert!(
        matches!(
            guests.discard_incoming(UID, "m").await,
            Err(GuestError::Conflict(_))
        ),
        "it is never the only copy's end"
    );

    let guests = world.agent().await;
    let view = &guests.list()[0];
    assert_eq!(
        (view.epoch, view.since_micros, &view.role),
        (2, Some(7), &Role::Held)
    );
    assert!(matches!(
        guests.start(request(1, true)).await,
        Err(GuestError::StaleEpoch { .. })
    ));
}

#[tokio::test]
async fn a_discarded_guest_leaves_nothing() {
    let world = World::new();
    let guests = world.agent().await;
    receive(&guests, "m").await.unwrap();
    guests.discard_incoming(UID, "m").await.unwrap();
    world.assert_nothing_left();
    guests.discard_incoming(UID, "m").await.unwrap();
    // Its process may be dead by then.
    receive(&guests, "n").await.unwrap();
    world.process().unwrap().die();
    let guests = world.agent().await;
    assert_eq!(receive(&guests, "n").await.err().unwrap().reason(), "ProcessGone");
    assert_eq!(guests.arriving(), [arriving("n")]);
    guests.discard_incoming(UID, "n").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_is_held_here_is_not_received() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    assert_eq!(receive(&guests, "m").await.err().unwrap().reason(), "NameTaken");
    let elsewhere = guests
        .launch_incoming(&identity(UID, "web"), &definition("128Mi"), &leaving("m"))
        .await;
    assert!(
        matches!(elsewhere, Err(GuestError::Conflict(_))),
        "this host is not its destination"
    );
    guests.discard_incoming(UID, "m").await.unwrap();
    assert!(world.process().is_some());
}

#[tokio::test]
async fn a_take_over_that_cannot_be_written_has_not_happened() {
    let world = World::new();
    let guests = world.agent().await;
    receive(&guests, "m").await.unwrap();
    let (records, aside) = (world.path("state/guests"), world.path("aside"));
    fs::rename(&records, &aside).unwrap();
    assert_eq!(
        guests.take_over(UID, "m", 2, None).await.unwrap_err().reason(),
        "DiskFailed"
    );
    fs::rename(&aside, &records).unwrap();
    assert_eq!(guests.arriving(), [arriving("m")]);
    guests.take_over(UID, "m", 2, None).await.unwrap();
    assert_eq!(world.entry().epoch, 2);
}
