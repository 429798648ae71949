//! What a relay knows: its task, its channels and their tokens. No sockets, no clock, no threads.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::channel::{Channel, Token};
use crate::header::{Header, Refusal};
use crate::limits::{ARRIVALS, CHANNELS, ENDED, USED_TOKENS};
use crate::order::{ChannelState, Ending, OpenFailure, Opening, OrderRefusal, Role, Task};

/// A channel and how far it is.
pub(crate) struct Entry {
    pub(crate) channel: Channel,
    pub(crate) state: ChannelState,
    /// What opens it, at the destination, as long as it is awaited.
    token: Option<Token>,
}

impl Entry {
    fn is_over(&self) -> bool {
        match self.state {
            ChannelState::Awaited | ChannelState::Opening | ChannelState::Up => false,
            ChannelState::Ended { .. } | ChannelState::Failed { .. } => true,
        }
    }
}

/// What a relay knows.
#[derive(Default)]
pub(crate) struct Book {
    task: Option<Task>,
    entries: Vec<Entry>,
    used: VecDeque<Token>,
    arriving: usize,
    rejected: u64,
}

impl Book {
    /// # Errors
    /// [`OrderRefusal::Begun`].
    pub(crate) fn begin(&mut self, task: Task) -> Result<(), OrderRefusal> {
        if self.task.is_some() {
            return Err(OrderRefusal::Begun);
        }
        self.task = Some(task);
        Ok(())
    }

    pub(crate) fn task(&self) -> Option<Task> {
        self.task
    }

    /// The channels, those that are over first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Whether anything is under way that would be lost with the relay.
    pub(crate) fn is_busy(&self) -> bool {
        self.arriving > 0
            || self.entries.iter().any(|entry| match entry.state {
                ChannelState::Opening | ChannelState::Up => true,
                ChannelState::Awaited | ChannelState::Ended { .. } | ChannelState::Failed { .. } => false,
            })
    }

    /// Source: channels that are to be opened, once the hypervisor has connected. All of them or none.
    ///
    /// # Errors
    /// [`OrderRefusal`].
    pub(crate) fn await_hypervisor(&mut self, openings: &[Opening]) -> Result<(), OrderRefusal> {
        self.check_role(Role::Source)?;
        for (at, opening) in openings.iter().enumerate() {
            self.check_channel(opening.channel, openings.len())?;
            let before = openings.iter().take(at);
            if before.clone().any(|other| other.channel == opening.channel) {
                return Err(OrderRefusal::ChannelExists(opening.channel));
            }
        }
        for opening in openings {
            self.insert(opening.channel, ChannelState::Awaited, None);
        }
        Ok(())
    }

    /// Source: a channel is opened now.
    ///
    /// # Errors
    /// [`OrderRefusal`].
    pub(crate) fn open(&mut self, channel: Channel) -> Result<(), OrderRefusal> {
        self.check_role(Role::Source)?;
        self.check_channel(channel, 1)?;
        self.insert(channel, ChannelState::Opening, None);
        Ok(())
    }

    /// Destination: a channel may come.
    ///
    /// # Errors
    /// [`OrderRefusal`].
    pub(crate) fn expect(&mut self, opening: &Opening) -> Result<(), OrderRefusal> {
        self.check_role(Role::Destination)?;
        self.check_channel(opening.channel, 1)?;
        let known = self.entries.iter().filter_map(|entry| entry.token.as_ref());
        if known.chain(&self.used).any(|known| known.is(&opening.token)) {
            return Err(OrderRefusal::TokenExists(opening.channel));
        }
        self.insert(
            opening.channel,
            ChannelState::Awaited,
            Some(opening.token.clone()),
        );
        Ok(())
    }

    /// Destination: a connection is there whose header is to come. [`Book::arrived`] ends that.
    ///
    /// # Errors
    /// [`OrderRefusal`].
    pub(crate) fn arrive(&mut self) -> Result<(), OrderRefusal> {
        self.check_role(Role::Destination)?;
        if self.arriving >= ARRIVALS {
            return Err(OrderRefusal::TooManyArrivals);
        }
        self.arriving += 1;
        Ok(())
    }

