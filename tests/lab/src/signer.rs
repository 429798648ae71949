//! The signer of identities as a part of the lab, with the rights that the chart gives it and an authority of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::certificates::{Authority, write_secret};
use crate::chart;
use crate::control_plane::ControlPlane;
use crate::credentials::Credentials;
use crate::process::Process;
use crate::run::Run;

/// The name under which it is asked.
pub const NAME: &str = "godwit.dev/agent";
/// Its service account.
const ACCOUNT: &str = "godwit-signer";
/// The ConfigMap with the roots.
pub const TRUST: &str = "godwit-trust";

/// A running signer.
pub struct Signer {
    /// The process.
    pub process: Process,
    credentials: Credentials,
    directory: PathBuf,
}

impl Signer {
    /// Starts a signer that issues with this authority.
    ///
    /// # Errors
    /// When a file cannot be written or the program not be started.
    pub async fn start(
        run: &Run,
        control_plane: &ControlPlane,
        programs: &Path,
        authority: &Authority,
    ) -> anyhow::Result<Self> {
        let directory = run.directory().join("signer");
        std::fs::create_dir_all(&directory)?;
        let credentials = Credentials::unbound(control_plane, ACCOUNT, run.records(), "signer").await?;
        write_pair(&directory, authority)?;
        write_secret(&directory.join("roots.pem"), "")?;
        let mut command = Command::new(programs.join("godwit-signer"));
        command
            .arg("--kubeconfig")
            .arg(credentials.kubeconfig())
            .args(["--namespace", chart::NAMESPACE])
            .args(["--signer-name", NAME])
            .arg("--ca-certificate")
            .arg(directory.join("tls.crt"))
            .arg("--ca-key")
            .arg(directory.join("tls.key"))
            .arg("--ca-roots")
            .arg(directory.join("roots.pem"))
            .args(["--trust-config-map", TRUST]);
        let process = Process::spawn(run, run.directory(), "signer", command)?;
        Ok(Self {
            process,
            credentials,
            directory,
        })
    }

    /// Publishes these roots beside that of the issuing authority, PEM.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish_too(&self, roots: &str) -> anyhow::Result<()> {
        let unfinished = self.directory.join("roots.pem.new");
        write_secret(&unfinished, roots)?;
        std::fs::rename(unfinished, self.directory.join("roots.pem"))?;
        Ok(())
    }

    /// Issues with another authority from now on.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn issue_with(&self, authority: &Authority) -> anyhow::Result<()> {
        write_pair(&self.directory, authority)
    }

    /// Ends the renewal of its token, for a signer that outlives this process.
    ///
    /// # Errors
    /// As [`Credentials::outlast`].
    pub async fn leave(mut self) -> anyhow::Result<()> {
        self.process.leave();
        self.credentials.outlast().await
    }
}

fn write_pair(directory: &Path, authority: &Authority) -> anyhow::Result<()> {
    write_secret(&directory.join("tls.crt"), authority.certificate())?;
    write_secret(&directory.join("tls.key"), authority.key())
}
