//! Whether what was read takes the place of what is used.

use std::error::Error;
use std::time::SystemTime;

use godwit_protocol::{Credentials, CurrentCredentials, TlsError};

/// What to do with what was read.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is what is used already.
    Same,
    /// It takes its place.
    Take(Credentials),
    /// It cannot be used (now); what is used stays.
    Keep(TlsError),
}

/// Files are written one after the other: a key without its certificate is seen now and then, and the next look
/// finds both. A certificate that does not hold yet is taken when its time comes.
pub(crate) fn judge(used: &Credentials, read: Result<Credentials, TlsError>, now: SystemTime) -> Verdict {
    let next = match read {
        Ok(next) => next,
        Err(why) => return Verdict::Keep(why),
    };
    if next.pem() == used.pem() {
        return Verdict::Same;
    }
    match next.check_dates(now) {
        Ok(()) => Verdict::Take(next),
        Err(why) => Verdict::Keep(why),
    }
}

/// Carries verdicts out and says each complaint once.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    complaint: Option<String>,
}

impl Judged {
    /// Puts what was read into its place, or says why it stays out.
    pub(crate) fn carry_out(&mut self, current: &CurrentCredentials, read: Result<Credentials, TlsError>) {
        match judge(&current.get(), read, SystemTime::now()) {
            Verdict::Same => self.complaint = None,
            Verdict::Take(next) => {
                let seconds = next
                    .valid_until()
                    .duration_since(SystemTime::now())
                    .unwrap_or_default()
                    .as_secs();
                match current.replace(next) {
                    Ok(()) => {
                        self.complaint = None;
                        tracing::info!(
                            seconds,
                            "the certificate was renewed; it holds for so many seconds"
                        );
                    }
                    Err(why) => self.complain(&why),
                }
            }
            Verdict::Keep(why) => self.complain(&why),
        }
    }

    fn complain(&mut self, why: &TlsError) {
        let words = in_full(why);
        if self.complaint.as_ref() != Some(&words) {
            tracing::warn!("A new certificate is not taken, and the one in use stays: {words}");
            self.complaint = Some(words);
        }
    }
}

/// An error with its causes.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        words.push_str(": ");
        words.push_str(&why.to_string());
        cause = why.source();
    }
    words
}
