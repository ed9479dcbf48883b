//! What a broker keeps beside its partitions: opened together, so that what is missing is seen.

use super::{
    notes::{Notes, PARTITIONS_FILE, STOPPED_FILE},
    producer_ids::{ProducerIds, PRODUCER_IDS_FILE},
    LOG_FOLDER,
};
use crate::{
    host::Disk,
    log::{
        reserve::Reserve,
        segment,
        topics::{is_internal, Topics, TOPICS_FILE},
        LogError,
    },
};
use std::sync::Arc;

/// The small files of a broker.
pub(super) struct Kept {
    pub topics: Topics,
    pub producer_ids: ProducerIds,
    pub notes: Notes,
}

impl Kept {
    /// Opens them. A new broker makes them, in this order, before it has any partition; so one that is missing before
    /// what is there was lost, and [`LogError::Missing`] says so.
    pub async fn open(disk: &Arc<dyn Disk>, reserve: &Arc<Reserve>) -> Result<Kept, LogError> {
        let files = disk.list("").await.map_err(LogError::io(""))?;
        let logs = disk.folders(LOG_FOLDER).await;
        let logs = logs.map_err(LogError::io(LOG_FOLDER))?;
        let has = |name: &str| files.iter().any(|file| file == name);
        let there = [
            (TOPICS_FILE, has(TOPICS_FILE), "which topics there are"),
            (
                PRODUCER_IDS_FILE,
                has(PRODUCER_IDS_FILE),
                "which producer ids were given out",
            ),
            (
                PARTITIONS_FILE,
                has(PARTITIONS_FILE) || has(STOPPED_FILE),
                "which partitions were used, and how far they go",
            ),
            (LOG_FOLDER, !logs.is_empty(), ""),
        ];
        for (index, (path, is_there, what)) in there.iter().enumerate() {
            let is_after = there[index..].iter().find(|(_, is_there, _)| *is_there);
            if let (false, Some((after, ..))) = (is_there, is_after) {
                return Err(LogError::Missing {
                    path: (*path).to_owned(),
                    what: format!("it says {what}, and `{after}` is there"),
                });
            }
        }
        let topics = Topics::open(disk.clone(), reserve.clone()).await?;
        let producer_ids = ProducerIds::open(&**disk).await?;
        let notes = match Notes::open(&**disk).await? {
            Some(notes) => notes,
            None => Notes::create(&**disk).await?,
        };
        check_known(&**disk, &topics, &logs).await?;
        // Of topics that are gone, a stop may have left some: a new one of such a name would be missing what they say.
        let (all, deleted) = (topics.all().await, topics.deleted().await);
        notes.retain(|topic| {
            let is_known = all.iter().any(|(known, _)| known == topic);
            is_internal(topic) || is_known || deleted.iter().any(|(deleted, _)| deleted == topic)
        });
        Ok(Kept {
            topics,
            producer_ids,
            notes,
        })
    }
}

/// Every topic that has records is known, or is being deleted: it was noted before the first of them came.
async fn check_known(disk: &dyn Disk, topics: &Topics, logs: &[String]) -> Result<(), LogError> {
    let deleted = topics.deleted().await;
    for topic in logs.iter().filter(|topic| !is_internal(topic)) {
        let is_deleted = deleted.iter().any(|(deleted, _)| deleted == topic);
        if is_deleted || topics.partitions(topic).await.is_some() {
            continue;
        }
        let folder = format!("{LOG_FOLDER}/{topic}");
        let folders = disk.folders(&folder).await;
        for partition in folders.map_err(LogError::io(&folder))? {
            let folder = format!("{folder}/{partition}");
            let names = disk.list(&folder).await.map_err(LogError::io(&folder))?;
            if names.iter().any(|name| segment::base_of(name).is_some()) {
                return Err(LogError::DamagedFile {
                    path: TOPICS_FILE.to_owned(),
                    what: format!(
                        "it does not know the topic `{topic}`, and `{folder}` holds records"
                    ),
                });
            }
        }
    }
    Ok(())
}
