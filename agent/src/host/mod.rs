//! What the agent tells the API server about its host, and what it reads there.
//!
//! Nothing here touches a guest: without the API server the guests and their migrations go on.

pub mod api;
pub mod health;
pub mod lease;
pub mod machine;
pub mod publisher;
pub mod record;
pub mod status;

pub use api::ApiError;
pub use health::Health;
pub use publisher::Publisher;
pub use record::{RecordReader, RecordWriter};
