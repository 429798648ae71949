//! The source's certificate runs out amid a migration, whose parties have connected before: connections that stand go
//! on, new ones are not made until there is another certificate.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use godwit_lab::cases::{Case, LeftOut};
use godwit_lab::certificates::{Subject, host_identity};
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::{Lab, cases};

use super::clock::set;
use super::judge::Judge;
use super::point::{Deed, Point};
use super::scene::{Scene, fresh};
use super::table::Cell;
use super::way::{MANAGED, PEERS, Way};
use crate::attempt::End;
use crate::guest::Guest;

/// Long enough for a migration to come to the point, and no longer than somebody likes to wait.
const LASTS: Duration = Duration::from_secs(30);
/// The destination has the guest whole, and nobody knows.
const LOADED: Point = Point::of(2, "destination.event.Loaded");

const MOVES: &[End] = &[End::Moved];
const EITHER: &[End] = &[End::Moved, End::Stays];

/// The source's agent gets a certificate for half a minute, and a clock by which it lasts an hour longer, since else it
/// would begin nothing with it.
async fn given_a_short_one(lab: &mut Lab) -> anyhow::Result<SystemTime> {
    let (name, address) = (lab.host(1)?.name.clone(), lab.host(1)?.address);
    let directory = lab.host(1)?.directory.join("tls");
    set(lab, 1, -3600)?;
    let ends = SystemTime::now() + LASTS;
    let subject = Subject {
        common_name: name.clone(),
        uris: vec![host_identity(&name)],
        names: vec![name],
        addresses: vec![address],
        lasts: Some(LASTS),
        ..Subject::default()
    };
    lab.authority.write(&directory, &subject)?;
    lab.restart_agent(1)?;
    lab.wait_until_ready().await?;
    Ok(ends)
}

fn renew(lab: &mut Lab) -> anyhow::Result<()> {
    let host = lab.host(1)?;
    let (name, address, directory) = (host.name.clone(), host.address, host.directory.join("tls"));
    lab.authority.write_host(&directory, &name, address)?;
    Ok(())
}

/// Resets all connections to the source's agent.
fn reset(lab: &mut Lab) -> anyhow::Result<()> {
    let output = lab
        .host(1)?
        .command(Path::new("ss"))
        .args(["-HKt", "state", "established", "sport", "="])
        .arg(format!(":{AGENT_PORT}"))
        .output()?;
    ensure!(
        output.status.success() && !output.stdout.is_empty(),
        "nothing was reset: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn runs_out(lab: &mut Lab, way: Way, cut: bool) -> anyhow::Result<()> {
    if !lab.network.separate() {
        return Err(LeftOut("links cannot be cut").into());
    }
    fresh(lab).await?;
    let guest = Guest::start(lab).await?;
    let judge = Judge::watch(lab, &guest);
    let outcome = async {
        let ends = given_a_short_one(lab).await?;
        LOADED.arm(lab, Deed::Wait)?;
        let attempt = Scene::order(lab, way, &guest).await?;
        LOADED.reached(lab).await?;
        let left = ends.duration_since(SystemTime::now());
        ensure!(
            left.is_ok(),
            "the certificate ran out before the guest was loaded"
        );
        // Dates of certificates are whole seconds.
        tokio::time::sleep(left? + Duration::from_secs(2)).await;
        if cut {
            reset(lab)?;
        }
        LOADED.release(lab)?;
        if cut {
            let words = attempt.needs_decision(lab, "AgentUnreachable").await?;
            ensure!(words.contains("h1"), "{words}");
            println!("  {words}");
            ensure!(guest.ticks("h2") == 0, "it runs at the destination");
        } else {
            attempt.ended(lab).await?;
        }
        anyhow::Ok(attempt)
    }
    .await;
    renew(lab)?;
    set(lab, 1, 0)?;
    let scene = Scene {
        guest,
        attempt: outcome?,
        way,
        judge,
    };
    let cell = Cell {
        phase: "loaded, before Ready",
        fault: if cut {
            "the source's certificate runs out, and its connections are cut; renewed"
        } else {
            "the source's certificate runs out"
        },
        flow: way.flow,
        // The agents may have waited for a driver for long enough by then.
        expected: if cut { EITHER } else { MOVES },
    };
    scene.ends(lab, cell).await?;
    Ok(())
}

async fn cell_certificate_runs_out_managed(lab: &mut Lab) -> anyhow::Result<()> {
    runs_out(lab, MANAGED, false).await
}

async fn cell_certificate_runs_out_peer_to_peer(lab: &mut Lab) -> anyhow::Result<()> {
    runs_out(lab, PEERS, false).await
}

async fn cell_certificate_runs_out_and_is_needed_managed(lab: &mut Lab) -> anyhow::Result<()> {
    runs_out(lab, MANAGED, true).await
}

pub const CASES: &[Case] = cases![
    ; long:
    cell_certificate_runs_out_managed,
    cell_certificate_runs_out_peer_to_peer,
    cell_certificate_runs_out_and_is_needed_managed,
];
