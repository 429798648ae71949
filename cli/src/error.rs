//! Errors, each one line that says what to do.

use std::error::Error as _;
use std::io;

use kube::core::Status;

use crate::exit::Exit;
use crate::text::{MESSAGE, NAME, clean};

/// Why a command could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No cluster to talk to.
    #[error("No usable kubeconfig: {0}. Give --kubeconfig or --context, or set KUBECONFIG")]
    Kubeconfig(String),
    /// A request failed.
    #[error("{}", describe(action, source))]
    Request {
        /// What was tried.
        action: Action,
        /// How it failed.
        source: Box<kube::Error>,
    },
    /// The object is not there.
    #[error("{}", not_found(action, near))]
    NotFound {
        /// What was looked for.
        action: Action,
        /// Names like it that are there.
        near: Vec<String>,
    },
    /// The migration was deleted while it was watched.
    #[error(
        "The migration was deleted while it was watched: `kubectl godwit guests` says where the guest runs"
    )]
    Deleted,
    /// The guest has moved: there is nothing left to cancel.
    #[error("Too late to cancel: {0}")]
    TooLate(String),
    /// An administrator's word was refused, or cannot be said.
    #[error("Not resolved: {0}")]
    Unresolvable(String),
    /// What was to be printed could not be.
    #[error("Cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The asynchronous runtime, or the handler for Ctrl-C, could not be set up.
    #[error("Cannot start: {0}")]
    Runtime(io::Error),
    /// An object could not be turned into JSON.
    #[error("Cannot write the object as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            // The reader of our output has closed it, as `head` does: it has what it wanted.
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
            Self::Kubeconfig(_)
            | Self::Request { .. }
            | Self::NotFound { .. }
            | Self::Deleted
            | Self::TooLate(_)
            | Self::Unresolvable(_)
            | Self::Output(_)
            | Self::Runtime(_)
            | Self::Json(_) => Exit::Error,
        }
    }

    /// Whether there is anything to tell.
    pub fn silent(&self) -> bool {
        self.exit() == Exit::Success
    }
}

/// A request, in the words of RBAC, so that a refusal can name the right that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// `get`, `list`, `watch`, `create` or `patch`.
    pub verb: &'static str,
    /// The plural, without the group.
    pub resource: &'static str,
    /// The object, when it is one.
    pub name: Option<String>,
    /// The namespace, when the resource has one and the request is about one.
    pub namespace: Option<String>,
}

impl Action {
    /// Turns a failed request into an error.
    pub fn failed(self, source: kube::Error) -> CliError {
        if self.name.is_some() && self.verb != "create" && is_object_missing(&source) {
            return CliError::NotFound {
                action: self,
                near: vec![],
            };
        }
        CliError::Request {
            action: self,
            source: Box::new(source),
        }
    }
}

/// Whether the server knows the resource and has no such object. A server that does not know the resource answers
/// with 404 as well, but in plain text.
fn is_object_missing(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    status.code == 404
        && status.reason == "NotFound"
        && status.details.as_ref().is_some_and(|d| !d.name.is_empty())
}

/// Whether asking again can help.
pub fn is_transient(error: &kube::Error) -> bool {
    if let kube::Error::Api(s) = error {
        return s.code == 410 || s.code == 429 || s.code >= 500;
    }
    matches!(
        error,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_)
    )
}

/// Whether the server has said that the user may not.
pub fn is_forbidden(error: &CliError) -> bool {
    matches!(error, CliError::Request { source, .. } if matches!(source.as_ref(), kube::Error::Api(s) if s.code == 403))
}

fn describe(action: &Action, error: &kube::Error) -> String {
    let Action { verb, resource, .. } = action;
    if let kube::Error::Api(status) = error {
        return refusal(action, status);
    }
    if let kube::Error::SerdeError(e) = error {
        return format!(
            "The API server's answer is not what this version understands; use the kubectl-godwit of the installed \
             godwit: {}",
            clean(&e.to_string(), MESSAGE)
        );
    }
    if matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_)) {
        return format!(
            "The API server cannot be reached: {}. Check the network and the context",
            root(error)
        );
    }
    format!("Cannot {verb} {resource}.godwit.dev: {}", root(error))
}

/// What the server's refusal means, and what to do.
fn refusal(action: &Action, status: &Status) -> String {
    let Action {
        verb,
        resource,
        namespace,
        ..
    } = action;
    let words = clean(&status.message, MESSAGE);
    let missing_namespace =
        status.reason == "NotFound" && status.details.as_ref().is_some_and(|d| d.kind == "namespaces");
    match status.code {
        401 => "The API server does not accept your credentials: log in again, or check the context".into(),
        403 => {
            let place = match namespace {
                Some(ns) => format!("in namespace {}", clean(ns, NAME)),
                None => "in the whole cluster".into(),
            };
            format!(
                "Not allowed: the right to {verb} {resource}.godwit.dev {place} is missing; ask an administrator for it"
            )
        }
        404 if missing_namespace => {
            format!("There is no namespace {}", clean(namespace.as_deref().unwrap_or_default(), NAME))
        }
        404 => "godwit's custom resources are not installed in this cluster: install the Helm chart, or check the \
                context"
            .into(),
        409 if status.reason == "AlreadyExists" => {
            format!("{} exists already: choose another --name", object(action))
        }
        409 => format!("{} was changed or replaced at the same time: try again", object(action)),
        429 | 500.. => format!("The API server cannot answer now ({}): {words}. A later try may work", status.code),
        _ => format!("The API server refused: {words}"),
    }
}

