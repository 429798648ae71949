//! Writes a migration's journal with a writer of its own, so that neither the machine nor the hypervisor's commands
//! wait for the disk.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::journal::{Journal, JournalError, Line};
use super::rim::{Desk, Writer};
use crate::fail_point;

type Answer<E> = dyn Fn(Line<E>, Result<(), JournalError>) + Send + Sync;

/// The one writer of a migration's journal. Dropped, it writes what it was given before it is gone.
pub struct Pen<E> {
    writer: Option<Box<dyn Writer>>,
    journal: Arc<Mutex<Journal>>,
    answer: Arc<Answer<E>>,
}

impl<E: Serialize + Send + 'static> Pen<E> {
    /// Takes a side's journal. `answer` is called for each line in its order, once it is on the medium or is known never
    /// to be.
    pub fn new<A>(desk: &dyn Desk, side: &'static str, journal: Journal, answer: A) -> Self
    where
        A: Fn(Line<E>, Result<(), JournalError>) + Send + Sync + 'static,
    {
        // Without a writer nothing is written, and every line is answered so.
        let writer = desk
            .writer()
            .inspect_err(|error| tracing::error!(%error, "nobody writes a migration's journal"));
        Self {
            writer: writer.ok(),
            journal: Arc::new(Mutex::new(
                journal.through(|file| fail_point::medium(side, desk.medium(file))),
            )),
            answer: Arc::new(answer),
        }
    }

    /// Writes a line; `false` if it never will be answered.
    pub fn write(&self, line: Line<E>) -> bool {
        let Some(writer) = &self.writer else {
            return false;
        };
        let (journal, answer) = (self.journal.clone(), self.answer.clone());
        writer.write(Box::new(move || {
            // Only the writer takes the lock, and it does one thing after another.
            let outcome = journal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&line);
            answer(line, outcome);
        }))
    }
}
