//! `GuestRecord`: who may run a guest.
//!
//! One object per guest, cluster-scoped and named by the VirtualMachine's UID, so that no namespaced role
//! reaches it and no namespace's deletion takes it away. It is changed by compare-and-swap only. The rules below
//! make the API server itself refuse an epoch that shrinks, a holder that changes without a commitment, a
//! decision that is taken back, and a new migration while an older one is undecided.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Who may run the guest. Written by godwit alone.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "godwit.dev",
    version = "v1alpha1",
    kind = "GuestRecord",
    plural = "guestrecords",
    category = "godwit-internal",
    derive = "PartialEq",
    doc = "Internal: which host may run a guest, at which epoch, and what was decided about its last migration. Written by godwit alone; deleting or editing it by hand can lose or double a guest.",
    selectable = ".spec.holder",
    printcolumn(name = "Guest", type_ = "string", json_path = ".spec.guest.name"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.guest.namespace"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.holder"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "Migration", type_ = "string", json_path = ".spec.migration.uid", priority = 1),
    validation = Rule::new("self.metadata.name == self.spec.guest.uid").message("a GuestRecord is named by its guest's UID")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.guest == oldSelf.guest").message("a record's guest never changes"),
    validation = Rule::new("self.epoch == oldSelf.epoch || self.epoch == oldSelf.epoch + 1").message("the epoch grows by one, at a handover, and never shrinks"),
    validation = Rule::new("(self.holder == oldSelf.holder) == (self.epoch == oldSelf.epoch)").message("the holder and the epoch change together"),
    validation = Rule::new("self.holder == oldSelf.holder || (self.decision == 'Committed' && has(self.migration) && self.holder == self.migration.destination && oldSelf.holder == self.migration.source && has(oldSelf.migration) && oldSelf.migration.uid == self.migration.uid) || (has(self.resolution) && has(self.resolution.coldStart) && self.resolution.coldStart == self.epoch && oldSelf.holder in self.resolution.fenced && !has(self.migration))").message("the holder changes only by committing the armed migration, from its source to its destination, or by a cold start where the old one is fenced"),
    validation = Rule::new("!has(oldSelf.migration) || has(self.migration) || (has(self.resolution) && has(self.resolution.coldStart) && self.resolution.coldStart == self.epoch && self.epoch == oldSelf.epoch + 1)").message("an armed migration is replaced by the next one, or ended by a cold start, never removed"),
    validation = Rule::new("!has(oldSelf.resolution) || has(self.resolution)").message("an administrator's word is replaced by the next one, never removed"),
    validation = Rule::new("!(has(self.resolution) && has(oldSelf.resolution) && self.resolution.uid == oldSelf.resolution.uid) || (self.resolution.fenced == oldSelf.resolution.fenced && self.resolution.lost == oldSelf.resolution.lost && self.resolution.by == oldSelf.resolution.by && has(self.resolution.migration) == has(oldSelf.resolution.migration) && (!has(self.resolution.migration) || self.resolution.migration == oldSelf.resolution.migration) && (!has(oldSelf.resolution.coldStart) || (has(self.resolution.coldStart) && self.resolution.coldStart == oldSelf.resolution.coldStart)))").message("an administrator's word does not change"),
    validation = Rule::new("!(has(self.resolution) && has(self.resolution.coldStart)) || self.resolution.coldStart <= self.epoch").message("a guest is started afresh at an epoch of its own"),
    validation = Rule::new("!(has(self.resolution) && has(self.resolution.coldStart) && self.resolution.coldStart == self.epoch) || !(self.holder in self.resolution.fenced) || self.epoch == oldSelf.epoch").message("a guest is not started afresh on a fenced host"),
    validation = Rule::new("!(has(self.migration) && has(oldSelf.migration) && self.migration.uid == oldSelf.migration.uid) || self.migration == oldSelf.migration").message("an armed migration is immutable"),
    validation = Rule::new("!(has(self.migration) && has(oldSelf.migration) && self.migration.uid == oldSelf.migration.uid) || self.decision == oldSelf.decision || oldSelf.decision == 'None' || (oldSelf.decision == 'Committed' && oldSelf.holder == oldSelf.migration.source && self.decision == 'Reverted')").message("a decision is final; only a commitment that was not advanced may be reverted"),
    validation = Rule::new("(has(self.migration) && has(oldSelf.migration) && self.migration.uid == oldSelf.migration.uid) || !has(oldSelf.migration) || oldSelf.decision in ['Aborted', 'Reverted'] || (oldSelf.decision == 'Committed' && oldSelf.holder == oldSelf.migration.destination)").message("a new migration is armed only after the last one is finally decided"),
    validation = Rule::new("(has(self.migration) && has(oldSelf.migration) && self.migration.uid == oldSelf.migration.uid) || !has(self.migration) || (self.decision == 'None' && !self.started && self.migration.source == self.holder && self.holder == oldSelf.holder)").message("a migration is armed undecided, with the holder as its source"),
    validation = Rule::new("!(has(self.migration) && has(oldSelf.migration) && self.migration.uid == oldSelf.migration.uid) || self.started == oldSelf.started || (self.started && self.migration.strict && self.decision == 'Committed' && oldSelf.decision == 'Committed' && self.holder == oldSelf.holder)").message("a start is recorded of a strict migration alone, between its commitment and its advance"),
    validation = Rule::new("has(self.migration) || (self.decision == 'None' && !self.started)").message("without a migration there is nothing to decide")
)]
pub struct GuestRecordSpec {
    /// The guest.
    pub guest: GuestReference,
    /// The host that holds the guest: the only one that may run it.
    #[schemars(length(min = 1, max = 253))]
    pub holder: String,
    /// Grows by one at each handover.
    #[schemars(range(min = 1, max = 9_007_199_254_740_991i64))]
    pub epoch: i64,
    /// The migration that the record is armed for, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<ArmedMigration>,
    /// What was decided about that migration.
    #[serde(default)]
    pub decision: Decision,
    /// Strict handoff only: the destination has said that it starts the guest.
    #[serde(default)]
    pub started: bool,
    /// The administrator's last word about the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// Who wrote last, so that a writer whose reply was lost recognises its own write. An agent
    /// signs with its host's name, alone or followed by a slash and more: nothing else is accepted from it.
    #[schemars(length(min = 1, max = 253))]
    pub writer: String,
    /// Why the last write was right, in words for an auditor.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub evidence: String,
}

