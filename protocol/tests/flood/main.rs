//! Strangers who come in numbers: what they cost the agent port, and that nobody else is kept out by them (R6).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

#[allow(dead_code, reason = "other tests need more of it")]
#[path = "../loopback/authority.rs"]
mod authority;
mod crowd;
#[allow(dead_code, reason = "other tests need more of it")]
#[path = "../loopback/scripted.rs"]
mod scripted;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_handover::Terms;
use godwit_protocol::server::{Limits, Passage, Passing};
use godwit_protocol::{AgentClient, ClientTls};
use godwit_tls::hello::{ALPN_TUNNEL, server_name};
use tokio::net::TcpStream;
use tokio::sync::{Mutex as OneAtATime, mpsc};
use uuid::Uuid;

use crate::authority::{Authority, CONTROLLER, host};
use crate::crowd::{Crowd, client_hello, connect};
use crate::scripted::{Agent, Served};

/// Long enough for anything on loopback; its passing is a failure.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where strangers come from. The others come from 127.0.0.1.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MANY: usize = 10_000;
/// What they all may cost together, in bytes, with what this process needs for its own ends of them. Were each kept for
/// the time that a handshake may take, ten thousand would cost six times this.
const COST: u64 = 16 << 20;

/// The tests measure their own process, and share its descriptors.
static ALONE: OneAtATime<()> = OneAtATime::const_new(());

/// Tells of the tunnels that are asked for.
struct Tunnels(mpsc::UnboundedSender<Option<String>>);

