//! Places for connections: a few for those who have not proven who they are, of which nobody can keep another out,
//! and the others for known peers, so many for each.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::identity::PeerIdentity;

/// How long a stranger has at least before another from where it comes from takes its place: a flood from one place
/// would otherwise leave nobody from there the time for a handshake.
const GRACE: Duration = Duration::from_millis(50);

/// Where a stranger comes from, as far as that can be believed: a full connection proves the address. Of IPv6 whoever
/// has one address has 2⁶⁴ of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin(IpAddr);

impl Origin {
    pub(crate) fn of(address: IpAddr) -> Self {
        // One peer is one address, whichever way its packets came.
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        })
    }
}

/// What is done with a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room<K> {
    /// There is a place.
    Free,
    /// There is one if this stranger goes.
    InsteadOf(K),
    /// There is none.
    None,
}

/// Those who have not proven who they are, the oldest first. Once the places are taken, a newcomer takes that of the
/// origin that has the most: so whoever fills them loses them, and everyone else is let in.
#[derive(Debug)]
pub(crate) struct Strangers<K> {
    most: usize,
    all: VecDeque<Stranger<K>>,
    of_origin: HashMap<Origin, usize>,
}

#[derive(Debug)]
struct Stranger<K> {
    key: K,
    origin: Origin,
    since: Instant,
}

impl<K: Copy + Eq> Strangers<K> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            all: VecDeque::new(),
            of_origin: HashMap::new(),
        }
    }

    /// Whether there is room for one more from here.
    pub(crate) fn room(&self, origin: Origin, now: Instant) -> Room<K> {
        if self.all.len() < self.most {
            return Room::Free;
        }
        let count = |origin: &Origin| self.of_origin.get(origin).copied().unwrap_or(0);
        let largest = self.of_origin.values().copied().max().unwrap_or(0);
        let goes = if count(&origin) < largest {
            self.all.iter().find(|one| count(&one.origin) == largest)
        } else {
            let oldest = self.all.iter().find(|one| one.origin == origin);
            oldest.filter(|one| now.saturating_duration_since(one.since) >= GRACE)
        };
        goes.map_or(Room::None, |one| Room::InsteadOf(one.key))
    }

    /// One has come.
    pub(crate) fn enter(&mut self, key: K, origin: Origin, now: Instant) {
        *self.of_origin.entry(origin).or_insert(0) += 1;
        self.all.push_back(Stranger {
            key,
            origin,
            since: now,
        });
    }

    /// One has gone, or is no stranger any more. Its origin, if it was still there.
    pub(crate) fn leave(&mut self, key: K) -> Option<Origin> {
        let at = self.all.iter().position(|one| one.key == key)?;
        let gone = self.all.remove(at)?;
        if let Some(of_it) = self.of_origin.get_mut(&gone.origin) {
            *of_it -= 1;
            if *of_it == 0 {
                self.of_origin.remove(&gone.origin);
            }
        }
        Some(gone.origin)
    }
}

/// Places for known peers.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    most: usize,
    most_of_one: usize,
    taken: Arc<Mutex<HashMap<PeerIdentity, usize>>>,
}

/// A place. Dropped, it is free for another.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    peer: PeerIdentity,
}

