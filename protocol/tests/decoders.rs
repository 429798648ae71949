//! What a peer says that is no message: versions, and the paths of calls. Its messages are tried in `tests/fuzz`.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::net::SocketAddr;

use godwit_protocol::gate::Peer;
use godwit_protocol::{PeerIdentity, Rpc, version, wire};
use proptest::prelude::*;

proptest! {
    /// The first message of all, and what every later one carries.
    #[test]
    fn r15_versions_are_settled_within_ours_or_refused(
        oldest: u32,
        newest: u32,
        small in any::<(bool, bool)>(),
        program in ".{0,200}",
        named in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
    ) {
        let hello = wire::HelloRequest {
            oldest_version: if small.0 { oldest % 3 } else { oldest },
            newest_version: if small.1 { newest % 3 } else { newest },
            program,
        };
        let peer = Peer::new(PeerIdentity::Host("a".into()), SocketAddr::from(([127, 0, 0, 1], 1)));
        if let Ok(settled) = peer.settle(&hello) {
            prop_assert!((version::OLDEST..=version::NEWEST).contains(&settled));
            prop_assert!((hello.oldest_version..=hello.newest_version).contains(&settled));
            prop_assert!(hello.program.len() <= 128);
        }
        if version::check(named.as_deref(), Some(1)).is_ok() {
            let text = String::from_utf8(named.unwrap()).unwrap();
            prop_assert_eq!(text.parse::<u32>(), Ok(1));
        } else {
            prop_assert!(version::check(named.as_deref(), None).is_err());
        }
    }

    /// The path of a call is whatever a peer says.
    #[test]
    fn r15_a_path_means_one_of_our_calls_or_none(path in "(/godwit.agent.v1.Agent/)?.{0,40}") {
        if let Some(rpc) = Rpc::of_path(&path) {
            prop_assert_eq!(path, format!("/godwit.agent.v1.Agent/{}", rpc.name()));
        }
    }
}
