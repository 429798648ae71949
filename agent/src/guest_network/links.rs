//! The cable's making, in the words of the `ip` command, and what that command answers.

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::plan::{INSIDE, Plan};

/// The longest name of a network device.
const NAME: usize = 15;

/// Makes the cable, one end in the namespace that `namespace` names.
pub(super) fn on_the_host(plan: &Plan, namespace: &str) -> String {
    let (cable, mtu) = (plan.device(), plan.mtu);
    let (host, guest) = (plan.host_address(), plan.guest_address());
    format!(
        "link add name {cable} mtu {mtu} type veth peer name {INSIDE} mtu {mtu} netns {namespace}\n\
         addr add {host} peer {guest} dev {cable}\n\
         link set dev {cable} up\n"
    )
}

/// Gives the guest's end its address and the way to its peer, and to nobody else.
pub(super) fn in_the_namespace(plan: &Plan) -> String {
    let (host, guest, peer) = (plan.host_address(), plan.guest_address(), plan.end.peer());
    format!(
        "addr add {guest} peer {host} dev {INSIDE}\n\
         link set dev {INSIDE} up\n\
         route add {peer} via {host} dev {INSIDE}\n"
    )
}

/// A network device of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) addresses: Vec<Ipv4Addr>,
}

/// What `ip -j -4 addr show` says.
pub(super) fn devices(answer: &[u8]) -> Result<Vec<Device>, String> {
    #[derive(Deserialize)]
    struct Shown {
        ifname: String,
        mtu: u32,
        #[serde(default)]
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Option<Ipv4Addr>,
    }
    let shown: Vec<Shown> = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
    let device = |shown: Shown| Device {
        name: shown.ifname,
        mtu: shown.mtu,
        addresses: shown.addr_info.into_iter().filter_map(|one| one.local).collect(),
    };
    Ok(shown.into_iter().map(device).collect())
}

/// Through which device a way leads, by what `ip -j route get` says; the error says why none does that cables could
/// go on from.
pub(super) fn way(answer: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Route {
        dev: Option<String>,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let routes: Vec<Route> = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
    let route = routes.into_iter().next().ok_or("no way leads there")?;
    match (route.kind.as_deref(), route.dev) {
        (None | Some("unicast"), Some(device)) if is_name(&device) => Ok(device),
        (Some("local"), _) => Err("it is this host's own".into()),
        (Some(_) | None, Some(_) | None) => Err("no device leads there".into()),
    }
}

/// Whether it is a device's name that can be written into a rule.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !['"', '\\', '*', '/'].contains(&c);
    (1..=NAME).contains(&name.len()) && name != "." && name != ".." && name.chars().all(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::super::plan::tests::source;
    use super::*;

    #[test]
    fn a_cable_is_made_with_its_addresses_and_one_way() {
        assert_eq!(
            on_the_host(&source(), "/proc/7/fd/9"),
            "link add name gwmsd8a5b1c2d3e mtu 1500 type veth peer name migration mtu 1500 netns /proc/7/fd/9\n\
             addr add 169.254.208.6 peer 169.254.208.7 dev gwmsd8a5b1c2d3e\n\
             link set dev gwmsd8a5b1c2d3e up\n"
        );
        assert_eq!(
            in_the_namespace(&source()),
            "addr add 169.254.208.7 peer 169.254.208.6 dev migration\n\
             link set dev migration up\n\
             route add 192.0.2.2 via 169.254.208.6 dev migration\n"
        );
    }

    #[test]
    fn devices_are_read() {
        let answer = br#"[{"ifindex":1,"ifname":"lo","mtu":65536,"addr_info":[]},
            {"ifname":"eth0","mtu":1400,"addr_info":[{"family":"inet","local":"192.0.2.2","prefixlen":24}]}]"#;
        let found = devices(answer).unwrap();
        assert_eq!(found.len(), 2);
        let eth0 = found.last().unwrap();
        assert_eq!(
            (eth0.name.as_str(), eth0.mtu, eth0.addresses.as_slice()),
            ("eth0", 1400, [Ipv4Addr::new(192, 0, 2, 2)].as_slice())
        );
    }

    #[test]
    fn ways_that_lead_nowhere_else_are_refused() {
        let direct = br#"[{"dst":"192.0.2.2","dev":"eth0.7","prefsrc":"192.0.2.1","flags":[]}]"#;
        assert_eq!(way(direct).unwrap(), "eth0.7");
        let local = br#"[{"type":"local","dst":"192.0.2.1","dev":"lo"}]"#;
        assert!(way(local).unwrap_err().contains("own"));
        for bad in [
            r#"[]"#,
            r#"[{"dev":"e\" drop"}]"#,
            r#"[{"dev":"e*"}]"#,
            r#"[{"type":"blackhole","dev":"x"}]"#,
        ] {
            assert!(way(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
