//! Requests and answers, with everything that can go wrong between a process and the API server.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::store::{Happened, Key, Kind, Refused, Store, refused};
use crate::sim::{Life, Place, Sim, Strike};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// How long a connection may bring nothing before it is given up.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How soon a watch breaks that has lost an event.
const BREAKS_AFTER: Duration = Duration::from_secs(20);
/// How many changes a stale list lies behind.
const STALE_BY: u64 = 3;

/// The way to the API server, and what is wrong with it.
#[derive(Clone)]
pub struct Access {
    sim: Arc<Sim>,
    store: Arc<Store>,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    down: AtomicBool,
    /// So many writes to come are applied, and their answers are lost.
    unanswered: AtomicUsize,
    /// So many requests to come are answered with an error and not carried out.
    refusing: AtomicUsize,
}

impl Access {
    /// The way to these objects.
    pub fn new(sim: &Arc<Sim>, store: &Arc<Store>) -> Self {
        Self {
            sim: sim.clone(),
            store: store.clone(),
            faults: Arc::default(),
        }
    }

    /// Whether the API server is down.
    pub fn down(&self, down: bool) {
        self.faults.down.store(down, Ordering::Relaxed);
    }

    /// The next writes are applied, and their answers are lost.
    pub fn lose_answers(&self, count: usize) {
        self.faults.unanswered.store(count, Ordering::Relaxed);
    }

    /// The next requests are refused.
    pub fn refuse(&self, count: usize) {
        self.faults.refusing.store(count, Ordering::Relaxed);
    }

    /// Everything is well again.
    pub fn heal(&self) {
        self.down(false);
        self.lose_answers(0);
        self.refuse(0);
    }

