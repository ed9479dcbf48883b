//! Opening a partition: what a crash has left is made durable, or found to be damaged.

use super::{
    retain::{before, remove_segments, Snapshot, SNAPSHOT_FILE},
    Expected, Ground, Inner, Note, Partition, Segment, Synced,
};
use crate::{
    host::Disk,
    ids::Offset,
    log::{
        configs::Effective,
        producers::Producers,
        segment::{self, Entry, Owner, Scanner, Tail},
        small_file, LogError,
    },
    watched::Watched,
};
use tokio::sync::{Mutex, Notify};

/// What of the last segment is to be settled before it is served.
struct Last {
    /// The checksum of the good frames, and what is before them.
    checksum: u32,
    /// What follows them.
    torn: Option<Torn>,
}

/// The end of a file that no sync had covered.
struct Torn {
    from: u64,
    to: u64,
    /// The offset after the last frame of it that is whole, if one is.
    until: Option<Offset>,
    what: String,
}

impl Partition {
    /// Opens the partition in `folder`. Cuts a torn tail; reports damage before it, and what is missing of what was
    /// `expected`. Nothing is changed before everything was looked at.
    ///
    /// The last segment is written again, in place, and synced, before anything in it is served: after a crash its
    /// bytes may be in the page cache only, and after a failed sync the kernel may wrongly call them clean. That
    /// takes no room on the disk. After a clean stop it is known to be durable.
    pub async fn open(
        ground: Ground,
        folder: String,
        effective: Effective,
        expected: Expected,
    ) -> Result<Partition, LogError> {
        let disk = &*ground.disk;
        let names = disk.list(&folder).await.map_err(LogError::io(&folder))?;
        let bases = names.iter().filter_map(|name| segment::base_of(name));
        let at = format!("{folder}/{SNAPSHOT_FILE}");
        let snapshot = match names.iter().any(|name| name == SNAPSHOT_FILE) {
            true => small_file::read(disk, &at).await?,
            false => None,
        };
        let snapshot = snapshot.unwrap_or(Snapshot {
            start_offset: Offset(0),
            at: Offset(0),
            producers: Producers::default(),
        });
        let mut inner = Inner {
            effective,
            segments: Vec::new(),
            start_offset: snapshot.start_offset,
            end_offset: snapshot.start_offset,
            producers: snapshot.producers,
        };
        // A crash came between the snapshot and the removal of what it replaces.
        let bases: Vec<Offset> = bases.collect();
        let (gone, bases) = bases.split_at(before(&bases, snapshot.start_offset));
        let mut gone = gone.to_vec();
        // The first segment that is left may hold records before the start, which were deleted.
        if let Some(first) = bases.first() {
            inner.end_offset = snapshot.start_offset.min(*first);
        }
        let owner = Owner::of(&folder);
        let mut last = None;
        for (index, base) in bases.iter().enumerate() {
            let path = format!("{folder}/{}", segment::file_name(*base));
            if *base != inner.end_offset {
                return Err(LogError::Damaged {
                    path,
                    position: 0,
                    offset: inner.end_offset,
                    what: format!(
                        "it begins with offset {base}, and what is before it ends at {}; a segment is \
                         missing or cut, or `{SNAPSHOT_FILE}` is",
                        inner.end_offset
                    ),
                });
            }
            let is_last = index + 1 == bases.len();
            let load = inner.load(disk, path, *base, owner, is_last, snapshot.at);
            match load.await? {
                Some(loaded) => last = Some(loaded),
                None => gone.push(*base),
            }
        }
        let torn = last.as_ref().and_then(|last| last.torn.as_ref());
        inner.check_whole(&folder, snapshot.at, expected, torn)?;
        remove_segments(disk, &folder, &gone).await?;
        if let (Some(last), false) = (last, matches!(expected, Expected::Exactly(_))) {
            inner.settle_last(last).await?;
            // A crash may have come before its entry was durable, and so may have a sync that failed.
            let synced = disk.sync_dir(&folder).await;
            synced.map_err(LogError::io(&folder))?;
        }
        let end_offset = inner.end_offset;
        let stable = inner.producers.stable(end_offset);
        let partition = Partition {
            ground,
            folder,
            owner,
            inner: Mutex::new(inner),
            synced: Watched::new(Synced {
                until: end_offset,
                stable,
                failed: false,
                closed: false,
                stopped: false,
            }),
            appended: Notify::new(),
        };
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
    /// Reads a segment and adds it. Returns `None` if it is the last one, and a crash came before it had begun.
    async fn load(
        &mut self,
        disk: &dyn Disk,
        path: String,
        base: Offset,
        owner: Owner,
        is_last: bool,
        known_until: Offset,
    ) -> Result<Option<Last>, LogError> {
        let file = disk.open(&path).await.map_err(LogError::io(&path))?;
        let size = file.size().await.map_err(LogError::io(&path))?;
        let mut scanner = Scanner::new(base, owner, size);
        while let Some(range) = scanner.wants() {
            let bytes = (range.end - range.start) as usize;
            let bytes = file.read_at(range.start, bytes).await;
            scanner.take(&bytes.map_err(LogError::io(&path))?);
        }
        let scan = scanner.end();
        let torn = match scan.tail {
            Tail::Clean => None,
            Tail::Unbegun if is_last => return Ok(None),
            Tail::Torn { what, until } if is_last => Some(Torn {
                from: scan.good_bytes,
                to: size,
                until,
                what,
            }),
            Tail::Unbegun => return Err(damaged(path, 0, base, "it is cut off".into())),
            Tail::Torn { what, .. } | Tail::Damaged(what) => {
                return Err(damaged(path, scan.good_bytes, scan.end_offset, what))
            }
        };
        let mut markers = scan.markers.iter();
        for Entry { header, .. } in &scan.entries {
            let marker = header.control.then(|| markers.next()).flatten();
            if header.base_offset >= known_until {
                self.producers.apply(header, marker);
            }
        }
        self.end_offset = scan.end_offset;
        self.segments.push(Segment {
            path,
            file,
            salt: scan.salt.expect("a segment that has begun has one"),
            bytes: scan.good_bytes,
            entries: scan.entries,
        });
        let checksum = scan.checksum;
        Ok(Some(Last { checksum, torn }))
    }

    /// Compares what is there with what was durable.
    fn check_whole(
        &self,
        folder: &str,
        snapshot_at: Offset,
        expected: Expected,
        torn: Option<&Torn>,
    ) -> Result<(), LogError> {
        let last = self.segments.last();
        let base = last.map(Segment::base);
        let missing = |base: Offset| LogError::Missing {
            path: format!("{folder}/{}", segment::file_name(base)),
            what: format!("records from offset {base} on were in it"),
        };
        let noted = expected.note().unwrap_or(Note {
            segment: Offset(0),
            end: Offset(0),
        });
        if expected.note().is_some() && base < Some(noted.segment) {
            return Err(missing(noted.segment));
        }
        if base.is_none() && snapshot_at > Offset(0) {
            return Err(missing(self.start_offset));
        }
        let position = last.map_or(0, |last| last.bytes);
        let path = || last.map_or(folder, |last| &last.path).to_owned();
        let until = snapshot_at.max(noted.end);
        let end = self.end_offset;
        if end < until {
            let found = torn.map_or("it ends here", |torn| &torn.what);
            let what = format!("records before offset {until} were durable; {found}");
            return Err(damaged(path(), position, end, what));
        }
        let is_more = end > noted.end || base > Some(noted.segment) || torn.is_some();
        if matches!(expected, Expected::Exactly(_)) && is_more {
            let found = torn.map_or("more records", |torn| &torn.what);
            let what = format!(
                "the broker was stopped when the partition ended at offset {}; what follows is: {found}",
                noted.end
            );
            return Err(damaged(path(), position, end, what));
        }
        Ok(())
    }

    /// Cuts what is torn off the last segment, and makes the rest durable.
    async fn settle_last(&mut self, last: Last) -> Result<(), LogError> {
        let segment = self.segments.last().expect("it was loaded");
        let io = |error| LogError::io(&segment.path)(error);
        if let Some(torn) = last.torn {
            tracing::warn!(
                name: "log.torn-tail",
                path = %segment.path,
                end_offset = self.end_offset.0,
                until_offset = torn.until.map(|until| until.0),
                from = torn.from,
                to = torn.to,
                bytes = torn.to - torn.from,
                what = %torn.what,
                "what a crash has left after the last durable record is cut off; it was never acknowledged"
            );
            segment.file.truncate(segment.bytes).await.map_err(io)?;
        }
        let (mut at, mut checksum) = (0, 0);
        while at < segment.bytes {
            let window = (segment.bytes - at).min(segment::WINDOW_BYTES as u64);
            let bytes = segment.file.read_at(at, window as usize);
            let bytes = bytes.await.map_err(io)?;
            if bytes.is_empty() {
                break;
            }
            segment.file.write_at(at, &bytes).await.map_err(io)?;
            checksum = crc32c::crc32c_append(checksum, &bytes);
            at += bytes.len() as u64;
        }
        if checksum != last.checksum {
            let what = "the disk reads it otherwise than a moment ago".to_owned();
            return Err(damaged(segment.path.clone(), 0, segment.base(), what));
        }
        segment.file.sync().await.map_err(io)
    }
}

fn damaged(path: String, position: u64, offset: Offset, what: String) -> LogError {
    LogError::Damaged {
        path,
        position,
        offset,
        what,
    }
}