    /// Destination: a connection's header is there, or will not come.
    pub(crate) fn arrived(&mut self) {
        self.arriving = self.arriving.saturating_sub(1);
    }

    /// Destination: judges a header; the channel, which is being opened then. A token that was shown is spent.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn admit(&mut self, header: Result<Header, Refusal>) -> Result<Channel, Refusal> {
        let header = header?;
        if self.task.map(|task| task.migration) != Some(header.migration) {
            return Err(Refusal::WrongMigration);
        }
        // All of them are compared, whichever it is.
        let mut found = None;
        let mut awaited = false;
        for entry in &mut self.entries {
            if let Some(token) = &entry.token {
                awaited = true;
                if token.is(&header.token) {
                    found = Some(entry);
                }
            }
        }
        let used = self
            .used
            .iter()
            .fold(false, |used, token| used | token.is(&header.token));
        let Some(entry) = found else {
            return Err(match (used, awaited) {
                (true, _) => Refusal::UsedToken,
                (false, true) => Refusal::UnknownToken,
                (false, false) => Refusal::TooManyChannels,
            });
        };
        let verdict = if entry.channel.kind != header.channel.kind {
            Err(Refusal::WrongKind)
        } else if entry.channel.number != header.channel.number {
            Err(Refusal::WrongNumber)
        } else {
            Ok(entry.channel)
        };
        entry.state = match verdict {
            Ok(_) => ChannelState::Opening,
            Err(refusal) => ChannelState::Failed {
                failure: OpenFailure::Refused(refusal),
            },
        };
        self.used.extend(entry.token.take());
        if self.used.len() > USED_TOKENS {
            self.used.pop_front();
        }
        verdict
    }

    /// A connection was turned away.
    pub(crate) fn reject(&mut self) {
        self.rejected = self.rejected.saturating_add(1);
    }

    /// Source: the hypervisor has connected for a channel.
    pub(crate) fn opening(&mut self, channel: Channel) {
        self.set(channel, ChannelState::Opening);
    }

    pub(crate) fn up(&mut self, channel: Channel) {
        self.set(channel, ChannelState::Up);
    }

    pub(crate) fn failed(&mut self, channel: Channel, failure: OpenFailure) {
        self.set(channel, ChannelState::Failed { failure });
    }

    pub(crate) fn ended(&mut self, channel: Channel, ending: Ending) {
        self.set(channel, ChannelState::Ended { ending });
    }

    fn set(&mut self, channel: Channel, state: ChannelState) {
        let found = self.entries.iter_mut().find(|entry| entry.channel == channel);
        if let Some(entry) = found.filter(|entry| !entry.is_over()) {
            entry.state = state;
            entry.token = None;
        }
    }

    fn check_role(&self, role: Role) -> Result<(), OrderRefusal> {
        match self.task {
            None => Err(OrderRefusal::NotBegun),
            Some(task) if task.role != role => Err(OrderRefusal::WrongRole),
            Some(_) => Ok(()),
        }
    }

    /// Whether a channel may be added, as one of so many.
    fn check_channel(&self, channel: Channel, among: usize) -> Result<(), OrderRefusal> {
        let mut there = self.entries.iter().filter(|entry| !entry.is_over());
        if there.clone().count() + among > CHANNELS {
            return Err(OrderRefusal::TooManyChannels);
        }
        if there.any(|entry| entry.channel == channel) {
            return Err(OrderRefusal::ChannelExists(channel));
        }
        Ok(())
    }

    /// The channel's name is free, or that of one that is over, which is forgotten for it.
    fn insert(&mut self, channel: Channel, state: ChannelState, token: Option<Token>) {
        self.entries.retain(|entry| entry.channel != channel);
        let over = self.entries.iter().filter(|entry| entry.is_over()).count();
        if over >= ENDED
            && let Some(oldest) = self.entries.iter().position(Entry::is_over)
        {
            self.entries.remove(oldest);
        }
        self.entries.push(Entry {
            channel,
            state,
            token,
        });
    }
}

/// Since when nobody needs the relay.
#[derive(Default)]
pub(crate) struct Idle {
    since: Option<Instant>,
}

