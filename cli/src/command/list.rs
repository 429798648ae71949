//! `guests` and `hosts`.

use godwit_crds::{VirtualMachine, VirtualMachineHost};
use jiff::Timestamp;
use kube::api::ListParams;

use crate::args::{GuestsArgs, HostsArgs, ListFormat};
use crate::connect::Cluster;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output;
use crate::text::{NAME, clean};
use crate::view;
use crate::view::guests::Columns;

/// Lists guests.
pub async fn guests(cluster: &Cluster, args: &GuestsArgs) -> Result<Exit, CliError> {
    let mut action = cluster.action::<VirtualMachine>("list", None);
    let api = if args.all_namespaces {
        action.namespace = None;
        cluster.everywhere::<VirtualMachine>()
    } else {
        cluster.api::<VirtualMachine>()
    };
    let machines = api
        .list(&ListParams::default())
        .await
        .map_err(|e| action.failed(e))?
        .items;
    match args.output {
        Some(ListFormat::Json) => output::list(&machines)?,
        Some(ListFormat::Wide) | None if machines.is_empty() => {
            let place = if args.all_namespaces {
                "in any namespace".into()
            } else {
                format!(
                    "in namespace {}; -A lists those of all",
                    clean(&cluster.namespace, NAME)
                )
            };
            output::aside(&format!("No guests {place}."));
        }
        Some(ListFormat::Wide) | None => {
            let columns = Columns {
                namespace: args.all_namespaces,
                wide: args.output.is_some(),
            };
            output::text(&view::guests::guests(&machines, columns, Timestamp::now()))?;
        }
    }
    Ok(Exit::Success)
}

/// Lists hosts.
pub async fn hosts(cluster: &Cluster, args: &HostsArgs) -> Result<Exit, CliError> {
    let action = cluster.action::<VirtualMachineHost>("list", None);
    let api = cluster.api::<VirtualMachineHost>();
    let hosts = api
        .list(&ListParams::default())
        .await
        .map_err(|e| action.failed(e))?
        .items;
    match args.output {
        Some(ListFormat::Json) => output::list(&hosts)?,
        Some(ListFormat::Wide) | None if hosts.is_empty() => {
            output::aside("No hosts: each agent publishes its own when it runs.");
        }
        Some(ListFormat::Wide) | None => {
            output::text(&view::hosts::hosts(
                &hosts,
                args.output.is_some(),
                Timestamp::now(),
            ))?;
        }
    }
    Ok(Exit::Success)
}
