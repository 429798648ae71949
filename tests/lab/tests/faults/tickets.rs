//! A host that was taken over: it has the host's certificate, and wants another host to receive a guest that nobody has
//! ordered to move.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use godwit_crds::migration::ControlFlow;
use godwit_crds::{ArmedMigration, Decision, GuestRecord};
use godwit_handover::Terms;
use godwit_lab::hosts::AGENT_PORT;
use godwit_lab::{Lab, chart};
use godwit_protocol::ticket::{Act, CLOCK_TOLERANCE, LIFETIME, SigningKey, Ticket};
use godwit_protocol::{
    AgentClient, Category, ClientTls, GuestName, Order, StreamOptions, TlsFiles, TrustDomain,
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::attempt::{Attempt, End};
use crate::guest::{Guest, until};

/// The controller's own key: not even with tickets that it has signed can more be begun than the records say.
async fn controllers_key(lab: &Lab) -> anyhow::Result<SigningKey> {
    let secrets: Api<Secret> = Api::namespaced(lab.client(), chart::NAMESPACE);
    let text = until("the controller has a key", async || {
        let data = secrets.get("godwit-ticket-key").await?.data.unwrap_or_default();
        Ok(data.get("keys").map(|bytes| bytes.0.clone()))
    })
    .await?;
    let text = String::from_utf8(text)?;
    let digits = text.get(..64).context("a key")?;
    let seed = (0..32)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(SigningKey::from_seed(&seed)?)
}

/// Calls the second host with the first one's certificate.
async fn as_h1(lab: &mut Lab) -> anyhow::Result<AgentClient> {
    let directory = lab.host(1)?.directory.join("tls");
    let files = TlsFiles {
        authorities: directory.join("ca.crt"),
        chain: directory.join("tls.crt"),
        key: directory.join("tls.key"),
    };
    let tls = ClientTls::load(&files, &TrustDomain::default())?;
    let endpoint = SocketAddr::new(lab.host(2)?.address, AGENT_PORT).to_string();
    Ok(AgentClient::connect(&endpoint, "h2", &tls).await?)
}

/// The terms of a migration that nobody has ordered.
async fn unordered(lab: &Lab, guest: &Guest) -> anyhow::Result<Terms> {
    let records: Api<GuestRecord> = Api::all(lab.client());
    Ok(Terms {
        migration: "5d1f7a1c-2f5e-4a7e-9d53-1d2c3b4a5f60".into(),
        guest: guest.uid.clone(),
        epoch: records.get(&guest.uid).await?.spec.epoch.try_into()?,
        source: "h1".into(),
        destination: "h2".into(),
        strict: false,
    })
}

/// A ticket that was made some seconds ago.
fn signed(terms: &Terms, key: &SigningKey, ago: u64) -> anyhow::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(Ticket::new(terms.clone(), Act::Receive, now - ago)?.sign(key)?)
}

/// Orders the second host to receive the guest, which it must refuse for that reason.
async fn is_refused(
    client: &AgentClient,
    (guest, terms): (&Guest, &Terms),
    (definition, ticket): (&[u8], Vec<u8>),
    reason: &str,
) -> anyhow::Result<()> {
    let order = Order::Prepare {
        guest: GuestName {
            uid: guest.uid.clone(),
            namespace: "default".into(),
            name: guest.name.clone(),
        },
        definition: definition.to_vec(),
        stream: StreamOptions::PLAIN,
        ticket,
    };
    let fault = client.order(terms, &order).await.err().context("it was taken")?;
    ensure!(
        fault.category == Category::Forbidden && fault.reason == reason,
        "not {reason}: {fault:?}"
    );
    Ok(())
}

pub async fn r2_a_host_begins_nothing_that_was_not_ordered(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let key = controllers_key(lab).await?;
    let client = as_h1(lab).await?;
    let terms = unordered(lab, &guest).await?;
    let another = Terms {
        source: "h3".into(),
        ..terms.clone()
    };
    let cases = [
        (Vec::new(), "TicketMissing"),
        (signed(&terms, &SigningKey::generate()?, 0)?, "TicketKeyUnknown"),
        (signed(&another, &key, 0)?, "TicketForAnother"),
        (signed(&terms, &key, LIFETIME + CLOCK_TOLERANCE)?, "TicketExpired"),
        // As good as can be, but the guest's record knows nothing of it.
        (signed(&terms, &key, 0)?, "TicketForAnother"),
    ];
    for (ticket, reason) in cases {
        is_refused(&client, (&guest, &terms), (b"{}", ticket), reason).await?;
    }
    ensure!(lab.host(2)?.hypervisors().is_empty(), "a hypervisor was started");
    // None of it is in the way of what is ordered.
    let attempt = Attempt::order(lab, &guest.name, "h2").await?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    Ok(())
}

/// The move itself was ordered; what the source says of the guest is a lie.
pub async fn r14_a_host_cannot_change_what_a_guest_is(lab: &mut Lab) -> anyhow::Result<()> {
    let guest = Guest::start(lab).await?;
    let key = controllers_key(lab).await?;
    let client = as_h1(lab).await?;
    let terms = unordered(lab, &guest).await?;
    let records: Api<GuestRecord> = Api::all(lab.controller_client().await?);
    let write = async |migration: Option<ArmedMigration>, decision: Decision| -> anyhow::Result<()> {
        let mut record = records.get(&guest.uid).await?;
        if migration.is_some() {
            record.spec.migration = migration;
        }
        record.spec.decision = decision;
        records
            .replace(&guest.uid, &PostParams::default(), &record)
            .await?;
        Ok(())
    };
    let armed = ArmedMigration {
        uid: terms.migration.clone(),
        source: terms.source.clone(),
        destination: terms.destination.clone(),
        strict: false,
    };
    write(Some(armed), Decision::None).await?;
    let spec = guest.object(lab).await?.spec;
    let mut larger = spec.clone();
    larger.memory = "4Gi".into();
    let mut with_a_disk = serde_json::to_value(&spec)?;
    with_a_disk["disks"] = json!([{"name": "stolen", "file": {"file": "another-guests.img"}}]);
    let (one, two) = (serde_json::to_vec(&larger)?, serde_json::to_vec(&with_a_disk)?);
    for definition in [one.as_slice(), &two, b"{}"] {
        let shown = (definition, signed(&terms, &key, 0)?);
        is_refused(&client, (&guest, &terms), shown, "DefinitionMismatch").await?;
    }
    ensure!(lab.host(2)?.hypervisors().is_empty(), "a hypervisor was started");
    write(None, Decision::Aborted).await?;
    // What is true is taken.
    let attempt = Attempt::order_driven(lab, ControlFlow::PeerToPeer, &guest.name, "h2").await?;
    attempt.settles(lab, guest, &[End::Moved]).await?;
    Ok(())
}
