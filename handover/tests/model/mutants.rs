//! Deliberate mistakes. Each leaves one rule out, in the way in which a hurried implementation would; the model
//! must catch every one.

/// A rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Rule 0: the guest is called sealed without having been stopped while the stream was active.
    NoSeal,
    /// Rule 3: the destination is let run as soon as it has loaded the guest.
    ContBeforeGo,
    /// Rule 3: a loaded guest is given up after a silence.
    DestroyOnTimeOut,
    /// Rule 1: the source resumes when nobody answers after the switchover was ordered (what libvirt does).
    ResumeOnSilence,
    /// Rule 3: `cont-issued` is not written down.
    UnjournaledCont,
    /// QEMU fact 1: without a return path the source is called completed before the destination has loaded.
    CompletedUnacknowledged,
    /// Rule 6: the record is advanced on the source's Go instead of the destination's report.
    AdvanceOnGo,
}
