//! Opening a partition: what a crash has left is made durable, or found to be damaged.

use super::{
    retain::{remove_segments, Snapshot, SNAPSHOT_FILE},
    Inner, Partition, Segment, Synced,
};
use crate::{
    host::Disk,
    ids::Offset,
    log::{
        producers::Producers,
        segment::{self, Entry, Tail},
        snapshot, LogError,
    },
    watched::Watched,
    wire::batch::{self, Body, Marker},
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{Mutex, Notify};

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
}

impl Inner {
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
