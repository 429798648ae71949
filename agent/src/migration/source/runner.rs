//! The task: carries the machine's effects out, takes orders and answers, and lets go of the guest at the end.

use std::sync::atomic::Ordering;

use godwit_handover::{Decision, Pass, SourceEffect, SourceEntry, SourceEvent, SourceReport, Step};
use godwit_protocol::Side;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::hand::Work;
use super::{Answer, Runner};
use crate::guest_network;
use crate::guests::GuestError;
use crate::hypervisor::GuestEvent;
use crate::migration::asking;
use crate::migration::driver_watch::{Bearing, Lapse};
use crate::migration::journal::{self, Line};
use crate::migration::role::{self, LONGEST_BACKOFF, Message, Role};
use crate::migration::steps::Moment;

impl Role for Runner {
    const SIDE: &'static str = "source";

    type Event = SourceEvent;
    type Effect = SourceEffect;
    type Answer = Answer;

    fn advance(&mut self, event: SourceEvent) -> Step<SourceEffect> {
        let (machine, out) = self.machine.step(event);
        self.machine = machine;
        self.driver.bear(match self.machine.report() {
            SourceReport::Switching { .. } | SourceReport::InDoubt { .. } => Bearing::StandingStill,
            SourceReport::GoSent(_) if self.machine.terms().strict => Bearing::StandingStill,
            SourceReport::Begun
            | SourceReport::Streaming
            | SourceReport::Stopped { .. }
            | SourceReport::Deciding { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Released
            | SourceReport::Aborting(_)
            | SourceReport::Aborted(_)
            | SourceReport::Died
            | SourceReport::Lost(_) => Bearing::Patient,
        });
        self.hold_back();
        out
    }

    fn carry_out(&mut self, effect: SourceEffect) {
        match effect {
            SourceEffect::Journal(entry) => {
                if matches!(entry, SourceEntry::GoSent(_)) {
                    self.tell_step(Moment::Journaling, None);
                }
                if self.pen.as_ref().is_some_and(|pen| pen.write(Line::Entry(entry))) {
                    self.writes += 1;
                } else {
                    let _ = self.answers.send(Answer::Event(SourceEvent::JournalFailed, None));
                }
            }
            SourceEffect::ReadRecord => {
                let (records, answers) = (self.records.clone(), self.answers.clone());
                let guest = self.machine.terms().guest.clone();
                self.reading = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    let record = asking::read(&*records, &guest).await;
                    let _ = answers.send(Answer::Event(SourceEvent::RecordRead(record), None));
                })));
            }
            SourceEffect::DecideAborted => {
                let (records, answers) = (self.records.clone(), self.answers.clone());
                let (terms, after) = (self.machine.terms().clone(), self.patience.next());
                self.reading = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    let record = asking::decide(&*records, &terms, Decision::Aborted, after).await;
                    let _ = answers.send(Answer::Event(SourceEvent::RecordRead(record), None));
                })));
            }
            SourceEffect::StartStream(_)
            | SourceEffect::Pause
            | SourceEffect::LiftLimits
            | SourceEffect::SwitchOver
            | SourceEffect::CancelStream
            | SourceEffect::ReleaseDisks
            | SourceEffect::ReclaimDisks
            | SourceEffect::Restore(_)
            | SourceEffect::Destroy => {
                self.retry = None;
                self.order_hand(effect);
            }
        }
    }

    fn publish(&mut self) {
        let report = self.machine.report();
        let withheld = match report {
            // The guest is free for another migration, and nothing of it is left here, once this one has let go of
            // it, and not before.
            SourceReport::Released | SourceReport::Aborted(_) | SourceReport::Lost(_) => {
                !self.over.load(Ordering::Acquire)
            }
            SourceReport::Begun
            | SourceReport::Streaming
            | SourceReport::Stopped { .. }
            | SourceReport::Switching { .. }
            | SourceReport::InDoubt { .. }
            | SourceReport::Deciding { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Aborting(_)
            | SourceReport::Died => false,
        };
        if !withheld {
            self.publisher.side(Side::Source(report));
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Event(event, note) => {
                self.noted(note);
                if event == SourceEvent::StreamStarted {
                    self.stream_known = true;
                }
                self.feel(event);
            }
            Answer::Written(event, note) => {
                self.writes = self.writes.saturating_sub(1);
                self.noted(note);
                let holds = matches!(event, SourceEvent::Journaled(_));
                if matches!(event, SourceEvent::Journaled(SourceEntry::GoSent(_))) {
                    self.tell_step(Moment::Journaled, None);
                }
                self.feel(event);
                if let Some(begun) = self.begun.take() {
                    let _ = begun.send(holds);
                }
            }
            Answer::Ended(written) => {
                if !written {
                    self.forget_broken_journal();
                }
                self.over.store(true, Ordering::Release);
                self.let_go();
                self.publish();
            }
            Answer::Nothing(note) => self.noted(note),
            Answer::Retry(effect, note) => {
                self.noted(note);
                self.retry = Some((Instant::now() + self.backoff, effect));
                self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
            }
            Answer::Looked(seen) => self.looked(seen),
            Answer::Figures(figures) => {
                tracing::debug!(?figures, "dirty pages were collected");
                self.publisher.figures(&figures, Instant::now());
                if self.stream_known && matches!(self.machine.report(), SourceReport::Streaming) {
                    self.feel(SourceEvent::Pass(Pass {
                        iteration: figures.iteration,
                        remaining_bytes: figures.remaining_bytes,
                        bytes_per_second: figures.bytes_per_second,
                    }));
                }
            }
        }
    }

    fn happened(&mut self, event: Result<GuestEvent, RecvError>) {
        self.hypervisor_told(event);
    }

    fn told(&mut self, message: Message<SourceEvent>) {
        let now = Instant::now();
        match message {
            Message::Order(event, reply) => {
                self.driver.heard(now);
                let outcome = self.step(event);
                // Whoever ordered may have gone.
                let _ = reply.send(outcome);
            }
            Message::KeepAlive { path_proven, silence } => {
                self.driver.keep_alive(now, path_proven, silence);
                if !self.closing {
                    self.feel(SourceEvent::PathProven(path_proven));
                }
            }
            Message::Retune { bandwidth } => self.retune(bandwidth),
        }
    }

    fn wake(&self) -> Option<Instant> {
        if self.closing {
            return None;
        }
        let look = (self.lane.is_some() && !self.looking).then_some(self.look_at);
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        let close = self
            .machine
            .is_final()
            .then_some(self.close_at)
            .filter(|at| *at > Instant::now());
        [look, retry, close, self.driver.next()]
            .into_iter()
            .flatten()
            .min()
    }

    fn woken(&mut self, now: Instant) {
        for lapse in self.driver.lapsed(now) {
            match lapse {
                Lapse::Path => self.feel(SourceEvent::PathProven(false)),
                Lapse::Driver => {
                    tracing::warn!(migration = %self.machine.terms().migration, "the driver is silent");
                    self.feel(SourceEvent::DriverSilent);
                }
            }
        }
        if let Some((_, effect)) = self.retry.take_if(|(at, _)| *at <= now) {
            self.order_hand(effect);
        }
        if !self.looking && now >= self.look_at {
            self.look_at = now + self.look_interval();
            if let Some((lane, _)) = &self.lane {
                self.looking = lane.send(Work::Look).is_ok();
            }
        }
    }

    fn events(&mut self) -> &mut Option<broadcast::Receiver<GuestEvent>> {
        &mut self.events
    }

    /// Lets go of the guest once the machine's last entry is on disk, and notes that in the journal.
    async fn close_if_over(&mut self) {
        if self.closing || !self.machine.is_final() || self.writes > 0 || Instant::now() < self.close_at {
            return;
        }
        let report = self.machine.report();
        if report == SourceReport::Released {
            // The process is gone; what was kept about it goes too.
            match self.custody.release(self.machine.terms()).await {
                Ok(()) => {}
                Err(GuestError::Conflict(why)) => tracing::warn!(%why, "nothing to let go of"),
                Err(error) => {
                    tracing::warn!(%error, "letting go of a guest that has left; tried again");
                    self.close_at = Instant::now() + LONGEST_BACKOFF;
                    return;
                }
            }
        } else {
            self.custody.unprotect(self.machine.terms()).await;
        }
        self.closing = true;
        let migration = &self.machine.terms().migration;
        let way = (self.tunnel.take(), self.cable.take());
        let guest = self.guest.as_ref().map(|guest| guest.directory());
        role::take_down(migration, way, guest, guest_network::Side::Source).await;
        tracing::info!(%migration, ?report, "the source's side has ended");
        let line = Line::Ended {
            report: format!("{report:?}"),
        };
        if !self.pen.as_ref().is_some_and(|pen| pen.write(line)) {
            let _ = self.answers.send(Answer::Ended(false));
        }
    }
}

