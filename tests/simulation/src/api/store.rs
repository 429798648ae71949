//! What the API server keeps: objects, and everything that has ever happened to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::rules;
use crate::dice::Dice;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Group and version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// Its plural.
    pub plural: &'static str,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::of("godwit.dev/v1alpha1", "VirtualMachine", "virtualmachines"),
        Self::HOST,
        Self::MIGRATION,
        Self::RECORD,
        Self::RESOLUTION,
        Self::of("v1", "Secret", "secrets"),
        Self::of("v1", "ConfigMap", "configmaps"),
        Self::LEASE,
        Self::of("events.k8s.io/v1", "Event", "events"),
    ];
    /// Who lives.
    pub const LEASE: Self = Self::of("coordination.k8s.io/v1", "Lease", "leases");
    /// Guests' records.
    pub const RECORD: Self = Self::of("godwit.dev/v1alpha1", "GuestRecord", "guestrecords");
    /// Hosts.
    pub const HOST: Self = Self::of("godwit.dev/v1alpha1", "VirtualMachineHost", "virtualmachinehosts");
    /// Administrators' words.
    pub const RESOLUTION: Self = Self::of(
        "godwit.dev/v1alpha1",
        "VirtualMachineResolution",
        "virtualmachineresolutions",
    );
    /// Migrations.
    pub const MIGRATION: Self = Self::of(
        "godwit.dev/v1alpha1",
        "VirtualMachineMigration",
        "virtualmachinemigrations",
    );

    const fn of(version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self {
            version,
            kind,
            plural,
        }
    }

    /// The kind of that plural.
    pub fn by_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural == plural)
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind's plural.
    pub plural: &'static str,
    /// Its namespace; empty without one.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Something that has happened.
#[derive(Clone, Debug)]
pub struct Happened {
    /// At which version.
    pub version: u64,
    /// To which object.
    pub key: Key,
    /// What: `ADDED`, `MODIFIED` or `DELETED`.
    pub what: &'static str,
    /// The object as it was then.
    pub object: Value,
}

/// Why a request is refused, as a status of the API server.
pub struct Refused {
    /// HTTP's code.
    pub code: u16,
    /// The reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A refusal.
pub fn refused(code: u16, reason: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        code,
        reason,
        message: message.into(),
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    log: Vec<Happened>,
    version: u64,
}

/// The objects.
pub struct Store {
    state: Mutex<State>,
    news: watch::Sender<u64>,
    dice: Dice,
}

impl Store {
    /// No object yet.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            news: watch::Sender::new(0),
            dice: Dice::new(seed ^ 0xA91),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Wakes when something has happened.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn happen(&self, state: &mut State, key: &Key, what: &'static str, mut object: Value) -> Value {
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        if what == "DELETED" {
            state.objects.remove(key);
        } else {
            state.objects.insert(key.clone(), object.clone());
        }
        state.log.push(Happened {
            version: state.version,
            key: key.clone(),
            what,
            object: object.clone(),
        });
        self.news.send_replace(state.version);
        object
    }

    /// An object.
    pub fn get(&self, key: &Key) -> Option<Value> {
        self.state().objects.get(key).cloned()
    }

    /// All objects of a kind, in a namespace if one is given, and as of which version; as they were `back` changes ago.
    pub fn list(&self, plural: &str, namespace: &str, back: u64) -> (u64, Vec<Value>) {
        let state = self.state();
        let wanted = |key: &Key| key.plural == plural && (namespace.is_empty() || key.namespace == namespace);
        if back == 0 {
            let found = state.objects.iter().filter(|(key, _)| wanted(key));
            return (state.version, found.map(|(_, object)| object.clone()).collect());
        }
        let as_of = state.version.saturating_sub(back).max(1);
        let mut old = BTreeMap::new();
        for happened in state.log.iter().filter(|h| h.version <= as_of && wanted(&h.key)) {
            if happened.what == "DELETED" {
                old.remove(&happened.key);
            } else {
                old.insert(happened.key.clone(), happened.object.clone());
            }
        }
        (as_of, old.into_values().collect())
    }

