//! What an earlier attempt has left behind is not mistaken for what is there now.

use godwit_agent::guests::Role as Standing;
use godwit_agent::migration::journal::{Head, Journal, Line, Role};
use godwit_handover::{DestinationEntry, Go, GoEvidence, Outcome, SourceEntry, Terms, Wanted};
use godwit_protocol::StreamOptions;

use super::world::{World, eventually};

/// An attempt whose disk failed could not tell its journal that it had ended. The guest has come by another attempt since,
/// under the same epoch: the restarted agent ends the first one, and leaves the guest alone.
#[tokio::test]
async fn a_guest_that_came_by_another_attempt_is_not_taken_for_the_first_ones() {
    let mut world = World::new().await;
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;

    let earlier = Terms {
        migration: "migration-0".into(),
        ..world.terms.clone()
    };
    let head = Head {
        migration: earlier.migration.clone(),
        guest: earlier.guest.clone(),
        role: Role::Destination,
        boot_id: "boot".into(),
        stream: StreamOptions::PLAIN,
    };
    let journals = world.destination.directory.path().join("journals");
    let mut journal = Journal::create(&journals, &head).unwrap();
    journal
        .append(&Line::Entry(DestinationEntry::Prepared { terms: earlier }))
        .unwrap();
    drop(journal);

    world.destination.restart().await;
    eventually("the earlier attempt ends", || {
        world.destination.agent.active().is_empty()
    })
    .await;
    assert!(world.destination.agent.unresolved().is_empty());
    world.nothing_went_wrong();
    assert_eq!(world.arena.running(), ["host-b"]);
    let kept = world.destination.kept.lock().unwrap();
    assert_eq!(
        (&kept["guest-1"].role, kept["guest-1"].epoch),
        (&Standing::Held, 5)
    );
}

/// The source's disk failed as Go was written down; the destination took the guest over by the record, the source let go,
/// and the driver has ended. The restarted agent finds a journal that never was told: the record tells it.
#[tokio::test]
async fn a_source_whose_journal_was_not_told_the_end_is_told_it_by_the_record() {
    let mut world = World::new().await;
    assert_eq!(world.conduct().await, Outcome::Succeeded { running: true });
    world.is_at_destination().await;

    let head = Head {
        migration: world.terms.migration.clone(),
        guest: world.terms.guest.clone(),
        role: Role::Source,
        boot_id: "boot".into(),
        stream: StreamOptions::PLAIN,
    };
    let begun = SourceEntry::Begun {
        terms: world.terms.clone(),
        budget_micros: 300_000,
    };
    let intent = SourceEntry::Intent { wanted: Wanted::Run };
    let go = SourceEntry::GoSent(Go {
        evidence: GoEvidence::Completed,
        wanted: Wanted::Run,
        sealed: true,
    });
    // The entry may have reached the disk, or not.
    for entries in [
        vec![begun.clone(), intent.clone(), SourceEntry::Sealed, go],
        vec![begun, intent, SourceEntry::Sealed],
    ] {
        std::fs::remove_file(world.source.journal()).unwrap();
        let journals = world.source.directory.path().join("journals");
        let mut journal = Journal::create(&journals, &head).unwrap();
        for entry in entries {
            journal.append(&Line::Entry(entry)).unwrap();
        }
        drop(journal);

        world.source.restart().await;
        eventually("the source's side ends", || {
            world.source.agent.active().is_empty()
        })
        .await;
        assert!(world.source.agent.unresolved().is_empty());
        world.is_at_destination().await;
    }
}
