//! An open file of a simulated disk.

use super::{inode::InodeId, volume::Volume, Disk};
use crate::node::Host;
use bytes::Bytes;
use std::io;

/// An open file.
pub struct File {
    disk: Disk,
    path: String,
    inode: InodeId,
}

impl File {
    pub(super) fn new(host: Host, path: &str, inode: InodeId) -> Self {
        File {
            disk: Disk::new(host),
            path: path.to_owned(),
            inode,
        }
    }

    /// The file's length in bytes.
    pub async fn len(&self) -> io::Result<u64> {
        self.disk.on_volume(|volume| volume.len(self.inode))
    }

    /// Whether the file is empty.
    pub async fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len().await? == 0)
    }

    /// Up to `len` bytes from `offset`; fewer at the end of the file.
    pub async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.disk.step("disk.read", &self.path, len as u64).await;
        self.disk
            .on_volume(|volume| volume.read_at(self.inode, offset, len))
    }

    /// Writes all of `bytes` at `offset`, which is at most the file's length.
    pub async fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk
            .step("disk.write", &self.path, bytes.len() as u64)
            .await;
        self.disk
            .on_volume(|volume| volume.write_at(self.inode, offset, bytes))
    }

    /// Cuts the file to `len` bytes, or fills it up to there with zeros.
    pub async fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.step("disk.truncate", &self.path, len).await;
        self.disk
            .on_volume(|volume| volume.truncate(self.inode, len))
    }

    /// Makes what was written before the call durable. What is written while it runs may not be.
    pub async fn sync(&self) -> io::Result<()> {
        let mut begun = None;
        self.disk.step("disk.sync", &self.path, 0).await;
        self.disk.on_volume(|volume: &mut Volume| {
            begun = Some(volume.begin_sync(self.inode)?);
            Ok(())
        })?;
        self.disk.wait_sync().await;
        let begun = begun.expect("begun above");
        self.disk
            .on_volume(|volume| volume.end_sync(self.inode, begun))
    }
}
