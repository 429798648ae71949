//! Orders to start a guest: each is carried out once, or refused by name.

use super::*;

#[tokio::test]
async fn a_guest_is_started_once_however_often_it_is_ordered() {
    let world = World::new();
    let guests = world.agent().await;
    let view = guests.start(request(1, false)).await.unwrap();
    assert_eq!((view.state, view.epoch), (GuestState::Running, 1));
    assert!(view.since_micros.is_some());
    assert_eq!(guests.start(request(1, false)).await.unwrap(), view);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap(),
        view,
        "`again` is for a guest that is gone"
    );
    assert_eq!(world.hypervisor.launched(), 1);
    assert_eq!(*world.process().unwrap().resumes.lock().unwrap(), 1);
    assert_eq!(*world.taps.there.lock().unwrap(), ["g0d8a5b1c2d3e0"]);

    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    world.assert_nothing_left();
    guests.stop(&identity(UID, "web"), 1).await.unwrap();
    assert!(guests.list().is_empty());
}

#[tokio::test]
async fn orders_side_by_side_start_it_once() {
    let world = World::new();
    let guests = world.agent().await;
    let orders = (0..8).map(|_| guests.start(request(1, false)));
    for outcome in futures::future::join_all(orders).await {
        assert_eq!(outcome.unwrap().state, GuestState::Running);
    }
    assert_eq!(world.hypervisor.launched(), 1);
}

#[tokio::test]
async fn an_order_is_carried_out_though_its_caller_has_left() {
    let world = World::new();
    let guests = world.agent().await;
    let order = guests.start(request(1, false));
    // Polled once, then dropped, as the server does when a client goes away.
    assert!(tokio::time::timeout(Duration::ZERO, order).await.is_err());
    shown(&guests, GuestState::Running).await;
    assert!(world.process().is_some());
}

#[tokio::test]
async fn another_epoch_is_refused() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(3, false)).await.unwrap();
    let stale = guests.start(request(2, false)).await.unwrap_err();
    assert!(matches!(stale, GuestError::StaleEpoch { known: 3, given: 2 }));
    assert_eq!(stale.reason(), "StaleEpoch");
    assert!(matches!(
        guests.start(request(4, true)).await,
        Err(GuestError::Conflict(_))
    ));
    assert!(matches!(
        guests.stop(&identity(UID, "web"), 2).await,
        Err(GuestError::StaleEpoch { .. })
    ));
    assert!(matches!(
        guests
            .protect(&Terms {
                epoch: 2,
                ..leaving("m")
            })
            .await,
        Err(GuestError::StaleEpoch { .. })
    ));
    assert!(world.process().is_some());
}

#[tokio::test]
async fn a_guest_that_is_gone_is_started_again_only_if_asked_for() {
    let world = World::new();
    let guests = world.agent().await;
    guests.start(request(1, false)).await.unwrap();
    world.process().unwrap().die();
    shown(&guests, GuestState::Crashed).await;
    assert_eq!(guests.memory_in_use(), 0);
    assert!(matches!(
        guests.start(request(1, false)).await,
        Err(GuestError::ProcessGone { epoch: 1, .. })
    ));

    // Nor after a restart of the agent.
    let guests = world.agent().await;
    assert_eq!(guests.list()[0].state, GuestState::Crashed);
    assert!(matches!(
        guests.start(request(1, false)).await,
        Err(GuestError::ProcessGone { epoch: 1, .. })
    ));
    assert_eq!(world.hypervisor.launched(), 1);
    assert_eq!(
        guests.start(request(1, true)).await.unwrap().state,
        GuestState::Running
    );
    assert_eq!(world.hypervisor.launched(), 2);
}

#[tokio::test]
async fn a_launch_that_fails_leaves_nothing() {
    let world = World::new();
    let guests = world.agent().await;
    *world.hypervisor.fail_launch.lock().unwrap() = Some(HypervisorError::Refused("no such device".into()));
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "DefinitionRefused"
    );
    world.assert_nothing_left();
    *world.taps.broken.lock().unwrap() = true;
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "FileMissing"
    );
    world.assert_nothing_left();
    *world.taps.broken.lock().unwrap() = false;
    fs::remove_file(world.path("pool/kernel")).unwrap();
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "FileMissing"
    );
    world.assert_nothing_left();
    assert!(guests.list().is_empty());
    assert_eq!(guests.memory_in_use(), 0);
    assert_eq!(world.hypervisor.launched(), 0);
}

#[tokio::test]
async fn what_the_host_lacks_is_named() {
    let world = World::new();
    let guests = world.agent().await;
    let start = |memory: &str| {
        guests.start(StartRequest {
            definition: definition(memory),
            ..request(1, false)
        })
    };
    assert_eq!(start("2Gi").await.unwrap_err().reason(), "InsufficientMemory");
    let mut less = facts();
    less.machine_types.clear();
    guests.set_facts(Some(less));
    assert_eq!(start("128Mi").await.unwrap_err().reason(), "MachineTypeMissing");
    let mut less = facts();
    less.cpu_models.clear();
    guests.set_facts(Some(less));
    assert_eq!(start("128Mi").await.unwrap_err().reason(), "CpuModelMissing");
    guests.set_facts(None);
    assert_eq!(
        start("128Mi").await.unwrap_err().reason(),
        "HypervisorUnavailable"
    );
    guests.set_facts(Some(facts()));
    start("1000Mi").await.unwrap();
    let other = StartRequest {
        identity: identity(OTHER, "other"),
        ..request(1, false)
    };
    assert_eq!(
        guests.start(other).await.unwrap_err().reason(),
        "InsufficientMemory"
    );
    let namesake = StartRequest {
        identity: identity(OTHER, "web"),
        ..request(1, false)
    };
    assert_eq!(guests.start(namesake).await.unwrap_err().reason(), "NameTaken");
}

#[tokio::test]
async fn without_a_record_nothing_is_launched() {
    let world = World::new();
    let guests = world.agent().await;
    fs::remove_dir(world.path("state/guests")).unwrap();
    let error = guests.start(request(1, false)).await.unwrap_err();
    assert_eq!(error.reason(), "DiskFailed");
    assert_eq!(world.hypervisor.launched(), 0);
    assert!(guests.state_problem().is_some());
    fs::create_dir(world.path("state/guests")).unwrap();
    guests.try_state().await.unwrap();
    assert_eq!(guests.state_problem(), None);
    guests.start(request(1, false)).await.unwrap();
}
