//! The memory that requests and answers in flight take, bounded for all connections together.
//!
//! Whoever is about to take memory for a peer takes a [`Hold`] on a [`Room`] first, and waits if there is no room.
//! What a peer makes us keep (the beginning of a frame, a request that is parked, an answer that it does not read)
//! it may keep for a while; but once others wait, the connections of those who have held theirs the longest, and
//! longer than a grace, are closed. So nobody who only waits can starve those who work.
//!
//! | room | for what |
//! |---|---|
//! | arriving | frames of which a part has arrived |
//! | working | requests, with what they become once they are decoded, and their answers |
//! | leaving | answers, until they are read |
//!
//! Each has a part of its own for what is small: a handful of large requests does not stop everybody else's.

use futures::{select_biased, FutureExt};
use std::{
    collections::BTreeMap,
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
        let part = |eighths: usize| Pair::new(bytes / 8 * eighths);
        Rooms {
            arriving: part(2),
            working: part(3),
            leaving: part(3),
        }
    }
}

/// A room for small things, and one for large ones.
pub struct Pair {
    small: Arc<Room>,
    large: Arc<Room>,
}

impl Pair {
    fn new(bytes: usize) -> Self {
        Pair {
            small: Room::new(bytes / 4, Duration::from_millis(200)),
            large: Room::new(bytes / 4 * 3, Duration::from_secs(1)),
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
    /// One waits for memory at a time, the others for their turn.
    turn: tokio::sync::Mutex<()>,
    holders: Mutex<Holders>,
}

#[derive(Default)]
struct Holders {
    next: u64,
    by_age: BTreeMap<u64, Holder>,
    /// Whose connections are being closed, and what they still hold.
    evicted: BTreeMap<u64, usize>,
}

struct Holder {
    since: Instant,
    bytes: usize,
    peer: Arc<Peer>,
}

/// The other end of a connection, as far as memory goes.
#[derive(Default)]
pub struct Peer {
    gone: Notify,
}

impl Peer {
    /// Waits until the connection is to be closed, because others need what it holds.
    pub async fn evicted(&self) {
        self.gone.notified().await;
    }

    /// Closes the connection.
    pub fn evict(&self) {
        self.gone.notify_one();
    }
}

/// Memory that is taken; given back when it is dropped.
pub struct Hold {
    room: Arc<Room>,
    number: u64,
    permit: OwnedSemaphorePermit,
}

/// What the records of an answer take.
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
}

/// How often whoever waits looks for somebody who has held for too long.
const LOOK: Duration = Duration::from_millis(20);

impl Room {
    /// A room of so many bytes, which may be held for `grace` when others wait.
    pub fn new(bytes: usize, grace: Duration) -> Arc<Self> {
        Arc::new(Room {
            free: Arc::new(Semaphore::new(bytes)),
            bytes,
            grace,
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
        let holder = Holder {
            since: Instant::now(),
            bytes: permit.num_permits(),
            peer: peer.clone(),
        };
        holders.by_age.insert(number, holder);
        Hold {
            room: self.clone(),
            number,
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
                () = sleep(LOOK).fuse() => self.evict(bytes as usize),
            }
        }
    }

    /// Closes the connections that have held the longest, until so many bytes are about to be free.
    fn evict(&self, bytes: usize) {
        let mut holders = self.holders.lock().expect("holders");
        let mut freed: usize = holders.evicted.values().sum();
        while freed < bytes {
            let Some(oldest) = holders.by_age.first_entry() else {
                return;
            };
            if oldest.get().since.elapsed() < self.grace {
                return;
            }
            let (number, oldest) = oldest.remove_entry();
            freed += oldest.bytes;
            oldest.peer.evict();
            holders.evicted.insert(number, oldest.bytes);
        }
    }
}

impl Hold {
    /// Takes more, once there is more.
    pub async fn grow(&mut self, bytes: usize) {
        let more = self.room.permit(bytes).await;
        self.permit.merge(more);
        self.tell();
    }

    fn tell(&self) {
        let mut holders = self.room.holders.lock().expect("holders");
        if let Some(holder) = holders.by_age.get_mut(&self.number) {
            holder.bytes = self.permit.num_permits();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holders = self.room.holders.lock().expect("holders");
        holders.by_age.remove(&self.number);
        holders.evicted.remove(&self.number);
    }
}
