//! Whether a stream can travel in the way that was ordered.

use godwit_protocol::{Category, Fault, StreamOptions, Transport};

use crate::hypervisor::StreamAbilities;

/// The judgement of one side: by what its hypervisor can do, and by what its host admits.
///
/// # Errors
/// A fault that names what is in the way.
pub fn judge(
    stream: StreamOptions,
    abilities: StreamAbilities,
    tunnels: bool,
    refuse_plain_text: bool,
) -> Result<(), Fault> {
    let lacks = |message: String| Err(Fault::new(Category::Lacking, "StreamNotServed", message));
    match stream.transport {
        Transport::Native if stream.encrypted && !abilities.encrypts => {
            return lacks("The hypervisor of this host cannot encrypt a stream; a tunnel can".into());
        }
        Transport::Native if stream.connections > 1 => {
            return lacks(format!(
                "The stream was ordered over {} connections, and from hypervisor to hypervisor this host serves 1; \
                 a tunnel serves several",
                stream.connections
            ));
        }
        Transport::Tunnelled if !tunnels => return lacks("This host serves no tunnel".into()),
        Transport::Native | Transport::Tunnelled => {}
    }
    if stream.connections > abilities.connections {
        return lacks(format!(
            "The stream was ordered over {} connections, and the hypervisor of this host serves {}",
            stream.connections, abilities.connections
        ));
    }
    // A tunnel is encrypted whatever was asked for.
    let plain = !stream.encrypted && stream.transport == Transport::Native;
    if plain && refuse_plain_text {
        return Err(Fault::new(
            Category::Forbidden,
            "PlainTextRefused",
            "This host refuses streams in plain text by its configuration (refusePlainText)",
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    const ALL: StreamAbilities = StreamAbilities {
        encrypts: true,
        connections: 4,
    };

    fn reason(stream: StreamOptions, abilities: StreamAbilities, refuse: bool) -> String {
        let judged = judge(stream, abilities, false, refuse);
        judged.unwrap_err().reason.into_owned()
    }

    #[test]
    fn what_a_host_cannot_do_is_refused_by_name() {
        let plain = StreamOptions::PLAIN;
        let encrypted = StreamOptions {
            encrypted: true,
            ..plain
        };
        let several = StreamOptions {
            connections: 2,
            ..plain
        };
        judge(plain, ALL, false, false).unwrap();
        judge(encrypted, ALL, false, true).unwrap();
        assert_eq!(reason(plain, ALL, true), "PlainTextRefused");
        assert_eq!(reason(several, ALL, false), "StreamNotServed");
        let bare = StreamAbilities {
            encrypts: false,
            ..ALL
        };
        assert_eq!(reason(encrypted, bare, false), "StreamNotServed");
        judge(plain, bare, false, false).unwrap();
        let tunnelled = StreamOptions {
            transport: Transport::Tunnelled,
            ..plain
        };
        assert_eq!(reason(tunnelled, ALL, false), "StreamNotServed");
        judge(tunnelled, bare, true, true).unwrap();
        let spread = |connections| StreamOptions {
            connections,
            ..tunnelled
        };
        judge(spread(4), ALL, true, true).unwrap();
        let too_many = judge(spread(5), ALL, true, true).unwrap_err();
        assert_eq!(too_many.reason, "StreamNotServed");
    }
}