    /// A client for a process.
    pub fn client(&self, life: &Arc<Life>) -> Client {
        let (access, life) = (self.clone(), life.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (access, life) = (access.clone(), life.clone());
            async move { access.serve(&life, request).await }
        });
        Client::new(service, "default")
    }

    async fn serve(&self, life: &Arc<Life>, request: Request<Body>) -> Result<Answer, std::io::Error> {
        let (sim, me) = (&self.sim, life.place);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let asked = Asked::read(&head, &body);
        let write = head.method != Method::GET;
        let words = format!("{} {}", head.method, asked.words());
        if write {
            sim.pass(life, format!("api: {words}")).await;
        }
        sim.travel(me, Place::Api).await;
        if self.faults.down.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        if take_one(&self.faults.refusing) {
            sim.note(Place::Api, format!("refuses {me}'s {words}"));
            return Ok(status(&refused(503, "ServiceUnavailable", "overloaded")));
        }
        // Whoever has died meanwhile had sent it all the same.
        if asked.watch {
            let answer = self.watch(life, &asked);
            sim.travel(Place::Api, me).await;
            return Ok(answer);
        }
        let outcome = self.carry_out(me, &head.method, &asked);
        match &outcome {
            Ok(_) if write => sim.note(Place::Api, format!("takes {me}'s {words}")),
            Ok(_) => {}
            Err(refused) => sim.note(Place::Api, format!("refuses {me}'s {words}: {}", refused.message)),
        }
        if write && outcome.is_ok() {
            let number = sim.counts.writes.fetch_add(1, Ordering::Relaxed);
            if sim.strike == Some(Strike::Unanswered(number)) {
                sim.note(Place::Api, format!("answers {me}'s {words} with an error"));
                return Ok(status(&refused(
                    500,
                    "InternalError",
                    "etcdserver: request timed out",
                )));
            }
            if take_one(&self.faults.unanswered) {
                sim.note(Place::Api, format!("loses the answer to {me}'s {words}"));
                if sim.dice.percent(50) {
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
                std::future::pending::<()>().await;
            }
        }
        sim.travel(Place::Api, me).await;
        if write {
            sim.pass(life, format!("api: answered {words}")).await;
        } else if life.is_over() {
            std::future::pending::<()>().await;
        }
        Ok(match outcome {
            Ok(object) => whole(200, &object),
            Err(refused) => status(&refused),
        })
    }

    fn carry_out(&self, me: Place, method: &Method, asked: &Asked) -> Result<Value, Refused> {
        let kind = asked
            .kind
            .ok_or_else(|| refused(404, "NotFound", "no such kind"))?;
        let store = &self.store;
        let Some(name) = &asked.name else {
            return if *method == Method::POST {
                let name = asked.body["metadata"]["name"]
                    .as_str()
                    .map_or_else(|| format!("generated-{}", store.version()), str::to_owned);
                store.create(kind, &asked.key(kind, &name), asked.body.clone())
            } else {
                let number = self.sim.counts.lists.fetch_add(1, Ordering::Relaxed);
                let stale = self.sim.strike == Some(Strike::StaleList(number));
                let back = if stale { STALE_BY } else { 0 };
                let (version, items) = store.list(kind.plural, &asked.namespace, back);
                Ok(json!({
                    "apiVersion": kind.version, "kind": format!("{}List", kind.kind),
                    "metadata": {"resourceVersion": version.to_string()}, "items": items,
                }))
            };
        };
        let key = asked.key(kind, name);
        if kind == Kind::RECORD && *method != Method::GET {
            self.check_party(me, &key)?;
        }
        if kind == Kind::RECORD && *method == Method::PUT {
            let before = store.get(&key).unwrap_or_default();
            let replaced = store.replace(&key, asked.body.clone())?;
            if replaced["spec"]["resolution"] != before["spec"]["resolution"] {
                self.told(&replaced["spec"]["resolution"]);
            }
            return Ok(replaced);
        }
        match method.as_str() {
            "GET" => store
                .get(&key)
                .ok_or_else(|| refused(404, "NotFound", format!("{name} not found"))),
            "PUT" => store.replace(&key, asked.body.clone()),
            "PATCH" if asked.status => store.status(&key, &asked.body),
            "PATCH" => store.merge(&key, &asked.body),
            "DELETE" => store.delete(&key, &asked.body),
            _ => Err(refused(405, "MethodNotAllowed", "no such request")),
        }
    }

    /// An administrator's word stands in a guest's record: it was said, and what it gives up for lost is.
    fn told(&self, word: &Value) {
        if word.is_null() {
            return;
        }
        let (_, said) = self.store.list(Kind::RESOLUTION.plural, "", 0);
        let said = said.iter().find(|said| said["metadata"]["uid"] == word["uid"]);
        let judge = &self.sim.judge;
        match said.map(|said| &said["spec"]["action"]) {
            None => judge.wrong(format!("a word that nobody said: {word}")),
            Some(action) if *action != "ColdStart" => {
                // What an earlier word of the same migration has given up stays so.
                if !word["coldStart"].is_null() {
                    judge.wrong(format!("{action} was said, and the record says {word}"));
                }
            }
            Some(_) => judge.memory_given_up(word["coldStart"].as_u64()),
        }
    }

    /// I8: an agent changes no record of which its host is no party.
    fn check_party(&self, me: Place, key: &Key) -> Result<(), Refused> {
        if !Place::HOSTS.contains(&me) {
            return Ok(());
        }
        // A write that was held up may come when the guest and its record are gone.
        let Some(record) = self.store.get(key) else {
            return Err(refused(404, "NotFound", format!("{} not found", key.name)));
        };
        let armed = &record["spec"]["migration"];
        if armed["source"] == me.name() || armed["destination"] == me.name() {
            return Ok(());
        }
        self.sim
            .judge
            .wrong(format!("I8: {me} writes a record of which it is no party"));
        Err(refused(403, "Forbidden", "not a party"))
    }

    fn watch(&self, life: &Arc<Life>, asked: &Asked) -> Answer {
        let Some(kind) = asked.kind else {
            return status(&refused(404, "NotFound", "no such kind"));
        };
        let watching = Watching {
            access: self.clone(),
            life: life.clone(),
            kind,
            namespace: asked.namespace.clone(),
            version: asked.version,
            until: Instant::now() + asked.timeout,
            breaks: None,
            over: false,
        };
        let events = stream::unfold(watching, |mut watching| async move {
            let event = watching.next().await?;
            let mut line = event.to_string();
            line.push('\n');
            Some((Ok(Frame::data(Bytes::from(line))), watching))
        });
        let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
        answer
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static("application/json"));
        answer
    }
}

