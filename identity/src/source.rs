//! The ways to an identity, behind one interface.

use godwit_protocol::{CurrentCredentials, PeerIdentity, TlsError, TlsFiles, TrustDomain};
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::request::{Request, Requester};

/// Where a program's certificate comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files that someone else writes: a person, cert-manager, or the kubelet with pod certificates.
    Files(TlsFiles),
    /// The cluster's signer, asked by the program itself.
    Request(Box<Request>),
}

/// Why there are no credentials at the start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files cannot be used.
    #[error("The certificate cannot be used")]
    Tls(#[from] TlsError),
    /// The program is told to end before the signer has answered.
    #[error("The program was told to end before it had a certificate")]
    Stopped,
}

impl Source {
    /// The first credentials of this identity. Files are read once, and must be in order then, their dates apart: a
    /// program with an expired certificate runs and says so, and takes the next one. The signer is asked until it
    /// answers.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        self,
        identity: &PeerIdentity,
        domain: &TrustDomain,
        stop: &CancellationToken,
    ) -> Result<(CurrentCredentials, Keeper), OpenError> {
        match self {
            Self::Files(files) => {
                let first = files.load(domain)?;
                if first.identity() != identity {
                    return Err(OpenError::Tls(TlsError::OtherIdentity {
                        origin: files.chain.display().to_string(),
                        found: first.identity().uri(domain),
                        expected: identity.uri(domain),
                    }));
                }
                let current = CurrentCredentials::new(first);
                Ok((current.clone(), Keeper(Way::Files(files, current))))
            }
            Self::Request(request) => {
                let (current, requester) = request
                    .first(identity, domain, stop)
                    .await
                    .ok_or(OpenError::Stopped)?;
                Ok((current, Keeper(Way::Request(Box::new(requester)))))
            }
        }
    }
}

/// Keeps credentials fresh. To be run beside the program's work.
pub struct Keeper(Way);

enum Way {
    Files(TlsFiles, CurrentCredentials),
    Request(Box<Requester>),
}

impl Keeper {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        match self.0 {
            Way::Files(files, current) => files::keep(files, current, files::PERIOD, stop).await,
            Way::Request(requester) => requester.keep(stop).await,
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failing test may panic"
)]
mod tests;
