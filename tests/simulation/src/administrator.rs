//! An administrator, who knows that a host is gone for good, and says so. He never names one that is not; but he may say it
//! too early, too often, or about what has gone on since.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::custody::GUEST;
use crate::sim::Place;
use crate::world::World;

/// How long he waits for what becomes of his word before he looks again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks after the guest for as long as a host is gone.
pub async fn look_after(world: Arc<World>) {
    let dice = &world.sim.dice;
    let mut said = 0;
    loop {
        sleep(Duration::from_millis(dice.within(1500, 15_000))).await;
        let lost = Place::HOSTS.into_iter().find(|place| world.is_lost(*place));
        let Some(word) = lost.and_then(|lost| word(&world, lost)) else {
            continue;
        };
        said += 1;
        let name = format!("word-{said}");
        world.resolve(&name, word);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && world.resolved(&name).starts_with("Unknown") {
            sleep(Duration::from_millis(500)).await;
        }
        let became = world.resolved(&name);
        world
            .sim
            .note("administrator", format!("is told of {name}: {became}"));
    }
}

/// What he can say as things stand, if anything: what `kubectl godwit resolve` shows.
fn word(world: &World, lost: Place) -> Option<Value> {
    let machine = world.machine()?;
    let dice = &world.sim.dice;
    let status = &machine["status"];
    let deleted = !machine["metadata"]["deletionTimestamp"].is_null();
    let migration = world.migrations_under_way().into_iter().next();
    let action = match &migration {
        Some(migration) => {
            let destination = migration["spec"]["destination"]["host"] == lost.name();
            let strict = migration["spec"]["handoff"] == "Strict";
            match (destination, strict) {
                (true, true) => dice.one(&["Wait", "ColdStart", "ResumeSource"]),
                (true | false, _) => dice.one(&["Wait", "ColdStart"]),
            }
        }
        None if deleted => dice.one(&["Wait", "Wait", "ColdStart"]),
        None if status["host"] == lost.name() => "ColdStart",
        None => return None,
    };
    Some(json!({
        "virtualMachine": GUEST,
        "epoch": status["epoch"],
        "migration": migration.map_or(Value::Null, |migration| migration["metadata"]["uid"].clone()),
        "fencedHosts": [lost.name()],
        "action": action,
        "by": "eve",
    }))
}