    /// What has happened to objects of a kind after a version; the next of it.
    pub fn after(&self, version: u64, plural: &str, namespace: &str) -> Option<Happened> {
        let state = self.state();
        let from = state.log.partition_point(|happened| happened.version <= version);
        state.log[from..]
            .iter()
            .find(|happened| {
                happened.key.plural == plural && (namespace.is_empty() || happened.key.namespace == namespace)
            })
            .cloned()
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// The version of the last change but for Leases, which are renewed for ever.
    pub fn at_rest(&self) -> u64 {
        let state = self.state();
        let last = state
            .log
            .iter()
            .rfind(|happened| happened.key.plural != Kind::LEASE.plural);
        last.map_or(0, |happened| happened.version)
    }

    /// Creates an object.
    pub fn create(&self, kind: Kind, key: &Key, mut object: Value) -> Result<Value, Refused> {
        let mut state = self.state();
        if state.objects.contains_key(key) {
            return Err(refused(409, "AlreadyExists", format!("{} exists", key.name)));
        }
        let uid = object["metadata"]["uid"]
            .as_str()
            .map_or_else(|| self.dice.uid(), str::to_owned);
        object["apiVersion"] = json!(kind.version);
        object["kind"] = json!(kind.kind);
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(uid);
        metadata["name"] = json!(key.name);
        if !key.namespace.is_empty() {
            metadata["namespace"] = json!(key.namespace);
        }
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!(now());
        Ok(self.happen(&mut state, key, "ADDED", object))
    }

    /// Replaces an object but for its status: by compare-and-swap where the new one carries a version or a UID.
    pub fn replace(&self, key: &Key, mut new: Value) -> Result<Value, Refused> {
        let mut state = self.state();
        let old = Self::current(&state, key)?;
        precondition(&old, &new["metadata"])?;
        if key.plural == Kind::RECORD.plural {
            rules::admits(&old["spec"], &new["spec"]).map_err(|rule| refused(422, "Invalid", rule))?;
        }
        let metadata = &mut new["metadata"];
        for kept in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
            metadata[kept] = old["metadata"][kept].clone();
        }
        if new["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = json!(generation);
        }
        new["status"] = old["status"].clone();
        Ok(self.settle(&mut state, key, &old, new))
    }

    /// Replaces the status.
    pub fn status(&self, key: &Key, patch: &Value) -> Result<Value, Refused> {
        let mut state = self.state();
        let old = Self::current(&state, key)?;
        precondition(&old, &patch["metadata"])?;
        if key.plural == Kind::MIGRATION.plural {
            rules::stays_ended(&old["status"], &patch["status"])
                .map_err(|rule| refused(422, "Invalid", rule))?;
        }
        let mut new = old.clone();
        // The controller owns one condition of a host, and the rest is the agent's.
        let told = &patch["status"]["conditions"][0];
        if key.plural == Kind::HOST.plural && patch["status"]["guests"].is_null() && told["type"] == "Ready" {
            new["status"]["conditions"] = json!([told]);
        } else {
            new["status"] = patch["status"].clone();
        }
        Ok(self.settle(&mut state, key, &old, new))
    }

    /// Merges a patch.
    pub fn merge(&self, key: &Key, patch: &Value) -> Result<Value, Refused> {
        let mut state = self.state();
        let old = Self::current(&state, key)?;
        precondition(&old, &patch["metadata"])?;
        let mut new = old.clone();
        merge(&mut new, patch);
        if new["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = json!(generation);
        }
        Ok(self.settle(&mut state, key, &old, new))
    }

    /// Deletes an object, or marks it where finalizers hold it.
    pub fn delete(&self, key: &Key, options: &Value) -> Result<Value, Refused> {
        let mut state = self.state();
        let old = Self::current(&state, key)?;
        precondition(&old, &options["preconditions"])?;
        let mut new = old.clone();
        new["metadata"]["deletionTimestamp"] = json!(now());
        Ok(self.settle(&mut state, key, &old, new))
    }

    fn current(state: &State, key: &Key) -> Result<Value, Refused> {
        let found = state.objects.get(key).cloned();
        found.ok_or_else(|| refused(404, "NotFound", format!("{} {} not found", key.plural, key.name)))
    }

    /// The object as it is from now on: gone where it was deleted and nothing holds it any more; a change of nothing is
    /// none.
    fn settle(&self, state: &mut State, key: &Key, old: &Value, new: Value) -> Value {
        let held = new["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|finalizers| !finalizers.is_empty());
        if !new["metadata"]["deletionTimestamp"].is_null() && !held {
            return self.happen(state, key, "DELETED", new);
        }
        let without = |object: &Value| {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = Value::Null;
            object
        };
        if without(old) == without(&new) {
            return old.clone();
        }
        self.happen(state, key, "MODIFIED", new)
    }
}

fn precondition(old: &Value, wanted: &Value) -> Result<(), Refused> {
    for field in ["uid", "resourceVersion"] {
        let wanted = &wanted[field];
        if !wanted.is_null() && *wanted != old["metadata"][field] {
            return Err(refused(409, "Conflict", format!("the {field} is another one")));
        }
    }
    Ok(())
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(name);
        } else if name != "resourceVersion" {
            merge(&mut into[name], value);
        }
    }
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
