//! The data of a guest's record, without what only an API server needs of it: what the production rules of its changes
//! ([`crate::record_change`]) read and write.

/// Who may run the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestRecordSpec {
    pub guest: GuestReference,
    pub holder: String,
    pub epoch: i64,
    pub migration: Option<ArmedMigration>,
    pub decision: Decision,
    pub started: bool,
    pub resolution: Option<Resolution>,
    pub writer: String,
    pub evidence: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestReference {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub definition: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArmedMigration {
    pub uid: String,
    pub source: String,
    pub destination: String,
    pub strict: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resolution {
    pub uid: String,
    pub by: String,
    pub fenced: Vec<String>,
    pub migration: Option<String>,
    pub lost: bool,
    pub cold_start: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    None,
    Committed,
    Aborted,
    Reverted,
}
