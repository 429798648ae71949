//! godwit's custom resources: group `godwit.dev`, version `v1alpha1`.
//!
//! This crate holds types, their validation rules, and the ways in which a guest's record may change. The manifests under `deploy/crds` and in
//! the Helm chart are generated from it (`make generate`) and checked for drift by the tests. `docs/api.md`
//! describes the whole shape of the API, including what is not served yet; what is not served is absent here,
//! so that the API server refuses it.

#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns of one kind share their types and priorities"
)]

pub mod condition;
pub mod guest_record;
pub mod host;
pub mod migration;
pub mod quantity;
pub mod record_change;
pub mod resolution;
pub mod virtual_machine;

pub use condition::{Condition, ConditionStatus};
pub use guest_record::{ArmedMigration, Decision, GuestRecord, GuestRecordSpec, Resolution};
pub use host::{VirtualMachineHost, VirtualMachineHostSpec, VirtualMachineHostStatus};
pub use migration::{VirtualMachineMigration, VirtualMachineMigrationSpec, VirtualMachineMigrationStatus};
pub use resolution::{
    ResolutionAction, VirtualMachineResolution, VirtualMachineResolutionSpec, VirtualMachineResolutionStatus,
};
pub use virtual_machine::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};

/// The API group of every godwit resource.
pub const GROUP: &str = "godwit.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";
