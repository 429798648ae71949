//! The control socket: messages of bounded length with at most one descriptor each.

mod frame;

pub(crate) use frame::{FrameError, Received, receive, send};
