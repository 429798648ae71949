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
    refuse_plain_text: bool,
) -> Result<(), Fault> {
    let lacks = |message: String| Err(Fault::new(Category::Lacking, "StreamNotServed", message));
    match stream.transport {
        Transport::Native => {}
        Transport::Tunnelled => return lacks("This agent serves no tunnel".into()),
    }
    if stream.encrypted && !abilities.encrypts {
        return lacks("The hypervisor of this host cannot encrypt a stream".into());
    }
    if stream.connections > abilities.connections {
        return lacks(format!(
            "The stream was ordered over {} connections, and the hypervisor of this host serves {}",
            stream.connections, abilities.connections
        ));
    }
    if !stream.encrypted && refuse_plain_text {
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
        judge(stream, abilities, refuse).unwrap_err().reason.into_owned()
    }

    #[test]
    fn what_a_host_cannot_do_is_refused_by_name() {
        let plain = StreamOptions::PLAIN;
        let encrypted = StreamOptions {
            encrypted: true,
            ..plain
        };
        let wide = StreamOptions {
            connections: 5,
            ..plain
        };
        judge(plain, ALL, false).unwrap();
        judge(encrypted, ALL, true).unwrap();
        assert_eq!(reason(plain, ALL, true), "PlainTextRefused");
        assert_eq!(reason(wide, ALL, false), "StreamNotServed");
        let bare = StreamAbilities {
            encrypts: false,
            ..ALL
        };
        assert_eq!(reason(encrypted, bare, false), "StreamNotServed");
        judge(plain, bare, false).unwrap();
    }
}