struct Watching {
    access: Access,
    life: Arc<Life>,
    kind: Kind,
    namespace: String,
    version: u64,
    until: Instant,
    /// It has lost an event, and so breaks then.
    breaks: Option<Instant>,
    over: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Value> {
        if self.over {
            return None;
        }
        let (sim, me) = (self.access.sim.clone(), self.life.place);
        let store = self.access.store.clone();
        let mut news = store.news();
        loop {
            if self.breaks.is_some_and(|at| Instant::now() >= at) {
                self.over = true;
                let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired",
                    "message": "too old resource version", "metadata": {}});
                return Some(json!({"type": "ERROR", "object": gone}));
            }
            if let Some(happened) = store.after(self.version, self.kind.plural, &self.namespace) {
                let Happened {
                    version,
                    what,
                    object,
                    key,
                } = happened;
                tokio::select! {
                    biased;
                    () = sim.travel(Place::Api, me) => {}
                    () = sim.silent_for(Place::Api, me, KEEPALIVE) => return None,
                }
                if self.life.is_over() {
                    std::future::pending::<()>().await;
                }
                self.version = version;
                let number = sim.counts.events.fetch_add(1, Ordering::Relaxed);
                if sim.strike == Some(Strike::DropEvent(number)) {
                    sim.note(Place::Api, format!("loses an event of {} for {me}", key.plural));
                    self.breaks = Some(Instant::now() + BREAKS_AFTER);
                    continue;
                }
                return Some(json!({"type": what, "object": object}));
            }
            let until = self.breaks.map_or(self.until, |at| at.min(self.until));
            let down = async {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    if self.access.faults.down.load(Ordering::Relaxed) {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                _ = news.changed() => {}
                // It ends in time, or breaks as the loop says.
                () = tokio::time::sleep_until(until) => {
                    self.breaks?;
                }
                () = sim.silent_for(Place::Api, me, KEEPALIVE) => return None,
                () = down => return None,
            }
        }
    }
}

/// What a request asks for.
struct Asked {
    kind: Option<Kind>,
    plural: String,
    namespace: String,
    name: Option<String>,
    status: bool,
    watch: bool,
    version: u64,
    timeout: Duration,
    body: Value,
}

impl Asked {
    fn read(head: &http::request::Parts, body: &[u8]) -> Self {
        let mut words = head.uri.path().split('/').filter(|word| !word.is_empty());
        // `api/v1` or `apis/GROUP/VERSION`.
        let skip = if words.next() == Some("api") { 1 } else { 2 };
        let mut words = words.skip(skip).peekable();
        let mut namespace = String::new();
        if words.peek() == Some(&"namespaces") {
            words.next();
            words.next().unwrap_or_default().clone_into(&mut namespace);
        }
        let plural = words.next().unwrap_or_default().to_owned();
        let name = words.next().map(str::to_owned);
        let status = words.next() == Some("status");
        let query = head.uri.query().unwrap_or_default();
        let parameter = |wanted: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| value)
        };
        let number = |name| parameter(name).and_then(|value| value.parse::<u64>().ok());
        Self {
            kind: Kind::by_plural(&plural),
            plural,
            namespace,
            name,
            status,
            watch: parameter("watch").is_some(),
            version: number("resourceVersion").unwrap_or(0),
            timeout: Duration::from_secs(number("timeoutSeconds").unwrap_or(300)),
            body: serde_json::from_slice(body).unwrap_or_default(),
        }
    }

    fn key(&self, kind: Kind, name: &str) -> Key {
        Key {
            plural: kind.plural,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    fn words(&self) -> String {
        let status = if self.status { "/status" } else { "" };
        let told = match self.kind {
            Some(Kind::RECORD) => format!(
                " {} {}",
                self.body["spec"]["decision"].as_str().unwrap_or_default(),
                self.body["spec"]["epoch"]
            ),
            Some(Kind::MIGRATION) => self.body["status"]["phase"]
                .as_str()
                .map(|phase| format!(" {phase}"))
                .unwrap_or_default(),
            Some(_) | None => String::new(),
        };
        format!("{}{status}{told}", self.plural)
    }
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

fn whole(code: u16, object: &Value) -> Answer {
    let body = Full::new(Bytes::from(object.to_string()));
    let mut answer = Response::new(BodyExt::boxed_unsync(body));
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static("application/json"));
    answer
}

fn status(refused: &Refused) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refused.message, "reason": refused.reason, "code": refused.code,
    });
    whole(refused.code, &body)
}
