//! The guests' network interfaces on the host: a tap device each, put on a bridge.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;

/// How long one change of a network device may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Makes and removes tap devices.
#[async_trait]
pub trait Taps: Send + Sync {
    /// Makes a tap device that `user` may open (the agent's own user where `None`) and puts it on `bridge`. When
    /// this fails, no device is left.
    async fn create(&self, name: &str, bridge: &str, user: Option<u32>) -> Result<(), TapError>;

    /// Removes a tap device. One that is not there is a success.
    async fn delete(&self, name: &str) -> Result<(), TapError>;
}

/// Why a network device could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The bridge is not there, or takes no device.
    #[error("Bridge {bridge} is not on this host, or takes no device: {message}")]
    Bridge {
        /// Its name.
        bridge: String,
        /// The system's words.
        message: String,
    },
    /// The device could not be made or removed.
    #[error("Network device {name}: {message}")]
    Device {
        /// Its name.
        name: String,
        /// The system's words.
        message: String,
    },
}

/// The name of a guest's nth tap device: 48 bits of its UID and the index, within the kernel's 15 characters.
pub fn tap_name(uid: &str, index: usize) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).collect();
    let tail = digits.get(digits.len().saturating_sub(12)..).unwrap_or_default();
    format!("g{tail}{index:x}")
}

/// Tap devices by the `ip` command.
#[derive(Clone, Copy, Debug, Default)]
pub struct IpCommand;

#[async_trait]
impl Taps for IpCommand {
    async fn create(&self, name: &str, bridge: &str, user: Option<u32>) -> Result<(), TapError> {
        let device = |message| TapError::Device {
            name: name.into(),
            message,
        };
        let user = user.map(|u| u.to_string());
        let mut add = vec!["tuntap", "add", "dev", name, "mode", "tap"];
        if let Some(user) = &user {
            add.extend(["user", user.as_str()]);
        }
        ip(&add).await.map_err(device)?;
        if let Err(message) = ip(&["link", "set", "dev", name, "master", bridge, "up"]).await {
            let _ = self.delete(name).await;
            return Err(TapError::Bridge {
                bridge: bridge.into(),
                message,
            });
        }
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), TapError> {
        if ip(&["link", "show", "dev", name]).await.is_err() {
            return Ok(());
        }
        ip(&["link", "delete", "dev", name])
            .await
            .map_err(|message| TapError::Device {
                name: name.into(),
                message,
            })
    }
}

async fn ip(arguments: &[&str]) -> Result<(), String> {
    let run = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, run)
        .await
        .map_err(|_| format!("the ip command did not end within {} s", DEADLINE.as_secs()))?
        .map_err(|e| format!("the ip command does not run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(200)
        .collect();
    Err(if words.is_empty() {
        output.status.to_string()
    } else {
        words
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let uid = "6f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e";
        assert_eq!(tap_name(uid, 0), "g0d8a5b1c2d3e0");
        assert_ne!(tap_name(uid, 0), tap_name(uid, 1));
        assert!(tap_name(uid, 7).len() <= 15);
    }
}
