//! The other end of a connection: what it is waited for, and how it is sent away.
//!
//! No request has a timer of its own: a peer says until when it has to say or to take something, and whoever keeps the
//! [`super::door`] looks once in a while who is late.

use futures::stream::{AbortHandle, AbortRegistration};
use std::{
    io,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// One end of a connection; the other one is ours.
pub struct Peer {
    departure: AbortHandle,
    manners: Mutex<Manners>,
}

struct Manners {
    /// When it last made a request that makes sense, or came.
    heard: Instant,
    is_stranger: bool,
    /// Until when it has to say something.
    says_until: Option<Instant>,
    /// Until when it has to take some of what it is told.
    takes_until: Option<Instant>,
    is_late: bool,
}

impl Peer {
    /// Somebody who has just come, and what ends the conversation once it is sent away.
    pub fn new() -> (Self, AbortRegistration) {
        let (departure, registration) = AbortHandle::new_pair();
        let manners = Manners {
            heard: Instant::now(),
            is_stranger: true,
            says_until: None,
            takes_until: None,
            is_late: false,
        };
        let peer = Peer {
            departure,
            manners: Mutex::new(manners),
        };
        (peer, registration)
    }

    fn manners(&self) -> MutexGuard<'_, Manners> {
        self.manners.lock().expect("manners")
    }

    /// It has made a request that makes sense.
    pub fn is_heard(&self) {
        let mut manners = self.manners();
        manners.heard = Instant::now();
        manners.is_stranger = false;
    }

    /// Since when nothing was heard of it, and whether nothing ever was.
    pub fn silence(&self) -> (Instant, bool) {
        let manners = self.manners();
        (manners.heard, manners.is_stranger)
    }

    /// It is to say something within this time; nothing: it is not its turn.
    pub fn says_within(&self, time: Option<Duration>) {
        self.manners().says_until = time.map(|time| Instant::now() + time);
    }

    /// It is to take something within this time; nothing: it has all.
    pub fn takes_within(&self, time: Option<Duration>) {
        self.manners().takes_until = time.map(|time| Instant::now() + time);
    }

    /// Sends it away if it is late.
    pub fn dismiss_if_late(&self, now: Instant) {
        let mut manners = self.manners();
        let untils = [manners.says_until, manners.takes_until];
        if untils.into_iter().flatten().any(|until| until <= now) {
            manners.is_late = true;
            self.departure.abort();
        }
    }

    /// Sends it away, because others need what it holds.
    pub fn evict(&self) {
        self.departure.abort();
    }

    /// Whether it was sent away.
    pub fn is_gone(&self) -> bool {
        self.departure.is_aborted()
    }

    /// Why it was sent away.
    pub fn farewell(&self) -> io::Error {
        match self.manners().is_late {
            true => io::ErrorKind::TimedOut.into(),
            false => io::ErrorKind::QuotaExceeded.into(),
        }
    }
}
