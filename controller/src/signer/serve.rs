//! Watches the requests, and writes down what was decided.
//!
//! Several signers may run: answers are written under the version of the request that was judged, and an answer that
//! stands is never changed.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::authority::{Authority, AuthorityError, AuthorityFiles, Certificate, IssueError};
use super::config::Config;
use super::decide::{self, Decision, Grant, Refusal, Rules};
use super::objects::{GROUP, PodAnswer, PodCertificateRequest, VERSION, pod_certificate_requests};
use super::publish::Publisher;
use crate::connect::{self, ConnectError};
use crate::health::{self, Health};

/// How many requests of a kind are answered at the same time.
const CONCURRENCY: u16 = 4;
/// A request that could not be answered is tried again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How often the authority's files are read, and the roots written if they or the cluster's copy may have changed.
const PERIOD: Duration = Duration::from_secs(5);
/// How often a cluster without PodCertificateRequests is looked at again: it may be upgraded.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// A pod's certificate is renewed at this share of its life: two thirds.
const RENEW_AT: (u32, u32) = (2, 3);

/// Why the signer cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The authority.
    #[error("the authority cannot be used")]
    Authority(#[from] AuthorityError),
    /// The health endpoint.
    #[error("--health-listen cannot be opened")]
    Health(#[source] std::io::Error),
}

/// Why one request was not answered this time.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The API server.
    #[error("the API server")]
    Api(#[from] kube::Error),
    /// The authority.
    #[error("nothing can be issued now")]
    Issue(#[from] IssueError),
}

struct Signer {
    client: Client,
    rules: Rules,
    authority: watch::Receiver<Arc<Authority>>,
}

/// Runs until `stop`.
///
/// # Errors
/// [`RunError`] where it cannot begin.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let files = config.authority();
    let (authority, current) = watch::channel(Arc::new(Authority::load(&files, SystemTime::now())?));
    let client = connect::client(config.kubeconfig.as_deref()).await?;
    let health = Arc::new(Health::default());
    if let Some(address) = config.health_listen {
        let listener = health::listen(address).await.map_err(RunError::Health)?;
        tokio::spawn(health::serve(listener, health.clone()));
    }
    let publisher = Publisher::new(
        client.clone(),
        config.signer_name.clone(),
        config.namespace.clone(),
        config.trust_config_map.clone(),
    );
    let signer = Arc::new(Signer {
        client,
        rules: config.rules(),
        authority: current.clone(),
    });
    tracing::info!(signer = %config.signer_name, domain = %config.trust_domain, "the signer runs");
    let beside = async {
        tokio::join!(
            keep_authority(files, authority),
            publish(publisher, current, health),
            pod_requests(signer.clone(), stop.clone()),
        )
    };
    tokio::select! {
        () = signing_requests(signer.clone(), stop.clone()) => {}
        () = async { beside.await; } => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Reads the authority's files again and again. What cannot be used, as half of a new pair, leaves the old one.
async fn keep_authority(files: AuthorityFiles, authority: watch::Sender<Arc<Authority>>) {
    let mut complaint = None;
    loop {
        tokio::time::sleep(PERIOD).await;
        match Authority::load(&files, SystemTime::now()) {
            Ok(next) => {
                complaint = None;
                if next.roots() != authority.borrow().roots() {
                    tracing::info!("the authority's files have changed");
                }
                authority.send_replace(Arc::new(next));
            }
            Err(why) => {
                let words = in_full(&why);
                if complaint.as_ref() != Some(&words) {
                    tracing::warn!(
                        "The authority's files cannot be used, and what was read before stays: {words}"
                    );
                    complaint = Some(words);
                }
            }
        }
    }
}

/// Writes the roots, and writes them again: what someone changed or deleted comes back.
async fn publish(publisher: Publisher, authority: watch::Receiver<Arc<Authority>>, health: Arc<Health>) {
    loop {
        let current = authority.borrow().clone();
        match publisher.publish(current.roots()).await {
            Ok(()) => health.reached(),
            Err(why) => tracing::warn!("The roots are not published: {}", in_full(&why)),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn watch_config(signer: &Signer) -> watcher::Config {
    watcher::Config::default().fields(&format!("spec.signerName={}", signer.rules.signer))
}

async fn signing_requests(signer: Arc<Signer>, stop: CancellationToken) {
    let requests = Api::<CertificateSigningRequest>::all(signer.client.clone());
    Controller::new(requests, watch_config(&signer))
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(answer_signing_request, again, signer)
        .for_each(|done| async move { log(done) })
        .await;
}

async fn pod_requests(signer: Arc<Signer>, stop: CancellationToken) {
    while !served(&signer.client).await {
        tracing::info!(
            "this cluster has no PodCertificateRequests of version {VERSION}; looking again later"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let kind = pod_certificate_requests();
    let requests = Api::<PodCertificateRequest>::all_with(signer.client.clone(), &kind);
    Controller::new_with(requests, watch_config(&signer), kind)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(answer_pod_request, again, signer)
        .for_each(|done| async move { log(done) })
        .await;
}

/// Whether the cluster has PodCertificateRequests. An API server that does not answer is asked again.
async fn served(client: &Client) -> bool {
    loop {
        match client
            .list_api_group_resources(&format!("{GROUP}/{VERSION}"))
            .await
        {
            Ok(list) => {
                return list
                    .resources
                    .iter()
                    .any(|resource| resource.name == "podcertificaterequests");
            }
            Err(why) => tracing::warn!("The API server: {}", in_full(&why)),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

fn again<K>(_: Arc<K>, _: &AnswerError, _: Arc<Signer>) -> Action {
    Action::requeue(AGAIN_AFTER)
}

fn log<K>(
    done: Result<
        (kube::runtime::reflector::ObjectRef<K>, Action),
        controller::Error<AnswerError, watcher::Error>,
    >,
) where
    K: Resource,
    K::DynamicType: std::fmt::Debug + std::hash::Hash + Eq + Clone,
{
    match done {
        Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
        Err(why) => tracing::warn!("To be tried again: {}", in_full(&why)),
    }
}

fn in_full(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        words.push_str(": ");
        words.push_str(&why.to_string());
        cause = why.source();
    }
    words
}

impl Signer {
    fn issue(&self, grant: &Grant, shortest: Duration) -> Result<Certificate, IssueError> {
        let authority = self.authority.borrow().clone();
        authority.issue(
            &grant.identity,
            &self.rules.domain,
            &grant.key,
            (shortest, grant.lifetime),
            SystemTime::now(),
        )
    }
}

async fn answer_signing_request(
    request: Arc<CertificateSigningRequest>,
    signer: Arc<Signer>,
) -> Result<Action, AnswerError> {
    let requests = Api::<CertificateSigningRequest>::all(signer.client.clone());
    let (name, requester) = (
        request.name_any(),
        request.spec.username.clone().unwrap_or_default(),
    );
    match decide::signing_request(&signer.rules, &request) {
        Decision::Leave => {}
        Decision::Deny(refusal) => {
            tracing::warn!(request = %name, %requester, reason = refusal.reason, "refused: {}", refusal.message);
            // What a person has approved can no longer be denied, and fails instead.
            if has(&request, "Approved") {
                let patch = conditions(&request, "Failed", &refusal);
                requests
                    .patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?;
            } else {
                let patch = conditions(&request, "Denied", &refusal);
                requests
                    .patch_approval(&name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?;
            }
        }
        Decision::Issue(grant) => {
            let certificate = signer.issue(&grant, decide::SHORTEST)?;
            let version = if has(&request, "Approved") {
                request.resource_version()
            } else {
                let approval = Refusal {
                    reason: "RequesterIsIdentity",
                    message: format!("the requester's token is that of {}", grant.identity),
                };
                let patch = conditions(&request, "Approved", &approval);
                requests
                    .patch_approval(&name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?
                    .resource_version()
            };
            let patch = json!({
                "metadata": {"resourceVersion": version},
                "status": {"certificate": ByteString(certificate.pem.into_bytes())},
            });
            requests
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
            tracing::info!(
                request = %name, %requester, identity = %grant.identity, until = %timestamp(certificate.until),
                "issued"
            );
        }
    }
    Ok(Action::await_change())
}

fn has(request: &CertificateSigningRequest, type_: &str) -> bool {
    request
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == type_)
}

/// The patch that adds a condition to those that stand.
fn conditions(request: &CertificateSigningRequest, type_: &str, why: &Refusal) -> serde_json::Value {
    let now = Time(Timestamp::now());
    let mut all: Vec<CertificateSigningRequestCondition> = request
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    all.push(CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(why.reason.to_owned()),
        message: Some(why.message.clone()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    });
    json!({
        "metadata": {"resourceVersion": request.resource_version()},
        "status": {"conditions": all},
    })
}

async fn answer_pod_request(
    request: Arc<PodCertificateRequest>,
    signer: Arc<Signer>,
) -> Result<Action, AnswerError> {
    let name = request.name_any();
    let answer = match decide::pod_request(&signer.rules, &request) {
        Decision::Leave => return Ok(Action::await_change()),
        Decision::Deny(refusal) => {
            tracing::warn!(
                request = %name, pod = %request.spec.pod_name, node = %request.spec.node_name,
                reason = refusal.reason, "refused: {}", refusal.message
            );
            PodAnswer {
                conditions: vec![condition("Denied", refusal.reason, refusal.message)],
                ..PodAnswer::default()
            }
        }
        Decision::Issue(grant) => {
            let certificate = signer.issue(&grant, decide::SHORTEST_FOR_POD)?;
            tracing::info!(
                request = %name, pod = %request.spec.pod_name, identity = %grant.identity,
                until = %timestamp(certificate.until), "issued"
            );
            issued(&grant, certificate)
        }
    };
    let patch = json!({"metadata": {"resourceVersion": request.resource_version()}, "status": answer});
    let namespace = request.namespace().unwrap_or_default();
    Api::<PodCertificateRequest>::namespaced_with(
        signer.client.clone(),
        &namespace,
        &pod_certificate_requests(),
    )
    .patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
    .await?;
    Ok(Action::await_change())
}

fn issued(grant: &Grant, certificate: Certificate) -> PodAnswer {
    let life = certificate
        .until
        .duration_since(certificate.from)
        .unwrap_or_default();
    let refresh = certificate.from + life * RENEW_AT.0 / RENEW_AT.1;
    PodAnswer {
        conditions: vec![condition(
            "Issued",
            "RequesterIsIdentity",
            format!("the pod is that of {}", grant.identity),
        )],
        certificate_chain: Some(certificate.pem),
        not_before: Some(Time(timestamp(certificate.from))),
        begin_refresh_at: Some(Time(timestamp(refresh))),
        not_after: Some(Time(timestamp(certificate.until))),
    }
}

fn condition(type_: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Time(timestamp(SystemTime::now())),
        observed_generation: None,
    }
}

/// In whole seconds, as the API server compares them.
fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX)
}
