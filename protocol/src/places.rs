//! Places for connections: so many at a time, and so many from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places that are given and given back.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    most: usize,
    most_from_one: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place. Dropped, it is free for another.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    pub(crate) fn new(most: usize, most_from_one: usize) -> Self {
        Self {
            most,
            most_from_one,
            taken: Arc::default(),
        }
    }

    /// A place for a connection from this address.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn take(&self, address: IpAddr) -> Result<Place, String> {
        // One peer is one address, whichever way its packets came.
        let address = address.to_canonical();
        let mut taken = self.lock();
        if taken.values().sum::<usize>() >= self.most {
            return Err(format!("there are {} connections already", self.most));
        }
        let of_it = taken.entry(address).or_insert(0);
        if *of_it >= self.most_from_one {
            return Err(format!(
                "there are {} connections from it already",
                self.most_from_one
            ));
        }
        *of_it += 1;
        Ok(Place {
            places: self.clone(),
            address,
        })
    }

    /// Nothing that is done under this lock can panic, so a poisoned one is still good.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(of_it) = taken.get_mut(&self.address) {
            *of_it = of_it.saturating_sub(1);
            if *of_it == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_places_for_others_and_places_come_back() {
        let places = Places::new(3, 2);
        let [one, other, third]: [IpAddr; 3] =
            ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1"].map(|a| a.parse().unwrap());
        let first = places.take(one).unwrap();
        let _second = places.take(one).unwrap();
        assert!(places.take(one).unwrap_err().contains("from it"));
        let _third = places.take(other).unwrap();
        assert!(places.take(third).unwrap_err().contains("3 connections already"));
        drop(first);
        let _fourth = places.take("192.0.2.2".parse().unwrap()).unwrap();
        assert_eq!(places.lock().len(), 2);
    }
}
