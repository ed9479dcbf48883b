//! A reserve: a file that takes up some room. When the disk is full it is given up for a small file, so that what
//! frees room can be noted: that a topic is deleted, that old segments go.

use crate::host::Disk;
use std::io;
use xxhash_rust::xxh3::xxh3_64;

/// The file.
pub const RESERVE_FILE: &str = "reserve";

/// Takes up the room, if it is not taken. An error: there is not enough of it now.
pub async fn fill(disk: &dyn Disk, bytes: usize) -> io::Result<()> {
    if bytes == 0 || disk.list("").await?.iter().any(|name| name == RESERVE_FILE) {
        return Ok(());
    }
    let taken = async {
        let file = disk.open(RESERVE_FILE).await?;
        file.write_at(0, &incompressible(bytes)).await?;
        file.sync().await?;
        disk.sync_dir("").await
    };
    let taken = taken.await;
    if taken.is_err() {
        // A part of it would pass for the whole. If it stays, it frees less.
        let _ = disk.remove(RESERVE_FILE).await;
    }
    taken
}

/// Gives the room up, once. An error: it was given up before.
pub async fn release(disk: &dyn Disk) -> io::Result<()> {
    disk.remove(RESERVE_FILE).await?;
    tracing::warn!(
        name: "log.reserve-released",
        "the disk is full; the reserve is given up, so that topics can be deleted and old segments go"
    );
    disk.sync_dir("").await
}

/// Bytes that a file system which compresses or shares blocks cannot make less of.
fn incompressible(bytes: usize) -> Vec<u8> {
    let words = (0u64..).flat_map(|number| xxh3_64(&number.to_be_bytes()).to_be_bytes());
    words.take(bytes).collect()
}
