//! A partition: segments in a row on a disk, and what its producers did.
//!
//! Whoever appends takes the lock, decides, writes, and then waits without it until a sync has covered
//! the bytes. A failed write is undone by cutting the file; if that fails too, or a sync does, the
//! state of the file is unknown, and the partition gives up: its broker ends, and opens it anew.
//!
//! Old segments go when they are too many or too old ([`Partition::retain`]); what the producers did stays, in a
//! snapshot that is durable before the first of them goes.
//!
//! A partition that was never written has no folder, and takes no open file.

mod open;
mod read;
mod retain;

pub use read::{Bounds, Isolation, Portion, Reading};

use super::{
    configs::Effective,
    producers::{Decision, Guard, MarkerDecision, Producers},
    reserve::Reserve,
    segment::{self, Entry, Owner, Salt},
    LogError,
};
use crate::{
    host::{Disk, Entropy, File, Host},
    ids::{Offset, ProducerId},
    watched::Watched,
    wire::{
        batch::{self, BatchError, BatchHeader, Marker},
        validate::Checked,
    },
};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::{
    ops::Range,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
};
use tokio::sync::{Mutex, Notify};

/// What the partitions of a broker share.
#[derive(Clone)]
pub struct Ground {
    disk: Arc<dyn Disk>,
    entropy: Arc<dyn Entropy>,
    reserve: Arc<Reserve>,
    /// Set with each segment that begins.
    begun: Arc<AtomicBool>,
}

impl Ground {
    /// Of the disk whose reserve this is.
    pub fn new(host: &Host, reserve: Arc<Reserve>) -> Ground {
        Ground {
            disk: host.disk.clone(),
            entropy: host.entropy.clone(),
            reserve,
            begun: Arc::default(),
        }
    }

    /// Whether a segment has begun since this was last asked.
    pub fn has_begun(&self) -> bool {
        self.begun.swap(false, Ordering::Relaxed)
    }
}

/// A partition that is open.
pub struct Partition {
    ground: Ground,
    folder: String,
    owner: Owner,
    inner: Mutex<Inner>,
    synced: Watched<Synced>,
    /// There is something to sync.
    appended: Notify,
}

/// What is noted of a partition outside of its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The offset with which its last segment begins.
    pub segment: Offset,
    /// The offset up to which it is durable.
    pub end: Offset,
}

/// What must be found when a partition is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Nothing is noted of it.
    #[default]
    Nothing,
    /// It was there, and may have gone on since.
    AtLeast(Note),
    /// It was stopped, and is as it was then.
    Exactly(Note),
}

impl Expected {
    fn note(&self) -> Option<Note> {
        match self {
            Expected::Nothing => None,
            Expected::AtLeast(note) | Expected::Exactly(note) => Some(*note),
        }
    }
}

struct Inner {
    effective: Effective,
    segments: Vec<Segment>,
    start_offset: Offset,
    end_offset: Offset,
    producers: Producers,
}