impl Passage for Tunnels {
    fn pass(&self, server_name: Option<String>, _: TcpStream, _: Vec<u8>) -> Passing {
        self.0.send(server_name).unwrap();
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Scene {
    served: Served,
    tls: ClientTls,
    tunnels: mpsc::UnboundedReceiver<Option<String>>,
    /// A controller that has been connected all the time.
    old: AgentClient,
}

impl Scene {
    async fn new(limits: Limits) -> Self {
        crowd::many_descriptors();
        let authority = Authority::new();
        let (tell, tunnels) = mpsc::unbounded_channel();
        let tls = authority.server(&host("node-a"));
        let served = Served::passing(Agent::default(), tls, limits, Arc::new(Tunnels(tell))).await;
        let tls = authority.client(CONTROLLER);
        let old = AgentClient::connect(&served.endpoint(), "node-a", &tls)
            .await
            .unwrap();
        Self {
            served,
            tls,
            tunnels,
            old,
        }
    }

    fn address(&self) -> SocketAddr {
        self.served.address
    }

    /// What has to go on: calls on a connection that stands, a new one, and a new channel of a tunnel.
    async fn all_is_well(&mut self) {
        answers(&self.old).await;
        let new = self.newcomer().await.unwrap();
        answers(&new).await;
        let mut channel = connect(HERE, self.address()).await.unwrap();
        let name = server_name(Uuid::from_u128(7));
        tokio::io::AsyncWriteExt::write_all(&mut channel, &client_hello(ALPN_TUNNEL, &name))
            .await
            .unwrap();
        let asked = tokio::time::timeout(DEADLINE, self.tunnels.recv()).await;
        assert_eq!(asked.expect("no tunnel is passed on"), Some(Some(name)));
    }

    async fn newcomer(&self) -> Result<AgentClient, godwit_protocol::Fault> {
        AgentClient::connect(&self.served.endpoint(), "node-a", &self.tls).await
    }
}

/// The server carries out a call on this connection.
async fn answers(client: &AgentClient) {
    let terms = Terms {
        migration: "m-1".into(),
        guest: "g-1".into(),
        epoch: 1,
        source: "node-a".into(),
        destination: "node-b".into(),
        strict: false,
    };
    client.keep_alive(&terms, false, Duration::ZERO).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_ten_thousand_idle_connections_cost_little_and_keep_nobody_out() {
    let _alone = ALONE.lock().await;
    let mut scene = Scene::new(Limits::default()).await;
    scene.all_is_well().await;
    let before = crowd::memory();
    let mut crowd = Crowd::default();
    crowd.come(ELSEWHERE, scene.address(), MANY, &[]).await;
    scene.all_is_well().await;
    let cost = crowd::memory().saturating_sub(before);
    crowd.thinned_to(Limits::default().strangers, DEADLINE).await;
    eprintln!("{MANY} idle connections: {} KiB", cost >> 10);
    assert!(cost < COST, "{MANY} idle connections cost {} KiB", cost >> 10);
    // The places are taken still: these are the last that came.
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_half_open_handshakes_cost_little_and_keep_nobody_out() {
    let _alone = ALONE.lock().await;
    let mut scene = Scene::new(Limits::default()).await;
    let hello = client_hello(b"h2", "any");
    let before = crowd::memory();
    let mut crowd = Crowd::default();
    crowd.come(ELSEWHERE, scene.address(), 1000, &hello).await;
    scene.all_is_well().await;
    // Of a hello the first half.
    crowd
        .come(ELSEWHERE, scene.address(), 1000, &hello[..hello.len() / 2])
        .await;
    scene.all_is_well().await;
    let cost = crowd::memory().saturating_sub(before);
    crowd.thinned_to(Limits::default().strangers, DEADLINE).await;
    eprintln!("2000 half-open handshakes: {} KiB", cost >> 10);
    assert!(cost < COST, "2000 half-open handshakes cost {} KiB", cost >> 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_who_drips_has_no_more_time_than_the_silent() {
    let _alone = ALONE.lock().await;
    let limits = Limits {
        handshake: Duration::from_secs(1),
        ..Limits::default()
    };
    let mut scene = Scene::new(limits).await;
    let mut crowd = Crowd::default();
    crowd
        .come(ELSEWHERE, scene.address(), limits.strangers, &[])
        .await;
    let hello = client_hello(b"h2", "any");
    let until = Instant::now() + DEADLINE;
    // A byte each now and then: none of them is ever silent as long as the deadline, and none comes to the end of it.
    for byte in &hello[..hello.len() - 1] {
        crowd.say(&[*byte]);
        answers(&scene.old).await;
        if crowd.open() == 0 {
            break;
        }
        assert!(Instant::now() < until, "they are still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(crowd.open(), 0, "who drips stays");
    scene.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_who_comes_and_goes_without_end_keeps_nobody_out() {
    let _alone = ALONE.lock().await;
    let mut scene = Scene::new(Limits::default()).await;
    let before = crowd::memory();
    let came = Arc::new(Mutex::new(0u64));
    let to = scene.address();
    let flood = |from: IpAddr| {
        let came = Arc::clone(&came);
        tokio::spawn(async move {
            let mut last = std::collections::VecDeque::new();
            loop {
                if let Ok(stream) = connect(from, to).await {
                    *came.lock().unwrap() += 1;
                    last.push_back(stream);
                }
                // Each stays for a while: places are held, and left, all the time.
                if last.len() > 200 {
                    last.pop_front();
                }
            }
        })
    };
    let flooded = async |most: u64| {
        let until = Instant::now() + DEADLINE;
        let goal = *came.lock().unwrap() + most;
        while *came.lock().unwrap() < goal {
            assert!(Instant::now() < until, "the flood does not flow");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let floods = [flood(ELSEWHERE), flood(ELSEWHERE)];
    flooded(1000).await;
    for _ in 0..3 {
        scene.all_is_well().await;
    }
    // From where the flood comes itself, among its own: it may take more than one attempt.
    let beside = flood(HERE);
    flooded(1000).await;
    let until = Instant::now() + DEADLINE;
    while let Err(fault) = scene.newcomer().await {
        assert!(Instant::now() < until, "{fault}");
    }
    answers(&scene.old).await;
    let cost = crowd::memory().saturating_sub(before);
    for flood in floods.into_iter().chain([beside]) {
        flood.abort();
    }
    let came = *came.lock().unwrap();
    eprintln!("{came} connections that came and went: {} KiB", cost >> 10);
    assert!(
        cost < COST,
        "{came} connections that came and went cost {} KiB",
        cost >> 10
    );
}
