//! QEMU's machine protocol: one JSON object a line over a unix socket, spoken by our own client.
//!
//! [`wire`] cuts and reads lines, [`event`] gives the events we use their meaning, [`client`] owns a connection.

pub mod client;
pub mod event;
mod pace;
pub mod wire;

use std::time::Duration;

/// Why a QMP request was not answered well.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection is closed.
    #[error("the monitor's connection is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer to {command} within {deadline:?}")]
    Deadline {
        /// The command.
        command: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// QEMU answered with an error.
    #[error("{command}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's class of error, bounded.
        class: String,
        /// QEMU's words, bounded.
        message: String,
    },
    /// QEMU said something that is not QMP.
    #[error("{0}")]
    Protocol(String),
}
