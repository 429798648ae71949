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
        ] {
            assert!(table.contains(&format!("| `{word}` |")), "{word} is missing");
        }
    }
}
