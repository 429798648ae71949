//! The lab itself: what a crash leaves behind is removed, what was left on purpose is not, and links behave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_lab::run::{self, Listed, Run};
use godwit_lab::{Lab, LabOptions, cache, network};

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within 120 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One at a time: each looks at all runs, and a starting lab removes what another test's crash has left behind.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn lab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lab"))
}

fn listed(number: u8) -> Option<Listed> {
    run::list()
        .unwrap()
        .into_iter()
        .find(|listed| listed.number == number)
}

/// The run whose logs' directory is new and whose control plane is on its way.
fn new_run(before: &[PathBuf]) -> Listed {
    until("the lab's control plane starts", || {
        run::list().unwrap().into_iter().find(|listed| {
            let new = listed
                .left
                .as_ref()
                .is_some_and(|left| !before.contains(&left.records));
            let started = listed
                .processes
                .iter()
                .any(|process| process.program == "kube-apiserver");
            new && started && listed.held
        })
    })
}

fn all_records() -> Vec<PathBuf> {
    run::list()
        .unwrap()
        .into_iter()
        .filter_map(|listed| listed.left)
        .map(|left| left.records)
        .collect()
}

#[test]
fn a_crashed_run_is_removed_by_the_next() {
    let _alone = ALONE.blocking_lock();
    let before = all_records();
    let mut child = lab()
        .args(["up", "--bare"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let crashed = new_run(&before);
    child.kill().unwrap();
    child.wait().unwrap();
    let logs = crashed.left.unwrap().records.join("logs");
    // Everything is still there, and nobody holds it.
    let left = listed(crashed.number).expect("the run is still there");
    assert!(!left.processes.is_empty());

    let next = Run::claim("next").unwrap();
    let mine = next.number();
    let now = listed(crashed.number);
    assert!(
        now.is_none_or(|now| now.processes.is_empty()),
        "processes were left"
    );
    for process in left.processes {
        let same = godwit_lab::processes::look(process.pid)
            .is_some_and(|seen| seen.start_time == process.start_time);
        assert!(!same, "{} lives", process.program);
    }
    if crashed.number != mine {
        assert!(network::namespaces_of(crashed.number).is_empty());
    }
    assert!(logs.join("kube-apiserver.log").is_file(), "its logs stay");
    next.remove().unwrap();
    assert!(
        listed(mine).is_none_or(|now| now.held),
        "another run may have taken the number"
    );
}

#[test]
fn what_is_left_on_purpose_stays_until_it_is_removed() {
    let _alone = ALONE.blocking_lock();
    let output = lab().args(["up", "--bare", "--hosts", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let number = said
        .lines()
        .last()
        .and_then(|line| line.rsplit(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    let kubeconfig = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("export KUBECONFIG="))
        .expect("it says how to use it");

    let next = Run::claim("next").unwrap();
    assert_ne!(next.number(), number);
    next.remove().unwrap();
    let listed_now = listed(number).expect("it is still there");
    assert!(!listed_now.held && listed_now.left.unwrap().on_purpose);
    let answer = Command::new(cache::tool("kubectl").unwrap())
        .args([
            "--kubeconfig",
            kubeconfig,
            "get",
            "crd",
            "virtualmachines.godwit.dev",
            "-o",
            "name",
        ])
        .output()
        .unwrap();
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );

    let status = lab().arg("status").output().unwrap();
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(shown.contains(&format!("run {number}: left running")), "{shown}");
    let down = lab().args(["down", &number.to_string()]).output().unwrap();
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    assert!(listed(number).is_none_or(|now| now.held));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_reach_the_api_server_until_their_cable_is_cut() {
    let _alone = ALONE.lock().await;
    let mut lab = Lab::start(
        LabOptions::new("links")
            .guest_files(false)
            .hosts(2)
            .agents(false)
            .controller(false),
    )
    .await
    .unwrap();
    if !lab.network.separate() {
        // Not root: loopback addresses cannot be cut.
        for words in lab.network.skipped() {
            eprintln!("skipped: {words}");
        }
        lab.stop().await.unwrap();
        return;
    }
    let reaches = |lab: &Lab, number: usize| {
        let host = lab.hosts.get(number - 1).unwrap();
        let mut command = host.command(&cache::tool("kubectl").unwrap());
        command
            .arg("--kubeconfig")
            .arg(host.directory.join("agent.kubeconfig"));
        command.args(["get", "--raw", "/readyz", "--request-timeout=2s"]);
        command.output().unwrap().status.success()
    };
    let both = || (reaches(&lab, 1) && reaches(&lab, 2)).then_some(());
    until("both hosts reach the API server", both);
    lab.network.connect(1, false).unwrap();
    assert!(!reaches(&lab, 1));
    until("host 2 does still", || reaches(&lab, 2).then_some(()));
    lab.network.connect(1, true).unwrap();
    // The kernel may still be failing the look-up of an address that it began while the cable was out.
    until("host 1 reaches the API server again", || {
        reaches(&lab, 1).then_some(())
    });
    assert!(lab.network.connect(3, false).is_err(), "there is no host 3");

    let rate = measure(&lab);
    lab.network.shape(1, Some(100)).unwrap();
    let shaped = measure(&lab);
    assert!(
        (70.0..110.0).contains(&shaped),
        "{shaped} Mbit/s with a limit of 100"
    );
    lab.network.shape(1, None).unwrap();
    let lifted = measure(&lab);
    assert!(
        rate > 200.0 && lifted > 200.0,
        "{rate} and {lifted} Mbit/s without a limit"
    );

    // What runs on a host is known as its, by its namespace alone.
    let host = lab.host(2).unwrap();
    let mut sleeper = host
        .command(Path::new("sleep"))
        .arg("60")
        .env_clear()
        .spawn()
        .unwrap();
    let found = until("the process is found", || {
        let found = host.processes();
        found
            .iter()
            .any(|process| process.program == "sleep")
            .then_some(found)
    });
    assert_eq!(found.len(), 1);
    assert!(lab.host(1).unwrap().processes().is_empty());
    assert!(lab.host(1).unwrap().hypervisors().is_empty());
    assert_eq!(lab.host(1).unwrap().listening().unwrap(), Vec::<u16>::new());
    let number = lab.number();
    lab.stop().await.unwrap();
    sleeper.wait().unwrap();
    assert!(network::namespaces_of(number).is_empty() || listed(number).is_some_and(|now| now.held));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_with_its_lab() {
    use godwit_crds::VirtualMachine;
    use godwit_crds::virtual_machine::GuestState;

    let _alone = ALONE.lock().await;
    let mut lab = Lab::start(LabOptions::new("guest")).await.unwrap();
    let number = lab.number();
    let directory = lab.host(1).unwrap().directory.parent().unwrap().to_owned();
    let machine: VirtualMachine = serde_json::from_value(serde_json::json!({
        "apiVersion": "godwit.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": "guest", "namespace": "default"},
        "spec": {
            "host": "h2",
            "machine": {"type": "pc-q35-10.0"},
            "cpu": {"count": 1, "model": "qemu64"},
            "memory": "128Mi",
            "boot": {"kernel": {"image": {"file": "vmlinuz"}, "initramfs": {"file": "initramfs.cpio"}}},
        },
    }))
    .unwrap();
    let machines: kube::Api<VirtualMachine> = kube::Api::namespaced(lab.client(), "default");
    machines
        .create(&kube::api::PostParams::default(), &machine)
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let state = machines
            .get("guest")
            .await
            .unwrap()
            .status
            .and_then(|status| status.state);
        if state == Some(GuestState::Running) {
            break;
        }
        assert!(Instant::now() < deadline, "the guest is {state:?} after 90 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let [hypervisor] = lab
        .host(2)
        .unwrap()
        .hypervisors()
        .try_into()
        .expect("one hypervisor");
    assert!(lab.host(1).unwrap().hypervisors().is_empty());
    assert!(
        lab.host(2)
            .unwrap()
            .listening()
            .unwrap()
            .contains(&godwit_lab::hosts::AGENT_PORT)
    );

    // The guest outlives its agent and is still known as its host's.
    lab.host(2).unwrap().kill_agent();
    assert_eq!(
        lab.host(2).unwrap().hypervisors(),
        std::slice::from_ref(&hypervisor)
    );
    lab.start_agent(2).unwrap();
    lab.wait_until_ready().await.unwrap();
    assert_eq!(
        lab.host(2).unwrap().hypervisors(),
        std::slice::from_ref(&hypervisor)
    );
    let groups = groups_of(hypervisor.pid);

    lab.stop().await.unwrap();
    assert!(godwit_lab::processes::look(hypervisor.pid).is_none_or(|now| now != hypervisor));
    for group in groups {
        assert!(!group.exists(), "{} is left", group.display());
    }
    assert!(!directory.exists() || listed(number).is_some_and(|now| now.held));
}

/// The control groups of a process that have godwit's name, wherever they are mounted.
fn groups_of(pid: i32) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let paths: Vec<&str> = text
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .filter(|path| path.contains("godwit"))
        .collect();
    let mounts = std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mounts: Vec<PathBuf> = mounts.chain([PathBuf::from("/sys/fs/cgroup")]).collect();
    let groups: Vec<PathBuf> = mounts
        .iter()
        .flat_map(|mount| paths.iter().map(|path| mount.join(path.trim_start_matches('/'))))
        .filter(|group| group.exists())
        .collect();
    assert!(
        !groups.is_empty() || !cache::root(),
        "the guest has no control group of its own"
    );
    groups
}

/// How fast host 1 can send to host 2, in Mbit/s: the best of some attempts, for the machine may do other things meanwhile.
fn measure(lab: &Lab) -> f64 {
    (0..4).map(|_| attempt(lab)).fold(0.0, f64::max)
}

/// How fast it sends 8 MiB.
fn attempt(lab: &Lab) -> f64 {
    const BYTES: u32 = 8 << 20;
    let receiver = lab.network.namespace(2).unwrap();
    let sender = lab.network.namespace(1).unwrap();
    let address = lab.network.host(2);
    let (told, port) = std::sync::mpsc::channel();
    let receive = std::thread::spawn(move || {
        enter(&receiver);
        let listener = std::net::TcpListener::bind((address, 0)).unwrap();
        told.send(listener.local_addr().unwrap().port()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let port = port.recv().unwrap();
    let begun = Instant::now();
    std::thread::spawn(move || {
        enter(&sender);
        let mut stream = std::net::TcpStream::connect((address, port)).unwrap();
        std::io::Write::write_all(&mut stream, &vec![0; BYTES as usize]).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(receive.join().unwrap(), u64::from(BYTES));
    f64::from(BYTES) * 8.0 / 1e6 / begun.elapsed().as_secs_f64()
}

/// Moves this thread into a network namespace.
fn enter(namespace: &Path) {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd as _;
    let file = std::fs::File::open(namespace).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}
