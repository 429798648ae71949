//! What a migration's spec says of the way that memory takes, in the agents' words.

use godwit_crds::VirtualMachineMigrationSpec;
use godwit_crds::quantity::bandwidth;
use godwit_protocol::StreamOptions;

/// How memory is to travel.
pub fn options(spec: &VirtualMachineMigrationSpec) -> StreamOptions {
    StreamOptions {
        // The API server admits nothing else.
        bandwidth: bandwidth(&spec.tuning.bandwidth).unwrap_or(0),
        ..StreamOptions::PLAIN
    }
}
