//! One direction of a connection: what was written and has not been read, and when it arrives.

use crate::seed::Stream;
use bytes::{Buf, Bytes};
use madsim::time::TimeHandle;
use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};

/// What arrives.
pub(super) enum Segment {
    Data(Bytes),
    /// The writer has closed its half.
    Fin,
    /// The connection is gone.
    Reset,
}

pub(super) struct Pipe {
    queue: VecDeque<(Duration, Segment)>,
    queued_bytes: u64,
    last_at: Duration,
    mean_us: u64,
    draws: Stream,
    /// Nobody reads at the other end any more.
    void: bool,
    finished: bool,
    pub writer: Option<Waker>,
    reader: Option<Waker>,
    /// When a timer wakes the reader, if one does: a waiting reader has one timer.
    alarm: Option<Duration>,
}

/// What a reader finds.
pub(super) enum Arrived {
    Data(Bytes),
    End,
    Reset,
    /// Nothing yet.
    Nothing,
}

impl Pipe {
    /// An empty pipe over a link on which a delivery takes about `mean_us`.
    pub fn new(draws: Stream, mean_us: u64) -> Self {
        Pipe {
            queue: VecDeque::new(),
            queued_bytes: 0,
            last_at: Duration::ZERO,
            mean_us,
            draws,
            void: false,
            finished: false,
            reader: None,
            writer: None,
            alarm: None,
        }
    }

    pub fn is_void(&self) -> bool {
        self.void
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    pub fn room(&self, window: u64) -> u64 {
        window.saturating_sub(self.queued_bytes)
    }

    pub fn has_unread(&self, now: Duration) -> bool {
        matches!(self.queue.front(), Some((at, Segment::Data(_))) if *at <= now)
    }

    /// A latency around the link's mean, rarely much longer; and whether it is that.
    pub fn latency(&mut self, tail_per_mille: u64) -> (Duration, bool) {
        let mut us = self.mean_us / 2 + self.draws.below(self.mean_us.max(1));
        let tail = self.draws.chance(tail_per_mille);
        if tail {
            us *= 10 + self.draws.below(90);
        }
        (Duration::from_micros(us), tail)
    }

    /// Where to cut a write of `len` bytes in two, if at all.
    pub fn split(&mut self, len: usize, per_mille: u64) -> usize {
        if len > 1 && self.draws.chance(per_mille) {
            1 + self.draws.below(len as u64 - 1) as usize
        } else {
            len
        }
    }

    /// Sends a segment: it arrives after `latency`, but not before what was sent earlier.
    pub fn push(&mut self, now: Duration, latency: Duration, segment: Segment) {
        // After the end only a reset may come: whoever writes to somebody who is gone is told so.
        let is_reset = matches!(self.queue.back(), Some((_, Segment::Reset)));
        if is_reset || self.finished && !matches!(segment, Segment::Reset) {
            return;
        }
        match &segment {
            Segment::Data(bytes) => self.queued_bytes += bytes.len() as u64,
            Segment::Fin | Segment::Reset => self.finished = true,
        }
        self.last_at = self.last_at.max(now + latency);
        self.queue.push_back((self.last_at, segment));
        // A reader that waits is woken when the segment arrives, and not before.
        self.set_alarm();
    }

    /// The reader waits, and will be woken when something arrives; if the link passes nothing now, when
    /// it does again.
    pub fn wait(&mut self, reader: &Waker, blocked: bool) {
        if !self
            .reader
            .as_ref()
            .is_some_and(|known| known.will_wake(reader))
        {
            self.reader = Some(reader.clone());
            self.alarm = None;
        }
        if !blocked {
            self.set_alarm();
        }
    }

    /// Sets a timer that wakes the reader when the first segment arrives, unless one is set.
    fn set_alarm(&mut self) {
        let (Some(reader), Some((at, _))) = (&self.reader, self.queue.front()) else {
            return;
        };
        let time = TimeHandle::current();
        if self
            .alarm
            .is_some_and(|alarm| alarm >= time.elapsed() && alarm <= *at)
        {
            return;
        }
        self.alarm = Some(*at);
        let ahead = at.saturating_sub(time.elapsed());
        let deadline = time.now_instant() + ahead;
        let mut sleep = time.sleep(ahead);
        // madsim sleeps for a millisecond at least, unless it is told afterwards.
        Pin::new(&mut sleep).reset(deadline);
        // Polled once, it leaves a timer behind that wakes the reader.
        let polled = Pin::new(&mut sleep).poll(&mut Context::from_waker(reader));
        if polled.is_ready() {
            reader.wake_by_ref();
        }
    }

    pub fn take(&mut self, now: Duration, bytes_max: usize) -> Arrived {
        match self.queue.front_mut() {
            None => Arrived::Nothing,
            Some((at, _)) if *at > now => Arrived::Nothing,
            Some((_, Segment::Fin)) => Arrived::End,
            Some((_, Segment::Reset)) => Arrived::Reset,
            Some((_, Segment::Data(bytes))) => {
                let part = bytes.split_to(bytes.len().min(bytes_max));
                if !bytes.has_remaining() {
                    self.queue.pop_front();
                }
                self.queued_bytes -= part.len() as u64;
                (self.reader, self.alarm) = (None, None);
                self.writer
                    .take()
                    .into_iter()
                    .for_each(|waker| waker.wake());
                Arrived::Data(part)
            }
        }
    }

    /// A reset has arrived. What came before it may still be unread: it can be read, but nothing can be written any more.
    pub fn reset_has_arrived(&self, now: Duration) -> bool {
        matches!(self.queue.back(), Some((at, Segment::Reset)) if *at <= now)
    }

    /// Nobody reads here any more; a writer that waits for room goes on, into the void.
    pub fn become_void(&mut self) {
        self.void = true;
        self.queue.clear();
        self.queued_bytes = 0;
        self.finished = false;
        self.writer
            .take()
            .into_iter()
            .for_each(|waker| waker.wake());
    }

    /// Loses what has not arrived by `now`, and the end that was to follow.
    pub fn drop_in_flight(&mut self, now: Duration) {
        self.queue
            .retain(|(at, _)| *at <= now && now != Duration::MAX);
        self.queued_bytes = (self.queue.iter())
            .map(|(_, segment)| match segment {
                Segment::Data(bytes) => bytes.len() as u64,
                _ => 0,
            })
            .sum();
        self.finished = self
            .queue
            .iter()
            .any(|(_, s)| !matches!(s, Segment::Data(_)));
    }

    /// Nothing arrives before `at`.
    pub fn delay_until(&mut self, at: Duration) {
        for (due, _) in &mut self.queue {
            *due = (*due).max(at);
        }
        self.last_at = self.last_at.max(at);
        self.wake_reader();
    }

    fn wake_reader(&mut self) {
        self.alarm = None;
        self.reader
            .take()
            .into_iter()
            .for_each(|waker| waker.wake());
    }
}
