//! The objects are deleted while the handover stands at a moment: the migration, the guest, or the host it goes to. And a
//! migration that is deleted and made again under the same name, which is another one.

use anyhow::{Context as _, ensure};
use godwit_crds::{VirtualMachineHost, VirtualMachineMigration};
use godwit_lab::cases::Case;
use godwit_lab::{Lab, cases};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

use super::late::{EITHER, Kind, MOVED, Moment, SEAL, STAYS, SWITCHOVER, TOLD_GO, held};
use super::point::{Deed, Point};
use super::scene::{Scene, fresh};
use super::table::{self, Cell};
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::{Attempt, End, migrations, record};
use crate::guest::{Guest, machines, until};

/// Keeps a deleted migration readable until the test has read how it ended.
const KEPT: &str = "test.example.com/kept";

/// The source has taken the migration on, and nobody has been told.
const BEGUN: Moment = Moment {
    point: Point::of(1, "source.journaled.Begun"),
    phase: "begun",
};
/// The guest runs at the destination, and the source is to let go.
const CONFIRMED: Moment = Moment {
    point: Point::of(1, "source.event.Confirm"),
    phase: "before Confirm",
};

/// Each moment: with which guest it is met, and where the guest is when its migration is deleted then.
const MOMENTS: [(Moment, Kind, &[End]); 5] = [
    (BEGUN, Kind::Idle, STAYS),
    // Whether the source is told before it says Go is a race that either may win.
    (SEAL, Kind::Busy, EITHER),
    (SWITCHOVER, Kind::Busy, EITHER),
    (TOLD_GO, Kind::Idle, MOVED),
    (CONFIRMED, Kind::Idle, MOVED),
];

fn cell(moment: Moment, fault: &'static str, way: Way, expected: &'static [End]) -> Cell {
    Cell {
        phase: moment.phase,
        fault,
        flow: way.flow,
        expected,
    }
}

