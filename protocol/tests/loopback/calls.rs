//! Typed calls, their faults, and who may make them.

use std::time::Duration;

use godwit_handover::{Cause, Channel, DestinationReport, SourceReport, Terms, Token};
use godwit_protocol::clock::ClockEstimate;
use godwit_protocol::{
    AgentClient, Category, Fault, GuestAnswer, GuestName, GuestState, Order, OrderAnswer, PeerIdentity,
    Progress, Side, StartGuest, StreamOptions, Update,
};

use crate::authority::{Authority, CONTROLLER, host};
use crate::raw::DEADLINE;
use crate::scripted::{Agent, CLOCK_MICROS, Served};

fn terms() -> Terms {
    Terms {
        migration: "m-1".into(),
        guest: "g-1".into(),
        epoch: 4,
        source: "node-a".into(),
        destination: "node-b".into(),
        strict: false,
    }
}

fn guest() -> GuestName {
    GuestName {
        uid: "g-1".into(),
        namespace: "default".into(),
        name: "web1".into(),
    }
}

async fn connected(agent: Agent) -> (Authority, Served, AgentClient) {
    let authority = Authority::new();
    let served = Served::new(agent, authority.server(&host("node-a"))).await;
    let client = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(CONTROLLER))
        .await
        .unwrap();
    (authority, served, client)
}

