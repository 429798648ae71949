//! Reads files again and again, and takes what has changed.

use std::time::Duration;

use godwit_protocol::{CurrentCredentials, TlsFiles};
use tokio_util::sync::CancellationToken;

use crate::judge::Judged;

/// How often the files are read. They are small, and a renewal is written hours before the old certificate ends; a
/// watch by the kernel would miss what is mounted over or swapped by a link, as the kubelet does it.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);

/// Keeps credentials as the files say, until `stop`.
pub(crate) async fn keep(
    files: TlsFiles,
    current: CurrentCredentials,
    period: Duration,
    stop: CancellationToken,
) {
    let mut judged = Judged::default();
    while stop
        .run_until_cancelled(tokio::time::sleep(period))
        .await
        .is_some()
    {
        let (files, domain) = (files.clone(), current.domain().clone());
        // A file system may hang; the runtime's threads do not wait for it.
        if let Ok(read) = tokio::task::spawn_blocking(move || files.load(&domain)).await {
            judged.carry_out(&current, read);
        }
    }
}
