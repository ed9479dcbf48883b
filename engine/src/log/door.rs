//! Who may come in: only so many connections at a time.
//!
//! A connection is an open file, and the log must always be able to open its own. When all places are taken, the one
//! that has been silent for the longest makes room: at once if it has never said anything that makes sense, after a
//! while otherwise. If there is none, whoever comes is turned away.

use super::room::Peer;
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
    guests: BTreeMap<u64, Place>,
}

struct Place {
    peer: Arc<Peer>,
    /// When it last made a request, or came.
    heard: Instant,
    is_stranger: bool,
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

    /// Gives a place to a connection. Returns `None` if there is none.
    pub fn enter(self: &Arc<Self>) -> Option<Guest> {
        let mut inside = self.inside.lock().expect("inside");
        if inside.guests.len() >= self.places {
            let gone = inside.longest_silent()?;
            let place = inside.guests.remove(&gone).expect("it is there");
            place.peer.evict();
        }
        let (number, peer) = (inside.next, Arc::new(Peer::default()));
        inside.next += 1;
        let place = Place {
            peer: peer.clone(),
            heard: Instant::now(),
            is_stranger: true,
        };
        inside.guests.insert(number, place);
        Some(Guest {
            door: self.clone(),
            number,
            peer,
        })
    }
}

impl Inside {
    /// Who may be sent away: strangers first.
    fn longest_silent(&self) -> Option<u64> {
        let now = Instant::now();
        let silent = self.guests.iter().filter(|(_, place)| {
            let patience = match place.is_stranger {
                true => STRANGER_SILENCE,
                false => GUEST_SILENCE,
            };
            now.saturating_duration_since(place.heard) >= patience
        });
        let longest = silent.min_by_key(|(_, place)| (!place.is_stranger, place.heard));
        longest.map(|(number, _)| *number)
    }
}

impl Guest {
    /// The connection, as far as its eviction goes.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// It has made a request that makes sense.
    pub fn heard(&self) {
        let mut inside = self.door.inside.lock().expect("inside");
        if let Some(place) = inside.guests.get_mut(&self.number) {
            place.heard = Instant::now();
            place.is_stranger = false;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.door.inside.lock().expect("inside");
        inside.guests.remove(&self.number);
    }
}
