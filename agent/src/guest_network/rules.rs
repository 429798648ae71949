//! The packet filter's rules for one plan, in nft's words.
//!
//! A table of the migration's own. Its first chain judges what comes out of the cable before it is routed or
//! translated, the last ones what is passed on and what becomes of it, so that no rule of anybody else's that
//! translates addresses opens another way. Verdicts of other tables still count: where the host drops what it passes
//! on, no stream comes to be.

use std::fmt::Write as _;

use super::plan::{DEVICES, End, Plan};

/// Makes the table anew, in one step.
pub(super) fn make(plan: &Plan) -> String {
    let (table, cable, uplink) = (plan.table(), plan.device(), &plan.uplink);
    let (guest, own) = (plan.guest_address(), plan.own);
    let (says, passes, translates) = match plan.end {
        End::Source { to } => {
            let (peer, port) = (to.ip(), to.port());
            (
                format!("ip saddr {guest} ip daddr {peer} tcp dport {port}"),
                format!(
                    r#"iifname "{cable}" oifname "{uplink}" ip daddr {peer} tcp dport {port} accept
    iifname "{uplink}" oifname "{cable}" ip saddr {peer} ct state established ct direction reply accept"#
                ),
                format!(
                    r#"type nat hook postrouting priority srcnat; policy accept;
    iifname "{cable}" oifname "{uplink}" ip daddr {peer} snat ip to {own}"#
                ),
            )
        }
        End::Destination { port, from } => (
            format!("ip saddr {guest} ip daddr {from} tcp sport {port}"),
            format!(
                r#"iifname "{uplink}" oifname "{cable}" ip saddr {from} tcp dport {port} ct status dnat accept
    iifname "{cable}" oifname "{uplink}" ip daddr {from} ct state established ct direction reply accept"#
            ),
            format!(
                r#"type nat hook prerouting priority dstnat; policy accept;
    iifname "{uplink}" ip saddr {from} ip daddr {own} tcp dport {port} dnat ip to {guest}:{port}"#
            ),
        ),
    };
    let mut keeps_to_cables = String::new();
    if plan.restore_forwarding {
        // The device was no router's before, and is none now: what comes in there goes to cables or nowhere.
        let _ = write!(
            keeps_to_cables,
            "\n    iifname \"{uplink}\" oifname != \"{DEVICES}*\" drop"
        );
    }
    format!(
        r#"{remove}table inet {table} {{
  chain out_of_the_cable {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{cable}" {says} accept
    iifname "{cable}" drop
  }}
  chain to_the_host {{
    type filter hook input priority filter; policy accept;
    iifname "{cable}" drop
  }}
  chain from_the_host {{
    type filter hook output priority filter; policy accept;
    oifname "{cable}" icmp type destination-unreachable accept
    oifname "{cable}" drop
  }}
  chain translated {{
    {translates}
  }}
  chain passed_on {{
    type filter hook forward priority filter; policy accept;
    {passes}
    oifname "{cable}" icmp type destination-unreachable ct state related accept
    iifname "{cable}" drop
    oifname "{cable}" drop{keeps_to_cables}
  }}
}}
"#,
        remove = remove(plan),
    )
}

/// Removes the table, whether it is there or not.
pub(super) fn remove(plan: &Plan) -> String {
    let table = plan.table();
    format!("table inet {table}\ndelete table inet {table}\n")
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{destination, source};
    use super::*;

    #[test]
    fn a_source_reaches_its_peer_and_nothing_else() {
        let plan = source();
        let expected = r#"table inet godwit_source_6f1ad7a03f544a439c5e0d8a5b1c2d3e
delete table inet godwit_source_6f1ad7a03f544a439c5e0d8a5b1c2d3e
table inet godwit_source_6f1ad7a03f544a439c5e0d8a5b1c2d3e {
  chain out_of_the_cable {
    type filter hook prerouting priority raw; policy accept;
    iifname "gwmsd8a5b1c2d3e" ip saddr 169.254.208.7 ip daddr 192.0.2.2 tcp dport 49160 accept
    iifname "gwmsd8a5b1c2d3e" drop
  }
  chain to_the_host {
    type filter hook input priority filter; policy accept;
    iifname "gwmsd8a5b1c2d3e" drop
  }
  chain from_the_host {
    type filter hook output priority filter; policy accept;
    oifname "gwmsd8a5b1c2d3e" icmp type destination-unreachable accept
    oifname "gwmsd8a5b1c2d3e" drop
  }
  chain translated {
    type nat hook postrouting priority srcnat; policy accept;
    iifname "gwmsd8a5b1c2d3e" oifname "eth0" ip daddr 192.0.2.2 snat ip to 192.0.2.1
  }
  chain passed_on {
    type filter hook forward priority filter; policy accept;
    iifname "gwmsd8a5b1c2d3e" oifname "eth0" ip daddr 192.0.2.2 tcp dport 49160 accept
    iifname "eth0" oifname "gwmsd8a5b1c2d3e" ip saddr 192.0.2.2 ct state established ct direction reply accept
    oifname "gwmsd8a5b1c2d3e" icmp type destination-unreachable ct state related accept
    iifname "gwmsd8a5b1c2d3e" drop
    oifname "gwmsd8a5b1c2d3e" drop
  }
}
"#;
        assert_eq!(make(&plan), expected);
        assert!(expected.starts_with(&remove(&plan)));
    }

    #[test]
    fn a_destination_is_reached_by_its_peer_and_begins_nothing() {
        let text = make(&destination());
        for rule in [
            r#"iifname "gwmdd8a5b1c2d3e" ip saddr 169.254.208.7 ip daddr 192.0.2.2 tcp sport 49160 accept"#,
            r#"iifname "eth0" ip saddr 192.0.2.2 ip daddr 192.0.2.1 tcp dport 49160 dnat ip to 169.254.208.7:49160"#,
            r#"iifname "eth0" oifname "gwmdd8a5b1c2d3e" ip saddr 192.0.2.2 tcp dport 49160 ct status dnat accept"#,
            r#"iifname "gwmdd8a5b1c2d3e" oifname "eth0" ip daddr 192.0.2.2 ct state established ct direction reply accept"#,
        ] {
            assert!(text.contains(&format!("    {rule}\n")), "{rule}\n{text}");
        }
    }

    #[test]
    fn a_host_that_was_no_router_becomes_none() {
        let mut plan = source();
        let rule = r#"iifname "eth0" oifname != "gwm*" drop"#;
        assert!(!make(&plan).contains(rule));
        plan.restore_forwarding = true;
        assert!(make(&plan).contains(&format!("    {rule}\n  }}\n")));
    }
}
