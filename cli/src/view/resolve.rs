//! What an administrator can say about a guest, and how things stand.

use std::fmt::Write as _;

use crate::text::{MESSAGE, NAME, clean};

/// How things stand with a guest.
pub struct Standing {
    /// The guest.
    pub guest: String,
    /// Its state, as it was last known.
    pub state: Option<String>,
    /// The host that holds it.
    pub holder: Option<String>,
    /// Where a migration that has not ended takes it.
    pub destination: Option<String>,
    /// That migration's name.
    pub migration: Option<String>,
    /// Whether its handoff is strict.
    pub strict: bool,
    /// Whether the guest is being deleted.
    pub deleted: bool,
    /// Why it cannot go on by itself.
    pub waits: Option<String>,
    /// Of each host whether it is heard, where that is known.
    pub hosts: Vec<(String, Option<String>)>,
}

/// The page that `resolve` prints where nothing was said.
pub fn options(standing: &Standing) -> String {
    let guest = clean(&standing.guest, NAME);
    let mut page = String::new();
    let mut line = |words: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(page, "{words}");
    };
    let state = standing.state.as_deref().unwrap_or("not known");
    match &standing.holder {
        Some(holder) => line(&format!(
            "{guest} belongs on {}; its state: {state}.",
            clean(holder, NAME)
        )),
        None => line(&format!("{guest} was never given to a host.")),
    }
    for (host, heard) in &standing.hosts {
        if let Some(words) = heard {
            line(&format!("{} {}.", clean(host, NAME), clean(words, MESSAGE)));
        }
    }
    if let Some(migration) = &standing.migration {
        let waits = standing.waits.as_deref().map_or_else(
            || "is on its way, and needs nobody's word".to_owned(),
            |why| format!("waits: {}", clean(why, MESSAGE)),
        );
        line(&format!("Migration {} {waits}", clean(migration, NAME)));
    }
    let Some(holder) = &standing.holder else {
        return page;
    };
    if standing.deleted {
        line("It is being deleted, and stays until its host has stopped it.");
    }
    line("");
    line("Wait, if the hosts may come back: godwit then decides by itself, and nothing is lost.");
    line(
        "Once you have made sure that a host is off, or cut off from the guest's disks and networks for good, say so:",
    );
    let mut say = |host: &str, rest: &str, what: &str| {
        let host = clean(host, NAME);
        line(&format!(
            "  kubectl godwit resolve {guest} --fenced {host}{rest}\n      {what}"
        ));
    };
    match &standing.destination {
        Some(destination) => {
            say(
                holder,
                "",
                "the destination goes on with what it has got whole; else the guest is lost",
            );
            if standing.strict {
                say(
                    destination,
                    " --resume-source",
                    "the source's image goes on, if the destination has not started its own",
                );
            }
            say(
                destination,
                " --cold-start",
                "if the destination may have run it, its memory is lost: it is started afresh from its disks",
            );
            say(
                holder,
                " --cold-start",
                "the same, where the source is lost before the destination had it whole",
            );
        }
        None if standing.deleted => say(
            holder,
            "",
            "nothing of it runs there any more: it is let go without that host having been asked",
        ),
        None => say(
            holder,
            " --cold-start",
            "its memory is lost: it is started afresh from its disks on another host",
        ),
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rest() -> Standing {
        Standing {
            guest: "web1".into(),
            state: Some("Unknown".into()),
            holder: Some("node-a".into()),
            destination: None,
            migration: None,
            strict: false,
            deleted: false,
            waits: None,
            hosts: vec![(
                "node-a".into(),
                Some("is not heard any more (LeaseExpired)".into()),
            )],
        }
    }

    #[test]
    fn a_guest_at_rest_can_be_started_afresh() {
        let page = options(&at_rest());
        assert!(
            page.contains("node-a is not heard any more (LeaseExpired)."),
            "{page}"
        );
        assert!(
            page.contains("resolve web1 --fenced node-a --cold-start"),
            "{page}"
        );
        assert!(!page.contains("--resume-source"), "{page}");
    }

    #[test]
    fn a_deleted_guest_can_be_let_go() {
        let page = options(&Standing {
            deleted: true,
            ..at_rest()
        });
        assert!(page.contains("resolve web1 --fenced node-a\n"), "{page}");
        assert!(!page.contains("--cold-start"), "{page}");
    }

    #[test]
    fn only_a_strict_migration_offers_the_source() {
        for strict in [false, true] {
            let page = options(&Standing {
                destination: Some("node-b".into()),
                migration: Some("m1".into()),
                waits: Some("node-b is not heard.\u{1b}[2J".into()),
                strict,
                ..at_rest()
            });
            assert_eq!(page.contains("--fenced node-b --resume-source"), strict, "{page}");
            assert!(
                page.contains("Migration m1 waits: node-b is not heard."),
                "{page}"
            );
            assert!(!page.contains('\u{1b}'), "{page}");
        }
    }

    #[test]
    fn of_a_guest_that_was_never_started_nothing_is_offered() {
        let page = options(&Standing {
            holder: None,
            hosts: vec![],
            ..at_rest()
        });
        assert!(!page.contains("--fenced"), "{page}");
    }
}
