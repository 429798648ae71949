//! The program as a user's shell sees it: arguments, requests, outputs and exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at its first surprise"
)]

mod server;

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use server::{Answer, Request, Run, Server, program};

fn condition(type_: &str, status: &str, reason: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": format!("{reason} it is."),
        "lastTransitionTime": "2026-11-22T19:00:00Z", "observedGeneration": 1})
}

fn migration(cancel: bool, status: &Value) -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineMigration",
        "metadata": {"name": "m1", "namespace": "lab", "uid": "u-1", "resourceVersion": "5",
            "managedFields": [{"manager": "somebody"}]},
        "spec": {"virtualMachine": "web1", "destination": {"host": "node-b"}, "controlFlow": "ManagedDirect",
            "security": {"require": "None"}, "cancel": cancel},
        "status": status
    })
}

fn machine() -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": "web1", "namespace": "lab", "uid": "v-1"},
        "spec": {"machine": {"type": "pc-q35-10.0"}, "cpu": {"count": 2, "model": "qemu64"}, "memory": "512Mi",
            "boot": {"firmware": {}}},
        "status": {"state": "Running", "host": "node-a\u{1b}[2J"}
    })
}

fn host() -> Value {
    json!({
        "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineHost",
        "metadata": {"name": "node-b", "uid": "h-1"},
        "spec": {"endpoint": "127.0.0.1:16514", "migrationAddresses": ["127.0.0.1"]}
    })
}

fn list(kind: &str, items: Value) -> Value {
    json!({"apiVersion": "godwit.dev/v1alpha1", "kind": format!("{kind}List"), "metadata": {"resourceVersion": "5"},
        "items": items})
}

fn missing(resource: &str, name: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
        "reason": "NotFound", "message": "x", "details": {"name": name, "group": "godwit.dev", "kind": resource}});
    (404, status)
}

/// A cluster with the guest web1, the host node-b, and the migration m1 in the given state.
fn cluster(cancel: bool, status: Value) -> Server {
    Server::start(move |request| answer(request, cancel, &status))
}

fn answer(request: &Request, cancel: bool, status: &Value) -> Answer {
    let path = request.path.split('?').next().unwrap();
    let last = path.rsplit('/').next().unwrap();
    match (request.method.as_str(), last) {
        ("GET", "virtualmachines") => (200, list("VirtualMachine", json!([machine()]))),
        ("GET", "virtualmachinehosts") => (200, list("VirtualMachineHost", json!([host()]))),
        ("GET", "virtualmachinemigrations") => (
            200,
            list("VirtualMachineMigration", json!([migration(cancel, status)])),
        ),
        ("GET", "web1") => (200, machine()),
        ("GET", "node-b") => (200, host()),
        ("GET", "m1") => (200, migration(cancel, status)),
        ("POST", "virtualmachinemigrations") => (201, migration(false, &Value::Null)),
        ("PATCH", "m1") => (200, migration(true, status)),
        ("GET", name) => missing(path.rsplit('/').nth(1).unwrap(), name),
        (method, _) => (
            405,
            json!({"kind": "Status", "status": "Failure", "code": 405, "reason": method, "message": path}),
        ),
    }
}

fn ended(conditions: &[Value]) -> Value {
    json!({"source": "node-a", "destination": "node-b", "conditions": conditions})
}

const MIGRATE: [&str; 7] = [
    "migrate",
    "web1",
    "--to",
    "node-b",
    "--plain-text",
    "--name",
    "m1",
];

fn run_without_cluster(arguments: &[&str]) -> Run {
    Run::of(program(arguments).output().unwrap())
}

