//! The handover: who may run the guest, and when.
//!
//! Three state machines without I/O, clock or threads: the [`source`], the [`destination`] and the [`driver`] of a
//! migration. Each takes events and answers with effects; whoever runs it carries the effects out and brings
//! their answers back as events. The model checker and production run this same code.

pub mod convergence;
pub mod destination;
pub mod driver;
pub mod gates;
pub mod source;
pub mod terms;

pub use convergence::Pass;
pub use destination::{
    Destination, DestinationEffect, DestinationEntry, DestinationEvent, DestinationFacts, DestinationReport,
};
pub use driver::{
    Driver, DriverEffect, DriverEvent, OrderKey, OrdersGiven, Outcome, PathProof, SideView, Stand, Wait,
};
pub use gates::Gates;
pub use source::{Source, SourceEffect, SourceEntry, SourceEvent, SourceFacts, SourceReport};
pub use terms::{
    Cause, Channel, Decision, Epoch, Go, GoEvidence, Phase, RecordView, Refusal, Standing, StandingBecause,
    Step, StreamFact, Terms, Token, Wanted, Word,
};
