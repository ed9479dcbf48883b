//! The memory that requests and answers in flight take, bounded for all connections together.
//!
//! Whoever is about to take memory for a peer takes a [`Hold`] on a [`Room`] first, and waits if there is no room.
//! What a peer makes us keep (the beginning of a frame, a request that is parked, an answer that it does not read)
//! it may keep for a while; but once others wait, the connections of those who have held theirs the longest, and
//! longer than a grace, are closed, and a fetch that waits for records is answered without. So nobody who only waits
//! can starve those who work. What is held because we are slow is nobody's fault, and stays. Nobody asks for the time
//! who takes memory: how long it is held is seen by who waits for some, and by [`Rooms::look`].
//!
//! | room | for what |
//! |---|---|
//! | arriving | frames of which a part has arrived |
//! | working | requests, with what they become once they are decoded, and their answers |
//! | leaving | answers, until they are read |
//!
//! Each has a part of its own for what is small: a handful of large requests does not stop everybody else's.

use super::peer::Peer;
use futures::{select_biased, FutureExt};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, Instant},
};

/// What is not larger is small: a request as stock clients make it (Kafka's `max.request.size` is 1 MiB).
pub const SMALL_BYTES: usize = (1 << 20) + (128 << 10);

/// All rooms of a broker.
pub struct Rooms {
    /// For frames of which a part has arrived.
    pub arriving: Pair,
    /// For requests that are being answered.
    pub working: Pair,
    /// For answers.
    pub leaving: Pair,
}

impl Rooms {
    /// Rooms that hold `bytes` together.
    pub fn new(bytes: usize) -> Self {
        let part = |eighths: usize, is_ours| Pair::new(bytes / 8 * eighths, is_ours);
        Rooms {
            arriving: part(2, false),
            working: part(3, true),
            leaving: part(3, true),
        }
    }

    /// Looks at what is held, and for how long it has been: to be called once in a while.
    pub fn look(&self) {
        let now = Instant::now();
        for pair in [&self.arriving, &self.working, &self.leaving] {
            for room in [&pair.small, &pair.large] {
                room.holders.lock().expect("holders").look(now);
            }
        }
    }
}

/// A room for small things, and one for large ones.
pub struct Pair {
    small: Arc<Room>,
    large: Arc<Room>,
}

impl Pair {
    fn new(bytes: usize, is_ours: bool) -> Self {
        Pair {
            small: Room::new(bytes / 4, Duration::from_millis(200), is_ours),
            large: Room::new(bytes / 4 * 3, Duration::from_secs(1), is_ours),
        }
    }

    /// The room for something of this size.
    pub fn of(&self, bytes: usize) -> &Arc<Room> {
        match bytes <= SMALL_BYTES {
            true => &self.small,
            false => &self.large,
        }
    }
}

/// Memory for one purpose.
pub struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
    grace: Duration,
    /// Whether what is taken is held because of us, until something else is said of it.
    is_ours: bool,
    /// One waits for memory at a time, the others for their turn.
    turn: tokio::sync::Mutex<()>,
    holders: Mutex<Holders>,
}

#[derive(Default)]
struct Holders {
    next: u64,
    /// Who came first is first.
    all: VecDeque<Holder>,
}

struct Holder {
    number: u64,
    /// The first look at which it was so.
    since: Option<Instant>,
    bytes: usize,
    peer: Arc<Peer>,
    waits: Waits,
}

/// What it is that would have memory given back.
enum Waits {
    /// The peer, or others like it: it is sent away if somebody needs the room.
    ForPeers,
    /// We: nobody can give it back sooner, and it is not the peer's fault.
    ForUs,
    /// Records that are not there yet: it is answered without them if somebody needs the room.
    ForRecords(Arc<Notify>),
    /// Nothing more: it was sent away, or is about to be answered.
    Ends,
}

impl Holders {
    fn place(&self, number: u64) -> Option<usize> {
        self.all
            .binary_search_by_key(&number, |one| one.number)
            .ok()
    }

    /// Looks at all of them: their age counts from the first look.
    fn look(&mut self, now: Instant) {
        for holder in &mut self.all {
            holder.since.get_or_insert(now);
        }
    }

    /// Who can be asked to give back, and has held for so long: the oldest.
    fn oldest(&mut self, now: Instant, grace: Duration) -> Option<&mut Holder> {
        let able = self.all.iter_mut().filter(|one| match one.waits {
            Waits::ForPeers | Waits::ForRecords(_) => {
                let since = one.since.unwrap_or(now);
                now.saturating_duration_since(since) >= grace
            }
            Waits::ForUs | Waits::Ends => false,
        });
        able.min_by_key(|one| (one.since, one.number))
    }
}

/// Memory that is taken; given back when it is dropped.
pub struct Hold {
    stake: Stake,
    permit: OwnedSemaphorePermit,
}

/// Which memory it is, for who works with it and does not own it.
#[derive(Clone)]
pub struct Stake {
    room: Arc<Room>,
    number: u64,
}

/// What an answer takes.
pub struct Purse {
    peer: Arc<Peer>,
    bytes: usize,
    holds: Vec<Hold>,
}

impl Purse {
    /// An empty one.
    pub fn of(peer: &Arc<Peer>) -> Self {
        Purse {
            peer: peer.clone(),
            bytes: 0,
            holds: Vec::new(),
        }
    }

    /// Takes memory for some more records. The first may have to wait; for the others there is some now, or none:
    /// whoever held some and waited for more could wait for itself.
    pub async fn pay(&mut self, rooms: &Pair, bytes: usize) -> bool {
        let room = rooms.of(self.bytes + bytes);
        let hold = match self.holds.is_empty() {
            true => Some(room.take(bytes, &self.peer).await),
            false => room.try_take(bytes, &self.peer),
        };
        let is_paid = hold.is_some();
        self.holds.extend(hold);
        self.bytes += bytes;
        is_paid
    }

