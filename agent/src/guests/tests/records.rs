//! What the guest's record has to say to an order that is late.

use super::*;

/// The guest's record, as a test wants it; `None`: it cannot be read.
struct Written(Mutex<Option<RecordView>>);

#[async_trait]
impl Records for Written {
    async fn whole(&self, _guest: &str) -> Option<Recorded> {
        let view = self.0.lock().unwrap().clone()?;
        Some(Recorded {
            strict: false,
            view,
            definition: String::new(),
        })
    }
}

fn written(holder: &str, epoch: u64, migration: Option<&str>, decision: Decision) -> RecordView {
    RecordView {
        holder: holder.into(),
        epoch,
        migration: migration.map(Into::into),
        decision,
        started: false,
        word: None,
    }
}

#[tokio::test]
async fn an_old_order_does_not_start_a_guest_that_has_left() {
    let world = World::new();
    let guests = world.agent().await;
    let record = Arc::new(Written(Mutex::new(Some(written(
        "here",
        1,
        None,
        Decision::None,
    )))));
    guests.obey(record.clone());
    let write = |view| *record.0.lock().unwrap() = view;
    guests.start(request(1, false)).await.unwrap();
    guests.protect(&leaving("m")).await.unwrap();
    write(Some(written("there", 2, Some("m"), Decision::Committed)));
    guests.release(UID, "m").await.unwrap();
    world.assert_nothing_left();

    // Whoever gave this order had read the record before the guest was first started.
    assert_eq!(
        guests.start(request(1, false)).await.unwrap_err().reason(),
        "StaleEpoch"
    );
    world.assert_nothing_left();
    for unsaid in [
        None,
        Some(written("there", 1, None, Decision::None)),
        Some(written("here", 1, Some("m"), Decision::None)),
    ] {
        write(unsaid);
        guests.start(request(1, true)).await.unwrap_err();
        world.assert_nothing_left();
    }
    write(Some(written("here", 1, Some("m"), Decision::Aborted)));
    guests.start(request(1, false)).await.unwrap();
}
