//! The kinds that the program speaks of.

use std::fmt::Debug;

use godwit_crds::{VirtualMachine, VirtualMachineHost, VirtualMachineMigration, VirtualMachineResolution};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind of godwit's, and how its objects are reached.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static
{
    /// The plural, as RBAC names it.
    const PLURAL: &'static str;
    /// Whether its objects lie in namespaces.
    const NAMESPACED: bool;

    /// The objects in `namespace`, or all for a kind without namespaces.
    fn api(client: &Client, namespace: &str) -> Api<Self>;
}

impl Kind for VirtualMachine {
    const PLURAL: &'static str = "virtualmachines";
    const NAMESPACED: bool = true;

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }
}

impl Kind for VirtualMachineMigration {
    const PLURAL: &'static str = "virtualmachinemigrations";
    const NAMESPACED: bool = true;

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }
}

impl Kind for VirtualMachineResolution {
    const PLURAL: &'static str = "virtualmachineresolutions";
    const NAMESPACED: bool = true;

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }
}

impl Kind for VirtualMachineHost {
    const PLURAL: &'static str = "virtualmachinehosts";
    const NAMESPACED: bool = false;

    fn api(client: &Client, _namespace: &str) -> Api<Self> {
        Api::all(client.clone())
    }
}
