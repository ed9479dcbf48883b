//! A partition: segments in a row on a disk.
//!
//! Whoever appends takes the lock, decides, writes, and then waits without it until a sync has covered
//! the bytes. A failed write is undone by cutting the file; if that fails too, or a sync does, the
//! state of the file is unknown, and the partition gives up: its broker ends, and opens it anew.

use super::{
    producers::{Decision, Producers},
    segment::{self, Entry, Tail},
    LogError,
};
use crate::{
    host::{Disk, File},
    ids::Offset,
    watched::Watched,
    wire::batch::{self, BatchError, BatchHeader},
};
use bytes::{Bytes, BytesMut};
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
    end_offset: Offset,
    producers: Producers,
}

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
    failed: bool,
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
    /// A newer incarnation of its producer has appended.
    #[error("fenced")]
    Fenced,
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
        let mut inner = Inner {
            segments: Vec::new(),
            end_offset: Offset(0),
            producers: Producers::default(),
        };
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
            inner.load(&*disk, path, *base, is_last).await?;
        }
        let end_offset = inner.end_offset;
        let partition = Partition {
            disk,
            folder,
            segment_bytes,
            inner: Mutex::new(inner),
            synced: Watched::new(Synced {
                until: end_offset,
                failed: false,
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
            end_offset = end_offset.0
        );
        Ok(partition)
    }

    /// Appends one batch, as its producer sent it, unless it is there already.
    pub async fn append(&self, batch: &Bytes) -> Result<Appended, AppendError> {
        let mut header = BatchHeader::read(batch)?;
        let mut inner = self.inner.lock().await;
        if self.synced.get().failed {
            return Err(self.gave_up().into());
        }
        match inner.producers.decide(&header) {
            Decision::Append => {}
            Decision::Duplicate {
                base_offset,
                end_offset,
            } => {
                tracing::info!(name: "log.duplicate", partition = %self.folder);
                return Ok(Appended {
                    base_offset: Some(base_offset),
                    end_offset,
                });
            }
            Decision::Forgotten => {
                return Ok(Appended {
                    base_offset: None,
                    end_offset: inner.end_offset,
                })
            }
            Decision::OutOfOrder => return Err(AppendError::OutOfOrder),
            Decision::Fenced => return Err(AppendError::Fenced),
        }
        header.base_offset = inner.end_offset;
        if inner.active().bytes >= self.segment_bytes {
            self.roll(&mut inner).await?;
        }
        let mut bytes = BytesMut::from(&batch[..]);
        batch::set_base_offset(&mut bytes, header.base_offset);
        let frame = segment::frame(&bytes, self.synced.get().until);
        self.write(&mut inner, &frame).await?;
        let active = inner.active();
        let position = active.bytes + segment::FRAME_HEADER_BYTES as u64;
        active.bytes += frame.len() as u64;
        active.entries.push(Entry { position, header });
        inner.producers.apply(&header);
        inner.end_offset = header.end_offset();
        self.appended.notify_one();
        tracing::info!(
            name: "log.appended",
            partition = %self.folder,
            end_offset = inner.end_offset.0
        );
        Ok(Appended {
            base_offset: Some(header.base_offset),
            end_offset: header.end_offset(),
        })
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

    /// Syncs whatever is appended, for ever; ends with the error that makes the partition give up.
    pub async fn keep_synced(&self) -> LogError {
        loop {
            self.appended.notified().await;
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
                return LogError::io(&path)(error);
            }
            self.synced
                .update(|synced| synced.until = synced.until.max(end));
            tracing::info!(name: "log.synced", partition = %self.folder, end_offset = end.0);
        }
    }

    /// The offset after the last record that can be read.
    pub fn high_watermark(&self) -> Offset {
        self.synced.get().until
    }

    /// Waits until there is a record at `offset`.
    pub async fn wait_readable(&self, offset: Offset) {
        self.synced
            .wait_for(|synced| synced.failed || synced.until > offset)
            .await;
    }

    /// Whole batches from the one that holds `offset` on, at least one if there is one, up to
    /// `bytes_max`; nothing beyond the high watermark.
    pub async fn read(&self, offset: Offset, bytes_max: usize) -> Result<Bytes, LogError> {
        let until = self.high_watermark();
        let (file, path, from, len) = {
            let inner = self.inner.lock().await;
            let holds = |segment: &&Segment| {
                segment
                    .entries
                    .last()
                    .is_some_and(|last| last.header.end_offset() > offset)
            };
            let Some(segment) = inner.segments.iter().find(holds) else {
                return Ok(Bytes::new());
            };
            let first = segment
                .entries
                .partition_point(|e| e.header.end_offset() <= offset);
            let mut entries = segment.entries[first..].iter();
            let readable = entries
                .by_ref()
                .take_while(|e| e.header.end_offset() <= until);
            let (mut len, mut from) = (0, None);
            for entry in readable {
                let begins = *from.get_or_insert(entry.position);
                let end = (entry.position - begins) as usize + entry.header.bytes;
                if len > 0 && end > bytes_max {
                    break;
                }
                len = end;
            }
            let Some(from) = from else {
                return Ok(Bytes::new());
            };
            (segment.file.clone(), segment.path.clone(), from, len)
        };
        let bytes = file.read_at(from, len).await.map_err(LogError::io(&path))?;
        unframe(&bytes, &path, offset)
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
        self.synced
            .update(|synced| synced.until = synced.until.max(end));
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
        for entry in &scan.entries {
            self.producers.apply(&entry.header);
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
