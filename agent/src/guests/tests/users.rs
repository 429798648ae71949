//! Which user a guest runs as: one of its own, for as long as anything is left of it.

use std::os::unix::fs::MetadataExt;

use super::*;

const FIRST: u32 = 2_100_900_000;
const RANGE: UserRange = UserRange {
    first: FIRST,
    count: 2,
};
const THIRD: &str = "8f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3a";

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

fn of(uid: &str) -> StartRequest {
    StartRequest {
        identity: identity(uid, &uid[..4]),
        ..request(1, false)
    }
}

impl World {
    fn user(&self, uid: &str) -> u32 {
        let directory = fs::metadata(self.path("run/guests").join(uid)).unwrap();
        assert_eq!(
            (directory.gid(), directory.mode() & 0o777),
            (directory.uid(), 0o700)
        );
        directory.uid()
    }
}

#[tokio::test]
async fn r8_each_guest_has_a_user_of_its_own_which_a_restart_does_not_forget() {
    if !root() {
        return;
    }
    let world = World::new();
    let guests = world.agent_with(Some(RANGE)).await;
    guests.start(of(UID)).await.unwrap();
    assert_eq!(world.user(UID), FIRST);
    drop(guests);
    let guests = world.agent_with(Some(RANGE)).await;
    guests.start(of(OTHER)).await.unwrap();
    assert_eq!((world.user(UID), world.user(OTHER)), (FIRST, FIRST + 1));
    // All are taken: nobody shares one.
    let refused = guests.start(of(THIRD)).await.unwrap_err();
    assert!(refused.to_string().contains("guestUsers"), "{refused}");
    assert!(!world.path("run/guests").join(THIRD).exists());
    // Once nothing is left of a guest, its user is free.
    guests.stop(&identity(UID, &UID[..4]), 1).await.unwrap();
    guests.start(of(THIRD)).await.unwrap();
    assert_eq!(world.user(THIRD), FIRST);
}

#[tokio::test]
async fn r8_a_user_with_a_process_is_given_to_nobody() {
    if !root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let range = UserRange {
        first: FIRST + 10,
        count: 2,
    };
    let mut left_over = std::process::Command::new("sleep")
        .arg("60")
        .uid(range.first)
        .spawn()
        .unwrap();
    let world = World::new();
    let guests = world.agent_with(Some(range)).await;
    guests.start(of(UID)).await.unwrap();
    let user = world.user(UID);
    left_over.kill().unwrap();
    left_over.wait().unwrap();
    assert_eq!(user, range.first + 1);
}
