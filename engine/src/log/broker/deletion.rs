//! The end of a topic: noted durably, then carried out, by all brokers, however often they are interrupted.
//!
//! The first broker notes it before any other removes anything: it says from then on that there is no such topic, so
//! that nobody learns of it again. The name is free once all have removed what they had.

use super::{Broker, LOG_FOLDER};
use crate::{
    host::Disk,
    log::{cluster::BACKOFF, LogError},
};
use futures::{future::BoxFuture, FutureExt};
use std::{
    io,
    sync::{atomic::Ordering, Arc},
};
use uuid::Uuid;

/// What became of a topic that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    /// It is not known here.
    Unknown,
    /// Nothing is left of it.
    Gone,
    /// It is deleted; a broker that is away will remove what it has of it.
    Later,
}

impl Broker {
    /// Deletes a topic here and, if this is the first broker, everywhere; that of this id, if one is given.
    pub(super) async fn delete_here(
        self: &Arc<Self>,
        topic: &str,
        id: Option<Uuid>,
    ) -> Result<Deleted, LogError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(Deleted::Later);
        }
        if !self.topics.delete(topic, id).await? {
            return Ok(Deleted::Unknown);
        }
        self.remove_deleted().await?;
        let mut left = self.topics.deleted().await.into_iter();
        Ok(match left.any(|(left, _)| left == topic) {
            false => Deleted::Gone,
            true => {
                self.deletion_left.notify_one();
                Deleted::Later
            }
        })
    }

    /// Goes on with what a crash, or a broker that was away, has left of deleted topics, for ever.
    pub(super) async fn keep_deleting(self: Arc<Self>) -> LogError {
        loop {
            match self.remove_deleted().await {
                Err(error) => return error,
                Ok(true) => self.deletion_left.notified().await,
                Ok(false) => tokio::time::sleep(BACKOFF).await,
            }
        }
    }

    /// Removes what deleted topics have left; one at a time does it. Returns whether all of it is gone.
    async fn remove_deleted(self: &Arc<Self>) -> Result<bool, LogError> {
        let _turn = self.deleting.lock().await;
        if self.stopped.load(Ordering::Relaxed) {
            // What it has left is noted, and nothing of it may go any more: the next start goes on.
            return Ok(false);
        }
        let mut is_all = true;
        for (topic, id) in self.topics.deleted().await {
            if !self.remove_at_others(&topic, id).await {
                return Ok(false);
            }
            match self.remove_topic(&topic).await {
                Err(LogError::Unchanged { path, source }) => {
                    // It is tried again; the reserve has said that the disk is full.
                    tracing::info!(name: "broker.deletion-waits", topic, path, %source);
                    is_all = false;
                }
                removed => removed?,
            }
        }
        Ok(is_all)
    }

    /// Whether all brokers that this one decides for have removed what they had of a topic.
    async fn remove_at_others(&self, topic: &str, id: Uuid) -> bool {
        let others = match self.config.id.0 {
            0 => 1..self.config.brokers.len(),
            _ => 0..0,
        };
        for other in others {
            if let Err(error) = self.delete_at(other, id).await {
                tracing::info!(name: "broker.deletion-waits", topic, other, %error);
                return false;
            }
        }
        true
    }

    async fn remove_topic(self: &Arc<Self>, topic: &str) -> Result<(), LogError> {
        tracing::info!(name: "broker.topic-deleted", topic);
        for open in self.slots.remove(topic).await {
            open.close().await;
        }
        let disk = &*self.host.disk;
        remove_tree(disk, format!("{LOG_FOLDER}/{topic}")).await?;
        match disk.sync_dir(LOG_FOLDER).await {
            // Nothing was ever written here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            synced => synced.map_err(LogError::io(LOG_FOLDER))?,
        }
        self.forget_notes(topic).await?;
        // Before the name is free again.
        tracing::info!(name: "broker.topic-removed", topic);
        self.topics.forget(topic).await
    }
}

/// Removes a folder and what is in it, if it is there. What is neither file nor folder stays, and is named.
fn remove_tree(disk: &dyn Disk, folder: String) -> BoxFuture<'_, Result<(), LogError>> {
    async move {
        let folders = disk.folders(&folder).await;
        for name in folders.map_err(LogError::io(&folder))? {
            remove_tree(disk, format!("{folder}/{name}")).await?;
        }
        for name in disk.list(&folder).await.map_err(LogError::io(&folder))? {
            let path = format!("{folder}/{name}");
            disk.remove(&path).await.map_err(LogError::io(&path))?;
        }
        match disk.remove_folder(&folder).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                tracing::warn!(
                    name: "broker.folder-left",
                    folder,
                    "a deleted topic's folder holds what this broker has not put there; it is left alone"
                );
                Ok(())
            }
            removed => removed.map_err(LogError::io(&folder)),
        }
    }
    .boxed()
}