impl Runner {
    /// Holds the stream back where the path is not proved, and lets it go again. Before what else a step wants: a stream
    /// that is to be started is held back from its start. Once the guest is stopped the limits are no more of this.
    pub(super) fn hold_back(&mut self) {
        let held = self.machine.held_back();
        self.publisher.held_back(held);
        if self.machine.report() != SourceReport::Streaming || self.held_back == Some(held) {
            return;
        }
        let migration = &self.machine.terms().migration;
        if held {
            tracing::warn!(%migration, "there is no recent proof that both agents and the API server are reached: the stream is held back");
        } else if self.held_back == Some(true) {
            tracing::info!(%migration, "the path is proved again: the stream goes on");
        }
        if let Some((lane, _)) = &self.lane
            && lane.send(Work::HoldBack(held)).is_ok()
        {
            self.held_back = Some(held);
        }
    }

    fn order_hand(&mut self, effect: SourceEffect) {
        let sent = match &self.lane {
            Some((lane, _)) => lane.send(Work::Effect(effect)).is_ok(),
            None => false,
        };
        if !sent {
            // The process is gone; that is the answer to whatever is asked of it.
            let _ = self.answers.send(Answer::Event(SourceEvent::Died, None));
        }
    }

    /// Limits the stream anew, unless its limits are lifted or about to be: then it may not be slowed down again.
    fn retune(&mut self, bandwidth: u64) {
        match self.machine.report() {
            SourceReport::Begun | SourceReport::Streaming => {}
            SourceReport::Stopped { .. }
            | SourceReport::Switching { .. }
            | SourceReport::InDoubt { .. }
            | SourceReport::Deciding { .. }
            | SourceReport::Yielded
            | SourceReport::Blocked { .. }
            | SourceReport::GoSent(_)
            | SourceReport::Released
            | SourceReport::Aborting(_)
            | SourceReport::Aborted(_)
            | SourceReport::Died
            | SourceReport::Lost(_) => return,
        }
        tracing::info!(migration = %self.machine.terms().migration, bandwidth, "the stream's limit is changed");
        if let Some((lane, _)) = &self.lane
            && lane.send(Work::Limit { bandwidth }).is_err()
        {
            tracing::error!("the lane to the hypervisor is gone");
        }
    }

    /// The guest is here, free for another migration, and the journal could not be told: it would be taken for
    /// unended by the next agent, which could mistake the other migration's stream for this one's.
    fn forget_broken_journal(&self) {
        if let (SourceReport::Aborted(_) | SourceReport::Lost(_), Some(path)) =
            (self.machine.report(), &self.journal_path)
            && let Err(error) = journal::remove(path)
        {
            tracing::error!(%error, path = %path.display(), "a broken journal stays; remove it by hand");
        }
    }

    /// Nothing of the guest is kept any more.
    pub(super) fn let_go(&mut self) {
        self.lane = None;
        self.events = None;
        self.guest = None;
        self.pen = None;
        self.retry = None;
        self.reading = None;
    }
}
