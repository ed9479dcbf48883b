//! Reading a partition: what is durable, and what of it counts.

use super::{Inner, Partition, Segment, Synced};
use crate::{
    host::File,
    ids::Offset,
    log::{producers::Aborted, segment, unpacking::Unpacking, LogError},
    wire::{
        batch::BatchHeader,
        times::Times,
        validate::{Refusal, UNPACKED_BYTES_MAX},
    },
};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Which records a reader gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// All that are durable.
    ReadUncommitted = 0,
    /// Those before the last stable offset, and which of them were aborted.
    ReadCommitted = 1,
}

/// How much a reader takes, in whole batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portion {
    /// No more than so many bytes.
    AtMost(usize),
    /// As much as fits into so many bytes, and the first batch even if it does not (KIP-74): a reader that
    /// has room for nothing larger would never get past it.
    AtLeastOneBatch(usize),
}

impl Portion {
    /// Whether a batch that ends at `end` belongs to it, where `len` bytes do already.
    fn takes(self, len: usize, end: usize) -> bool {
        match self {
            Portion::AtMost(bytes) => end <= bytes,
            Portion::AtLeastOneBatch(bytes) => len == 0 || end <= bytes,
        }
    }
}

/// The offsets of a partition, of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first record that is left.
    pub start: Offset,
    /// The last stable offset.
    pub stable: Offset,
    /// The offset after the last durable record.
    pub high_watermark: Offset,
}

impl Bounds {
    /// How far a reader may read.
    pub fn until(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadUncommitted => self.high_watermark,
            Isolation::ReadCommitted => self.stable,
        }
    }
}

/// What was read. All of it, the bounds included, is of one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Whole batches.
    pub records: Bytes,
    /// Which of their transactions were aborted; none without [`Isolation::ReadCommitted`].
    pub aborted: Vec<Aborted>,
    /// The partition's offsets.
    pub bounds: Bounds,
}

/// What is to be read, and where it is.
pub struct Located {
    reading: Reading,
    place: Option<Place>,
}

struct Place {
    file: Arc<dyn File>,
    path: String,
    from: u64,
    bytes: usize,
    /// The batches that were written there. Their own checksums cover neither their offsets nor their lengths.
    headers: Vec<BatchHeader>,
}

impl Located {
    fn nothing(reading: Reading) -> Self {
        Located {
            reading,
            place: None,
        }
    }

    /// How many bytes reading it takes.
    pub fn bytes(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.bytes)
    }

    /// Only the partition's offsets: there is no room for its records.
    pub fn without_records(mut self) -> Reading {
        self.reading.aborted.clear();
        self.reading
    }

    /// Reads it.
    pub async fn read(mut self) -> Result<Reading, LogError> {
        if let Some(place) = self.place {
            let bytes = place.file.read_at(place.from, place.bytes).await;
            let bytes = bytes.map_err(LogError::io(&place.path))?;
            self.reading.records = unframe(&bytes, &place)?;
        }
        Ok(self.reading)
    }
}

impl Partition {
    /// Its offsets now.
    pub async fn bounds(&self) -> Bounds {
        let inner = self.inner.lock().await;
        self.bounds_of(&inner)
    }

    fn bounds_of(&self, inner: &Inner) -> Bounds {
        let synced = self.synced.get();
        Bounds {
            start: inner.start_offset,
            // A transaction may be open whose first records were deleted.
            stable: synced.stable.max(inner.start_offset),
            high_watermark: synced.until,
        }
    }

    /// Waits until a reader may read a record at `offset`.
    pub async fn wait_readable(&self, offset: Offset, isolation: Isolation) {
        let readable = |synced: &Synced| match isolation {
            Isolation::ReadUncommitted => synced.until > offset,
            Isolation::ReadCommitted => synced.stable > offset,
        };
        self.synced
            .wait_for(|synced| synced.failed || readable(synced))
            .await;
    }