struct Segment {
    path: String,
    file: Arc<dyn File>,
    salt: Salt,
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
    /// Its topic is deleted.
    closed: bool,
    /// Its broker stops.
    stopped: bool,
}

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The offset of its first record; unknown if it was a duplicate from long ago.
    pub base_offset: Option<Offset>,
    /// The time that its records got, if their topic has it that way.
    pub append_time_ms: Option<i64>,
    /// The batch is durable once the partition is, up to here.
    pub end_offset: Offset,
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A batch of our own is none.
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
    /// Its topic is deleted.
    #[error("the topic is deleted")]
    Deleted,
    /// Its broker stops.
    #[error("the broker stops")]
    Stopped,
    /// It is larger than its topic allows.
    #[error("a batch of {bytes} bytes; {max} are allowed")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What its topic allows.
        max: usize,
    },
    /// The disk did not take it, and nothing of it is left.
    #[error("not stored: {0}")]
    NotStored(std::io::Error),
    /// The disk is in an unknown state.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Partition {
    /// Appends one batch, as its producer sent it, unless it is there already. One that begins a
    /// transaction needs the guard that an earlier try was refused with. It is `now_ms`, for topics whose records get
    /// the time at which they come.
    pub async fn append(
        &self,
        batch: &Checked,
        guard: Option<Guard>,
        now_ms: i64,
    ) -> Result<Appended, AppendError> {
        let (header, batch) = (*batch.header(), batch.bytes());
        let mut inner = self.inner.lock().await;
        let max = inner
            .effective
            .message_bytes_max
            .min(segment::BATCH_BYTES_MAX);
        let bytes = batch.len();
        if bytes > max {
            return Err(AppendError::TooLarge { bytes, max });
        }
        match inner.producers.decide(&header, guard) {
            Decision::Append => {
                let at = inner.effective.log_append_time.then_some(now_ms);
                self.append_here(&mut inner, batch, header, None, at).await
            }
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
                    append_time_ms: None,
                    end_offset,
                })
            }
            Decision::Forgotten => Ok(Appended {
                base_offset: None,
                append_time_ms: None,
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
                self.append_here(&mut inner, &batch, header, Some(marker), None)
                    .await
            }
            MarkerDecision::Done => {
                tracing::info!(name: "log.marker-again", partition = %self.folder);
                Ok(Appended {
                    base_offset: None,
                    append_time_ms: None,
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
        append_time_ms: Option<i64>,
    ) -> Result<Appended, AppendError> {
        self.takes_changes()?;
        // Held until it is written: what the reserve gives up meanwhile is not for this.
        let room = self.ground.reserve.room().await;
        let _room = room.map_err(AppendError::NotStored)?;
        header.base_offset = inner.end_offset;
        let segment_bytes = inner.effective.segment_bytes;
        match inner.segments.last() {
            None => self.begin_segment(inner).await?,
            Some(active) if active.bytes >= segment_bytes => self.roll(inner).await?,
            Some(_) => {}
        }
        let mut bytes = BytesMut::from(&batch[..]);
        batch::set_base_offset(&mut bytes, header.base_offset);
        if let Some(now_ms) = append_time_ms {
            batch::set_append_time(&mut bytes, now_ms);
            header.max_timestamp_ms = now_ms;
        }
        let (synced, salt) = (self.synced.get().until, inner.active().salt);
        let frame = segment::frame(&bytes, synced, self.owner, salt);
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
            append_time_ms,
            end_offset: header.end_offset(),
        })
    }

    /// What is durable, of a partition that may be changed; why it may not be, otherwise.
    fn takes_changes(&self) -> Result<Synced, AppendError> {
        let synced = self.synced.get();
        if synced.closed {
            return Err(AppendError::Deleted);
        }
        if synced.stopped {
            return Err(AppendError::Stopped);
        }
        match synced.failed {
            true => Err(self.gave_up().into()),
            false => Ok(synced),
        }
    }

    /// From now on this holds for it: its topic was configured otherwise.
    pub async fn configure(&self, effective: Effective) {
        self.inner.lock().await.effective = effective;
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
            let synced = self.synced.get();
            if synced.closed || synced.stopped {
                return Ok(());
            }
            let (end, file, path) = {
                let inner = self.inner.lock().await;
                let Some(active) = inner.segments.last() else {
                    continue;
                };
                (inner.end_offset, active.file.clone(), active.path.clone())
            };
            if self.synced.get().until >= end {
                continue;
            }
            // Segments before the active one were synced when it began.
            if let Err(error) = file.sync().await {
                // What is deleted meanwhile need not be synced any more.
                if self.synced.get().closed {
                    return Ok(());
                }
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

    /// The offset after the last record that is durable.
    pub fn high_watermark(&self) -> Offset {
        self.synced.get().until
    }

    /// The transactions that are open here: for people who look for one that hangs (KIP-664).
    pub async fn producers(&self) -> Vec<super::producers::ActiveProducer> {
        self.inner.lock().await.producers.active()
    }

    /// How many producers are known to it.
    pub async fn producer_count(&self) -> usize {
        self.inner.lock().await.producers.count()
    }

    /// The bytes of its segments.
    pub async fn bytes(&self) -> u64 {
        let inner = self.inner.lock().await;
        inner.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Ends the partition: its topic is being deleted. Whoever is appending, or removing old segments, is waited for;
    /// nobody touches its files from here on, but for those who read an open one.
    pub async fn close(&self) {
        let _inner = self.inner.lock().await;
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
    async fn roll(&self, inner: &mut Inner) -> Result<(), AppendError> {
        let end = inner.end_offset;
        let active = inner.active();
        if let Err(error) = active.file.sync().await {
            self.give_up();
            return Err(LogError::io(&active.path)(error).into());
        }
        self.reach(inner, end);
        self.begin_segment(inner).await
    }

    /// Begins a segment: its header is durable before it is used. Where that fails for want of room, or of open
    /// files, the partition is as it was, but for a file that holds nothing.
    async fn begin_segment(&self, inner: &mut Inner) -> Result<(), AppendError> {
        let base = inner.end_offset;
        let path = format!("{}/{}", self.folder, segment::file_name(base));
        let salt = Salt::new(self.ground.entropy.draw());
        let header = segment::header(base, self.owner, salt);
        let disk = &self.ground.disk;
        let begun = async {
            let file = disk.open(&path).await?;
            if file.size().await? > 0 {
                file.truncate(0).await?;
            }
            file.write_at(0, &header).await?;
            Ok(file)
        };
        let file = begun.await.map_err(AppendError::NotStored)?;
        let synced = async {
            file.sync().await.map_err(LogError::io(&path))?;
            let synced = disk.sync_dir(&self.folder).await;
            synced.map_err(LogError::io(&self.folder))
        };
        synced.await.inspect_err(|_| self.give_up())?;
        tracing::info!(name: "log.segment-begun", path = %path);
        inner.segments.push(Segment {
            path,
            file,
            salt,
            bytes: segment::HEADER_BYTES as u64,
            entries: Vec::new(),
        });
        self.ground.begun.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What is to be noted of it; nothing, if it was never used.
    pub async fn note(&self) -> Option<Note> {
        let inner = self.inner.lock().await;
        self.note_of(&inner)
    }

    fn note_of(&self, inner: &Inner) -> Option<Note> {
        let last = inner.segments.last()?;
        Some(Note {
            segment: last.base(),
            end: self.synced.get().until,
        })
    }

    /// Ends the partition, as its broker stops: nothing is appended or removed from here on. Everything that was
    /// appended is durable then, and the note is exact.
    pub async fn stop(&self) -> Result<Option<Note>, LogError> {
        let mut inner = self.inner.lock().await;
        if self.synced.get().failed {
            return Err(self.gave_up());
        }
        if let Some(active) = inner.segments.last() {
            let synced = active.file.sync().await;
            synced.map_err(LogError::io(&active.path))?;
            let end = inner.end_offset;
            self.reach(&mut inner, end);
        }
        self.synced.update(|synced| synced.stopped = true);
        self.appended.notify_one();
        Ok(self.note_of(&inner))
    }

    /// The greatest producer id among some that its records hold, or that it remembers.
    pub async fn newest_producer(&self, among: Range<ProducerId>) -> Option<ProducerId> {
        let inner = self.inner.lock().await;
        let entries = inner.segments.iter().flat_map(|segment| &segment.entries);
        let held = entries.map(|entry| entry.header.producer);
        let held = held.filter(|id| among.contains(id)).max();
        held.max(inner.producers.newest(among))
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
        let last = self.segments.last_mut();
        last.expect("the first append begins a segment")
    }
}

impl Segment {
    /// The offset with which it begins.
    fn base(&self) -> Offset {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        segment::base_of(name).expect("a segment's name")
    }
}
