//! Guests move.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use godwit_crds::migration::MigrationPhase;
use godwit_crds::{Decision, VirtualMachineHost};
use godwit_lab::Lab;
use godwit_lab::guest::{self, migrations};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::ResourceExt as _;
use kube::api::ListParams;

use crate::setting::{SOON, clear, linux, lives_on, moves, start};
use crate::traces::{GONE_WITHIN, Holdings, settles};

const CHECKED_WITHIN: Duration = Duration::from_secs(90);

/// How many moves are made in a row.
const MOVES: usize = 50;

pub async fn a_guest_moves(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("mover", "128Mi", "godwit.dirty=2M")).await?;
    let files_before = lab.hosts[0].files()?.len();
    let migration = moves(lab, &guest, "mover-1", &lab.hosts[1]).await?;
    lives_on(lab, &guest, 2, 2).await?;
    guest.check_memory(&lab.hosts[1], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.memory_intact() && verdict.counter_continuous(),
        "{verdict:?}"
    );
    ensure!(verdict.moves.len() == 1, "{verdict:?}");

    // The record says what was decided, and the status what happened.
    let record = guest.record(lab.client()).await?.spec;
    ensure!(record.decision == Decision::Committed, "{record:?}");
    ensure!(
        record.migration.as_ref().map(|armed| &armed.uid) == migration.uid().as_ref(),
        "{record:?}"
    );
    let status = migration.status.context("a status")?;
    ensure!(status.phase == Some(MigrationPhase::Succeeded), "{status:?}");
    ensure!(
        status.source.as_deref() == Some("h1") && status.destination.as_deref() == Some("h2"),
        "{status:?}"
    );
    ensure!(status.epoch == Some(1) && status.failure.is_none(), "{status:?}");
    let phases: Vec<_> = status.timeline.iter().map(|times| times.phase).collect();
    ensure!(
        phases
            == [
                MigrationPhase::Begin,
                MigrationPhase::Prepare,
                MigrationPhase::Perform,
                MigrationPhase::Finish,
                MigrationPhase::Confirm
            ],
        "{phases:?}"
    );
    ensure!(
        status.timeline.iter().all(|times| times.ended_at.is_some()),
        "{:?}",
        status.timeline
    );
    let progress = status.progress.context("progress")?;
    ensure!(
        progress.total_bytes >= 128 << 20 && progress.transferred_bytes > 16 << 20,
        "{progress:?}"
    );
    // The silence that the guest's user felt holds the time that godwit measured, but for what both are uncertain by.
    let downtime = status.downtime.context("a downtime")?;
    let unseen = i64::try_from(guest.observer.blind().as_micros())?;
    let uncertain = downtime.clock_uncertainty_micros + 20_000 + unseen;
    let felt = i64::try_from(verdict.moves[0].silence_ns / 1000)?;
    ensure!(
        downtime.stop_to_resume_micros > 0 && downtime.stop_to_resume_micros <= felt + uncertain,
        "{downtime:?}, and the guest was silent for {felt} µs"
    );

    // The source keeps the journal of the migration and nothing else.
    let files = lab.hosts[0].files()?;
    let journals = files
        .iter()
        .filter(|file| file.extension().is_some_and(|word| word == "journal"))
        .count();
    ensure!(journals == 1 && files.len() < files_before, "{files:?}");
    let hosts: Api<VirtualMachineHost> = Api::all(lab.client());
    let holds = |count: usize, epoch: i64| {
        let uid = guest.uid.clone();
        move |host: Option<&VirtualMachineHost>| {
            let status = host.and_then(|host| host.status.as_ref());
            status.is_some_and(|status| {
                status.guests.len() == count
                    && status
                        .guests
                        .iter()
                        .all(|guest| guest.uid == uid && guest.epoch == epoch)
            })
        }
    };
    guest::until(&hosts, "h1", SOON, "it reports no guest", holds(0, 0)).await?;
    guest::until(&hosts, "h2", SOON, "it reports the guest at epoch 2", holds(1, 2)).await?;

    // One event for each transition.
    let uid = migrations(lab).get("mover-1").await?.uid().context("a UID")?;
    let events: Api<Event> = Api::namespaced(lab.client(), guest::NAMESPACE);
    let filter = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    let all = [
        "Begin",
        "Confirm",
        "Finish",
        "Perform",
        "Prepare",
        "RecordDecided",
        "Succeeded",
    ];
    // They are written behind.
    let deadline = Instant::now() + SOON;
    let list = loop {
        let list = events.list(&filter).await?;
        if list.items.len() >= all.len() || Instant::now() > deadline {
            break list;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut reasons: Vec<_> = list
        .iter()
        .map(|event| event.reason.clone().unwrap_or_default())
        .collect();
    reasons.sort();
    ensure!(reasons == all, "{reasons:?}");
    ensure!(
        list.iter().all(|event| event.count.unwrap_or(1) == 1),
        "an event came twice"
    );
    Ok(())
}

pub async fn fifty_moves_in_a_row(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    let guest = start(lab, linux("traveller", "128Mi", "godwit.dirty=1M")).await?;
    let mut before = None;
    let begun = Instant::now();
    for number in 1..=MOVES {
        let to = &lab.hosts[number % 2];
        moves(lab, &guest, &format!("traveller-{number}"), to)
            .await
            .with_context(|| format!("move {number}"))?;
        if number == 2 {
            // There and back once: connections that last have been made.
            lives_on(lab, &guest, 1, 3).await?;
            before = Some((Holdings::of(lab.host(1)?)?, Holdings::of(lab.host(2)?)?));
        }
    }
    let took = begun.elapsed();
    let epoch = i64::try_from(MOVES)? + 1;
    lives_on(lab, &guest, 1, epoch).await?;
    guest.check_memory(&lab.hosts[0], CHECKED_WITHIN)?;
    let verdict = guest.observer.verdict();
    ensure!(
        verdict.counter_continuous() && verdict.memory_intact(),
        "{verdict:?}"
    );
    ensure!(verdict.moves.len() == MOVES, "{} moves seen", verdict.moves.len());
    let (h1, h2) = before.context("two moves were made")?;
    for (number, before) in [(1, h1), (2, h2)] {
        let host = lab.host(number)?;
        settles("an agent holds what it held after two moves", GONE_WITHIN, || {
            Ok(Holdings::of(host)?.beyond(&before))
        })
        .await?;
    }
    println!("  {MOVES} moves in {:.1} s", took.as_secs_f64());
    Ok(())
}

/// A guest that gets no time of its machine changes little memory, and its hypervisor may come to the end before the
/// agent looks. That does not happen every time.
const SEALED_WITHIN: usize = 5;

pub async fn a_busy_guest_is_sealed(lab: &mut Lab) -> anyhow::Result<()> {
    clear(lab).await?;
    if !lab.network.separate() {
        println!("  skipped: links cannot be shaped");
        return Ok(());
    }
    // It changes 8 MiB again and again, faster than the link carries: by itself it would never be done.
    let guest = start(
        lab,
        linux("busy", "128Mi", "godwit.working_set=8M godwit.dirty=40M"),
    )
    .await?;
    let mut downtimes = Vec::new();
    for number in 1..=SEALED_WITHIN {
        let (from, to) = if number % 2 == 1 { (1, 2) } else { (2, 1) };
        lab.network.shape(from, Some(300))?;
        let migration = moves(lab, &guest, &format!("busy-{number}"), &lab.hosts[to - 1]).await;
        lab.network.shape(from, None)?;
        let migration = migration?;
        lives_on(lab, &guest, to, i64::try_from(number)? + 1).await?;
        guest.check_memory(&lab.hosts[to - 1], CHECKED_WITHIN)?;
        let verdict = guest.observer.verdict();
        ensure!(verdict.memory_intact(), "{verdict:?}");
        let status = migration.status.context("a status")?;
        let downtime = status.downtime.context("a downtime")?;
        // 8 MiB at 300 Mbit/s are 224 ms; the rest is what a busy machine adds.
        if downtime.sealed && downtime.stop_to_resume_micros < 2_000_000 {
            return Ok(());
        }
        downtimes.push(downtime);
    }
    bail!("{downtimes:?}")
}
