//! What the server bears, and that a place is given back.

use std::time::Duration;

use godwit_handover::Terms;
use godwit_protocol::server::Limits;
use godwit_protocol::{AgentClient, wire};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::authority::{Authority, CONTROLLER, Dates, host};
use crate::raw::{DEADLINE, Stranger};
use crate::scripted::{Agent, Served};

async fn served(authority: &Authority, limits: Limits) -> Served {
    Served::with(Agent::default(), authority.server(&host("node-a")), limits).await
}

/// Waits until the connection is closed.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    drop(
        timeout(DEADLINE, stream.read_to_end(&mut rest))
            .await
            .expect("it is not closed"),
    );
}

#[tokio::test]
async fn a_silent_client_meets_the_handshakes_deadline() {
    let authority = Authority::new();
    let limits = Limits {
        handshake: Duration::from_millis(100),
        ..Limits::default()
    };
    let served = served(&authority, limits).await;
    let started = Instant::now();
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    closed(&mut silent).await;
    assert!(started.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn r6_a_newcomer_takes_the_place_of_one_who_proves_nothing() {
    let authority = Authority::new();
    let limits = Limits {
        strangers: 1,
        // Too long to be waited for.
        handshake: DEADLINE * 10,
        ..Limits::default()
    };
    let served = served(&authority, limits).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    // From the same address: it has to leave the silent one its moment.
    let tls = authority.client(CONTROLLER);
    let until = Instant::now() + DEADLINE;
    while let Err(fault) = AgentClient::connect(&served.endpoint(), "node-a", &tls).await {
        assert!(Instant::now() < until, "{fault}");
    }
    closed(&mut silent).await;
    AgentClient::connect(&served.endpoint(), "node-a", &tls)
        .await
        .expect("the place came back");
}

#[tokio::test]
async fn connections_are_limited_and_places_come_back() {
    let authority = Authority::new();
    let served = served(
        &authority,
        Limits {
            connections: 1,
            ..Limits::default()
        },
    )
    .await;
    let tls = authority.client(CONTROLLER);
    let first = AgentClient::connect(&served.endpoint(), "node-a", &tls)
        .await
        .unwrap();
    let fault = AgentClient::connect(&served.endpoint(), "node-a", &tls)
        .await
        .unwrap_err();
    assert_eq!(fault.reason, "AgentUnreachable");
    drop(first);
    let until = Instant::now() + DEADLINE;
    while let Err(fault) = AgentClient::connect(&served.endpoint(), "node-a", &tls).await {
        assert!(Instant::now() < until, "the place was not given back: {fault}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_peer_that_never_speaks_http_is_closed() {
    let authority = Authority::new();
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        ping_answer: Duration::from_millis(50),
        ..Limits::default()
    };
    let served = served(&authority, limits).await;
    let stranger = Stranger::with(authority.issue("mute", CONTROLLER, Dates::Good));
    let mut stream = stranger.connect(served.address).await.unwrap();
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_quiet_watch_lives_on_under_pings() {
    let authority = Authority::new();
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        ping_answer: Duration::from_millis(500),
        ..Limits::default()
    };
    let served = served(&authority, limits).await;
    let client = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(CONTROLLER))
        .await
        .unwrap();
    let mut updates = client.watch_migration("m-1").await.unwrap();
    updates.next().await.unwrap().unwrap();
    // Longer than a peer may be silent here (2 × 550 ms): only its answers to pings keep the connection.
    assert!(
        timeout(Duration::from_millis(1500), updates.next())
            .await
            .is_err(),
        "the watch has ended"
    );
    served
        .agent
        .updates
        .send_modify(|update| update.detail = "on".to_owned());
    assert_eq!(updates.next().await.unwrap().unwrap().detail, "on");
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused() {
    let authority = Authority::new();
    let served = served(&authority, Limits::default()).await;
    let stranger = Stranger::with(authority.issue("long", CONTROLLER, Dates::Good));
    let mut calls = stranger.calls(served.address).await;
    calls
        .hello(wire::HelloRequest {
            oldest_version: 1,
            newest_version: 1,
            program: String::new(),
        })
        .await
        .unwrap();
    let terms = Terms {
        migration: "m-1".into(),
        guest: "g-1".into(),
        epoch: 1,
        source: "node-a".into(),
        destination: "node-b".into(),
        strict: false,
    };
    let order = wire::order_request::Order::Prepare(wire::Prepare {
        guest: None,
        definition: vec![0; 1024 * 1024],
        stream: None,
        ticket: Vec::new(),
    });
    let mut request = tonic::Request::new(wire::OrderRequest {
        terms: Some((&terms).into()),
        order: Some(order),
    });
    request.metadata_mut().insert("godwit-protocol", 1.into());
    let status = calls.order(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    assert_eq!(
        godwit_protocol::Fault::from(status).category,
        godwit_protocol::Category::Invalid
    );
    assert_eq!(served.orders_taken(), 0);
}