#[test]
fn wrong_command_lines_are_told_as_such() {
    for arguments in [
        vec![],
        vec!["fly"],
        vec!["migrate"],
        vec!["migrate", "web1"],
        vec!["migrate", "Web_1", "--to", "node-b", "--plain-text"],
        vec!["migrate", "web1", "--to", "../node-b", "--plain-text"],
        vec![
            "migrate",
            "web1",
            "--to",
            "node-b",
            "--plain-text",
            "--timeout",
            "5s",
        ],
        vec![
            "migrate",
            "web1",
            "--to",
            "node-b",
            "--plain-text",
            "--max-downtime",
            "5ms",
        ],
        vec!["migrate", "web1", "--to", "node-b", "--plain-text", "-o", "yaml"],
        vec!["status", "m1", "--timeout", "5s"],
        vec!["resolve"],
        vec!["resolve", "web1", "--cold-start"],
        vec!["resolve", "web1", "--resume-source"],
        vec!["resolve", "web1", "--wait"],
        vec![
            "resolve",
            "web1",
            "--fenced",
            "node-a",
            "--cold-start",
            "--resume-source",
        ],
        vec!["resolve", "web1", "--fenced", "node-a", "--on", "node-b"],
        vec!["completion", "tcsh"],
    ] {
        let run = run_without_cluster(&arguments);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{arguments:?}: {run:?}");
        assert!(!run.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn memory_is_encrypted_unless_plain_text_is_said() {
    let cluster = cluster(false, Value::Null);
    let run = cluster.run(&["migrate", "web1", "--to", "node-b"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(
        cluster.writes()[0].body["spec"]["security"],
        json!({"require": "Encrypted"})
    );
}

#[test]
fn help_version_and_completion_need_no_cluster() {
    for arguments in [
        vec!["--help"],
        vec!["migrate", "--help"],
        vec!["cancel", "--help"],
    ] {
        let run = run_without_cluster(&arguments);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{arguments:?}");
        assert!(run.out.contains("Exit codes:"), "{arguments:?}");
    }
    assert!(
        run_without_cluster(&["--version"])
            .out
            .starts_with("kubectl-godwit ")
    );
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef kubectl-godwit"),
        ("fish", "complete -c kubectl-godwit"),
    ] {
        let run = run_without_cluster(&["completion", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains(mark) && run.out.contains("migrate"), "{shell}");
    }
}

#[test]
fn without_a_cluster_one_line_says_what_to_do() {
    let run = run_without_cluster(&["guests"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("error: No usable kubeconfig: "), "{run:?}");

    // A port that nobody listens on: it was ours a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, server::kubeconfig(&format!("http://127.0.0.1:{port}"))).unwrap();
    let run = run_without_cluster(&["guests", "--kubeconfig", path.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(
        run.err.starts_with("error: The API server cannot be reached: "),
        "{run:?}"
    );
    assert_eq!(run.err.lines().count(), 1);
}

#[test]
fn migrate_creates_what_was_asked_for() {
    let cluster = cluster(false, Value::Null);
    let run = cluster.run(&[
        "migrate",
        "web1",
        "--to",
        "node-b",
        "--plain-text",
        "--max-downtime",
        "50ms",
    ]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(
        run.out
            .starts_with("virtualmachinemigration.godwit.dev/m1 created\n"),
        "{run:?}"
    );
    let writes = cluster.writes();
    assert_eq!(writes.len(), 1);
    assert!(
        writes[0]
            .path
            .starts_with("/apis/godwit.dev/v1alpha1/namespaces/lab/virtualmachinemigrations")
    );
    assert_eq!(writes[0].body["metadata"], json!({"generateName": "web1-"}));
    assert_eq!(
        writes[0].body["spec"],
        json!({"virtualMachine": "web1", "destination": {"host": "node-b"}, "controlFlow": "PeerToPeer",
            "transport": "Native", "security": {"require": "None"}, "tuning": {"maxDowntime": "50ms", "bandwidth": "0", "parallelConnections": 1}, "handoff": "Default", "cancel": false})
    );
}

#[test]
fn an_unknown_guest_or_host_makes_no_object() {
    let cluster = cluster(false, Value::Null);
    let run = cluster.run(&["migrate", "wbe1", "--to", "node-b", "--plain-text"]);
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "error: The guest wbe1 in namespace lab is not there; near it: web1\n"
        )
    );
    let run = cluster.run(&["migrate", "web1", "--to", "elsewhere", "--plain-text"]);
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "error: The host elsewhere is not there: `kubectl godwit hosts` lists what is\n"
        )
    );
    assert_eq!(cluster.writes().len(), 0);
}

#[test]
fn waiting_ends_as_the_migration_ends() {
    let cases = [
        (
            0,
            vec![
                condition("Succeeded", "True", "Succeeded"),
                condition("Failed", "False", "Succeeded"),
            ],
        ),
        (
            3,
            vec![
                condition("Succeeded", "False", "StreamFailed"),
                condition("Failed", "True", "StreamFailed"),
            ],
        ),
        (
            4,
            vec![
                condition("Failed", "True", "Cancelled"),
                condition("Cancelled", "True", "Cancelled"),
            ],
        ),
        // It has needed a decision for longer than a doubt is given.
        (
            5,
            vec![
                condition("Accepted", "True", "Accepted"),
                condition("NeedsDecision", "True", "DecisionNeeded"),
            ],
        ),
    ];
    for (code, conditions) in cases {
        let cluster = cluster(false, ended(&conditions));
        let mut arguments = MIGRATE.to_vec();
        arguments.push("--wait");
        let run = cluster.run(&arguments);
        assert_eq!((run.code, run.err.as_str()), (code, ""), "{run:?}");
        assert!(run.out.contains("Migration    lab/m1\n"), "{run:?}");
        let run = cluster.run(&["status", "m1", "--watch"]);
        assert_eq!(run.code, code, "{run:?}");
        // Asked once, the question is answered whatever the answer is.
        assert_eq!(cluster.run(&["status", "m1"]).code, 0);

        arguments.extend(["-o", "json"]);
        let run = cluster.run(&arguments);
        assert_eq!(run.code, code, "{run:?}");
        let object: Value = serde_json::from_str(&run.out).unwrap();
        assert_eq!(object["kind"], "VirtualMachineMigration");
        assert_eq!(object["metadata"].get("managedFields"), None);
    }
}

#[test]
fn a_wait_that_is_over_first_says_that_the_migration_goes_on() {
    let cluster = cluster(false, ended(&[condition("Accepted", "True", "Accepted")]));
    let mut arguments = MIGRATE.to_vec();
    arguments.extend(["--wait", "--timeout", "300ms"]);
    let run = cluster.run(&arguments);
    assert_eq!(run.code, 6, "{run:?}");
    assert_eq!(
        run.err,
        "Timed out waiting. The migration goes on. Watch it: kubectl godwit status m1 -n lab --watch. Cancel it: \
         kubectl godwit cancel m1 -n lab\n"
    );
}

#[test]
fn a_stumbling_server_is_asked_again() {
    let stumbles = AtomicUsize::new(1);
    let done = ended(&[condition("Succeeded", "True", "Succeeded")]);
    let server = Server::start(move |request| {
        let listed = request.path.contains("virtualmachinemigrations?");
        if listed && stumbles.fetch_sub(1, Ordering::Relaxed) == 1 {
            let status = json!({"kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError",
                "message": "etcd is away"});
            return (500, status);
        }
        answer(request, false, &done)
    });
    let run = server.run(&["status", "m1", "--watch"]);
    assert_eq!(run.code, 0, "{run:?}");
    let note = "Still waiting. The API server cannot answer now (500): etcd is away. A later try may work\n";
    assert!(run.out.starts_with(note), "{run:?}");
}

#[test]
fn a_watch_that_is_not_allowed_ends_at_once() {
    let server = Server::start(move |request| {
        if request.path.contains("virtualmachinemigrations?") {
            let status = json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
                "message": "no"});
            return (403, status);
        }
        answer(request, false, &Value::Null)
    });
    let run = server.run(&["status", "m1", "--watch"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.err
            .contains("the right to watch virtualmachinemigrations.godwit.dev in namespace lab is missing")
    );
}

#[test]
fn a_migration_that_is_deleted_meanwhile_is_told() {
    let server = Server::start(move |request| {
        if request.path.contains("virtualmachinemigrations?") {
            return (200, list("VirtualMachineMigration", json!([])));
        }
        answer(request, false, &Value::Null)
    });
    let run = server.run(&["status", "m1", "--watch"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.err
            .starts_with("error: The migration was deleted while it was watched: "),
        "{run:?}"
    );
}

#[test]
fn ctrl_c_ends_the_watching_and_not_the_migration() {
    let cluster = cluster(false, ended(&[condition("Accepted", "True", "Accepted")]));
    let mut child = cluster.command(&["status", "m1", "--watch"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It watches once it has said how the migration stands.
    assert_eq!(lines.next().unwrap().unwrap(), "Not seen yet");
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 130);
    assert!(
        run.err.starts_with("Stopped watching. The migration goes on. "),
        "{run:?}"
    );
    assert_eq!(cluster.writes().len(), 0);
}

#[test]
fn cancelling_is_asked_for_once() {
    let going = cluster(false, ended(&[condition("Accepted", "True", "Accepted")]));
    let run = going.run(&["cancel", "m1"]);
    assert_eq!((run.code, run.out.as_str()), (0, "Cancellation asked for\n"));
    let writes = going.writes();
    assert_eq!(writes.len(), 1);
    assert_eq!(
        writes[0].body,
        json!({"metadata": {"uid": "u-1"}, "spec": {"cancel": true}})
    );

    let asked = cluster(true, ended(&[condition("Accepted", "True", "Accepted")]));
    let run = asked.run(&["cancel", "m1"]);
    assert_eq!(
        (run.code, run.out.as_str()),
        (0, "Cancellation was asked for already\n")
    );
    assert_eq!(asked.writes().len(), 0);
}

#[test]
fn cancelling_what_has_ended_changes_nothing() {
    for (code, conditions, text) in [
        (
            1,
            vec![condition("Succeeded", "True", "Succeeded")],
            "Too late to cancel: m1 has succeeded",
        ),
        (
            0,
            vec![condition("Failed", "True", "Cancelled")],
            "m1 is cancelled. ",
        ),
        (
            0,
            vec![condition("Failed", "True", "StreamFailed")],
            "m1 has failed, there is nothing to cancel. ",
        ),
    ] {
        let cluster = cluster(false, ended(&conditions));
        let run = cluster.run(&["cancel", "m1", "--wait"]);
        assert_eq!(run.code, code, "{run:?}");
        assert!(format!("{}{}", run.out, run.err).contains(text), "{run:?}");
        assert_eq!(cluster.writes().len(), 0);
    }
}

#[test]
fn a_missing_right_is_named() {
    let server = Server::start(|_| {
        (
            403,
            json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"}),
        )
    });
    let run = server.run(&["guests", "-A"]);
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "error: Not allowed: the right to list virtualmachines.godwit.dev in the whole cluster is missing; ask an \
             administrator for it\n"
        )
    );
}

#[test]
fn lists_carry_nothing_that_a_terminal_obeys() {
    let cluster = cluster(false, Value::Null);
    let run = cluster.run(&["guests"]);
    assert_eq!(
        run.out,
        "NAME   STATE     HOST         CPUS   MEMORY    SINCE   MIGRATION\n\
         web1   Running   node-a\u{fffd}[2J   2      512 MiB   -       -\n"
    );
    let run = cluster.run(&["guests", "-o", "json"]);
    assert!(!run.out.contains('\u{1b}'));
    let objects: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(objects["items"][0]["status"]["host"], "node-a\u{1b}[2J");
    assert!(cluster.run(&["hosts"]).out.contains("node-b   unknown"));
}

/// A cluster in which web1's migration m1 waits, node-a is not heard, and the controller makes of every word what is given.
fn waiting_cluster(applied: Value) -> Server {
    let waits = ended(&[condition("NeedsDecision", "True", "AgentUnreachable")]);
    let word = move |status: Value| {
        json!({
            "apiVersion": "godwit.dev/v1alpha1", "kind": "VirtualMachineResolution",
            "metadata": {"name": "web1-x", "namespace": "lab", "uid": "r-1", "resourceVersion": "7"},
            "spec": {"virtualMachine": "web1", "epoch": 4, "migration": "u-1", "fencedHosts": ["node-a"],
                "action": "ColdStart", "by": "eve"},
            "status": status
        })
    };
    Server::start(move |request| {
        let path = request.path.split('?').next().unwrap();
        let last = path.rsplit('/').next().unwrap();
        match (request.method.as_str(), last) {
            ("GET", "web1") => {
                let mut machine = machine();
                machine["status"] = json!({"state": "Unknown", "host": "node-a", "epoch": 4});
                (200, machine)
            }
            ("GET", "node-a") if path.contains("virtualmachinehosts") => {
                let mut host = host();
                host["metadata"]["name"] = json!("node-a");
                host["status"] = json!({"conditions": [condition("Ready", "Unknown", "LeaseExpired")]});
                (200, host)
            }
            ("GET", "node-a") => {
                let taint = json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"});
                (
                    200,
                    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
                    "spec": {"taints": [taint]}}),
                )
            }
            ("POST", "selfsubjectreviews") => (
                201,
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {},
                    "status": {"userInfo": {"username": "eve"}}}),
            ),
            ("POST", "virtualmachineresolutions") => (201, word(Value::Null)),
            ("GET", "virtualmachineresolutions") => (
                200,
                list(
                    "VirtualMachineResolution",
                    json!([word(json!({"conditions": [applied]}))]),
                ),
            ),
            _ => answer(request, false, &waits),
        }
    })
}

