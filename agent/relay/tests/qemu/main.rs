//! Real hypervisors, driven by hand, whose streams travel through two relays: in one channel and in several, back
//! as well as forth, in post-copy, and through fresh channels after the first were lost.
//!
//! Left out of the quick loop: `cargo test -p godwit-relay --test qemu -- --ignored`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

#[path = "../relay/authority.rs"]
#[allow(dead_code, reason = "what bad certificates need is used elsewhere")]
mod authority;
mod hypervisor;
#[path = "../relay/rig.rs"]
#[allow(dead_code, reason = "what hypervisors made by hand need is used elsewhere")]
mod rig;

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use godwit_relay::channel::{Channel, ChannelKind};
use godwit_relay::client::{self, Place};
use godwit_relay::order::{Ending, Opening};
use serde_json::json;

use authority::{DESTINATION, SOURCE};
use hypervisor::{Contents, Hypervisor};
use rig::{Agent, Rig, memory, opening};

struct Pair {
    rig: Rig,
    contents: Contents,
    source: Hypervisor,
    destination: Hypervisor,
}

impl Pair {
    fn new(capabilities: &[&str]) -> Self {
        let rig = Rig::of(Agent::program(), Agent::program());
        let contents = Contents::new();
        let mut source = Hypervisor::start(&contents, false);
        let mut destination = Hypervisor::start(&contents, true);
        for hypervisor in [&mut source, &mut destination] {
            let capabilities: Vec<_> = ["events", "return-path"]
                .iter()
                .chain(capabilities)
                .map(|name| json!({"capability": name, "state": true}))
                .collect();
            hypervisor.call(
                "migrate-set-capabilities",
                json!({ "capabilities": capabilities }),
            );
        }
        source.call("migrate-set-parameters", json!({"max-bandwidth": 0}));
        source.call("cont", json!({}));
        Self {
            rig,
            contents,
            source,
            destination,
        }
    }

    /// Lets hypervisors connect by themselves, for these channels: the source's to a path where its relay listens, the
    /// destination's relay to a path where that one listens.
    fn by_paths(&mut self, name: &str, openings: &[Opening]) -> (String, String) {
        let near = self.rig.source.directory.path().join(format!("{name}.sock"));
        let far = self.rig.destination.directory.path().join(format!("{name}.sock"));
        for opening in openings {
            self.rig
                .destination
                .relay
                .expect(opening.clone(), Place::Path(&far))
                .unwrap();
        }
        let uid = rustix::process::geteuid().as_raw();
        self.rig
            .source
            .relay
            .listen(Place::Path(&near), uid, openings.to_vec())
            .unwrap();
        let uri = |path: &std::path::Path| format!("unix:{}", path.display());
        (uri(&near), uri(&far))
    }

    /// Waits for so many connections, while the hypervisors make them.
    fn arrive(&self, connections: usize) {
        for _ in 0..connections {
            self.rig.arrive();
        }
    }

    /// The guest is at the destination, as it was at the source.
    fn completed(mut self, channels: &[Channel]) {
        self.source.reaches("completed");
        self.destination.reaches("completed");
        self.destination.call("cont", json!({}));
        assert!(
            self.destination.holds(&self.contents),
            "the guest's memory is another"
        );
        // Both have closed what they had.
        self.source.quit();
        self.destination.quit();
        for agent in [&self.rig.source, &self.rig.destination] {
            for channel in channels {
                let (sent, received, ending) = agent.ended(*channel);
                println!("{channel}: {sent} bytes sent, {received} received");
                assert!(sent + received > 0, "{channel} has carried nothing");
                if channel.kind == ChannelKind::Memory {
                    assert_eq!(ending, Ending::End, "{channel}");
                }
            }
        }
    }
}

