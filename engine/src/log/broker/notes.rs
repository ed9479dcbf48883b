//! What is noted of the partitions outside of their own folders: that they were used, where their last segments begin,
//! and how far they were durable. So what is cut off or missing later is seen.
//!
//! It is written about once a second while anything is appended: a partition has at least what the note says, so what has
//! rested for a moment cannot go in silence, not even the end of a last segment.
//! It is written once more, to another file, when the broker is stopped: then it has exactly that. The next start renames
//! that file back before anybody is served, which takes no room.

use super::Broker;
use crate::{
    host::Disk,
    log::{
        partition::{Expected, Note},
        small_file, LogError, TopicPartition,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicBool, Ordering},
        Mutex, MutexGuard,
    },
};

/// What every partition that was used has at least.
pub(super) const PARTITIONS_FILE: &str = "partitions";
/// What they have exactly, after a clean stop.
pub const STOPPED_FILE: &str = "partitions.stopped";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    note: Note,
    exact: bool,
}

type All = BTreeMap<String, BTreeMap<i32, Noted>>;

/// The notes of a broker.
pub(super) struct Notes {
    known: Mutex<All>,
    /// Held by who writes them, from what is written on: nobody forgets a topic meanwhile.
    writing: tokio::sync::Mutex<()>,
    /// What was noted last is not written yet.
    is_unwritten: AtomicBool,
}

impl Notes {
    /// Reads the notes. Returns `None` if there are none.
    pub async fn open(disk: &dyn Disk) -> Result<Option<Notes>, LogError> {
        let stopped = small_file::read_as::<All>(disk, STOPPED_FILE, PARTITIONS_FILE).await?;
        if let Some(known) = stopped {
            let renamed = disk.rename(STOPPED_FILE, PARTITIONS_FILE).await;
            renamed.map_err(LogError::io(STOPPED_FILE))?;
            disk.sync_dir("").await.map_err(LogError::io(""))?;
            return Ok(Some(Notes::new(known)));
        }
        let Some(mut known) = small_file::read::<All>(disk, PARTITIONS_FILE).await? else {
            return Ok(None);
        };
        let all = known.values_mut().flat_map(BTreeMap::values_mut);
        all.for_each(|noted| noted.exact = false);
        Ok(Some(Notes::new(known)))
    }

    /// Begins to take notes.
    pub async fn create(disk: &dyn Disk) -> Result<Notes, LogError> {
        small_file::write(disk, PARTITIONS_FILE, &All::default()).await?;
        Ok(Notes::new(All::default()))
    }

    fn new(known: All) -> Notes {
        Notes {
            known: Mutex::new(known),
            writing: tokio::sync::Mutex::default(),
            is_unwritten: AtomicBool::new(false),
        }
    }

    /// Forgets topics but for those that are to be kept; durably, when they are next written.
    pub fn retain(&self, is_kept: impl Fn(&str) -> bool) {
        self.known().retain(|topic, _| is_kept(topic));
    }

    /// Forgets some partitions, durably.
    pub async fn forget(
        &self,
        disk: &dyn Disk,
        without: &[TopicPartition],
    ) -> Result<(), LogError> {
        let _writing = self.writing.lock().await;
        let mut known = self.known().clone();
        for of in without {
            known
                .get_mut(&of.topic)
                .and_then(|topic| topic.remove(&of.partition.0));
        }
        if known != *self.known() {
            small_file::write(disk, PARTITIONS_FILE, &known).await?;
            *self.known() = known;
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, All> {
        self.known.lock().expect("no change panics")
    }

    /// Whether that is news.
    fn note(&self, of: &TopicPartition, note: Note, exact: bool) -> bool {
        let mut known = self.known();
        let topic = known.entry(of.topic.clone()).or_default();
        let noted = Noted { note, exact };
        let before = topic.get(&of.partition.0).map(|noted| noted.note);
        assert!(
            note.segment <= note.end && before.is_none_or(|before| before.end <= note.end),
            "{of} was durable up to {before:?}, and is up to {note:?}"
        );
        topic.insert(of.partition.0, noted) != Some(noted)
    }

    /// Notes durably where partitions end, which nobody changes any more.
    pub async fn write_stopped(
        &self,
        disk: &dyn Disk,
        ended: Vec<(TopicPartition, Note)>,
    ) -> Result<(), LogError> {
        let _writing = self.writing.lock().await;
        for (of, note) in ended {
            self.note(&of, note, true);
        }
        let known = self.known().clone();
        small_file::write_as(disk, STOPPED_FILE, PARTITIONS_FILE, &known).await
    }

    /// What is noted of a partition that is to be opened.
    pub fn expected(&self, of: &TopicPartition) -> Expected {
        let known = self.known();
        let noted = known
            .get(&of.topic)
            .and_then(|topic| topic.get(&of.partition.0));
        match noted {
            None => Expected::Nothing,
            Some(Noted { note, exact: false }) => Expected::AtLeast(*note),
            Some(Noted { note, exact: true }) => Expected::Exactly(*note),
        }
    }
}

impl Broker {
    /// Notes what has begun, or was appended, since the last note.
    pub(super) async fn note_partitions(&self) {
        let _writing = self.notes.writing.lock().await;
        let was_left = self.notes.is_unwritten.swap(false, Ordering::Relaxed);
        let mut is_news = self.ground.has_begun() || was_left;
        for (of, _, partition) in self.slots.open().await {
            if let Some(note) = partition.note().await {
                is_news |= self.notes.note(&of, note, false);
            }
        }
        if !is_news {
            return;
        }
        let known = self.notes.known().clone();
        let written = small_file::write(&*self.host.disk, PARTITIONS_FILE, &known).await;
        if let Err(error) = written {
            // What is noted is true, whether it is the old note or the new one.
            tracing::info!(name: "broker.note-waits", %error);
            self.notes.is_unwritten.store(true, Ordering::Relaxed);
        }
    }

    /// Forgets the partitions of a topic whose files are gone, durably.
    pub(super) async fn forget_notes(&self, topic: &str) -> Result<(), LogError> {
        let _writing = self.notes.writing.lock().await;
        let mut known = self.notes.known().clone();
        if known.remove(topic).is_some() {
            self.reserve.write(PARTITIONS_FILE, &known).await?;
            self.notes.known().remove(topic);
        }
        Ok(())
    }
}
