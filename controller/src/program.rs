//! What the controller and the signer have in common as programs: their log, their runtime, and how they end.

use std::error::Error;
use std::future::Future;
use std::io::IsTerminal;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Runs a program's work until it ends or a signal comes, and gives the code to end with.
///
/// The first SIGTERM or SIGINT cancels the token and lets what is under way come to its end; the second ends the
/// process at once. That hurts nobody: no guest hangs on the controller, and a request that the signer has not answered
/// waits for the next one.
pub fn run<W, E>(log_format: LogFormat, work: impl FnOnce(CancellationToken) -> W) -> ExitCode
where
    W: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    end_on_panic();
    log_to_stderr(log_format);
    // Both libraries that speak TLS here take the process's provider; it is the same for each.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider was chosen already");
    }
    // Two threads are plenty: both programs wait for others nearly all of the time.
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(supervise(work));
    runtime.shutdown_background();
    code
}

fn log_to_stderr(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // A log that takes no more, on a full disk for example, is no reason to end: it would be told to the same log.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn supervise<W, E>(work: impl FnOnce(CancellationToken) -> W) -> ExitCode
where
    W: Future<Output = Result<(), E>>,
    E: Error + 'static,
{
    let shutdown = CancellationToken::new();
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught");
        return ExitCode::FAILURE;
    };
    let running = work(shutdown.clone());
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let causes: Vec<_> = std::iter::successors(Error::source(&error), |cause| (*cause).source())
                        .map(ToString::to_string).collect();
                    tracing::error!(causes = causes.join(": "), "{error}");
                    ExitCode::FAILURE
                }
            },
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            tracing::warn!("ending at once");
            return ExitCode::FAILURE;
        }
        tracing::info!("ending; once more to end at once");
        shutdown.cancel();
    }
}

/// A task that panicked would leave the rest running on half of what it knows; a program that starts anew asks the
/// agents and the API server.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
