//! `VirtualMachineResolution`: an administrator's last word about a guest whose host is gone for good.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// What an administrator says about a guest that no evidence decides: which hosts he has made sure run nothing any more,
/// and what is to become of the guest. It cannot be changed; another word is another object.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "godwit.dev",
    version = "v1alpha1",
    kind = "VirtualMachineResolution",
    plural = "virtualmachineresolutions",
    shortname = "vmres",
    category = "godwit",
    namespaced,
    derive = "PartialEq",
    status = "VirtualMachineResolutionStatus",
    doc = "An administrator's last word about a guest whose host is gone for good. Made by `kubectl godwit resolve`.",
    selectable = ".spec.virtualMachine",
    printcolumn(name = "Guest", type_ = "string", json_path = ".spec.virtualMachine"),
    printcolumn(name = "Fenced", type_ = "string", json_path = ".spec.fencedHosts"),
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by"),
    printcolumn(
        name = "Applied",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Applied')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Applied')].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("a resolution is immutable; make a new one"),
    validation = Rule::new("self.action != 'ResumeSource' || has(self.migration)").message("ResumeSource is about a migration: name its UID"),
    validation = Rule::new("!has(self.host) || self.action == 'ColdStart'").message("host says where a guest is started afresh: it goes with ColdStart alone"),
    validation = Rule::new("!has(self.host) || !(self.host in self.fencedHosts)").message("a guest is not started on a host that is fenced")
)]
pub struct VirtualMachineResolutionSpec {
    /// The VirtualMachine, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub virtual_machine: String,
    /// The guest's epoch (`status.epoch` of the VirtualMachine) that was looked at. Where it has changed, this word is
    /// refused.
    #[schemars(range(min = 1, max = 9_007_199_254_740_991i64))]
    pub epoch: i64,
    /// The UID of the migration that waits, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub migration: Option<String>,
    /// The hosts that are fenced: switched off, or cut off from the guest's disks and networks for good. On whoever
    /// says so wrongly rests a guest that runs twice. A host whose agent still answers is not believed to be fenced.
    #[schemars(length(min = 1, max = 2), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub fenced_hosts: Vec<String>,
    /// What is to become of the guest.
    pub action: ResolutionAction,
    /// ColdStart only: the host on which the guest is started; left out, one with room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// Who says so: the API server's name of the user who makes this object, which is checked.
    #[schemars(length(min = 1, max = 253))]
    pub by: String,
    /// Why, for whoever reads it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub note: Option<String>,
}

/// What is to become of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ResolutionAction {
    /// Only that the hosts are fenced is said: godwit does what follows from it alone, and else goes on waiting.
    Wait,
    /// The guest's memory is given up for lost, and the guest is started afresh from its disks.
    ColdStart,
    /// The source's image goes on, where the record proves that the destination has never started its own: a migration with
    /// `handoff: Strict` that is committed and not started.
    ResumeSource,
}

/// What became of an administrator's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineResolutionStatus {
    /// `Applied`: whether the guest's record has taken the word in, and what came of it.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The UID of the guest that was let go without the fenced host that held it. The guest's record stays until that host is
    /// back and has given up what it still has of the guest, or until this object is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub let_go: Option<String>,
}
