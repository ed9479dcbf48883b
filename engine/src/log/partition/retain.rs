//! The beginning of the log moves on, because records are too old or too many, or because somebody deletes them. What
//! the producers did stays.

use super::{AppendError, Inner, Partition, Segment};
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
    /// Removes the oldest segments while more bytes than its topic keeps are left without them, or if their newest
    /// record is older; never the active one, never what a reader of committed
    /// records still waits for. Forgets the producers that were silent since `silent_since_ms`, if anything
    /// is removed. It is `now_ms`.
    pub async fn retain(&self, now_ms: i64, silent_since_ms: i64) -> Result<(), AppendError> {
        let mut inner = self.inner.lock().await;
        let bytes_max = inner.effective.retention_bytes.unwrap_or(u64::MAX);
        let older_than_ms = match inner.effective.retention {
            None => i64::MIN,
            Some(age) => now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)),
        };
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
        let start = inner.segments[gone].base();
        self.begin_at(&mut inner, start, silent_since_ms).await
    }

    /// Deletes the records before `until`; nothing: all that are durable. Returns the first offset that is left then,
    /// durably; `None` if `until` is not in the log. What is not a whole segment stays on the disk, and nobody gets it.
    pub async fn delete_until(&self, until: Option<Offset>) -> Result<Option<Offset>, AppendError> {
        let mut inner = self.inner.lock().await;
        let synced = self.takes_changes()?;
        let until = until.unwrap_or(synced.until);
        if !(Offset(0)..=synced.until).contains(&until) {
            return Ok(None);
        }
        if until > inner.start_offset {
            // Nobody is forgotten: how old a producer is, is not looked at here.
            self.begin_at(&mut inner, until, i64::MIN).await?;
            tracing::info!(
                name: "log.records-deleted",
                partition = %self.folder,
                start_offset = until.0
            );
        }
        Ok(Some(inner.start_offset))
    }

    /// From now on the log begins at `start`: durably, before the segments before it go.
    async fn begin_at(
        &self,
        inner: &mut Inner,
        start: Offset,
        silent_since_ms: i64,
    ) -> Result<(), AppendError> {
        // The snapshot must not know more than the disk: everything in it is synced first.
        let end = inner.end_offset;
        let active = inner.active();
        if let Err(error) = active.file.sync().await {
            let error = LogError::io(&active.path)(error);
            self.give_up();
            return Err(error.into());
        }
        self.reach(inner, end);
        let producers = inner.producers.retained(start, silent_since_ms);
        // From here on it may be found after a restart.
        self.say_state(end, &producers, "retaining");
        let snapshot = Snapshot {
            start_offset: start,
            at: end,
            producers,
        };
        let path = format!("{}/{SNAPSHOT_FILE}", self.folder);
        let bases: Vec<Offset> = inner.segments.iter().map(Segment::base).collect();
        let gone = before(&bases, start);
        let ground = &self.ground;
        let written = match gone {
            0 => small_file::write(&*ground.disk, &path, &snapshot).await,
            // What goes makes room.
            _ => ground.reserve.write(&path, &snapshot).await,
        };
        match written {
            Err(LogError::Unchanged { source, .. }) => return Err(AppendError::NotStored(source)),
            // Whether the old snapshot or the new one is there is unknown now.
            written => written.inspect_err(|_| self.give_up())?,
        }
        inner.producers.become_retained(snapshot.producers);
        inner.start_offset = start;
        drop(inner.segments.drain(..gone));
        tracing::info!(
            name: "log.segments-removed",
            partition = %self.folder,
            segments = gone,
            start_offset = start.0
        );
        self.tell_state(inner, "retained");
        Ok(remove_segments(&*self.ground.disk, &self.folder, &bases[..gone]).await?)
    }
}

/// How many segments, which begin with these offsets, hold nothing from `start` on: those whose successor begins there
/// or before it. The active one has none.
pub(super) fn before(bases: &[Offset], start: Offset) -> usize {
    let successors = bases.iter().skip(1);
    let gone = successors.take_while(|base| **base <= start).count();
    assert!(
        bases.is_empty() || gone < bases.len(),
        "the active one stays"
    );
    gone
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
