//! The stable words that this layer itself gives as a fault's reason; the whole table is `docs/conditions.md`.

/// An agent could not be reached, or did not answer, within the deadline.
pub const AGENT_UNREACHABLE: &str = "AgentUnreachable";
/// A certificate was refused: wrong authority, wrong name, or outside its dates.
pub const CERTIFICATE_REJECTED: &str = "CertificateRejected";
/// The two programs share no protocol version.
pub const PROTOCOL_VERSION_UNSUPPORTED: &str = "ProtocolVersionUnsupported";
/// This identity may not make that call.
pub const NOT_ALLOWED: &str = "NotAllowed";
/// One of godwit's programs contradicted itself, a malformed message included.
pub const INTERNAL_ERROR: &str = "InternalError";
/// A source's agent ordered something without a ticket.
pub const TICKET_MISSING: &str = "TicketMissing";
/// A ticket cannot be read, or its signature is not the controller's.
pub const TICKET_INVALID: &str = "TicketInvalid";
/// A ticket is signed with a key that is not published, or not any more.
pub const TICKET_KEY_UNKNOWN: &str = "TicketKeyUnknown";
/// A ticket's time has not come.
pub const TICKET_NOT_YET_VALID: &str = "TicketNotYetValid";
/// A ticket's time is over.
pub const TICKET_EXPIRED: &str = "TicketExpired";
/// A ticket is for other hosts, another migration, guest, epoch or act.
pub const TICKET_FOR_ANOTHER: &str = "TicketForAnother";
/// A ticket's migration has ended here.
pub const TICKET_REPLAYED: &str = "TicketReplayed";
/// A guest's definition cannot be read, or is not one that this host takes.
pub const DEFINITION_REFUSED: &str = "DefinitionRefused";
/// The source gives another definition of a guest than the one under which it was started.
pub const DEFINITION_MISMATCH: &str = "DefinitionMismatch";
/// The keys that tickets are checked by, or signed with, cannot be had.
pub const TICKET_KEYS_UNAVAILABLE: &str = "TicketKeysUnavailable";

#[cfg(test)]
mod tests {
    #[test]
    fn every_reason_is_in_the_documented_table() {
        let table = include_str!("../../docs/conditions.md");
        for word in [
            super::AGENT_UNREACHABLE,
            super::CERTIFICATE_REJECTED,
            super::PROTOCOL_VERSION_UNSUPPORTED,
            super::NOT_ALLOWED,
            super::INTERNAL_ERROR,
            super::TICKET_MISSING,
            super::TICKET_INVALID,
            super::TICKET_KEY_UNKNOWN,
            super::TICKET_NOT_YET_VALID,
            super::TICKET_EXPIRED,
            super::TICKET_FOR_ANOTHER,
            super::TICKET_REPLAYED,
            super::TICKET_KEYS_UNAVAILABLE,
            super::DEFINITION_REFUSED,
            super::DEFINITION_MISMATCH,
        ] {
            assert!(table.contains(&format!("| `{word}` |")), "{word} is missing");
        }
    }
}
