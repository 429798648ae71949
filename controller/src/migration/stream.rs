//! What a migration's spec says of the way that memory takes, in the agents' words.

use godwit_crds::VirtualMachineMigrationSpec;
use godwit_crds::migration::{self as crd, ChannelSecurity, SecurityRequirement};
use godwit_crds::quantity::bandwidth;
use godwit_protocol::{StreamOptions, Transport};

/// How memory is to travel.
pub fn options(spec: &VirtualMachineMigrationSpec) -> StreamOptions {
    StreamOptions {
        transport: match spec.transport {
            crd::Transport::Native => Transport::Native,
            crd::Transport::Tunnelled => Transport::Tunnelled,
        },
        encrypted: encrypted(spec),
        // The API server admits nothing else.
        bandwidth: bandwidth(&spec.tuning.bandwidth).unwrap_or(0),
        connections: u32::try_from(spec.tuning.parallel_connections).unwrap_or(1),
        ..StreamOptions::PLAIN
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
        assert_eq!(options(&silent), encrypted);
        assert_eq!(channel(&silent), ChannelSecurity::Encrypted);
        let plain = spec(json!({"security": {"require": "None"}, "tuning": {"bandwidth": "1Mi"}}));
        let slow = StreamOptions {
            bandwidth: 1 << 20,
            ..StreamOptions::PLAIN
        };
        assert_eq!(options(&plain), slow);
        assert_eq!(channel(&plain), ChannelSecurity::PlainText);
        let tunnelled = spec(json!({"security": {"require": "None"}, "transport": "Tunnelled"}));
        assert_eq!(options(&tunnelled).transport, Transport::Tunnelled);
        assert_eq!(options(&tunnelled).connections, 1);
        let spread = spec(json!({"transport": "Tunnelled", "tuning": {"parallelConnections": 4}}));
        assert_eq!(options(&spread).connections, 4);
        assert_eq!(channel(&tunnelled), ChannelSecurity::Encrypted);
    }
}
