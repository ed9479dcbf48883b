//! A partition: segments in a row on a disk, and what its producers did.
//!
//! Whoever appends takes the lock, decides, writes, and then waits without it until a sync has covered
//! the bytes. A failed write is undone by cutting the file; if that fails too, or a sync does, the
//! state of the file is unknown, and the partition gives up: its broker ends, and opens it anew.
//!
//! Old segments go when they are too many or too old ([`Partition::retain`]); what the producers did stays, in a
//! snapshot that is durable before the first of them goes.

use super::{
    producers::{Aborted, Decision, Guard, MarkerDecision, Producers},
    segment::{self, Entry, Tail},
    snapshot, LogError,
};
use crate::{
    host::{Disk, File},
    ids::Offset,
    watched::Watched,
    wire::batch::{self, BatchError, BatchHeader, Body, Marker},
};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::{Mutex, Notify};

/// A partition that is open.
pub struct Partition {
    disk: Arc<dyn Disk>,
    folder: String,
    segment_bytes: u64,
    inner: Mutex<Inner>,
    synced: Watched<Synced>,
    /// There is something to sync.
    appended: Notify,
}

struct Inner {
    segments: Vec<Segment>,
    start_offset: Offset,
    end_offset: Offset,
    producers: Producers,
}

/// What outlives the segments that are gone.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    /// The first offset that is left.
    start_offset: Offset,
    /// The producers, as they were at this offset…
    at: Offset,
    /// …which was durable by then.
    producers: Producers,
}

const SNAPSHOT_FILE: &str = "producers.snapshot";

struct Segment {
    path: String,
    file: Arc<dyn File>,
    bytes: u64,
    entries: Vec<Entry>,
}

/// How far the partition is durable, as its readers and waiting appends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Synced {
    /// The offset after the last durable record: the high watermark.
    until: Offset,
    /// The last stable offset: in front of it, every transaction has ended.
    stable: Offset,
    failed: bool,
    closed: bool,
}