impl Idle {
    /// How long to wait before asking again, given whether anybody needs the relay now; none where its time is up.
    /// The outer none waits for ever.
    pub(crate) fn ask(&mut self, now: Instant, needed: bool, orphaned: Duration) -> Rest {
        if needed {
            self.since = None;
            return Rest::UntilWoken;
        }
        let until = *self.since.get_or_insert(now) + orphaned;
        match until.checked_duration_since(now) {
            Some(left) if !left.is_zero() => Rest::For(left),
            Some(_) | None => Rest::Over,
        }
    }
}

/// How long a relay rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Until something happens.
    UntilWoken,
    /// No longer than that.
    For(Duration),
    /// Its time is up.
    Over,
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::channel::ChannelKind;

    const MIGRATION: Uuid = Uuid::from_u128(1);

    fn begun(role: Role) -> Book {
        let mut book = Book::default();
        book.begin(Task {
            migration: MIGRATION,
            role,
        })
        .unwrap();
        book
    }

    fn channel(kind: ChannelKind, number: u16) -> Channel {
        Channel::new(kind, number)
    }

    fn opening(kind: ChannelKind, number: u16, token: u8) -> Opening {
        Opening {
            channel: channel(kind, number),
            token: Token::from_bytes([token; 32]),
        }
    }

    fn header(kind: ChannelKind, number: u16, token: u8) -> Result<Header, Refusal> {
        Ok(Header {
            migration: MIGRATION,
            channel: channel(kind, number),
            token: Token::from_bytes([token; 32]),
        })
    }

    const MULTIFD: ChannelKind = ChannelKind::Multifd;

    #[test]
    fn nothing_is_taken_before_it_is_known_what_for() {
        let mut book = Book::default();
        assert_eq!(book.open(channel(MULTIFD, 0)), Err(OrderRefusal::NotBegun));
        assert_eq!(book.expect(&opening(MULTIFD, 0, 1)), Err(OrderRefusal::NotBegun));
        assert_eq!(book.arrive(), Err(OrderRefusal::NotBegun));
        let mut source = begun(Role::Source);
        assert_eq!(source.begin(source.task().unwrap()), Err(OrderRefusal::Begun));
        assert_eq!(
            source.expect(&opening(MULTIFD, 0, 1)),
            Err(OrderRefusal::WrongRole)
        );
        assert_eq!(source.arrive(), Err(OrderRefusal::WrongRole));
        let mut destination = begun(Role::Destination);
        assert_eq!(
            destination.open(channel(MULTIFD, 0)),
            Err(OrderRefusal::WrongRole)
        );
        assert_eq!(destination.await_hypervisor(&[]), Err(OrderRefusal::WrongRole));
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let mut book = begun(Role::Destination);
        for number in 0..5_u8 {
            book.expect(&opening(MULTIFD, u16::from(number), number)).unwrap();
        }
        let mut elsewhere = header(MULTIFD, 0, 0).unwrap();
        elsewhere.migration = Uuid::from_u128(2);
        assert_eq!(book.admit(Ok(elsewhere)), Err(Refusal::WrongMigration));
        assert_eq!(book.admit(Err(Refusal::Version)), Err(Refusal::Version));
        assert_eq!(book.admit(header(MULTIFD, 0, 9)), Err(Refusal::UnknownToken));
        assert_eq!(
            book.admit(header(ChannelKind::Preempt, 1, 1)),
            Err(Refusal::WrongKind)
        );
        assert_eq!(book.admit(header(MULTIFD, 3, 2)), Err(Refusal::WrongNumber));
        // Shown once, a token is spent, whatever came of it.
        assert_eq!(book.admit(header(MULTIFD, 1, 1)), Err(Refusal::UsedToken));
        assert_eq!(book.admit(header(MULTIFD, 2, 2)), Err(Refusal::UsedToken));
        for number in [0, 3, 4] {
            assert_eq!(
                book.admit(header(MULTIFD, number, u8::try_from(number).unwrap())),
                Ok(channel(MULTIFD, number))
            );
        }
        assert_eq!(book.admit(header(MULTIFD, 0, 0)), Err(Refusal::UsedToken));
        assert_eq!(book.admit(header(MULTIFD, 5, 5)), Err(Refusal::TooManyChannels));
    }

    #[test]
    fn names_and_tokens_are_given_once_at_a_time() {
        let mut book = begun(Role::Destination);
        let recovery = |token| opening(ChannelKind::Recovery, 0, token);
        let name = channel(ChannelKind::Recovery, 0);
        book.expect(&recovery(1)).unwrap();
        assert_eq!(book.expect(&recovery(2)), Err(OrderRefusal::ChannelExists(name)));
        assert!(matches!(
            book.expect(&opening(MULTIFD, 0, 1)),
            Err(OrderRefusal::TokenExists(_))
        ));
        book.admit(header(ChannelKind::Recovery, 0, 1)).unwrap();
        book.up(name);
        assert_eq!(book.expect(&recovery(2)), Err(OrderRefusal::ChannelExists(name)));
        book.ended(
            name,
            Ending::Cut {
                side: crate::order::Side::Peer,
                why: "x".into(),
            },
        );
        assert!(matches!(
            book.expect(&recovery(1)),
            Err(OrderRefusal::TokenExists(_))
        ));
        book.expect(&recovery(2)).unwrap();
        assert_eq!(book.entries().count(), 1);
        assert_eq!(book.admit(header(ChannelKind::Recovery, 0, 2)), Ok(name));
    }

    #[test]
    fn a_list_is_taken_whole_or_not_at_all() {
        let mut book = begun(Role::Source);
        let list = [
            opening(MULTIFD, 0, 1),
            opening(MULTIFD, 1, 2),
            opening(MULTIFD, 0, 3),
        ];
        assert!(matches!(
            book.await_hypervisor(&list),
            Err(OrderRefusal::ChannelExists(_))
        ));
        assert_eq!(book.entries().count(), 0);
        book.await_hypervisor(&list[..2]).unwrap();
        assert_eq!(
            book.open(channel(MULTIFD, 1)),
            Err(OrderRefusal::ChannelExists(channel(MULTIFD, 1)))
        );
        let many: Vec<_> = (2..=u16::try_from(CHANNELS).unwrap())
            .map(|n| opening(MULTIFD, n, 0))
            .collect();
        assert_eq!(book.await_hypervisor(&many), Err(OrderRefusal::TooManyChannels));
        book.await_hypervisor(&many[1..]).unwrap();
        assert_eq!(
            book.open(channel(ChannelKind::Memory, 0)),
            Err(OrderRefusal::TooManyChannels)
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut book = begun(Role::Source);
        for number in 0..u16::try_from(2 * ENDED).unwrap() {
            book.open(channel(MULTIFD, number)).unwrap();
            book.failed(channel(MULTIFD, number), OpenFailure::Deadline);
        }
        assert!(book.entries().count() <= ENDED + 1);
        let mut book = begun(Role::Destination);
        for _ in 0..ARRIVALS {
            book.arrive().unwrap();
        }
        assert_eq!(book.arrive(), Err(OrderRefusal::TooManyArrivals));
        book.arrived();
        book.arrive().unwrap();
    }

    #[test]
    fn what_is_over_stays_over() {
        let mut book = begun(Role::Source);
        let name = channel(MULTIFD, 0);
        book.open(name).unwrap();
        assert!(book.is_busy());
        book.ended(name, Ending::End);
        book.up(name);
        assert!(!book.is_busy());
        assert_eq!(
            book.entries().next().map(|entry| entry.state.clone()),
            Some(ChannelState::Ended { ending: Ending::End })
        );
    }

    #[test]
    fn a_relay_that_nobody_needs_ends_after_its_time() {
        let (now, orphaned) = (Instant::now(), Duration::from_secs(60));
        let mut idle = Idle::default();
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(idle.ask(now, false, orphaned), Rest::For(orphaned));
        assert_eq!(
            idle.ask(later(50), false, orphaned),
            Rest::For(Duration::from_secs(10))
        );
        assert_eq!(idle.ask(later(55), true, orphaned), Rest::UntilWoken);
        assert_eq!(idle.ask(later(70), false, orphaned), Rest::For(orphaned));
        assert_eq!(idle.ask(later(130), false, orphaned), Rest::Over);
    }
}
