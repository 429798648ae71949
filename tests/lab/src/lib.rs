//! The lab: a real control plane, hosts with real agents and real guests, all on one machine.
//!
//! [`Lab::start`] brings everything up and [`Lab::stop`] takes it down; the rest is what they are made of. Whatever a
//! crash leaves behind is removed by the next start (see [`run`]).

pub mod accelerator;
pub mod audit;
pub mod boot_sector;
pub mod cache;
pub mod cases;
pub mod certificates;
pub mod chart;
pub mod console;
pub mod control_plane;
pub mod credentials;
pub mod guest;
pub mod hosts;
pub mod initramfs;
pub mod lab;
pub mod network;
pub mod observer;
pub mod process;
pub mod processes;
pub mod run;
pub mod signer;
pub mod supervisor;

pub use hosts::Host;
pub use lab::{Lab, LabOptions};