/// Which records a reader gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// All that are durable.
    ReadUncommitted = 0,
    /// Those in front of the last stable offset, and which of them were aborted.
    ReadCommitted = 1,
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

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset of its first record; unknown if it was a duplicate from long ago.
    pub base_offset: Option<Offset>,
    /// The batch is durable once the partition is, up to here.
    pub end_offset: Offset,
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It is not a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A batch before it is missing.
    #[error("out of order")]
    OutOfOrder,
    /// Nobody knows its producer, and it is not its first batch.
    #[error("unknown producer")]
    UnknownProducer,
    /// A newer incarnation of its producer has appended, or its transaction was ended.
    #[error("fenced")]
    Fenced,
    /// It would begin a transaction: ask the coordinator, and come again with this.
    #[error("to be verified")]
    Verify(Guard),
    /// It does not belong to the transaction that its producer has open.
    #[error("not in the producer's transaction")]
    NotTransactional,
    /// Only brokers write markers.
    #[error("a control batch")]
    Control,
    /// The disk did not take it, and nothing of it is left.
    #[error("not stored: {0}")]
    NotStored(std::io::Error),
    /// The disk is in an unknown state.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Partition {
    /// Opens the partition in `folder`. Cuts a torn tail; reports damage in front of it.
    ///
    /// The last segment is written anew, and synced, before anything in it is served: after a crash its
    /// bytes may be in the page cache only, and after a failed sync the kernel may wrongly call them
    /// clean.
    pub async fn open(
        disk: Arc<dyn Disk>,
        folder: String,
        segment_bytes: u64,
    ) -> Result<Partition, LogError> {
        let names = disk.list(&folder).await.map_err(LogError::io(&folder))?;
        let bases: Vec<Offset> = names
            .iter()
            .filter_map(|name| segment::base_of(name))
            .collect();
        let at = format!("{folder}/{SNAPSHOT_FILE}");
        let snapshot = snapshot::read(&*disk, &at).await?.unwrap_or(Snapshot {
            start_offset: Offset(0),
            at: Offset(0),
            producers: Producers::default(),
        });
        let mut inner = Inner {
            segments: Vec::new(),
            start_offset: snapshot.start_offset,
            end_offset: snapshot.start_offset,
            producers: snapshot.producers,
        };
        // A crash came between the snapshot and the removal of what it replaces.
        let (gone, bases): (Vec<Offset>, Vec<Offset>) = bases
            .into_iter()
            .partition(|base| *base < snapshot.start_offset);
        remove_segments(&*disk, &folder, &gone).await?;
        for (index, base) in bases.iter().enumerate() {
            let path = format!("{folder}/{}", segment::file_name(*base));
            if *base != inner.end_offset {
                return Err(LogError::Damaged {
                    path,
                    position: 0,
                    offset: inner.end_offset,
                    what: format!("the segment begins with offset {base}"),
                });
            }
            let is_last = index + 1 == bases.len();
            inner
                .load(&*disk, path, *base, is_last, snapshot.at)
                .await?;
        }
        if inner.end_offset < snapshot.at {
            return Err(LogError::Damaged {
                path: folder,
                position: 0,
                offset: inner.end_offset,
                what: format!("records up to offset {} were durable", snapshot.at),
            });
        }
        let end_offset = inner.end_offset;
        let stable = inner.producers.stable(end_offset);
        let partition = Partition {
            disk,
            folder,
            segment_bytes,
            inner: Mutex::new(inner),
            synced: Watched::new(Synced {
                until: end_offset,
                stable,
                failed: false,
                closed: false,
            }),
            appended: Notify::new(),
        };
        if bases.is_empty() {
            let mut inner = partition.inner.lock().await;
            partition.begin_segment(&mut inner).await?;
        }
        tracing::info!(
            name: "log.opened",
            partition = %partition.folder,
            end_offset = end_offset.0,
            stable = stable.0
        );
        partition.tell_state(&*partition.inner.lock().await, "opened");
        Ok(partition)
    }

    /// Appends one batch, as its producer sent it, unless it is there already. One that begins a
    /// transaction needs the guard that an earlier try was refused with.
    pub async fn append(
        &self,
        batch: &Bytes,
        guard: Option<Guard>,
    ) -> Result<Appended, AppendError> {
        let header = batch::check(batch)?;
        if header.control {
            return Err(AppendError::Control);
        }
        let mut inner = self.inner.lock().await;
        match inner.producers.decide(&header, guard) {
            Decision::Append => self.append_here(&mut inner, batch, header, None).await,
            Decision::Verify => {
                // A marker came while the coordinator was asked: it is to be asked again.
                if guard.is_some() {
                    tracing::info!(name: "log.verification-outdated", partition = %self.folder);
                }
                let guard = inner.producers.begin_verification(&header);
                Err(AppendError::Verify(guard))
            }
            Decision::Duplicate {
                base_offset,
                end_offset,
            } => {
                tracing::info!(name: "log.duplicate", partition = %self.folder);
                Ok(Appended {
                    base_offset: Some(base_offset),
                    end_offset,
                })
            }
            Decision::Forgotten => Ok(Appended {
                base_offset: None,
                end_offset: inner.end_offset,
            }),
            Decision::OutOfOrder => Err(AppendError::OutOfOrder),
            Decision::UnknownProducer => Err(AppendError::UnknownProducer),
            Decision::NotTransactional => Err(AppendError::NotTransactional),
            Decision::Fenced => {
                tracing::info!(
                    name: "log.fenced",
                    partition = %self.folder,
                    producer = header.producer.0,
                    epoch = header.epoch.0
                );
                Err(AppendError::Fenced)
            }
        }
    }

    /// Appends the end of a transaction, unless it is there already.
    pub async fn append_marker(
        &self,
        marker: Marker,
        now_ms: i64,
    ) -> Result<Appended, AppendError> {
        let mut inner = self.inner.lock().await;
        match inner.producers.decide_marker(&marker) {
            MarkerDecision::Append => {
                let batch = batch::encode_marker(marker, now_ms);
                let header = BatchHeader::read(&batch)?;
                self.append_here(&mut inner, &batch, header, Some(marker))
                    .await
            }
            MarkerDecision::Done => {
                tracing::info!(name: "log.marker-again", partition = %self.folder);
                Ok(Appended {
                    base_offset: None,
                    end_offset: inner.end_offset,
                })
            }
            MarkerDecision::Fenced => Err(AppendError::Fenced),
        }
    }

    async fn append_here(
        &self,
        inner: &mut Inner,
        batch: &Bytes,
        mut header: BatchHeader,
        marker: Option<Marker>,
    ) -> Result<Appended, AppendError> {
        if self.synced.get().failed {
            return Err(self.gave_up().into());
        }
        header.base_offset = inner.end_offset;
        if inner.active().bytes >= self.segment_bytes {
            self.roll(inner).await?;
        }
        let mut bytes = BytesMut::from(&batch[..]);
        batch::set_base_offset(&mut bytes, header.base_offset);
        let frame = segment::frame(&bytes, self.synced.get().until);
        self.write(inner, &frame).await?;
        let active = inner.active();
        let position = active.bytes + segment::FRAME_HEADER_BYTES as u64;
        active.bytes += frame.len() as u64;
        active.entries.push(Entry { position, header });
        tracing::info!(
            name: "log.appended",
            partition = %self.folder,
            end_offset = header.end_offset().0,
            path = %active.path,
            bytes = active.bytes
        );
        inner.producers.apply(&header, marker.as_ref());
        inner.end_offset = header.end_offset();
        self.appended.notify_one();
        self.tell_state(inner, "appended");
        Ok(Appended {
            base_offset: Some(header.base_offset),
            end_offset: header.end_offset(),
        })
    }

    /// Says what the producers' state is at an offset: rebuilt or live, it is the same.
    fn tell_state(&self, inner: &Inner, by: &str) {
        self.say_state(inner.end_offset, &inner.producers, by);
    }

    fn say_state(&self, end: Offset, producers: &Producers, by: &str) {
        tracing::debug!(
            name: "log.state",
            partition = %self.folder,
            end_offset = end.0,
            fingerprint = producers.fingerprint(),
            by
        );
    }

    /// Waits until everything in front of `end` is durable.
    pub async fn wait_synced(&self, end: Offset) -> Result<(), LogError> {
        let reached = self
            .synced
            .wait_for(|synced| synced.failed || synced.until >= end)
            .await;
        match reached.until >= end {
            true => Ok(()),
            false => Err(self.gave_up()),
        }
    }

    /// Says that somebody is told that everything in front of `end` is durable.
    pub fn acknowledge(&self, end: Offset) {
        tracing::debug!(name: "log.acknowledged", partition = %self.folder, end_offset = end.0);
    }

    /// Syncs whatever is appended, until the partition is closed; ends with the error that makes it
    /// give up.
    pub async fn keep_synced(&self) -> Result<(), LogError> {
        loop {
            self.appended.notified().await;
            if self.synced.get().closed {
                return Ok(());
            }
            let (end, file, path) = {
                let mut inner = self.inner.lock().await;
                let end = inner.end_offset;
                let active = inner.active();
                (end, active.file.clone(), active.path.clone())
            };
            if self.synced.get().until >= end {
                continue;
            }
            // Segments before the active one were synced when it began.
            if let Err(error) = file.sync().await {
                self.give_up();
                return Err(LogError::io(&path)(error));
            }
            let mut inner = self.inner.lock().await;
            self.reach(&mut inner, end);
        }
    }

    /// Everything in front of `end` is durable.
    fn reach(&self, inner: &mut Inner, end: Offset) {
        let end = end.max(self.synced.get().until);
        let stable = inner.producers.stable(end);
        self.synced.update(|synced| {
            synced.until = end;
            synced.stable = stable;
        });
        tracing::info!(
            name: "log.synced",
            partition = %self.folder,
            end_offset = end.0,
            stable = stable.0
        );
    }

    /// Its offsets now.
    pub async fn bounds(&self) -> Bounds {
        let inner = self.inner.lock().await;
        self.bounds_of(&inner)
    }

    fn bounds_of(&self, inner: &Inner) -> Bounds {
        let synced = self.synced.get();
        Bounds {
            start: inner.start_offset,
            stable: synced.stable,
            high_watermark: synced.until,
        }
    }

    /// The offset after the last record that is durable.
    pub fn high_watermark(&self) -> Offset {
        self.synced.get().until
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

    /// Whole batches from the one that holds `offset` on, at least one if there is one, up to
    /// `bytes_max`; nothing beyond what `isolation` allows.
    pub async fn read(
        &self,
        offset: Offset,
        bytes_max: usize,
        isolation: Isolation,
    ) -> Result<Reading, LogError> {
        let mut reading = Reading {
            records: Bytes::new(),
            aborted: Vec::new(),
            bounds: Bounds {
                start: Offset(0),
                stable: Offset(0),
                high_watermark: Offset(0),
            },
        };
        let (file, path, from, len) = {
            let inner = self.inner.lock().await;
            reading.bounds = self.bounds_of(&inner);
            let until = reading.bounds.until(isolation);
            let holds = |segment: &Segment| {
                let last = segment.entries.last();
                last.is_some_and(|last| last.header.end_offset() > offset)
            };
            // The last segment may be empty, and is behind all that hold anything.
            let index = inner
                .segments
                .partition_point(|segment| !segment.entries.is_empty() && !holds(segment));
            let Some(segment) = inner.segments.get(index).filter(|segment| holds(segment)) else {
                return Ok(reading);
            };
            let first = segment
                .entries
                .partition_point(|e| e.header.end_offset() <= offset);
            let entries = segment.entries[first..].iter();
            let readable = entries.take_while(|e| e.header.end_offset() <= until);
            let (mut len, mut from, mut end_offset) = (0, None, offset);
            for entry in readable {
                let begins = *from.get_or_insert(entry.position);
                let end = (entry.position - begins) as usize + entry.header.bytes;
                if len > 0 && end > bytes_max {
                    break;
                }
                len = end;
                end_offset = entry.header.end_offset();
            }
            let Some(from) = from else {
                return Ok(reading);
            };
            if isolation == Isolation::ReadCommitted {
                reading.aborted = inner.producers.aborted(offset, end_offset);
            }
            (segment.file.clone(), segment.path.clone(), from, len)
        };
        let bytes = file.read_at(from, len).await.map_err(LogError::io(&path))?;
        reading.records = unframe(&bytes, &path, offset)?;
        Ok(reading)
    }

    /// Where the first batch with a record of this time, or later, begins.
    pub async fn find_time(&self, time_ms: i64) -> Option<Offset> {
        let inner = self.inner.lock().await;
        let entries = inner.segments.iter().flat_map(|segment| &segment.entries);
        let found = entries
            .map(|entry| entry.header)
            .find(|header| header.max_timestamp_ms >= time_ms && !header.control);
        found.map(|header| header.base_offset)
    }

    /// The transactions that are open here: for people who look for one that hangs (KIP-664).
    pub async fn producers(&self) -> Vec<super::producers::ActiveProducer> {
        self.inner.lock().await.producers.active()
    }

    /// Removes the oldest segments while more than `bytes_max` are left without them, or if their newest
    /// record is older than `older_than_ms`; never the active one, never what a reader of committed
    /// records still waits for. Forgets the producers that were silent since `silent_since_ms`, if anything
    /// is removed.
    pub async fn retain(
        &self,
        bytes_max: u64,
        older_than_ms: i64,
        silent_since_ms: i64,
    ) -> Result<(), AppendError> {
        let mut inner = self.inner.lock().await;
        let mut bytes: u64 = inner.segments.iter().map(|segment| segment.bytes).sum();
        let stable = self.synced.get().stable;
        let mut gone = 0;
        for segment in &inner.segments[..inner.segments.len() - 1] {
            let newest = segment
                .entries
                .iter()
                .map(|e| e.header.max_timestamp_ms)
                .max();
            let is_old = newest.is_some_and(|newest| newest < older_than_ms);
            let end = segment.entries.last().map(|last| last.header.end_offset());
            let is_stable = end.is_some_and(|end| end <= stable);
            if !is_stable || !(is_old || bytes - segment.bytes >= bytes_max) {
                break;
            }
            bytes -= segment.bytes;
            gone += 1;
        }
        if gone == 0 || self.synced.get().failed {
            return Ok(());
        }
        // The snapshot must not know more than the disk: everything in it is synced first.
        let end = inner.end_offset;
        let active = inner.active();
        if let Err(error) = active.file.sync().await {
            let error = LogError::io(&active.path)(error);
            self.give_up();
            return Err(error.into());
        }
        self.reach(&mut inner, end);
        let start = base_of(&inner.segments[gone]);
        let producers = inner.producers.retained(start, silent_since_ms);
        // From here on it may be found after a restart.
        self.say_state(end, &producers, "retaining");
        let snapshot = Snapshot {
            start_offset: start,
            at: end,
            producers,
        };
        let path = format!("{}/{SNAPSHOT_FILE}", self.folder);
        let written = snapshot::write(&*self.disk, &path, &snapshot).await;
        // Whether the old snapshot or the new one is there is unknown now.
        written.inspect_err(|_| self.give_up())?;
        inner.producers.become_retained(snapshot.producers);
        inner.start_offset = start;
        let removed: Vec<Segment> = inner.segments.drain(..gone).collect();
        tracing::info!(
            name: "log.segments-removed",
            partition = %self.folder,
            segments = gone,
            start_offset = start.0
        );
        self.tell_state(&inner, "retained");
        let removed: Vec<Offset> = removed.iter().map(base_of).collect();
        Ok(remove_segments(&*self.disk, &self.folder, &removed).await?)
    }

    /// Ends the partition: its topic is being deleted.
    pub fn close(&self) {
        self.synced.update(|synced| {
            synced.failed = true;
            synced.closed = true;
        });
        self.appended.notify_one();
    }

    async fn write(&self, inner: &mut Inner, frame: &[u8]) -> Result<(), AppendError> {
        let active = inner.active();
        let Err(error) = active.file.write_at(active.bytes, frame).await else {
            return Ok(());
        };
        // A part may have been written: cut it off, or it would stand in front of the next batch.
        match active.file.truncate(active.bytes).await {
            Ok(()) => Err(AppendError::NotStored(error)),
            Err(error) => {
                let error = LogError::io(&active.path)(error);
                self.give_up();
                Err(error.into())
            }
        }
    }

    /// Ends the active segment, durably, and begins the next one.
    async fn roll(&self, inner: &mut Inner) -> Result<(), LogError> {
        let end = inner.end_offset;
        let active = inner.active();
        if let Err(error) = active.file.sync().await {
            self.give_up();
            return Err(LogError::io(&active.path)(error));
        }
        self.reach(inner, end);
        self.begin_segment(inner)
            .await
            .inspect_err(|_| self.give_up())
    }

    async fn begin_segment(&self, inner: &mut Inner) -> Result<(), LogError> {
        let path = format!("{}/{}", self.folder, segment::file_name(inner.end_offset));
        let file = self.disk.open(&path).await.map_err(LogError::io(&path))?;
        file.truncate(0).await.map_err(LogError::io(&path))?;
        tracing::info!(name: "log.segment-begun", path = %path);
        let synced = self.disk.sync_dir(&self.folder).await;
        synced.map_err(LogError::io(&self.folder))?;
        inner.segments.push(Segment {
            path,
            file,
            bytes: 0,
            entries: Vec::new(),
        });
        Ok(())
    }

    fn give_up(&self) {
        self.synced.update(|synced| synced.failed = true);
        self.appended.notify_one();
    }

    fn gave_up(&self) -> LogError {
        let source = std::io::Error::other("the partition gave up after an error of its disk");
        LogError::io(&self.folder)(source)
    }
}

