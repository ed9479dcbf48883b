//! Retention: old segments go, and what the producers did stays.

use super::{AppendError, Partition, Segment};
use crate::{
    host::Disk,
    ids::Offset,
    log::{producers::Producers, segment, small_file, LogError},
};
use serde::{Deserialize, Serialize};

/// What outlives the segments that are gone.
#[derive(Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The first offset that is left.
    pub start_offset: Offset,
    /// The producers, as they were at this offset…
    pub at: Offset,
    /// …which was durable by then.
    pub producers: Producers,
}

pub(super) const SNAPSHOT_FILE: &str = "producers.snapshot";

impl Partition {
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
        let ended = inner.segments.len().saturating_sub(1);
        for segment in &inner.segments[..ended] {
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
        let synced = self.synced.get();
        if gone == 0 || synced.failed || synced.stopped {
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
        let start = inner.segments[gone].base();
        let producers = inner.producers.retained(start, silent_since_ms);
        // From here on it may be found after a restart.
        self.say_state(end, &producers, "retaining");
        let snapshot = Snapshot {
            start_offset: start,
            at: end,
            producers,
        };
        let path = format!("{}/{SNAPSHOT_FILE}", self.folder);
        match small_file::write(&*self.disk, &path, &snapshot).await {
            Err(LogError::Unchanged { source, .. }) => return Err(AppendError::NotStored(source)),
            // Whether the old snapshot or the new one is there is unknown now.
            written => written.inspect_err(|_| self.give_up())?,
        }
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
        let removed: Vec<Offset> = removed.iter().map(Segment::base).collect();
        Ok(remove_segments(&*self.disk, &self.folder, &removed).await?)
    }
}

pub(super) async fn remove_segments(
    disk: &dyn Disk,
    folder: &str,
    bases: &[Offset],
) -> Result<(), LogError> {
    for base in bases {
        let path = format!("{folder}/{}", segment::file_name(*base));
        disk.remove(&path).await.map_err(LogError::io(&path))?;
    }
    match bases.is_empty() {
        true => Ok(()),
        false => disk.sync_dir(folder).await.map_err(LogError::io(folder)),
    }
}