#[test]
#[ignore = "runs QEMU"]
fn one_channel_by_descriptors_with_its_return_path() {
    let mut pair = Pair::new(&[]);
    let name = memory();
    let (far, far_relay) = client::hypervisor_pair(4 << 20).unwrap();
    let place = Place::Socket(far_relay.as_fd());
    pair.rig.destination.relay.expect(name.clone(), place).unwrap();
    drop(far_relay);
    hand_over(&mut pair.destination, far);
    pair.destination
        .call("migrate-incoming", json!({"uri": "fd:stream"}));
    let (near, near_relay) = client::hypervisor_pair(4 << 20).unwrap();
    pair.rig.source.relay.open(name.clone(), &near_relay).unwrap();
    drop(near_relay);
    pair.arrive(1);
    pair.rig.source.up(name.channel);
    hand_over(&mut pair.source, near);
    pair.source.call("migrate", json!({"uri": "fd:stream"}));
    pair.completed(&[name.channel]);
}

fn hand_over(hypervisor: &mut Hypervisor, socket: UnixStream) {
    hypervisor.call_with("getfd", json!({"fdname": "stream"}), Some(socket.as_fd()));
}

#[test]
#[ignore = "runs QEMU"]
fn several_channels_by_paths() {
    let mut pair = Pair::new(&["multifd"]);
    for hypervisor in [&mut pair.source, &mut pair.destination] {
        hypervisor.call("migrate-set-parameters", json!({"multifd-channels": 4}));
    }
    let mut openings = vec![memory()];
    openings.extend((0..4).map(|number| opening(ChannelKind::Multifd, number)));
    let (near, far) = pair.by_paths("stream", &openings);
    pair.destination.call("migrate-incoming", json!({"uri": far}));
    pair.source.call("migrate", json!({"uri": near}));
    pair.arrive(5);
    let names: Vec<Channel> = openings.iter().map(|opening| opening.channel).collect();
    pair.completed(&names);
}

/// So slow that there is time to lose the channels.
const SLOW: u64 = 4 << 20;

#[test]
#[ignore = "runs QEMU"]
fn post_copy_with_preempt_goes_on_through_fresh_channels() {
    let mut pair = Pair::new(&["postcopy-ram", "postcopy-preempt"]);
    pair.source.call(
        "migrate-set-parameters",
        json!({"max-bandwidth": SLOW, "max-postcopy-bandwidth": SLOW}),
    );
    let preempt = |number| opening(ChannelKind::Preempt, number);
    let first = [memory(), preempt(0)];
    let (near, far) = pair.by_paths("first", &first);
    pair.destination.call("migrate-incoming", json!({"uri": far}));
    pair.source.call("migrate", json!({"uri": near}));
    pair.arrive(1);
    pair.source.reaches("active");
    pair.source.call("migrate-start-postcopy", json!({}));
    pair.arrive(1);
    pair.source.reaches("postcopy-active");
    // The source is so far first; a destination that has not begun to load the rest has nothing to recover.
    pair.destination.reaches("postcopy-active");
    pair.rig.source.up(first[1].channel);

    // The source's relay dies, and with it both channels.
    pair.rig.source.process.as_mut().unwrap().kill().unwrap();
    pair.source.reaches("postcopy-paused");
    pair.destination.reaches("postcopy-paused");
    for opening in &first {
        let (_, _, ending) = pair.rig.destination.ended(opening.channel);
        assert!(matches!(ending, Ending::Cut { .. }), "{ending:?}");
    }

    // Another one takes its place; the destination's gives out new tokens.
    let again = Agent::program();
    let end = godwit_relay::order::End::Source {
        destination: pair.rig.address(),
    };
    again.begin(end, DESTINATION, pair.rig.authority.of(SOURCE));
    drop(std::mem::replace(&mut pair.rig.source, again));
    let second = [opening(ChannelKind::Recovery, 0), preempt(1)];
    let (near, far) = pair.by_paths("second", &second);
    pair.destination
        .call_at_once("migrate-recover", json!({"uri": far}));
    pair.source
        .call("migrate-set-parameters", json!({"max-postcopy-bandwidth": 0}));
    pair.source.call("migrate", json!({"uri": near, "resume": true}));
    pair.arrive(2);
    pair.completed(&[second[0].channel]);
}
