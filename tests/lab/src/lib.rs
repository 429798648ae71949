//! The lab of the end-to-end tests.

pub mod boot_sector;
pub mod initramfs;
pub mod observer;
