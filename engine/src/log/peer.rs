//! The other end of a connection: what it is waited for, and how it is sent away.
//!
//! No request has a timer, nor asks for the time. A peer says whether it has to say or to take something; whoever keeps
//! the [`super::door`] looks once in a while, and counts from the first look at which that was so.

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
    /// When it came, or the first look after it last made a request that makes sense; nothing, if it has since the last.
    silent_since: Option<Instant>,
    is_stranger: bool,
    /// It has to say something.
    says: Turn,
    /// It has to take some of what it is told.
    takes: Turn,
    is_late: bool,
}

/// Something that a peer has to do.
#[derive(Clone, Copy, Default)]
struct Turn {
    /// For how long it may let us wait, if it is its turn.
    patience: Option<Duration>,
    /// The first look at which it was.
    since: Option<Instant>,
}

impl Turn {
    /// Whether it has taken too long.
    fn is_over(&mut self, now: Instant) -> bool {
        let Some(patience) = self.patience else {
            return false;
        };
        now.saturating_duration_since(*self.since.get_or_insert(now)) >= patience
    }
}

impl Peer {
    /// Somebody who has just come, and what ends the conversation once it is sent away.
    pub fn new() -> (Self, AbortRegistration) {
        let (departure, registration) = AbortHandle::new_pair();
        let manners = Manners {
            silent_since: Some(Instant::now()),
            is_stranger: true,
            says: Turn::default(),
            takes: Turn::default(),
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

    /// It has made a request that makes sense, and is to make the next one within this time.
    pub fn is_heard(&self, patience: Duration) {
        let mut manners = self.manners();
        manners.silent_since = None;
        manners.is_stranger = false;
        manners.says = Turn {
            patience: Some(patience),
            since: None,
        };
    }

    /// Since when nothing was heard of it, and whether nothing ever was.
    pub fn silence(&self) -> (Instant, bool) {
        let manners = self.manners();
        let since = manners.silent_since.unwrap_or_else(Instant::now);
        (since, manners.is_stranger)
    }

    /// It is to say something within this time; nothing: it is not its turn.
    pub fn says_within(&self, patience: Option<Duration>) {
        let since = None;
        self.manners().says = Turn { patience, since };
    }

    /// It is to take something within this time; nothing: it has all.
    pub fn takes_within(&self, patience: Option<Duration>) {
        let since = None;
        self.manners().takes = Turn { patience, since };
    }

    /// Looks at it, and sends it away if it is late.
    pub fn look(&self, now: Instant) {
        let mut manners = self.manners();
        manners.silent_since.get_or_insert(now);
        let says = manners.says.is_over(now);
        let takes = manners.takes.is_over(now);
        if says || takes {
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