/// A VirtualMachine, by name for people and by UID for programs, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestReference {
    /// Namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
    /// SHA-256, in hexadecimal, of the definition under which the guest is first started. A host that is to receive the
    /// guest takes no other from the source.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub definition: String,
}

/// The migration for which a record is armed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.source != self.destination").message("source and destination differ"))]
pub struct ArmedMigration {
    /// The VirtualMachineMigration's UID.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
    /// The host that holds the guest.
    #[schemars(length(min = 1, max = 253))]
    pub source: String,
    /// The host that is to hold it.
    #[schemars(length(min = 1, max = 253))]
    pub destination: String,
    /// Whether the destination must record `started` before it runs the guest.
    #[serde(default)]
    pub strict: bool,
}

/// An administrator's word, as the controller has taken it in from a VirtualMachineResolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolution {
    /// The VirtualMachineResolution's UID.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
    /// Who said so, as the API server knows him.
    #[schemars(length(min = 1, max = 253))]
    pub by: String,
    /// The hosts that he has said are fenced: nothing runs there any more.
    #[schemars(length(min = 1, max = 2), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub fenced: Vec<String>,
    /// The migration that it is about, if one was undecided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub migration: Option<String>,
    /// Whether the image that a fenced destination may have run is given up for lost.
    #[serde(default)]
    pub lost: bool,
    /// The epoch at which the guest was started afresh by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 9_007_199_254_740_991i64))]
    pub cold_start: Option<i64>,
}

/// What was decided about the armed migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Decision {
    /// Nothing yet.
    #[default]
    None,
    /// The destination may run the guest. Final once the holder is the destination.
    Committed,
    /// The destination never will; the source decided.
    Aborted,
    /// The destination never will; the destination decided.
    Reverted,
}
