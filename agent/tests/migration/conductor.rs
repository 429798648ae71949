//! Conducts a migration between two hosts' agents as the controller does: with the driver's own machine, orders
//! again until the reports move on, keepalives, and the record.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use godwit_agent::migration::{Migrations, RecordArbiter, Recorded, Records};
use godwit_handover::{
    Cause, Decision, DestinationReport, Driver, DriverEffect, DriverEvent, Outcome, RecordView, Stand, Terms,
};
use godwit_protocol::{GuestName, Order, OrderAnswer, Side, StreamOptions, Update};

/// How long a migration may take, faults included.
pub const SOON: Duration = Duration::from_secs(30);

/// The guest's record.
#[derive(Clone)]
pub struct Record(pub Arc<Mutex<RecordView>>, Arc<AtomicUsize>);

impl Record {
    pub fn new(terms: &Terms) -> Self {
        let record = RecordView {
            holder: terms.source.clone(),
            epoch: terms.epoch,
            migration: None,
            decision: Decision::None,
            started: false,
            word: None,
        };
        Self(Arc::new(Mutex::new(record)), Arc::default())
    }

    /// How often an agent has read it.
    pub fn read_count(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }

    pub fn view(&self) -> RecordView {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Records for Record {
    async fn whole(&self, _guest: &str) -> Option<Recorded> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Some(Recorded {
            strict: false,
            view: self.view(),
            definition: String::new(),
        })
    }
}

#[async_trait]
impl RecordArbiter for Record {
    async fn decide(&self, terms: &Terms, decision: Decision) -> Option<RecordView> {
        let mut record = self.0.lock().unwrap();
        if record.migration.as_ref() == Some(&terms.migration) && record.decision == Decision::None {
            record.decision = decision;
        }
        Some(record.clone())
    }

    async fn start(&self, terms: &Terms) -> Option<RecordView> {
        let mut record = self.0.lock().unwrap();
        record.started |= record.committed_for(terms);
        Some(record.clone())
    }
}

pub struct Conductor {
    pub terms: Terms,
    pub record: Record,
    pub driver: Driver,
    pub max_downtime: Duration,
    pub stream: StreamOptions,
    definition: Option<Vec<u8>>,
    /// The last update of each side.
    pub source: Option<Update>,
    pub destination: Option<Update>,
    refusals: Vec<String>,
    /// Orders that are lost on their way, by their names.
    pub lost: Vec<&'static str>,
}

impl Conductor {
    pub fn new(terms: &Terms, record: &Record) -> Self {
        Self {
            terms: terms.clone(),
            record: record.clone(),
            driver: Driver::new(terms.clone()),
            max_downtime: Duration::from_millis(300),
            stream: StreamOptions::PLAIN,
            definition: None,
            source: None,
            destination: None,
            refusals: Vec::new(),
            lost: Vec::new(),
        }
    }

    pub fn feel(&mut self, event: DriverEvent) {
        self.driver = self.driver.step(event).0;
    }

    pub fn outcome(&self) -> Option<Outcome> {
        match self.driver.stand() {
            Stand::Ended(outcome) => Some(outcome),
            Stand::Waiting { .. } => None,
        }
    }

    /// Whether the destination has told that the guest is loaded.
    pub fn loaded(&self) -> bool {
        let side = self.destination.as_ref().and_then(|update| update.side.as_ref());
        side == Some(&Side::Destination(DestinationReport::Loaded))
    }

    /// Takes in how both sides stand now.
    pub async fn hear(&mut self, source: &Migrations, destination: &Migrations) {
        if let Some(update) = now(source, &self.terms).await {
            let report = match update.side {
                Some(Side::Source(report)) => Some(report),
                Some(Side::Destination(_)) | None => None,
            };
            self.source = Some(update);
            self.feel(DriverEvent::Source(report));
        }
        if let Some(update) = now(destination, &self.terms).await {
            let report = match &update.side {
                Some(Side::Destination(report)) => Some(report.clone()),
                Some(Side::Source(_)) | None => None,
            };
            self.destination = Some(update);
            self.feel(DriverEvent::Destination(report));
        }
    }

    /// One round: keepalives, reports, and the orders that follow from them.
    pub async fn round(&mut self, source: &Migrations, destination: &Migrations) {
        for side in [source, destination] {
            // Refused before the side knows the migration.
            let _ = side.keep_alive(&self.terms, true, Duration::from_secs(30));
        }
        self.hear(source, destination).await;
        for effect in self.driver.next() {
            self.give(effect, source, destination).await;
        }
    }