#[test]
fn resolve_shows_what_can_be_said_and_changes_nothing() {
    let cluster = waiting_cluster(Value::Null);
    let run = cluster.run(&["resolve", "web1", "-n", "lab"]);
    assert_eq!((run.code, run.err.as_str()), (5, ""), "{run:?}");
    assert!(
        run.out
            .contains("node-a is not heard any more (LeaseExpired); its node is tainted as out of service."),
        "{run:?}"
    );
    assert!(
        run.out.contains("Migration m1 waits: AgentUnreachable it is."),
        "{run:?}"
    );
    assert!(
        run.out.contains("resolve web1 --fenced node-b --cold-start"),
        "{run:?}"
    );
    assert_eq!(cluster.writes().len(), 0);
}

#[test]
fn a_word_carries_the_users_name_and_what_he_has_seen() {
    let cluster = waiting_cluster(condition("Applied", "True", "ColdStarted"));
    let said = [
        "resolve",
        "web1",
        "-n",
        "lab",
        "--fenced",
        "node-a",
        "--cold-start",
        "--on",
        "node-c",
        "--note",
        "burnt down",
    ];
    let run = cluster.run(&said);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{run:?}");
    let writes = cluster.writes();
    let made = writes
        .iter()
        .find(|write| write.path.contains("virtualmachineresolutions"));
    assert_eq!(
        made.unwrap().body["spec"],
        json!({"virtualMachine": "web1", "epoch": 4, "migration": "u-1", "fencedHosts": ["node-a"],
            "action": "ColdStart", "host": "node-c", "by": "eve", "note": "burnt down"})
    );
}

#[test]
fn waiting_for_a_word_ends_as_it_was_taken() {
    for (applied, code) in [
        (condition("Applied", "True", "ColdStarted"), 0),
        (condition("Applied", "False", "HostAnswers"), 1),
        (condition("Applied", "Unknown", "InProgress"), 6),
    ] {
        let reason = applied["reason"].as_str().unwrap().to_owned();
        let cluster = waiting_cluster(applied);
        let said = [
            "resolve",
            "web1",
            "-n",
            "lab",
            "--fenced",
            "node-a",
            "--cold-start",
            "--wait",
            "--timeout",
            "2s",
        ];
        let run = cluster.run(&said);
        assert_eq!(run.code, code, "{run:?}");
        assert!(format!("{}{}", run.out, run.err).contains(&reason), "{run:?}");
    }
}