    /// Whole batches from the one that holds `offset` on, a `portion` of them; nothing beyond what
    /// `isolation` allows. Returns `None` if `offset` is not in the log.
    pub async fn read(
        &self,
        offset: Offset,
        portion: Portion,
        isolation: Isolation,
    ) -> Result<Option<Reading>, LogError> {
        match self.find(offset, portion, isolation).await {
            None => Ok(None),
            Some(located) => Ok(Some(located.read().await?)),
        }
    }

    /// Where that is, and how much: nothing is read yet. Returns `None` if `offset` is not in the log.
    pub async fn find(
        &self,
        offset: Offset,
        portion: Portion,
        isolation: Isolation,
    ) -> Option<Located> {
        let mut reading = Reading {
            records: Bytes::new(),
            aborted: Vec::new(),
            bounds: Bounds {
                start: Offset(0),
                stable: Offset(0),
                high_watermark: Offset(0),
            },
        };
        let inner = self.inner.lock().await;
        reading.bounds = self.bounds_of(&inner);
        // In this moment: the records before the start may go in the next one.
        if !(reading.bounds.start..=reading.bounds.high_watermark).contains(&offset) {
            return None;
        }
        let until = reading.bounds.until(isolation);
        let holds = |segment: &Segment| {
            let last = segment.entries.last();
            last.is_some_and(|last| last.header.end_offset() > offset)
        };
        // The last segment may be empty, and is after all that hold anything.
        let index = inner
            .segments
            .partition_point(|segment| !segment.entries.is_empty() && !holds(segment));
        let Some(segment) = inner.segments.get(index).filter(|segment| holds(segment)) else {
            return Some(Located::nothing(reading));
        };
        let first = segment
            .entries
            .partition_point(|e| e.header.end_offset() <= offset);
        let entries = segment.entries[first..].iter();
        let readable = entries.take_while(|e| e.header.end_offset() <= until);
        let (mut len, mut from, mut end_offset) = (0, None, offset);
        let mut headers = Vec::new();
        for entry in readable {
            let begins = from.unwrap_or(entry.position);
            let end = (entry.position - begins) as usize + entry.header.bytes;
            if !portion.takes(len, end) {
                break;
            }
            from = Some(begins);
            len = end;
            end_offset = entry.header.end_offset();
            headers.push(entry.header);
        }
        let Some(from) = from else {
            return Some(Located::nothing(reading));
        };
        if isolation == Isolation::ReadCommitted {
            reading.aborted = inner.producers.aborted(offset, end_offset);
        }
        Some(Located {
            reading,
            place: Some(Place {
                file: segment.file.clone(),
                path: segment.path.clone(),
                from,
                bytes: len,
                headers,
            }),
        })
    }

    /// The first record of this time, or later, and its time; `None` if there is none. It is looked for in `room`.
    pub async fn find_time(
        &self,
        time_ms: i64,
        room: &Unpacking,
    ) -> Result<Option<(Offset, i64)>, LogError> {
        let is_late = |header: &BatchHeader| header.max_timestamp_ms >= time_ms;
        let mut from = Offset(0);
        loop {
            let found = self.find_batch(from, is_late).await;
            let Some(found) = found else {
                return Ok(None);
            };
            if let Some(record) = found.first_since(time_ms, room).await? {
                return Ok(Some(record));
            }
            // Its late records were deleted.
            from = found.header.end_offset();
        }
    }

    /// The first of the records with the greatest time, and that time (KIP-734); `None` if there are no records. It is
    /// looked for in `room`.
    pub async fn find_newest(&self, room: &Unpacking) -> Result<Option<(Offset, i64)>, LogError> {
        // Of the batch in whose middle the log begins, the newest record may be deleted: it is looked into.
        let split = self.find_batch(Offset(0), |_| true).await;
        let split = split.filter(|found| found.header.base_offset < found.start);
        let (mut newest, from) = match &split {
            None => (None, Offset(0)),
            Some(split) => (split.newest(room).await?, split.header.end_offset()),
        };
        {
            let inner = self.inner.lock().await;
            let whole = inner.data_since(from);
            newest = newest.max(whole.map(|header| header.max_timestamp_ms).max());
        }
        match newest {
            None => Ok(None),
            Some(newest) => self.find_time(newest, room).await,
        }
    }

