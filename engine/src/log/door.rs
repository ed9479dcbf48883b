//! Who may come in, and who has to go.
//!
//! A connection is an open file, and the log must always be able to open its own. When all places are taken, the one
//! that has been silent for the longest makes room: at once if it has never said anything that makes sense, after a
//! while otherwise. If there is none, whoever comes is turned away. And whoever is late has to go.

use super::peer::Peer;
use futures::stream::AbortRegistration;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// Whoever is connected and says nothing may be sent away after so long, if others want to come in…
const STRANGER_SILENCE: Duration = Duration::from_millis(200);
/// …and those who have made a request after so long.
const GUEST_SILENCE: Duration = Duration::from_secs(30);

/// The places of a broker.
pub struct Door {
    places: usize,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    next: u64,
    guests: BTreeMap<u64, Arc<Peer>>,
}

/// The place of one connection; free again when it is dropped.
pub struct Guest {
    door: Arc<Door>,
    number: u64,
    peer: Arc<Peer>,
}

impl Door {
    /// A door to so many places.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Door {
            places,
            inside: Mutex::default(),
        })
    }

    /// Gives a place to a connection, and what ends it once it is sent away. Returns `None` if there is none.
    pub fn enter(self: &Arc<Self>) -> Option<(Guest, AbortRegistration)> {
        let mut inside = self.inside.lock().expect("inside");
        if inside.guests.len() >= self.places {
            let gone = inside.longest_silent()?;
            let gone = inside.guests.remove(&gone).expect("it is there");
            gone.evict();
        }
        let (peer, departure) = Peer::new();
        let (number, peer) = (inside.next, Arc::new(peer));
        inside.next += 1;
        inside.guests.insert(number, peer.clone());
        let guest = Guest {
            door: self.clone(),
            number,
            peer,
        };
        Some((guest, departure))
    }

    /// Looks at everybody inside, and sends away who is late.
    pub fn look(&self) {
        let now = Instant::now();
        let inside = self.inside.lock().expect("inside");
        (inside.guests.values()).for_each(|peer| peer.look(now));
    }
}

impl Inside {
    /// Who may be sent away: strangers first.
    fn longest_silent(&self) -> Option<u64> {
        let now = Instant::now();
        let silent = self.guests.iter().filter_map(|(number, peer)| {
            let (heard, is_stranger) = peer.silence();
            let patience = match is_stranger {
                true => STRANGER_SILENCE,
                false => GUEST_SILENCE,
            };
            let is_long = now.saturating_duration_since(heard) >= patience;
            is_long.then_some((!is_stranger, heard, *number))
        });
        silent.min().map(|(_, _, number)| number)
    }
}

impl Guest {
    /// The other end of the connection.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.door.inside.lock().expect("inside");
        inside.guests.remove(&self.number);
    }
}
