//! A record that is open for a migration which is over.
//!
//! Two controllers that both believe that they lead can leave one: one of them ends the migration, cancelled before it
//! began, while the other's write that arms the record is on its way, and that other one dies. No object asks for a
//! driver then, and no other migration of the guest may begin. The migration is driven once more, as a cancelled one:
//! both sides are asked what they know of it, and how it ended is written into the record.

use std::sync::Arc;

use godwit_crds::migration::{ControlFlow, Destination, Handoff};
use godwit_crds::{GuestRecord, VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationSpec};
use godwit_handover::Terms;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::drivers::Control;
use super::reconcile::start;
use super::validate;
use crate::apply;
use crate::cluster::Cluster;
use crate::record;

/// Drives the migration for which `record` is open, unless it is at work after all.
pub async fn settle(
    cluster: &Arc<Cluster>,
    guest: &VirtualMachine,
    record: GuestRecord,
    migration: &str,
) -> Result<(), kube::Error> {
    if cluster.drivers.has(migration) {
        return Ok(());
    }
    let Some(terms) = record::terms_of_armed(&record.spec, migration) else {
        return Ok(());
    };
    // Not on the watch's word: whatever has not ended has, or will have, a driver of its own.
    let namespace = guest.namespace().unwrap_or_default();
    let api: Api<VirtualMachineMigration> = Api::namespaced(cluster.client.clone(), &namespace);
    let known = apply::within(api.list(&ListParams::default())).await?;
    let object = known
        .items
        .into_iter()
        .find(|object| object.uid().as_deref() == Some(migration));
    if object.as_ref().is_some_and(|object| !validate::ended(object)) {
        return Ok(());
    }
    tracing::warn!(
        migration,
        guest = guest.name_any(),
        "the record is open for a migration that is over; it is driven to its end"
    );
    let object = object.unwrap_or_else(|| stand_in(guest, &terms));
    let control = Control {
        cancel: true,
        bandwidth: 0,
        generation: None,
    };
    start(
        cluster,
        &Arc::new(object),
        Some(guest),
        terms,
        Some(record),
        control,
    );
    Ok(())
}

/// In place of an object that is gone. Its name is nobody's, so whatever is written about it is answered with that.
fn stand_in(guest: &VirtualMachine, terms: &Terms) -> VirtualMachineMigration {
    let mut object = VirtualMachineMigration::new(
        &terms.migration,
        VirtualMachineMigrationSpec {
            virtual_machine: guest.name_any(),
            destination: Destination {
                host: terms.destination.clone(),
            },
            // Whoever has driven it, both sides are to be told.
            control_flow: ControlFlow::ManagedDirect,
            transport: Default::default(),
            security: Default::default(),
            tuning: Default::default(),
            handoff: if terms.strict {
                Handoff::Strict
            } else {
                Handoff::Default
            },
            cancel: true,
        },
    );
    object.metadata.namespace = guest.namespace();
    object.metadata.uid = Some(terms.migration.clone());
    object
}