    /// The first batch of data that ends after `from`, of which something is left, and for which `is_it`.
    async fn find_batch(
        &self,
        from: Offset,
        is_it: impl Fn(&BatchHeader) -> bool,
    ) -> Option<Found> {
        let inner = self.inner.lock().await;
        let found = inner.data_since(from).find(|header| is_it(header))?;
        let at = inner.segments.partition_point(|segment| {
            let last = segment.entries.last();
            last.is_some_and(|last| last.header.end_offset() <= found.base_offset)
        });
        let segment = &inner.segments[at];
        let mut entries = segment.entries.iter();
        let entry = entries.find(|entry| entry.header.base_offset == found.base_offset)?;
        Some(Found {
            header: found,
            file: segment.file.clone(),
            path: segment.path.clone(),
            position: entry.position,
            start: inner.start_offset,
        })
    }
}

impl Inner {
    /// The batches of data that end after `from`, of which something is left.
    fn data_since(&self, from: Offset) -> impl Iterator<Item = BatchHeader> + '_ {
        let from = from.max(self.start_offset);
        let entries = self.segments.iter().flat_map(|segment| &segment.entries);
        let headers = entries.map(|entry| entry.header);
        headers.filter(move |header| header.end_offset() > from && !header.control)
    }
}

/// A batch that was looked for.
struct Found {
    header: BatchHeader,
    file: Arc<dyn File>,
    path: String,
    position: u64,
    /// Where the log began then.
    start: Offset,
}

impl Found {
    /// Its first record of this time, or later, that is left; and its time.
    async fn first_since(
        &self,
        time_ms: i64,
        room: &Unpacking,
    ) -> Result<Option<(Offset, i64)>, LogError> {
        self.look(room, |found_ms| found_ms >= time_ms).await
    }

    /// The greatest time of its records that are left.
    async fn newest(&self, room: &Unpacking) -> Result<Option<i64>, LogError> {
        let mut newest = None;
        let all = self.look(room, |time_ms| {
            newest = newest.max(Some(time_ms));
            false
        });
        all.await?;
        Ok(newest)
    }

    /// The first of its records that is left, and whose time `is_it`; and that time.
    async fn look(
        &self,
        room: &Unpacking,
        mut is_it: impl FnMut(i64) -> bool,
    ) -> Result<Option<(Offset, i64)>, LogError> {
        let _room = room.take(self.header.bytes + UNPACKED_BYTES_MAX).await;
        let read = self.file.read_at(self.position, self.header.bytes).await;
        let bytes = read.map_err(LogError::io(&self.path))?;
        let damaged = |what: Refusal| LogError::Damaged {
            path: self.path.clone(),
            position: self.position,
            offset: self.header.base_offset,
            what: what.to_string(),
        };
        let mut times = Times::begin(bytes).map_err(damaged)?;
        loop {
            let found = times.go_on(|offset, time_ms| offset >= self.start && is_it(time_ms));
            if let Some(found) = found.map_err(damaged)? {
                return Ok(found);
            }
            // It is a large one: others are served meanwhile.
            tokio::task::yield_now().await;
        }
    }
}

/// Takes the batches out of their frames, and sees that they are those that were written.
fn unframe(bytes: &Bytes, place: &Place) -> Result<Bytes, LogError> {
    let mut out = BytesMut::with_capacity(bytes.len());
    let mut at = 0;
    for written in &place.headers {
        let damaged = |what: String| LogError::Damaged {
            path: place.path.clone(),
            position: place.from + at as u64,
            offset: written.base_offset,
            what,
        };
        let batch = bytes.get(at..at + written.bytes);
        let batch = batch.ok_or_else(|| damaged("cut off".into()))?;
        let found = BatchHeader::read(batch).map_err(|error| damaged(error.to_string()))?;
        if found != *written {
            return Err(damaged("another batch than was written there".into()));
        }
        out.extend_from_slice(batch);
        at += written.bytes + segment::FRAME_HEADER_BYTES;
    }
    Ok(out.freeze())
}