    async fn give(&mut self, effect: DriverEffect, source: &Migrations, destination: &Migrations) {
        let order = match effect {
            DriverEffect::ArmRecord => {
                let view = {
                    let mut record = self.record.0.lock().unwrap();
                    record.migration = Some(self.terms.migration.clone());
                    record.clone()
                };
                return self.feel(DriverEvent::Record(view));
            }
            DriverEffect::AdvanceRecord => {
                let view = {
                    let mut record = self.record.0.lock().unwrap();
                    record.decision = Decision::Committed;
                    record.holder = self.terms.destination.clone();
                    record.epoch = self.terms.epoch + 1;
                    record.clone()
                };
                return self.feel(DriverEvent::Record(view));
            }
            DriverEffect::DecideRecord(decision) => {
                let view = {
                    let mut record = self.record.0.lock().unwrap();
                    record.decision = decision;
                    record.clone()
                };
                return self.feel(DriverEvent::Record(view));
            }
            DriverEffect::Begin => (
                source,
                Order::Begin {
                    max_downtime: self.max_downtime,
                    stream: self.stream,
                },
            ),
            DriverEffect::Prepare => {
                let guest = GuestName {
                    uid: self.terms.guest.clone(),
                    namespace: "default".into(),
                    name: "g".into(),
                };
                // A conductor that came back has to ask for it again.
                if self.definition.is_none()
                    && let Ok(OrderAnswer::Begun { definition }) = source
                        .order(
                            &self.terms,
                            Order::Begin {
                                max_downtime: self.max_downtime,
                                stream: self.stream,
                            },
                        )
                        .await
                {
                    self.definition = Some(definition);
                }
                let Some(definition) = self.definition.clone() else {
                    return;
                };
                (
                    destination,
                    Order::Prepare {
                        guest,
                        definition,
                        stream: self.stream,
                        ticket: Vec::new(),
                    },
                )
            }
            DriverEffect::Perform(channel) => (source, Order::Perform(channel)),
            DriverEffect::Ready => (source, Order::Ready),
            DriverEffect::Finish(go) => (destination, Order::Finish(go)),
            DriverEffect::Confirm => (source, Order::Confirm),
            DriverEffect::AbortSource(cause) => (source, Order::AbortSource(cause)),
            DriverEffect::AbortDestination(cause) => (destination, Order::AbortDestination(cause)),
            DriverEffect::Settle => (source, Order::Settle),
            DriverEffect::TellStanding(standing) => (destination, Order::SourceStands(standing)),
            DriverEffect::ArbitrateSource(cause) => (source, Order::ArbitrateSource(cause)),
            DriverEffect::ArbitrateDestination => (destination, Order::ArbitrateDestination),
        };
        let (side, order) = order;
        let name = order.name();
        if self.lost.contains(&name) {
            return;
        }
        match side.order(&self.terms, order).await {
            Ok(OrderAnswer::Begun { definition }) => self.definition = Some(definition),
            Ok(OrderAnswer::Taken) => {}
            Err(fault) => {
                self.refusals
                    .push(format!("{name}: {} ({})", fault.reason, fault.message));
                if name == "Prepare" || name == "Begin" {
                    self.feel(DriverEvent::OrderFailed(Cause::DestinationFailed));
                }
            }
        }
    }

    /// Goes on until the migration has ended.
    pub async fn conduct(&mut self, source: &Migrations, destination: &Migrations) -> Outcome {
        self.until(source, destination, |c| c.outcome().is_some()).await;
        self.outcome().unwrap()
    }

    pub async fn until(
        &mut self,
        source: &Migrations,
        destination: &Migrations,
        done: impl Fn(&Self) -> bool,
    ) {
        let start = Instant::now();
        let mut news = futures::stream::select(
            Box::pin(source.watch(&self.terms.migration)),
            Box::pin(destination.watch(&self.terms.migration)),
        );
        while !done(self) {
            assert!(start.elapsed() < SOON, "it does not end: {}", self.story());
            self.round(source, destination).await;
            // At once at each change, and again soon without one.
            let _ = tokio::time::timeout(Duration::from_millis(20), news.next()).await;
        }
    }

    pub fn story(&self) -> String {
        format!(
            "{:?}\nsource: {:?}\ndestination: {:?}\nrefusals: {:?}",
            self.driver.stand(),
            self.source,
            self.destination,
            self.refusals.iter().rev().take(5).collect::<Vec<_>>()
        )
    }
}

/// How a migration stands at a side, if that is known.
pub async fn now(side: &Migrations, terms: &Terms) -> Option<Update> {
    let mut updates = Box::pin(side.watch(&terms.migration));
    tokio::time::timeout(Duration::from_millis(5), updates.next())
        .await
        .ok()
        .flatten()
}
