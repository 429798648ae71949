//! What a migration's spec says of the way that memory takes, in the agents' words.

use godwit_crds::migration::{self as crd, ChannelSecurity, HypervisorNetwork, SecurityRequirement};
use godwit_crds::quantity::bandwidth;
use godwit_crds::{VirtualMachineHost, VirtualMachineMigrationSpec};
use godwit_protocol::{StreamOptions, Transport};

/// How memory is to travel from `source`, if that is known.
pub fn options(spec: &VirtualMachineMigrationSpec, source: Option<&VirtualMachineHost>) -> StreamOptions {
    StreamOptions {
        transport: match spec.transport {
            crd::Transport::Native => Transport::Native,
            crd::Transport::Tunnelled => Transport::Tunnelled,
        },
        encrypted: encrypted(spec),
        // The API server admits nothing else.
        bandwidth: bandwidth(&spec.tuning.bandwidth).unwrap_or(0),
        connections: u32::try_from(spec.tuning.parallel_connections).unwrap_or(1),
        source_address: source
            .and_then(|host| host.spec.migration_addresses.first())
            .and_then(|address| address.parse().ok()),
    }
}

fn encrypted(spec: &VirtualMachineMigrationSpec) -> bool {
    match spec.security.require {
        SecurityRequirement::Encrypted => true,
        SecurityRequirement::None => false,
    }
}

/// How the channel is protected that follows from it: an agent that cannot give it refuses the migration.
pub fn channel(spec: &VirtualMachineMigrationSpec) -> ChannelSecurity {
    match spec.transport {
        crd::Transport::Native if !encrypted(spec) => ChannelSecurity::PlainText,
        // A tunnel is encrypted whatever is required.
        crd::Transport::Native | crd::Transport::Tunnelled => ChannelSecurity::Encrypted,
    }
}

/// What of the network the hypervisors have for it.
pub fn hypervisor_network(spec: &VirtualMachineMigrationSpec) -> HypervisorNetwork {
    match spec.transport {
        crd::Transport::Native if spec.tuning.parallel_connections > 1 => HypervisorNetwork::MigrationPeer,
        crd::Transport::Native | crd::Transport::Tunnelled => HypervisorNetwork::Isolated,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_spec_in_the_agents_words() {
        let spec = |more: serde_json::Value| {
            let mut all = json!({"virtualMachine": "web1", "destination": {"host": "b"}, "controlFlow": "ManagedDirect"});
            all.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value::<VirtualMachineMigrationSpec>(all).unwrap()
        };
        let silent = spec(json!({}));
        let encrypted = StreamOptions {
            encrypted: true,
            ..StreamOptions::PLAIN
        };
        assert_eq!(options(&silent, None), encrypted);
        assert_eq!(channel(&silent), ChannelSecurity::Encrypted);
        let plain = spec(json!({"security": {"require": "None"}, "tuning": {"bandwidth": "1Mi"}}));
        let slow = StreamOptions {
            bandwidth: 1 << 20,
            ..StreamOptions::PLAIN
        };
        assert_eq!(options(&plain, None), slow);
        assert_eq!(channel(&plain), ChannelSecurity::PlainText);
        let tunnelled = spec(json!({"security": {"require": "None"}, "transport": "Tunnelled"}));
        assert_eq!(options(&tunnelled, None).transport, Transport::Tunnelled);
        assert_eq!(options(&tunnelled, None).connections, 1);
        let spread = spec(json!({"transport": "Tunnelled", "tuning": {"parallelConnections": 4}}));
        assert_eq!(options(&spread, None).connections, 4);
        assert_eq!(channel(&tunnelled), ChannelSecurity::Encrypted);
        assert_eq!(hypervisor_network(&spread), HypervisorNetwork::Isolated);
        let several = spec(json!({"tuning": {"parallelConnections": 2}}));
        assert_eq!(hypervisor_network(&several), HypervisorNetwork::MigrationPeer);
        assert_eq!(hypervisor_network(&silent), HypervisorNetwork::Isolated);
    }

    #[test]
    fn agents_are_told_where_the_source_comes_from() {
        let spec: VirtualMachineMigrationSpec =
            serde_json::from_value(json!({"virtualMachine": "web1", "destination": {"host": "b"}})).unwrap();
        let host = |addresses: serde_json::Value| {
            let spec = json!({"endpoint": "192.0.2.1:16514", "migrationAddresses": addresses});
            VirtualMachineHost::new("a", serde_json::from_value(spec).unwrap())
        };
        let told = |host: &VirtualMachineHost| options(&spec, Some(host)).source_address;
        assert_eq!(
            told(&host(json!(["192.0.2.1", "192.0.2.9"]))),
            "192.0.2.1".parse().ok()
        );
        assert_eq!(told(&host(json!([]))), None);
        assert_eq!(options(&spec, None).source_address, None);
    }
}
