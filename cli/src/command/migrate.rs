//! `migrate`.

use std::time::Duration;

use godwit_crds::migration::{
    ControlFlow, Destination, Handoff, Security, SecurityRequirement, Transport, Tuning,
};
use godwit_crds::{VirtualMachine, VirtualMachineHost, VirtualMachineMigration, VirtualMachineMigrationSpec};
use kube::ResourceExt as _;
use kube::api::{ObjectMeta, PostParams};

use super::status;
use crate::args::{MigrateArgs, ObjectFormat};
use crate::connect::Cluster;
use crate::error::{CliError, is_forbidden};
use crate::exit::Exit;
use crate::output;
use crate::resource::Kind;
use crate::text::{NAME, clean};

/// How long `--wait` waits unless told otherwise: a guest of some tens of GiB on a slow network.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(600);

/// Creates the migration, and follows it if asked to.
pub async fn run(cluster: &Cluster, args: &MigrateArgs) -> Result<Exit, CliError> {
    look_up::<VirtualMachine>(cluster, &args.vm).await?;
    look_up::<VirtualMachineHost>(cluster, &args.to).await?;
    let action = cluster.action::<VirtualMachineMigration>("create", args.name.as_deref());
    let created = cluster
        .api::<VirtualMachineMigration>()
        .create(&PostParams::default(), &request(args))
        .await
        .map_err(|e| action.failed(e))?;
    if args.wait {
        if args.output.is_none() {
            output::line(&format!("{} created", reference(&created)))?;
        }
        return status::watch(
            cluster,
            &created,
            Some(args.timeout.unwrap_or(DEFAULT_WAIT)),
            args.output,
        )
        .await;
    }
    match args.output {
        Some(ObjectFormat::Json) => output::object(&created)?,
        None => output::line(&format!(
            "{} created\nWatch it: kubectl godwit status {} -n {} --watch",
            reference(&created),
            clean(&created.name_any(), NAME),
            clean(&cluster.namespace, NAME),
        ))?,
    }
    Ok(Exit::Success)
}

/// The object to create.
fn request(args: &MigrateArgs) -> VirtualMachineMigration {
    let spec = VirtualMachineMigrationSpec {
        virtual_machine: args.vm.clone(),
        destination: Destination {
            host: args.to.clone(),
        },
        control_flow: if args.managed {
            ControlFlow::ManagedDirect
        } else {
            ControlFlow::default()
        },
        transport: if args.tunnelled {
            Transport::Tunnelled
        } else {
            Transport::Native
        },
        security: Security {
            require: if args.plain_text {
                SecurityRequirement::None
            } else {
                SecurityRequirement::Encrypted
            },
        },
        tuning: tuning(args),
        handoff: if args.strict {
            Handoff::Strict
        } else {
            Handoff::Default
        },
        cancel: false,
    };
    let mut migration = VirtualMachineMigration::new("", spec);
    migration.metadata = ObjectMeta {
        name: args.name.clone(),
        generate_name: args.name.is_none().then(|| format!("{}-", args.vm)),
        ..Default::default()
    };
    migration
}

/// What was said, and the server's defaults for the rest.
fn tuning(args: &MigrateArgs) -> Tuning {
    let Tuning {
        max_downtime,
        bandwidth,
        parallel_connections,
    } = Tuning::default();
    Tuning {
        max_downtime: args.max_downtime.clone().unwrap_or(max_downtime),
        bandwidth: args.bandwidth.clone().unwrap_or(bandwidth),
        parallel_connections: args.parallel_connections.unwrap_or(parallel_connections),
    }
}

/// A slip in a name is told before an object is made that can only fail. Whoever may create migrations but not
/// read this kind goes on: the controller checks again.
async fn look_up<K: Kind>(cluster: &Cluster, name: &str) -> Result<(), CliError> {
    match cluster.get::<K>(name).await {
        Ok(_) => Ok(()),
        Err(e) if is_forbidden(&e) => Ok(()),
        Err(e) => Err(e),
    }
}

/// As kubectl names an object that it made.
fn reference(migration: &VirtualMachineMigration) -> String {
    format!(
        "virtualmachinemigration.godwit.dev/{}",
        clean(&migration.name_any(), NAME)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> MigrateArgs {
        MigrateArgs {
            vm: "web1".into(),
            to: "node-b".into(),
            managed: false,
            strict: false,
            plain_text: true,
            tunnelled: false,
            name: None,
            max_downtime: None,
            bandwidth: None,
            parallel_connections: None,
            wait: false,
            timeout: None,
            output: None,
        }
    }

    #[test]
    fn the_request_says_what_must_be_said() {
        let json = serde_json::to_value(request(&args())).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "apiVersion": "godwit.dev/v1alpha1",
                "kind": "VirtualMachineMigration",
                "metadata": {"generateName": "web1-"},
                "spec": {
                    "virtualMachine": "web1", "destination": {"host": "node-b"}, "controlFlow": "PeerToPeer",
                    "transport": "Native", "security": {"require": "None"}, "tuning": {"maxDowntime": "300ms", "bandwidth": "0", "parallelConnections": 1},
                    "handoff": "Default", "cancel": false
                }
            })
        );
    }

    #[test]
    fn a_name_and_the_tuning_are_passed_on() {
        let given = MigrateArgs {
            name: Some("m1".into()),
            max_downtime: Some("50ms".into()),
            bandwidth: Some("100Mi".into()),
            parallel_connections: Some(4),
            managed: true,
            ..args()
        };
        let object = request(&given);
        assert_eq!(object.metadata.name.as_deref(), Some("m1"));
        assert_eq!(object.metadata.generate_name, None);
        assert_eq!(object.spec.tuning.max_downtime, "50ms");
        assert_eq!(object.spec.tuning.bandwidth, "100Mi");
        assert_eq!(object.spec.tuning.parallel_connections, 4);
        assert_eq!(object.spec.control_flow, ControlFlow::ManagedDirect);
    }

    #[test]
    fn the_way_is_the_one_that_was_asked_for() {
        let tunnelled = MigrateArgs {
            tunnelled: true,
            ..args()
        };
        assert_eq!(request(&tunnelled).spec.transport, Transport::Tunnelled);
        assert_eq!(request(&args()).spec.transport, Transport::Native);
        let strict = MigrateArgs {
            strict: true,
            ..args()
        };
        assert_eq!(request(&strict).spec.handoff, Handoff::Strict);
    }

    #[test]
    fn memory_is_encrypted_unless_plain_text_is_said() {
        let encrypted = request(&MigrateArgs {
            plain_text: false,
            ..args()
        });
        assert_eq!(encrypted.spec.security.require, SecurityRequirement::Encrypted);
        assert_eq!(request(&args()).spec.security.require, SecurityRequirement::None);
    }
}