fn not_found(action: &Action, near: &[String]) -> String {
    let mut text = format!("{} is not there", object(action));
    if near.is_empty() {
        let list = match (action.resource, action.namespace.as_deref()) {
            ("virtualmachinehosts", _) => "kubectl godwit hosts".into(),
            ("virtualmachines", namespace) => {
                format!(
                    "kubectl godwit guests -n {}",
                    clean(namespace.unwrap_or_default(), NAME)
                )
            }
            (_, namespace) => format!(
                "kubectl get vmmig -n {}",
                clean(namespace.unwrap_or_default(), NAME)
            ),
        };
        text.push_str(&format!(": `{list}` lists what is"));
    } else {
        let names: Vec<String> = near.iter().map(|n| clean(n, NAME)).collect();
        text.push_str(&format!("; near it: {}", names.join(", ")));
    }
    text
}

/// `The guest web1 in namespace default`.
fn object(action: &Action) -> String {
    let what = match action.resource {
        "virtualmachines" => "guest",
        "virtualmachinehosts" => "host",
        _ => "migration",
    };
    let name = clean(action.name.as_deref().unwrap_or_default(), NAME);
    match &action.namespace {
        Some(ns) => format!("The {what} {name} in namespace {}", clean(ns, NAME)),
        None => format!("The {what} {name}"),
    }
}

/// The innermost cause: the outer ones only say that something inside went wrong.
fn root(error: &kube::Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        last = inner.to_string();
        source = inner.source();
    }
    clean(&last, MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(verb: &'static str, resource: &'static str, name: Option<&str>) -> Action {
        Action {
            verb,
            resource,
            name: name.map(Into::into),
            namespace: Some("default".into()),
        }
    }

    fn api(status: serde_json::Value) -> kube::Error {
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    fn text(action: Action, status: serde_json::Value) -> String {
        action.failed(api(status)).to_string()
    }

    #[test]
    fn a_missing_right_is_named() {
        let status = serde_json::json!({"code": 403, "reason": "Forbidden", "message": "long words"});
        assert_eq!(
            text(action("list", "virtualmachines", None), status.clone()),
            "Not allowed: the right to list virtualmachines.godwit.dev in namespace default is missing; ask an administrator for it"
        );
        let hosts = Action {
            namespace: None,
            ..action("list", "virtualmachinehosts", None)
        };
        assert_eq!(
            text(hosts, status),
            "Not allowed: the right to list virtualmachinehosts.godwit.dev in the whole cluster is missing; ask an administrator for it"
        );
    }

    #[test]
    fn a_missing_object_and_a_missing_resource_are_told_apart() {
        let object = serde_json::json!({"code": 404, "reason": "NotFound", "message": "x",
            "details": {"name": "web1", "group": "godwit.dev", "kind": "virtualmachines"}});
        let page = serde_json::json!({"code": 404, "reason": "Failed to parse error data", "message": "404 page not found"});
        assert_eq!(
            text(action("get", "virtualmachines", Some("web1")), object),
            "The guest web1 in namespace default is not there: `kubectl godwit guests -n default` lists what is"
        );
        assert_eq!(
            text(action("get", "virtualmachines", Some("web1")), page),
            "godwit's custom resources are not installed in this cluster: install the Helm chart, or check the context"
        );
        let near = CliError::NotFound {
            action: action("get", "virtualmachines", Some("wbe1")),
            near: vec!["web1".into(), "web2\u{1b}".into()],
        };
        assert_eq!(
            near.to_string(),
            "The guest wbe1 in namespace default is not there; near it: web1, web2\u{fffd}"
        );
    }

    #[test]
    fn refusals_keep_the_servers_words_but_not_its_control_characters() {
        let status = serde_json::json!({"code": 422, "reason": "Invalid", "message": "spec.x: \u{1b}[1mbad"});
        assert_eq!(
            text(action("create", "virtualmachinemigrations", Some("m")), status),
            "The API server refused: spec.x: \u{fffd}[1mbad"
        );
        let exists = serde_json::json!({"code": 409, "reason": "AlreadyExists", "message": "x"});
        assert_eq!(
            text(action("create", "virtualmachinemigrations", Some("m")), exists),
            "The migration m in namespace default exists already: choose another --name"
        );
    }

    #[test]
    fn transient_or_not() {
        for (code, transient) in [
            (401, false),
            (403, false),
            (404, false),
            (410, true),
            (429, true),
            (503, true),
        ] {
            assert_eq!(
                is_transient(&api(serde_json::json!({"code": code}))),
                transient,
                "{code}"
            );
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let closed = CliError::Output(io::ErrorKind::BrokenPipe.into());
        assert!(closed.silent());
        assert_eq!(closed.exit(), Exit::Success);
        assert_eq!(CliError::Output(io::ErrorKind::Other.into()).exit(), Exit::Error);
    }
}
