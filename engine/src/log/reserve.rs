//! A reserve: a file that takes up some room. When the disk is full it is given up for what frees room: that a topic is
//! deleted, that old segments go. Nothing else gets any of it: nothing is appended until it is there again.

use super::{small_file, LogError};
use crate::host::{self, Disk, ReplaceError};
use serde::Serialize;
use std::{io, sync::Arc};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};
use xxhash_rust::xxh3::xxh3_64;

const RESERVE_FILE: &str = "reserve";
/// It has this name until it is whole.
const PART_FILE: &str = "reserve.new";

/// The reserve of a disk.
pub struct Reserve {
    disk: Arc<dyn Disk>,
    bytes: usize,
    /// Held by who takes the room up, or gives it up.
    changing: Mutex<()>,
    is_gone: RwLock<bool>,
}

impl Reserve {
    /// Of so many bytes; there is none, and nobody misses it, if that is 0. It counts as being there until it is first
    /// filled.
    pub fn new(disk: Arc<dyn Disk>, bytes: usize) -> Arc<Reserve> {
        Arc::new(Reserve {
            disk,
            bytes,
            changing: Mutex::default(),
            is_gone: RwLock::new(false),
        })
    }

    /// Takes up the room, if it is not taken. Where there is not enough of it now, the reserve is gone until this is
    /// called again.
    pub async fn fill(&self) {
        let _changing = self.changing.lock().await;
        let filled = match self.is_whole().await {
            Ok(true) => Ok(()),
            Ok(false) => self.take().await,
            // Whether it is there is not known now: as before.
            Err(_) => return,
        };
        let was_gone = std::mem::replace(&mut *self.is_gone.write().await, filled.is_err());
        match filled {
            Err(error) if !was_gone => tracing::warn!(
                name: "log.reserve-missing",
                %error,
                "`{RESERVE_FILE}` does not take up {} bytes; nothing is appended until it does: free some room, or \
                 delete topics",
                self.bytes
            ),
            Ok(()) if was_gone => tracing::info!(name: "log.reserve-filled", bytes = self.bytes),
            _ => {}
        }
    }

    /// Whether the reserve is to be filled again.
    pub async fn is_gone(&self) -> bool {
        *self.is_gone.read().await
    }

    /// The right to take up room, while it is held: [`io::ErrorKind::StorageFull`] if the reserve is gone.
    pub async fn room(&self) -> io::Result<RwLockReadGuard<'_, bool>> {
        let is_gone = self.is_gone.read().await;
        match *is_gone {
            false => Ok(is_gone),
            true => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the disk is full, and what is left is for what frees room",
            )),
        }
    }

    /// Replaces a small file after which something goes; if the disk is full, with the room of the reserve.
    /// [`LogError::Unchanged`]: it is as it was.
    pub async fn write<T: Serialize>(&self, path: &str, state: &T) -> Result<(), LogError> {
        match small_file::write(&*self.disk, path, state).await {
            Err(LogError::Unchanged { source, .. })
                if source.kind() == io::ErrorKind::StorageFull => {}
            written => return written,
        }
        let _changing = self.changing.lock().await;
        self.release().await;
        small_file::write(&*self.disk, path, state).await
    }

    async fn release(&self) {
        // Whoever is appending has the room that it needs, or has given it back, by then.
        *self.is_gone.write().await = self.bytes > 0;
        match self.disk.remove(RESERVE_FILE).await {
            Ok(()) => tracing::warn!(
                name: "log.reserve-released",
                "the disk is full; the reserve is given up, so that topics can be deleted and old segments go"
            ),
            // It was given up before; what is left of it is all there is.
            Err(error) => tracing::info!(name: "log.reserve-stays", %error),
        }
    }

    async fn is_whole(&self) -> io::Result<bool> {
        if self.bytes == 0 {
            return Ok(true);
        }
        let names = self.disk.list("").await?;
        if !names.iter().any(|name| name == RESERVE_FILE) {
            return Ok(false);
        }
        let size = self.disk.open(RESERVE_FILE).await?.size().await?;
        Ok(size >= self.bytes as u64)
    }

    async fn take(&self) -> io::Result<()> {
        let bytes = incompressible(self.bytes);
        let taken = host::replace_file(&*self.disk, RESERVE_FILE, &bytes).await;
        if taken.is_err() {
            // A part of it takes room, and is of no use. Where it stays, the next try cuts it.
            let _ = self.disk.remove(PART_FILE).await;
        }
        taken.map_err(|error| match error {
            ReplaceError::Unchanged(error) | ReplaceError::Unknown(error) => error,
        })
    }
}

/// Bytes that a file system which compresses or shares blocks cannot make less of.
fn incompressible(bytes: usize) -> Vec<u8> {
    let words = (0u64..).flat_map(|number| xxh3_64(&number.to_be_bytes()).to_be_bytes());
    words.take(bytes).collect()
}
