//! The wire between godwit's programs: gRPC over mutual TLS 1.3 on the agent port.

/// The generated messages and services.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod wire {
    tonic::include_proto!("godwit.agent.v1");
}

/// The agent port: control, and later the tunnel, share it (libvirt's is 16514 too).
pub const AGENT_PORT: u16 = 16514;