    /// Takes what an answer of so many bytes needs beside what was taken for its records: nothing, as a rule.
    pub async fn cover(&mut self, rooms: &Pair, bytes: usize) {
        let missing = bytes.saturating_sub(self.bytes);
        if missing > 0 {
            self.pay(rooms, missing).await;
        }
    }

    /// The answer is there, and it is the peer's turn to read it.
    pub fn waits_for_peers(&self) {
        (self.holds.iter()).for_each(|hold| hold.stake.waits_for_peers());
    }
}

/// How often whoever waits looks for somebody who has held for too long.
const LOOK: Duration = Duration::from_millis(20);

impl Room {
    /// A room of so many bytes, which peers may hold for `grace` when others wait. Whether what is taken is held because
    /// of us, until something else is said of it.
    pub fn new(bytes: usize, grace: Duration, is_ours: bool) -> Arc<Self> {
        Arc::new(Room {
            free: Arc::new(Semaphore::new(bytes)),
            bytes,
            grace,
            is_ours,
            turn: tokio::sync::Mutex::new(()),
            holders: Mutex::default(),
        })
    }

    /// Takes memory for a peer, once there is some. What is larger than the room takes all of it.
    pub async fn take(self: &Arc<Self>, bytes: usize, peer: &Arc<Peer>) -> Hold {
        let permit = self.permit(bytes).await;
        self.hold(permit, peer)
    }

    /// Takes memory for a peer, if there is some now.
    pub fn try_take(self: &Arc<Self>, bytes: usize, peer: &Arc<Peer>) -> Option<Hold> {
        let bytes = bytes.min(self.bytes) as u32;
        let permit = self.free.clone().try_acquire_many_owned(bytes).ok()?;
        Some(self.hold(permit, peer))
    }

    fn hold(self: &Arc<Self>, permit: OwnedSemaphorePermit, peer: &Arc<Peer>) -> Hold {
        let mut holders = self.holders.lock().expect("holders");
        let number = holders.next;
        holders.next += 1;
        holders.all.push_back(Holder {
            number,
            since: None,
            bytes: permit.num_permits(),
            peer: peer.clone(),
            waits: match self.is_ours {
                true => Waits::ForUs,
                false => Waits::ForPeers,
            },
        });
        let room = self.clone();
        Hold {
            stake: Stake { room, number },
            permit,
        }
    }

    /// What nobody holds.
    pub fn free_bytes(&self) -> usize {
        self.free.available_permits()
    }

    async fn permit(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = bytes.min(self.bytes) as u32;
        if let Ok(permit) = self.free.clone().try_acquire_many_owned(bytes) {
            return permit;
        }
        let _turn = self.turn.lock().await;
        let acquired = self.free.clone().acquire_many_owned(bytes).fuse();
        futures::pin_mut!(acquired);
        loop {
            select_biased! {
                permit = acquired => return permit.expect("it is never closed"),
                () = sleep(LOOK).fuse() => self.reclaim(bytes as usize),
            }
        }
    }

    /// Asks those who have held the longest to give back, until so many bytes are free or about to be.
    fn reclaim(&self, bytes: usize) {
        let now = Instant::now();
        let mut holders = self.holders.lock().expect("holders");
        holders.look(now);
        // What is not held is free, or on its way to whoever asks.
        let held: usize = holders.all.iter().map(|one| one.bytes).sum();
        let ends = |one: &&Holder| matches!(one.waits, Waits::Ends);
        let ending: usize = holders.all.iter().filter(ends).map(|one| one.bytes).sum();
        assert!(held <= self.bytes, "no more is held than there is");
        let mut coming = self.bytes - held + ending;
        while coming < bytes {
            let Some(oldest) = holders.oldest(now, self.grace) else {
                return;
            };
            coming += oldest.bytes;
            match std::mem::replace(&mut oldest.waits, Waits::Ends) {
                Waits::ForRecords(enough) => enough.notify_one(),
                _ => oldest.peer.evict(),
            }
        }
    }
}

impl Hold {
    /// Takes more, once there is more.
    pub async fn grow(&mut self, bytes: usize) {
        let more = self.stake.room.permit(bytes).await;
        self.permit.merge(more);
        let bytes = self.permit.num_permits();
        self.stake.change(|holder| holder.bytes = bytes);
    }

    /// Which memory it is.
    pub fn stake(&self) -> &Stake {
        &self.stake
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holders = self.stake.room.holders.lock().expect("holders");
        let place = holders.place(self.stake.number);
        holders.all.remove(place.expect("it is there until now"));
    }
}

impl Stake {
    /// From now on it is held because of us: the peer can do nothing about it.
    pub fn waits_for_us(&self) {
        self.wait(Waits::ForUs);
    }

    /// From now on it is held because of the peer, or of others like it.
    pub fn waits_for_peers(&self) {
        self.wait(Waits::ForPeers);
    }

    /// From now on it is held until there are records. What is returned tells that others need the room.
    pub fn waits_for_records(&self) -> Arc<Notify> {
        let enough = Arc::new(Notify::new());
        self.wait(Waits::ForRecords(enough.clone()));
        enough
    }

    fn wait(&self, waits: Waits) {
        self.change(|holder| {
            // Who was sent away does not stay.
            if !holder.peer.is_gone() {
                (holder.waits, holder.since) = (waits, None);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Holder)) {
        let mut holders = self.room.holders.lock().expect("holders");
        if let Some(place) = holders.place(self.number) {
            change(&mut holders.all[place]);
        }
    }
}