impl Inner {
    fn active(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a partition has a segment")
    }

    /// Reads a segment and adds it.
    async fn load(
        &mut self,
        disk: &dyn Disk,
        path: String,
        base: Offset,
        is_last: bool,
        known_until: Offset,
    ) -> Result<(), LogError> {
        let mut file = disk.open(&path).await.map_err(LogError::io(&path))?;
        let size = file.size().await.map_err(LogError::io(&path))?;
        let bytes = file
            .read_at(0, size as usize)
            .await
            .map_err(LogError::io(&path))?;
        let scan = segment::scan(&bytes, base);
        match scan.tail {
            Tail::Clean => {}
            Tail::Torn(what) if is_last => {
                tracing::info!(
                    name: "log.torn-tail",
                    path = %path,
                    end_offset = scan.end_offset.0,
                    bytes = size - scan.good_bytes,
                    what = %what
                );
            }
            Tail::Torn(what) | Tail::Damaged(what) => {
                return Err(LogError::Damaged {
                    path,
                    position: scan.good_bytes,
                    offset: scan.end_offset,
                    what,
                })
            }
        }
        if is_last {
            let good = &bytes[..scan.good_bytes as usize];
            let rewritten = crate::host::replace_file(disk, &path, good).await;
            rewritten.map_err(LogError::io(&path))?;
            file = disk.open(&path).await.map_err(LogError::io(&path))?;
        }
        let news = (scan.entries.iter()).filter(|entry| entry.header.base_offset >= known_until);
        for entry in news {
            let marker = match entry.header.control {
                false => None,
                true => Some(marker_at(&bytes, entry, &path)?),
            };
            self.producers.apply(&entry.header, marker.as_ref());
        }
        self.end_offset = scan.end_offset;
        self.segments.push(Segment {
            path,
            file,
            bytes: scan.good_bytes,
            entries: scan.entries,
        });
        Ok(())
    }
}

