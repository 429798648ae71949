//! Older and newer programs on either side.

use godwit_protocol::{AgentClient, Category, Fault, wire};
use tonic::Request;

use crate::authority::{Authority, CONTROLLER, Dates, host};
use crate::raw::Stranger;
use crate::scripted::{Agent, HelloScript, Served};

fn hello(oldest_version: u32, newest_version: u32) -> wire::HelloRequest {
    wire::HelloRequest {
        oldest_version,
        newest_version,
        program: "a test".to_owned(),
    }
}

fn keep_alive(version: Option<&'static str>) -> Request<wire::KeepAliveRequest> {
    let mut request = Request::new(wire::KeepAliveRequest::default());
    if let Some(version) = version {
        request
            .metadata_mut()
            .insert("godwit-protocol", version.parse().unwrap());
    }
    request
}

fn is_unsupported(fault: &Fault) {
    assert_eq!(
        (fault.category, fault.reason.as_ref()),
        (Category::Version, "ProtocolVersionUnsupported"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn a_newer_client_that_speaks_ours_too_is_served() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let stranger = Stranger::with(authority.issue("newer", CONTROLLER, Dates::Good));
    let mut calls = stranger.calls(served.address).await;
    assert_eq!(calls.hello(hello(2, 3)).await.unwrap().into_inner().version, 2);
    calls.keep_alive(keep_alive(Some("2"))).await.unwrap();
}

#[tokio::test]
async fn an_older_client_is_served_in_its_own_version() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let stranger = Stranger::with(authority.issue("older", CONTROLLER, Dates::Good));
    let mut calls = stranger.calls(served.address).await;
    assert_eq!(calls.hello(hello(1, 1)).await.unwrap().into_inner().version, 1);
    calls.keep_alive(keep_alive(Some("1"))).await.unwrap();
    is_unsupported(&calls.keep_alive(keep_alive(Some("2"))).await.unwrap_err().into());
}

#[tokio::test]
async fn a_client_that_speaks_only_others_is_told_both_ranges() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let stranger = Stranger::with(authority.issue("newer", CONTROLLER, Dates::Good));
    let mut calls = stranger.calls(served.address).await;
    let fault = Fault::from(calls.hello(hello(7, 8)).await.unwrap_err());
    is_unsupported(&fault);
    assert!(
        fault.message.contains("speaks 1 to 2") && fault.message.contains("7 to 8"),
        "{}",
        fault.message
    );
    is_unsupported(&calls.keep_alive(keep_alive(Some("7"))).await.unwrap_err().into());
}

#[tokio::test]
async fn calls_without_hello_or_under_another_version_are_refused() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let stranger = Stranger::with(authority.issue("client", CONTROLLER, Dates::Good));
    let mut calls = stranger.calls(served.address).await;
    is_unsupported(&calls.keep_alive(keep_alive(Some("1"))).await.unwrap_err().into());
    calls.hello(hello(1, 1)).await.unwrap();
    for version in [None, Some("2"), Some("one")] {
        is_unsupported(&calls.keep_alive(keep_alive(version)).await.unwrap_err().into());
    }
    calls.keep_alive(keep_alive(Some("1"))).await.unwrap();
}

#[tokio::test]
async fn a_hello_counts_for_its_own_connection_only() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let stranger = Stranger::with(authority.issue("client", CONTROLLER, Dates::Good));
    stranger
        .calls(served.address)
        .await
        .hello(hello(1, 1))
        .await
        .unwrap();
    let mut other = stranger.calls(served.address).await;
    is_unsupported(&other.keep_alive(keep_alive(Some("1"))).await.unwrap_err().into());
}

#[tokio::test]
async fn an_agent_with_other_versions_is_refused() {
    let authority = Authority::new();
    for script in [
        HelloScript::OnlyVersions(5, 6),
        HelloScript::Version(3),
        HelloScript::Version(0),
    ] {
        let agent = Agent {
            hello: script,
            ..Agent::default()
        };
        let served = Served::new(agent, authority.server(&host("node-a"))).await;
        let fault = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(CONTROLLER))
            .await
            .unwrap_err();
        is_unsupported(&fault);
    }
}