#[tokio::test]
async fn guests_are_started_and_stopped() {
    let (_authority, served, client) = connected(Agent::default()).await;
    let order = StartGuest {
        guest: guest(),
        epoch: 1,
        definition: b"{}".to_vec(),
        again: false,
    };
    let answer = client.start_guest(&order).await.unwrap();
    assert_eq!(
        answer,
        GuestAnswer {
            state: GuestState::Running,
            since_micros: Some(5)
        }
    );
    assert_eq!(*served.agent.guests.lock().unwrap(), [order]);
    client.stop_guest(&guest(), 1).await.unwrap();
    assert!(served.agent.guests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn orders_arrive_as_they_were_given() {
    let (_authority, served, client) = connected(Agent::default()).await;
    let begin = Order::Begin {
        max_downtime: Duration::from_millis(300),
        stream: StreamOptions::PLAIN,
    };
    let perform = Order::Perform(Channel {
        uri: "tcp://10.0.0.2:49160".into(),
        token: Token(vec![9; 32]),
    });
    assert_eq!(
        client.order(&terms(), &begin).await.unwrap(),
        OrderAnswer::Begun {
            definition: b"{}".to_vec()
        }
    );
    for order in [&perform, &Order::Ready, &Order::Confirm] {
        assert_eq!(client.order(&terms(), order).await.unwrap(), OrderAnswer::Taken);
    }
    let taken: Vec<_> = served.agent.taken.lock().unwrap().clone();
    let expected =
        [begin, perform, Order::Ready, Order::Confirm].map(|order| (PeerIdentity::Controller, order));
    assert_eq!(taken, expected);
}

#[tokio::test]
async fn updates_arrive_as_they_change() {
    let (_authority, served, client) = connected(Agent::default()).await;
    let mut updates = client.watch_migration("m-1").await.unwrap();
    assert_eq!(updates.next().await.unwrap().unwrap(), Update::default());
    for side in [
        Side::Source(SourceReport::Switching {
            sealed: true,
            ready: false,
            wanted: None,
        }),
        Side::Destination(DestinationReport::Reverted(Cause::StreamFailed)),
    ] {
        let update = Update {
            side: Some(side),
            progress: Some(Progress {
                total_bytes: 7,
                iteration: 3,
                ..Progress::default()
            }),
            stopped_at_micros: Some(99),
            ..Update::default()
        };
        served.agent.updates.send_replace(update.clone());
        assert_eq!(updates.next().await.unwrap().unwrap(), update);
    }
    let fault = client.watch_migration("m-2").await.unwrap_err();
    assert!(fault.message.contains("no such migration"), "{fault}");
}

#[tokio::test]
async fn a_keepalive_measures_clock_and_round_trip() {
    let (_authority, _served, client) = connected(Agent::default()).await;
    let answer = client
        .keep_alive(&terms(), true, Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!(answer.sample.remote_micros, CLOCK_MICROS);
    assert!(answer.round_trip > Duration::ZERO && answer.round_trip < DEADLINE);
    let mut estimate = ClockEstimate::new();
    estimate.add(answer.sample);
    let offset = estimate.offset().unwrap();
    assert!(offset.micros < 0, "the scripted clock stands in 1970");
}

#[tokio::test]
async fn an_agents_fault_arrives_whole() {
    let fault = Fault::new(
        Category::Lacking,
        "PortsExhausted",
        "Each port is in use; wait or widen the range",
    );
    let agent = Agent {
        refuse_orders_with: Some(fault.clone()),
        ..Agent::default()
    };
    let (_authority, _served, client) = connected(agent).await;
    let told = client.order(&terms(), &Order::Ready).await.unwrap_err();
    assert_eq!((told.category, &told.reason), (fault.category, &fault.reason));
    assert_eq!(told.message, format!("Ready at host node-a: {}", fault.message));
}

#[tokio::test]
async fn the_longest_fault_fits_the_headers() {
    let fault = Fault::new(Category::Internal, "InternalError", "ä".repeat(4000));
    let agent = Agent {
        refuse_orders_with: Some(fault.clone()),
        ..Agent::default()
    };
    let (_authority, _served, client) = connected(agent).await;
    let told = client.order(&terms(), &Order::Ready).await.unwrap_err();
    assert_eq!((told.category, &told.reason), (fault.category, &fault.reason));
    assert!(told.message.ends_with('…'), "{}", told.message);
}

#[tokio::test]
async fn a_malformed_order_is_refused_by_field() {
    let (_authority, served, client) = connected(Agent::default()).await;
    let same_host = Terms {
        destination: "node-a".into(),
        ..terms()
    };
    let fault = client.order(&same_host, &Order::Ready).await.unwrap_err();
    assert_eq!(fault.category, Category::Invalid);
    assert!(fault.message.contains("terms.destination"), "{fault}");
    assert_eq!(served.orders_taken(), 0);
}

#[tokio::test]
async fn a_host_may_neither_start_nor_stop_guests() {
    let authority = Authority::new();
    let served = Served::new(Agent::default(), authority.server(&host("node-a"))).await;
    let client = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(&host("node-b")))
        .await
        .unwrap();
    let order = StartGuest {
        guest: guest(),
        epoch: 1,
        definition: b"{}".to_vec(),
        again: false,
    };
    for fault in [
        client.start_guest(&order).await.unwrap_err(),
        client.stop_guest(&guest(), 1).await.unwrap_err(),
    ] {
        assert_eq!(
            (fault.category, fault.reason.as_ref()),
            (Category::Forbidden, "NotAllowed"),
            "{fault:?}"
        );
        assert!(fault.message.contains("node-b"), "{fault}");
    }
    assert_eq!(served.orders_taken(), 0);
    assert!(served.agent.guests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_lost_agent_is_unreachable_and_the_connection_does_not_come_back_by_itself() {
    let (authority, mut served, client) = connected(Agent::default()).await;
    let mut updates = client.watch_migration("m-1").await.unwrap();
    updates.next().await.unwrap().unwrap();
    // The agent ends its watches and then the server: what a shutdown looks like.
    served.stop.take().unwrap().send(()).unwrap();
    drop(updates);
    tokio::time::timeout(DEADLINE, &mut served.task)
        .await
        .expect("the server does not end")
        .unwrap();
    let listener = tokio::net::TcpListener::bind(served.address).await.unwrap();
    let fault = client.order(&terms(), &Order::Ready).await.unwrap_err();
    assert_eq!(
        (fault.category, fault.reason.as_ref()),
        (Category::Unavailable, "AgentUnreachable")
    );
    drop(listener);
    let again = AgentClient::connect(&served.endpoint(), "node-a", &authority.client(CONTROLLER)).await;
    assert_eq!(again.unwrap_err().reason, "AgentUnreachable");
}