/// Takes the batches out of their frames.
fn unframe(bytes: &Bytes, path: &str, offset: Offset) -> Result<Bytes, LogError> {
    let mut out = BytesMut::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let damaged = |what: String| LogError::Damaged {
            path: path.to_owned(),
            position: at as u64,
            offset,
            what,
        };
        let header = BatchHeader::peek(rest).map_err(|error| damaged(error.to_string()))?;
        let batch = rest
            .get(..header.bytes)
            .ok_or_else(|| damaged("cut off".into()))?;
        BatchHeader::read(batch).map_err(|error| damaged(error.to_string()))?;
        out.extend_from_slice(batch);
        at += header.bytes + segment::FRAME_HEADER_BYTES;
    }
    Ok(out.freeze())
}

/// The marker in a control batch of a segment.
fn marker_at(bytes: &Bytes, entry: &Entry, path: &str) -> Result<Marker, LogError> {
    let from = entry.position as usize;
    let batch = bytes.slice(from..from + entry.header.bytes);
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        position: entry.position,
        offset: entry.header.base_offset,
        what,
    };
    let batches = batch::decode(&batch).map_err(|error| damaged(error.to_string()))?;
    match batches.first().map(|batch| &batch.body) {
        Some(Body::Control(marker)) => Ok(*marker),
        _ => Err(damaged("a control batch without a marker".into())),
    }
}

fn base_of(segment: &Segment) -> Offset {
    let name = segment.path.rsplit('/').next().unwrap_or_default();
    segment::base_of(name).expect("a segment's name")
}

/// Removes all files of a partition that is not open.
pub async fn remove_folder(disk: &dyn Disk, folder: &str) -> Result<(), LogError> {
    for name in disk.list(folder).await.map_err(LogError::io(folder))? {
        let path = format!("{folder}/{name}");
        disk.remove(&path).await.map_err(LogError::io(&path))?;
    }
    disk.sync_dir(folder).await.map_err(LogError::io(folder))
}

async fn remove_segments(disk: &dyn Disk, folder: &str, bases: &[Offset]) -> Result<(), LogError> {
    for base in bases {
        let path = format!("{folder}/{}", segment::file_name(*base));
        disk.remove(&path).await.map_err(LogError::io(&path))?;
    }
    match bases.is_empty() {
        true => Ok(()),
        false => disk.sync_dir(folder).await.map_err(LogError::io(folder)),
    }
}
