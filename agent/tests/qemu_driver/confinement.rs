//! The walls around a guest's process, looked at from outside in `/proc`, and tried from inside with a second guest's
//! user in that guest's own namespaces.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use godwit_agent::cgroup::{Cgroups, Limits, Placed};
use godwit_agent::hypervisor::{Guest, Hypervisor, HypervisorError, Start};
use serde_json::json;

use crate::fixture::{Bench, SOON, hand_over, new_uid, user};

/// The second guest's user.
const SECOND: u32 = 61_908;

/// Tells a copy of this test's process that it lacks a capability.
const INNER: &str = "GODWIT_TEST_WITHOUT_CAPABILITY";

fn root() -> bool {
    let root = user().is_some();
    if !root {
        println!("skipped: users and namespaces of their own need root");
    }
    root
}

fn proc_of(guest: &Arc<dyn Guest>, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{file}", guest.process().pid))
}

/// A line of `/proc/PID/status`.
fn status(guest: &Arc<dyn Guest>, name: &str) -> Vec<String> {
    let status = fs::read_to_string(proc_of(guest, "status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().map(String::from).collect()
}

fn namespace(process: &Path, kind: &str) -> PathBuf {
    fs::read_link(process.join("ns").join(kind)).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A guest of the second user in a directory of that user's.
async fn second(bench: &Bench, name: &str) -> Arc<dyn Guest> {
    let mut order = bench.order(name, &new_uid(), Start::Boot, json!({"disks": []}));
    order.user = Some(SECOND);
    std::os::unix::fs::chown(&order.directory, Some(SECOND), Some(SECOND)).unwrap();
    fs::set_permissions(&order.directory, fs::Permissions::from_mode(0o700)).unwrap();
    bench.try_launch(order).await.unwrap()
}

fn succeeds(command: &mut Command) -> bool {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().unwrap().success()
}

/// A shell's test with a user's rights, in the host's namespaces.
fn on_the_host(user: u32, test: &str) -> bool {
    let id = user.to_string();
    succeeds(Command::new("setpriv").args([
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
        "sh",
        "-c",
        test,
    ]))
}

/// A shell's test where the guest's process is, with its user's rights.
fn inside(guest: &Arc<dyn Guest>, user: u32, test: &str) -> bool {
    let (pid, id) = (guest.process().pid.to_string(), user.to_string());
    succeeds(Command::new("nsenter").args([
        "-t", &pid, "--mount", "--net", "--ipc", "--uts", "--root", "--wd", "-S", &id, "-G", &id, "sh", "-c",
        test,
    ]))
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_a_guests_process_has_no_rights() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    assert_eq!(status(&guest, "NoNewPrivs"), ["1"]);
    assert_eq!(status(&guest, "Seccomp"), ["2"]);
    let limits = fs::read_to_string(proc_of(&guest, "limits")).unwrap();
    let cores = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap();
    assert_eq!(cores.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"]);
    let filter = fs::read_to_string(proc_of(&guest, "coredump_filter")).unwrap();
    assert_eq!(u64::from_str_radix(filter.trim(), 16).unwrap(), 0);
    let Some(user) = user() else { return };
    for ids in ["Uid", "Gid"] {
        assert_eq!(status(&guest, ids), vec![user.to_string(); 4], "{ids}");
    }
    assert!(status(&guest, "Groups").is_empty());
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&guest, set), ["0000000000000000"], "{set}");
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_a_guests_process_has_namespaces_of_its_own_and_no_network() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let (first, other) = (
        bench.launch("a", &new_uid(), Start::Boot).await,
        second(&bench, "b").await,
    );
    let (a, b, host) = (
        proc_of(&first, ""),
        proc_of(&other, ""),
        PathBuf::from("/proc/self"),
    );
    for kind in ["mnt", "net", "ipc", "uts"] {
        let found = [&a, &b, &host].map(|process| namespace(process, kind));
        assert!(
            found[0] != found[2] && found[1] != found[2] && found[0] != found[1],
            "{kind}: {found:?}"
        );
    }
    let devices = fs::read_to_string(a.join("net/dev")).unwrap();
    let devices: Vec<&str> = devices
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim())
        .collect();
    assert_eq!(devices, ["lo"]);
    // It leads nowhere.
    assert!(inside(
        &first,
        user().unwrap(),
        "! tail -n +2 /proc/self/net/route | grep -q ."
    ));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_a_guests_process_sees_the_system_and_its_own_directory() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let seen = proc_of(&guest, "root");
    let own = bench.path("a");
    let top = own.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    let expected = [
        "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "usr", top,
    ];
    for name in names(&seen) {
        assert!(expected.contains(&name.as_str()), "/{name}");
    }
    // Of the way to its directory there is nothing but the way.
    let mut above = own.parent().unwrap();
    while above != Path::new("/") {
        let found = names(&seen.join(above.strip_prefix("/").unwrap()));
        assert_eq!(found.len(), 1, "{}: {found:?}", above.display());
        above = above.parent().unwrap();
    }
    assert!(!seen.join("etc/passwd").exists() && !seen.join("sys").exists());
    // It writes nowhere else, and finds no other process.
    let user = user().unwrap();
    let directory = own.display();
    assert!(inside(
        &guest,
        user,
        &format!("touch {directory}/mine && test -r /usr/bin/env")
    ));
    assert!(!inside(
        &guest,
        user,
        "touch /new || touch /tmp/new || touch /dev/new"
    ));
    assert!(
        !inside(&guest, 0, "touch /usr/new"),
        "not even root writes to the system"
    );
    assert!(inside(&guest, user, "test -e /proc/self && ! test -e /proc/1"));
    assert!(inside(&guest, user, "test \"$(uname -n)\" = guest"));
    let mounts = fs::read_to_string(proc_of(&guest, "mountinfo")).unwrap();
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let (place, options) = (fields[4], fields[5]);
        let harmless = place == own.to_str().unwrap() || place == "/proc" || place.starts_with("/dev/");
        assert!(options.contains("nosuid"), "{mount}");
        assert!(harmless || options.starts_with("ro,"), "{mount}");
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r8_a_guests_user_reaches_nothing_of_another_guest() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    // As careless as an administrator may be: everybody may read the disk.
    fs::set_permissions(bench.path("disk.img"), fs::Permissions::from_mode(0o644)).unwrap();
    let order = bench.order("a", &new_uid(), Start::Boot, json!({}));
    // As the agent makes it.
    fs::set_permissions(&order.directory, fs::Permissions::from_mode(0o700)).unwrap();
    let first = bench.try_launch(order).await.unwrap();
    first.resume().await.unwrap();
    bench.counts_on("a").await;
    let other = second(&bench, "b").await;
    let (pid, a, b) = (first.process().pid, bench.path("a"), bench.path("b"));
    let (a, b, disk) = (a.display(), b.display(), bench.path("disk.img"));
    let disk = disk.display();
    // What is tried works for who may.
    assert!(on_the_host(SECOND, &format!("test -S {b}/qmp.sock && ls {b}")));
    assert!(inside(&other, SECOND, &format!("test -S {b}/qmp.sock && ls {b}")));
    assert!(on_the_host(
        0,
        &format!("test -S {a}/qmp.sock && head -c 1 {disk}")
    ));
    for attempt in [
        format!("head -c 1 {disk}"),
        format!("test -e {disk}"),
        format!("ls {a}"),
        format!("test -e {a}/qmp.sock"),
        format!("test -e {a}/console.sock"),
        format!("head -c 1 {a}/console.log"),
        format!("head -c 1 {a}/qemu.log"),
        format!("echo x >> {a}/console.log"),
        format!("ls /proc/{pid}/fd"),
        format!("head -c 1 /proc/{pid}/mem"),
        format!("head -c 1 /proc/{pid}/environ"),
        format!("ls /proc/{pid}/root/"),
        format!("kill -0 {pid}"),
    ] {
        assert!(!inside(&other, SECOND, &attempt), "{attempt}");
        // Its user alone, wherever it may be, gets no further; only a file that everybody may read is one.
        if !attempt.contains("disk.img") {
            assert!(!on_the_host(SECOND, &attempt), "{attempt}");
        }
    }
    fs::set_permissions(bench.path("disk.img"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!on_the_host(SECOND, &format!("head -c 1 {disk}")));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r10_a_guest_has_its_disk_by_descriptor_alone() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let disk = bench.path("disk.img");
    let held = names(&proc_of(&guest, "fd"))
        .into_iter()
        .filter(|number| fs::read_link(proc_of(&guest, "fd").join(number)).is_ok_and(|file| file == disk))
        .count();
    assert!(held > 0, "it has it");
    assert!(!inside(
        &guest,
        user().unwrap(),
        &format!("test -e {}", disk.display())
    ));
    let arguments = fs::read_to_string(proc_of(&guest, "cmdline")).unwrap();
    assert!(!arguments.contains("disk.img"), "no path of it is named");
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r10_a_link_in_the_monitors_place_is_not_followed() {
    let bench = Bench::new();
    let uid = new_uid();
    let guest = bench.launch("a", &uid, Start::Boot).await;
    let record = guest.process();
    let (socket, aside) = (
        bench.path("a").join("qmp.sock"),
        bench.path("a").join("aside.sock"),
    );
    drop(guest);
    fs::rename(&socket, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &socket).unwrap();
    let adopted = || bench.qemu.adopt(&uid, socket.parent().unwrap(), &record);
    assert!(matches!(
        adopted().await.unwrap(),
        godwit_agent::hypervisor::Adoption::Unresponsive(_)
    ));
    fs::rename(&aside, &socket).unwrap();
    assert!(matches!(
        adopted().await.unwrap(),
        godwit_agent::hypervisor::Adoption::Alive(_)
    ));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r8_a_guest_moves_from_one_user_to_another() {
    if !root() {
        return;
    }
    let bench = Bench::new();
    let uid = new_uid();
    let source = bench.launch("a", &uid, Start::Boot).await;
    source.resume().await.unwrap();
    bench.counts_on("a").await;
    let mut order = bench.order("b", &uid, Start::Incoming, json!({}));
    order.user = Some(SECOND);
    std::os::unix::fs::chown(&order.directory, Some(SECOND), Some(SECOND)).unwrap();
    let destination = bench.try_launch(order).await.unwrap();
    hand_over(&source, &destination).await;
    bench.counts_on("b").await;
    assert_eq!(status(&destination, "Uid"), vec![SECOND.to_string(); 4]);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_a_guests_process_is_bounded() {
    let bench = Bench::new();
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    let cgroups = Cgroups::discover();
    let name = format!("test.{}", new_uid());
    let missing = cgroups.missing(&name);
    if !missing.is_empty() {
        println!("skipped: {missing:?}");
        return;
    }
    let limits = Limits::of(64 << 20, 1);
    let placed = cgroups.place(&name, guest.process().pid, limits);
    let groups = fs::read_to_string(proc_of(&guest, "cgroup")).unwrap();
    let bounds = ["memory", "pids"].map(|controller| {
        let line = groups
            .lines()
            .find(|line| line.split(':').nth(1) == Some(controller))
            .or_else(|| groups.lines().find(|line| line.starts_with("0::")));
        let path = line
            .unwrap()
            .splitn(3, ':')
            .nth(2)
            .unwrap()
            .trim_start_matches('/');
        let (one, two) = (
            Path::new("/sys/fs/cgroup").join(controller).join(path),
            Path::new("/sys/fs/cgroup").join(path),
        );
        let files = match controller {
            "memory" => [one.join("memory.limit_in_bytes"), two.join("memory.max")],
            _ => [one.join("pids.max"), two.join("pids.max")],
        };
        let file = files.iter().find(|file| file.exists()).unwrap();
        fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap()
    });
    guest.destroy(Duration::from_secs(10)).await.unwrap();
    let begin = std::time::Instant::now();
    while !cgroups.remove(&name).is_empty() {
        assert!(begin.elapsed() < SOON, "the cgroup stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(placed, Placed::default());
    assert!(groups.contains(&name), "{groups}");
    assert_eq!(bounds, [limits.memory, limits.tasks]);
}

/// Runs a test of this file once more, in a process that `setpriv` takes something from.
fn with_less(taken: &[&str], test: &str) {
    let outcome = Command::new("setpriv")
        .args(taken)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("confinement::{test}"),
            "--include-ignored",
            "--nocapture",
        ])
        .current_dir("/")
        .env(INNER, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout);
    let whole = format!("{said}{}", String::from_utf8_lossy(&outcome.stderr));
    if whole.contains("failed to execute") {
        println!("skipped: another user cannot run this test: {whole}");
        return;
    }
    assert!(outcome.status.success() && said.contains("1 passed"), "{whole}");
}

fn is_inner() -> bool {
    std::env::var_os(INNER).is_some()
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_a_host_without_namespaces_says_so_and_keeps_the_other_walls() {
    if !is_inner() {
        if root() {
            with_less(
                &["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
                "r7_a_host_without_namespaces_says_so_and_keeps_the_other_walls",
            );
        }
        return;
    }
    let bench = Bench::new();
    let facts = bench.qemu.probe().await.unwrap();
    assert_eq!(facts.walls_missing.len(), 1);
    assert!(facts.walls_missing[0].contains("CAP_SYS_ADMIN"), "{facts:?}");
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    assert_eq!(status(&guest, "Uid"), vec![user().unwrap().to_string(); 4]);
    assert_eq!(status(&guest, "CapBnd"), ["0000000000000000"]);
    assert_eq!(status(&guest, "Seccomp"), ["2"]);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_an_agent_that_is_not_root_says_so() {
    if !is_inner() {
        if root() {
            let nobody = [
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=-all",
            ];
            with_less(&nobody, "r7_an_agent_that_is_not_root_says_so");
        }
        return;
    }
    let bench = Bench::new();
    let facts = bench.qemu.probe().await.unwrap();
    assert_eq!(facts.walls_missing.len(), 1);
    assert!(facts.walls_missing[0].contains("not root"), "{facts:?}");
    let guest = bench.launch("a", &new_uid(), Start::Boot).await;
    assert_eq!(status(&guest, "NoNewPrivs"), ["1"]);
    assert_eq!(status(&guest, "Seccomp"), ["2"]);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_a_wall_that_cannot_be_built_is_named_and_nothing_is_started() {
    if !is_inner() {
        if root() {
            // Without the right to another user there is no wall between guests.
            with_less(
                &["--bounding-set=-setuid", "--inh-caps=-setuid"],
                "r7_a_wall_that_cannot_be_built_is_named_and_nothing_is_started",
            );
        }
        return;
    }
    let bench = Bench::new();
    let facts = bench.qemu.probe().await;
    let launched = bench
        .try_launch(bench.order("a", &new_uid(), Start::Boot, json!({})))
        .await
        .map(|guest| guest.process());
    for outcome in [facts.map(drop), launched.map(drop)] {
        match outcome {
            Err(HypervisorError::Unavailable(why)) => assert!(why.contains("a user of its own"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(!bench.path("a").join("qmp.sock").exists());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r7_where_all_walls_stand_nothing_is_missing() {
    if root() {
        assert!(Bench::new().qemu.probe().await.unwrap().walls_missing.is_empty());
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn r9_no_hostile_string_reaches_a_process() {
    let bench = Bench::new();
    let long = "a".repeat(300);
    for bad in [
        "a,b=c",
        "a\"b",
        "a'b",
        "a\nb",
        "a b",
        "..",
        "a/../b",
        "-S",
        "a\u{e9}",
        "\u{202e}a",
        "a\0b",
        "a%sb",
        "",
        &long,
    ] {
        let mut orders = vec![
            bench.order("a", &new_uid(), Start::Boot, json!({"machine": {"type": bad}})),
            bench.order(
                "a",
                &new_uid(),
                Start::Boot,
                json!({"cpu": {"count": 1, "model": bad}}),
            ),
            bench.order(
                "a",
                &new_uid(),
                Start::Boot,
                json!({"disks": [{"name": bad, "file": {"file": "disk.img"}}]}),
            ),
            bench.order("a", &new_uid(), Start::Boot, json!({})),
        ];
        orders.last_mut().unwrap().name = bad.into();
        let mut bad_uid = bench.order("a", &new_uid(), Start::Boot, json!({}));
        bad_uid.uid = bad.into();
        orders.push(bad_uid);
        for order in orders {
            let outcome = bench.qemu.launch(order).await.map(|guest| guest.process());
            assert!(
                matches!(outcome, Err(HypervisorError::Refused(_))),
                "{bad:?}: {outcome:?}"
            );
        }
    }
    assert!(
        !bench.path("a").join("qemu.log").exists(),
        "no process was started"
    );
}