/// Has an object deleted; it goes when whoever holds it lets go.
async fn delete_migration(lab: &Lab, name: &str) -> anyhow::Result<()> {
    migrations(lab).delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// The migration's object is deleted: it is cancelled where that is not too late, and gone once it has ended.
async fn migration_deleted(
    lab: &mut Lab,
    way: Way,
    at: (Moment, Kind, &'static [End]),
) -> anyhow::Result<()> {
    let (moment, kind, expected) = at;
    let scene = held(lab, way, kind, moment.point).await?;
    let name = scene.attempt.name.clone();
    let object = migrations(lab).get(&name).await?;
    let keep = |finalizers: Vec<String>| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let all = object.finalizers().iter().cloned().chain([KEPT.into()]).collect();
    migrations(lab)
        .patch(&name, &PatchParams::default(), &keep(all))
        .await?;
    delete_migration(lab, &name).await?;
    moment.point.release(lab)?;
    let uid = scene.attempt.uid.clone();
    scene
        .ends(lab, cell(moment, "the migration is deleted", way, expected))
        .await?;
    let object = until("godwit lets go of the migration", async || {
        let object = migrations(lab).get(&name).await?;
        Ok((object.finalizers() == [KEPT]).then_some(object))
    })
    .await?;
    ensure!(object.uid().as_deref() == Some(&uid), "another migration");
    migrations(lab)
        .patch(&name, &PatchParams::default(), &keep(Vec::new()))
        .await?;
    until("the migration is gone", async || {
        Ok(migrations(lab).get_opt(&name).await?.is_none().then_some(()))
    })
    .await
}

/// The guest is deleted: its migration ends first, and then the guest is stopped wherever it is.
async fn machine_deleted(lab: &mut Lab, way: Way, at: (Moment, Kind, &'static [End])) -> anyhow::Result<()> {
    let (moment, kind, _) = at;
    let Scene {
        guest,
        attempt,
        judge,
        ..
    } = held(lab, way, kind, moment.point).await?;
    machines(lab)
        .delete(&guest.name, &DeleteParams::default())
        .await?;
    let going = guest.object(lab).await?;
    ensure!(going.meta().deletion_timestamp.is_some(), "it is to go");
    moment.point.release(lab)?;
    let ended = attempt.ended(lab).await?;
    until("the guest's object is gone", async || {
        Ok(machines(lab).get_opt(&guest.name).await?.is_none().then_some(()))
    })
    .await?;
    for number in 1..=lab.hosts.len() {
        guest.nothing_left(lab, number).await?;
    }
    ensure!(
        record(lab, &guest.uid).await.is_err(),
        "its record is still there"
    );
    guest.ran_once()?;
    println!("  {:?}, {}: {}", ended.end, ended.reason, ended.message);
    judge.agrees(ended.end)?;
    table::note(cell(moment, "the guest is deleted", way, EITHER), ended.end, None);
    if let Some(disk) = &guest.disk {
        std::fs::remove_file(disk)?;
    }
    fresh(lab).await
}

/// The destination's object is deleted, which its agent makes again; as long as it says that it has guests, it stays.
async fn destination_deleted(
    lab: &mut Lab,
    way: Way,
    at: (Moment, Kind, &'static [End]),
) -> anyhow::Result<()> {
    let (moment, kind, _) = at;
    let scene = held(lab, way, kind, moment.point).await?;
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    let before = hosts.get("h2").await?.uid();
    match hosts.delete("h2", &DeleteParams::default()).await {
        Ok(_) => println!("  deleted"),
        Err(kube::Error::Api(status)) if status.code == 422 || status.code == 403 => {
            ensure!(status.message.contains("guests"), "{status:?}");
            println!("  refused: {}", status.message);
        }
        Err(error) => return Err(error.into()),
    }
    // The one that runs the guest is never given up.
    let refused = hosts.delete("h1", &DeleteParams::default()).await;
    ensure!(refused.is_err(), "a host with a guest can be deleted");
    moment.point.release(lab)?;
    scene
        .ends(
            lab,
            cell(moment, "the destination's object is deleted", way, EITHER),
        )
        .await?;
    let after = until("the destination's object is there", async || {
        Ok(hosts.get_opt("h2").await?.map(|host| host.uid()))
    })
    .await?;
    println!("  made again: {}", before != after);
    lab.wait_until_ready().await
}

/// A migration is deleted and made again under its name at once: another one, which begins when the first has ended.
async fn one_name_twice(lab: &mut Lab, way: Way, moment: Moment, kind: Kind) -> anyhow::Result<()> {
    let scene = held(lab, way, kind, moment.point).await?;
    let name = scene.attempt.name.clone();
    let first = scene.attempt.uid.clone();
    let copy = migrations(lab).get(&name).await?.spec;
    delete_migration(lab, &name).await?;
    moment.point.release(lab)?;
    // The name is free once the first has ended, whose guest stays then.
    until("the name is free", async || {
        Ok(migrations(lab).get_opt(&name).await?.is_none().then_some(()))
    })
    .await?;
    let again = VirtualMachineMigration::new(&name, copy);
    let second = migrations(lab)
        .create(&PostParams::default(), &again)
        .await?
        .uid()
        .context("the server gives a UID")?;
    ensure!(first != second, "a new migration has a UID of its own");
    let scene = Scene {
        attempt: Attempt { name, uid: second },
        ..scene
    };
    second_ends(lab, scene, cell(moment, "deleted and made again", way, MOVED)).await
}

/// The second migration moves the guest, or says that it is there already, where the deletion of the first came too late.
async fn second_ends(lab: &mut Lab, scene: Scene, told: Cell) -> anyhow::Result<()> {
    if record(lab, &scene.guest.uid).await?.spec.holder != "h2" {
        scene.ends(lab, told).await?;
        return Ok(());
    }
    let ended = scene.attempt.ended(lab).await?;
    // Or it was moved by the second, faster than this looks.
    let there = ended.end == End::Moved || ended.reason == "SameHost";
    ensure!(there, "{ended:?}");
    scene.guest.ticks_at("h2").await?;
    scene.guest.ran_once()?;
    scene.guest.disk_is_intact()?;
    scene.judge.agrees(End::Moved)?;
    table::note(told, End::Moved, None);
    scene.guest.remove(lab).await
}

/// The source's agent is not there while a migration is deleted and made again under its name.
async fn one_name_twice_without_the_source(lab: &mut Lab, way: Way) -> anyhow::Result<()> {
    fresh(lab).await?;
    let guest = Guest::start(lab).await?;
    let judge = super::judge::Judge::watch(lab, &guest);
    BEGUN.point.arm(lab, Deed::Wait)?;
    let attempt = Scene::order(lab, way, &guest).await?;
    BEGUN.point.reached(lab).await?;
    lab.host(1)?.kill_agent();
    super::point::clear(lab)?;
    super::judge::ask_for_monitors(lab)?;
    delete_migration(lab, &attempt.name).await?;
    let waits = migrations(lab).get(&attempt.name).await?;
    ensure!(
        waits.uid().as_deref() == Some(&attempt.uid) && waits.meta().deletion_timestamp.is_some(),
        "it goes before it is known what the source has done"
    );
    let taken = VirtualMachineMigration::new(&attempt.name, waits.spec.clone());
    let refused = migrations(lab).create(&PostParams::default(), &taken).await;
    ensure!(refused.is_err(), "two objects of one name");
    lab.restart_agent(1)?;
    until("the name is free", async || {
        Ok(migrations(lab)
            .get_opt(&attempt.name)
            .await?
            .is_none()
            .then_some(()))
    })
    .await?;
    lab.wait_until_ready().await?;
    let second = migrations(lab).create(&PostParams::default(), &taken).await?;
    let scene = Scene {
        attempt: Attempt {
            name: attempt.name.clone(),
            uid: second.uid().context("the server gives a UID")?,
        },
        guest,
        way,
        judge,
    };
    ensure!(
        scene.attempt.uid != attempt.uid,
        "a new migration has a UID of its own"
    );
    second_ends(
        lab,
        scene,
        cell(BEGUN, "deleted and made again, the source away", way, MOVED),
    )
    .await
}

async fn cell_migration_deleted_in_each_phase_managed(lab: &mut Lab) -> anyhow::Result<()> {
    for at in MOMENTS {
        migration_deleted(lab, MANAGED, at).await.context(at.0.phase)?;
    }
    Ok(())
}

async fn cell_migration_deleted_in_each_phase_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    for at in MOMENTS {
        migration_deleted(lab, PEERS, at).await.context(at.0.phase)?;
    }
    Ok(())
}

async fn cell_machine_deleted_in_each_phase_managed(lab: &mut Lab) -> anyhow::Result<()> {
    for at in MOMENTS {
        machine_deleted(lab, MANAGED, at).await.context(at.0.phase)?;
    }
    Ok(())
}

async fn cell_machine_deleted_in_each_phase_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    for at in MOMENTS {
        machine_deleted(lab, PEERS, at).await.context(at.0.phase)?;
    }
    Ok(())
}

async fn cell_destination_deleted_in_each_phase_managed(lab: &mut Lab) -> anyhow::Result<()> {
    for at in MOMENTS {
        destination_deleted(lab, MANAGED, at).await.context(at.0.phase)?;
    }
    Ok(())
}

async fn cell_destination_deleted_in_each_phase_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    for at in MOMENTS {
        destination_deleted(lab, PEERS, at).await.context(at.0.phase)?;
    }
    Ok(())
}

async fn cell_one_name_twice_managed(lab: &mut Lab) -> anyhow::Result<()> {
    for (moment, kind) in [(BEGUN, Kind::Idle), (SEAL, Kind::Busy), (TOLD_GO, Kind::Idle)] {
        one_name_twice(lab, MANAGED, moment, kind)
            .await
            .context(moment.phase)?;
    }
    Ok(())
}

async fn cell_one_name_twice_without_the_source_managed(lab: &mut Lab) -> anyhow::Result<()> {
    one_name_twice_without_the_source(lab, MANAGED).await
}

async fn cell_one_name_twice_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    for (moment, kind) in [(BEGUN, Kind::Idle), (SEAL, Kind::Busy), (TOLD_GO, Kind::Idle)] {
        one_name_twice(lab, PEERS, moment, kind)
            .await
            .context(moment.phase)?;
    }
    Ok(())
}

async fn cell_one_name_twice_without_the_source_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    one_name_twice_without_the_source(lab, PEERS).await
}

pub const CASES: &[Case] = cases![
    cell_one_name_twice_without_the_source_peer_to_peer;
    long:
    cell_one_name_twice_without_the_source_managed,
    cell_one_name_twice_peer_to_peer,
    cell_migration_deleted_in_each_phase_managed,
    cell_migration_deleted_in_each_phase_peer_to_peer,
    cell_machine_deleted_in_each_phase_managed,
    cell_machine_deleted_in_each_phase_peer_to_peer,
    cell_destination_deleted_in_each_phase_managed,
    cell_destination_deleted_in_each_phase_peer_to_peer,
    cell_one_name_twice_managed,
];
