//! Whether a stream can travel in the way that was ordered.

use std::net::IpAddr;

use godwit_protocol::{Category, Fault, StreamOptions, Transport};

use crate::hypervisor::StreamAbilities;

/// What a host serves and admits.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// It has tunnels.
    pub tunnels: bool,
    /// Whether hypervisors can be given the migration network for connections of their own; if not, why.
    pub network: Result<(), &'a str>,
    /// Its migration address.
    pub address: IpAddr,
    /// It is the one that sends.
    pub sends: bool,
    /// It refuses plain text.
    pub refuse_plain_text: bool,
}

/// The judgement of one side: by what its hypervisor can do, and by what its host admits.
///
/// # Errors
/// A fault that names what is in the way.
pub fn judge(stream: StreamOptions, abilities: StreamAbilities, host: Host<'_>) -> Result<(), Fault> {
    let lacks = |message: String| Err(Fault::new(Category::Lacking, "StreamNotServed", message));
    match stream.transport {
        Transport::Native if stream.encrypted && !abilities.encrypts => {
            return lacks("The hypervisor of this host cannot encrypt a stream; a tunnel can".into());
        }
        Transport::Native if stream.connections > 1 => {
            if let Err(why) = network(stream, abilities, host) {
                return lacks(format!(
                    "The stream was ordered over {} connections from hypervisor to hypervisor, and here it could have \
                     1: {why}. A tunnel serves several",
                    stream.connections
                ));
            }
        }
        Transport::Tunnelled if !host.tunnels => return lacks("This host serves no tunnel".into()),
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
    if plain && host.refuse_plain_text {
        return Err(Fault::new(
            Category::Forbidden,
            "PlainTextRefused",
            "This host refuses streams in plain text by its configuration (refusePlainText)",
        ));
    }
    Ok(())
}

/// Whether hypervisors can have connections of their own between these addresses.
fn network(stream: StreamOptions, abilities: StreamAbilities, host: Host<'_>) -> Result<(), String> {
    // Only whoever sends is in danger: there the guest runs.
    if stream.encrypted && host.sends && !abilities.several_encrypted {
        return Err(
            "encrypted, a stream that breaks off or is cancelled can end the hypervisor of this host, and the guest with \
             it; a newer one bears it"
                .into(),
        );
    }
    host.network?;
    let Some(source) = stream.source_address else {
        return Err("the source's migration address is not known".into());
    };
    if source.is_ipv6() || host.address.is_ipv6() {
        return Err("that needs migration addresses of IPv4".into());
    }
    if host.sends && source != host.address {
        return Err(format!(
            "the order takes {source} for this host's migration address, and it is {}",
            host.address
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const ALL: StreamAbilities = StreamAbilities {
        encrypts: true,
        connections: 4,
        several_encrypted: true,
    };

    const HOST: Host<'_> = Host {
        tunnels: false,
        network: Ok(()),
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        sends: true,
        refuse_plain_text: false,
    };

    fn message(stream: StreamOptions, abilities: StreamAbilities, host: Host<'_>) -> String {
        let fault = judge(stream, abilities, host).unwrap_err();
        assert_eq!(fault.reason, "StreamNotServed");
        fault.message
    }

    #[test]
    fn what_a_host_cannot_do_is_refused_by_name() {
        let plain = StreamOptions::PLAIN;
        let encrypted = StreamOptions {
            encrypted: true,
            ..plain
        };
        let careful = Host {
            refuse_plain_text: true,
            ..HOST
        };
        judge(plain, ALL, HOST).unwrap();
        judge(encrypted, ALL, careful).unwrap();
        let refused = judge(plain, ALL, careful).unwrap_err();
        assert_eq!(refused.reason, "PlainTextRefused");
        let bare = StreamAbilities {
            encrypts: false,
            ..ALL
        };
        message(encrypted, bare, HOST);
        judge(plain, bare, HOST).unwrap();
        let tunnelled = StreamOptions {
            transport: Transport::Tunnelled,
            ..plain
        };
        message(tunnelled, ALL, HOST);
        let tunnels = Host {
            tunnels: true,
            ..careful
        };
        judge(tunnelled, bare, tunnels).unwrap();
        let spread = |connections| StreamOptions {
            connections,
            ..tunnelled
        };
        judge(spread(4), ALL, tunnels).unwrap();
        message(spread(5), ALL, tunnels);
    }

    #[test]
    fn connections_of_their_own_need_a_network_that_can_be_limited() {
        let several = StreamOptions {
            connections: 2,
            source_address: Some(HOST.address),
            ..StreamOptions::PLAIN
        };
        judge(several, ALL, HOST).unwrap();
        let encrypted = StreamOptions {
            encrypted: true,
            ..several
        };
        judge(encrypted, ALL, HOST).unwrap();
        let endangered = StreamAbilities {
            several_encrypted: false,
            ..ALL
        };
        assert!(message(encrypted, endangered, HOST).contains("breaks off or is cancelled"));
        judge(several, endangered, HOST).unwrap();
        let receives = Host { sends: false, ..HOST };
        judge(encrypted, endangered, receives).unwrap();
        let unknown = StreamOptions {
            source_address: None,
            ..several
        };
        assert!(message(unknown, ALL, HOST).contains("not known"));
        let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let from_six = StreamOptions {
            source_address: Some(six),
            ..several
        };
        assert!(message(from_six, ALL, HOST).contains("IPv4"));
        assert!(message(several, ALL, Host { address: six, ..HOST }).contains("IPv4"));
        let other = Host {
            address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
            ..HOST
        };
        assert!(message(several, ALL, other).contains("192.0.2.2"));
        judge(
            several,
            ALL,
            Host {
                sends: false,
                ..other
            },
        )
        .unwrap();
        let without = Host {
            network: Err("nft: it is not installed on this host"),
            ..HOST
        };
        assert_eq!(
            message(several, ALL, without),
            "The stream was ordered over 2 connections from hypervisor to hypervisor, and here it could have 1: nft: it \
             is not installed on this host. A tunnel serves several"
        );
    }
}
