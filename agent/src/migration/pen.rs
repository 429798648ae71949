//! Writes a migration's journal on a thread of its own, so that neither the machine nor the hypervisor's commands
//! wait for the disk, and a line is on its way without a detour over a pool of threads.

use std::sync::mpsc;
use std::thread::JoinHandle;

use serde::Serialize;

use super::journal::{Journal, JournalError, Line};

/// The one writer of a migration's journal. Dropped, it writes what it was given before it is gone.
pub struct Pen<E> {
    lines: Option<mpsc::Sender<Line<E>>>,
    writer: Option<JoinHandle<()>>,
}

impl<E: Serialize + Send + 'static> Pen<E> {
    /// Takes a journal. `answer` is called for each line in its order, once it is on the medium or is known never
    /// to be.
    pub fn new<A>(mut journal: Journal, answer: A) -> Self
    where
        A: Fn(Line<E>, Result<(), JournalError>) + Send + 'static,
    {
        let (lines, given) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("journal".into()).spawn(move || {
            for line in given {
                let outcome = journal.append(&line);
                answer(line, outcome);
            }
        });
        match spawned {
            Ok(writer) => Self {
                lines: Some(lines),
                writer: Some(writer),
            },
            // Without a thread nothing is written, and every line is answered so.
            Err(error) => {
                tracing::error!(%error, "no thread for a migration's journal");
                Self {
                    lines: None,
                    writer: None,
                }
            }
        }
    }

    /// Writes a line; `false` if it never will be answered.
    pub fn write(&self, line: Line<E>) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.send(line).is_ok())
    }
}

impl<E> Drop for Pen<E> {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of a migration's journal has panicked");
        }
    }
}