impl Places {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            most,
            most_of_one,
            taken: Arc::default(),
        }
    }

    /// A place for a connection of this peer. Hosts leave the controller its own, however many they are.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn take(&self, peer: &PeerIdentity) -> Result<Place, String> {
        let mut taken = self.lock();
        let of_it = taken.get(peer).copied().unwrap_or(0);
        if of_it >= self.most_of_one {
            return Err(format!("{peer} has {of_it} connections already"));
        }
        let kept = match peer {
            PeerIdentity::Controller => 0,
            PeerIdentity::Host(_) => {
                let of_controller = taken.get(&PeerIdentity::Controller).copied().unwrap_or(0);
                self.most_of_one.saturating_sub(of_controller)
            }
        };
        let all = taken.values().sum::<usize>();
        if all + kept >= self.most {
            return Err(format!("there are {all} connections already"));
        }
        taken.insert(peer.clone(), of_it + 1);
        Ok(Place {
            places: self.clone(),
            peer: peer.clone(),
        })
    }

    /// Nothing that is done under this lock can panic, so a poisoned one is still good.
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerIdentity, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(of_it) = taken.get_mut(&self.peer) {
            *of_it = of_it.saturating_sub(1);
            if *of_it == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
    }

    /// As the port does it: who has to go goes, and the newcomer comes.
    fn come(strangers: &mut Strangers<u32>, key: u32, from: &str, now: Instant) -> Room<u32> {
        let room = strangers.room(origin(from), now);
        match room {
            Room::Free => {}
            Room::InsteadOf(key) => assert!(strangers.leave(key).is_some()),
            Room::None => return room,
        }
        strangers.enter(key, origin(from), now);
        room
    }

    #[test]
    fn who_takes_all_places_loses_them_to_whoever_comes() {
        let start = Instant::now();
        let mut strangers = Strangers::new(4);
        for key in 0..4 {
            assert_eq!(come(&mut strangers, key, "192.0.2.1", start), Room::Free);
        }
        // From elsewhere, at once; and the flood goes on without touching it.
        assert_eq!(come(&mut strangers, 10, "192.0.2.2", start), Room::InsteadOf(0));
        assert_eq!(come(&mut strangers, 11, "2001:db8::1", start), Room::InsteadOf(1));
        for key in 20..1000 {
            let now = start + GRACE * key;
            let room = come(&mut strangers, key, "192.0.2.1", now);
            assert!(
                matches!(room, Room::InsteadOf(gone) if gone != 10 && gone != 11),
                "{room:?}"
            );
        }
        assert!(strangers.leave(10).is_some() && strangers.leave(11).is_some());
        assert_eq!(strangers.leave(10), None);
        assert_eq!(
            come(&mut strangers, 1001, "192.0.2.3", start),
            Room::Free,
            "places come back"
        );
    }

    #[test]
    fn where_everyone_comes_from_one_place_each_has_its_time() {
        let start = Instant::now();
        let mut strangers = Strangers::new(2);
        come(&mut strangers, 0, "192.0.2.1", start);
        come(&mut strangers, 1, "192.0.2.1", start + GRACE / 2);
        let soon = start + GRACE - Duration::from_nanos(1);
        assert_eq!(come(&mut strangers, 2, "192.0.2.1", soon), Room::None);
        assert_eq!(
            come(&mut strangers, 2, "192.0.2.1", start + GRACE),
            Room::InsteadOf(0)
        );
        assert_eq!(come(&mut strangers, 3, "192.0.2.1", start + GRACE), Room::None);
    }

    #[test]
    fn among_many_places_with_as_many_each_the_oldest_goes() {
        let start = Instant::now();
        let mut strangers = Strangers::new(3);
        for (key, from) in ["192.0.2.1", "192.0.2.2", "192.0.2.3"].iter().enumerate() {
            come(&mut strangers, u32::try_from(key).unwrap(), from, start);
        }
        assert_eq!(come(&mut strangers, 3, "192.0.2.4", start), Room::InsteadOf(0));
        assert_eq!(come(&mut strangers, 4, "192.0.2.5", start), Room::InsteadOf(1));
    }

    #[test]
    fn one_origin_has_many_addresses() {
        assert_eq!(origin("::ffff:192.0.2.2"), origin("192.0.2.2"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
    }

    #[test]
    fn known_peers_leave_each_other_places_and_places_come_back() {
        let places = Places::new(6, 2);
        let host = |name: &str| PeerIdentity::Host(name.to_owned());
        let first = places.take(&host("a")).unwrap();
        let _second = places.take(&host("a")).unwrap();
        assert!(
            places
                .take(&host("a"))
                .unwrap_err()
                .contains("host a has 2 connections")
        );
        let _others = [host("b"), host("c")].map(|peer| places.take(&peer).unwrap());
        let fault = places.take(&host("d")).unwrap_err();
        assert!(
            fault.contains("4 connections already"),
            "the controller's are kept: {fault}"
        );
        let _controller = [(); 2].map(|()| places.take(&PeerIdentity::Controller).unwrap());
        assert!(places.take(&PeerIdentity::Controller).is_err());
        assert!(places.take(&host("d")).is_err());
        drop(first);
        let _fourth = places.take(&host("d")).unwrap();
        assert_eq!(places.lock().len(), 5);
    }
}
