//! The seams: everything that lies outside the process. Time and tasks are tokio's.
//!
//! The same contract tests run against each implementation; the docs here are what they check.

pub mod real;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use std::{io, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection: bytes in order, until end of stream or an error. Can be closed half.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Connections to other processes.
#[async_trait]
pub trait Net: Send + Sync {
    /// Connects to `HOST:PORT`. An error says that nothing was sent.
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>>;

    /// Listens on the port of `HOST:PORT`; port 0 picks a free one.
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;
}

/// A port that accepts connections. Dropping it frees the port.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next connection and who is at its other end, for people.
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, String)>;

    /// The port.
    fn port(&self) -> u16;
}

/// Durable bytes. Paths are relative, with `/` between folders. A folder is there from its first file on, until it is
/// removed; the root is always there.
///
/// After a power loss each unsynced page, length or entry may be there or not, in any combination.
/// After a failed sync nothing is known about what it was to make durable, and a later sync that
/// succeeds says nothing about it either.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Opens a file, creating it empty, with its folders, if it is not there. A folder cannot be opened
    /// ([`io::ErrorKind::IsADirectory`]), nor what would be within a file ([`io::ErrorKind::NotADirectory`]).
    async fn open(&self, path: &str) -> io::Result<Arc<dyn File>>;

    /// The names of the files directly in a folder, sorted; none if there is no such folder.
    async fn list(&self, folder: &str) -> io::Result<Vec<String>>;

    /// The names of the folders directly in a folder, sorted; none if there is no such folder.
    async fn folders(&self, folder: &str) -> io::Result<Vec<String>>;

    /// Renames a file, replacing the file that was there. Makes no folder: that of `to` is there, or the error is
    /// [`io::ErrorKind::NotFound`], as it is without a file `from`.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. [`io::ErrorKind::NotFound`]: there is none.
    async fn remove(&self, path: &str) -> io::Result<()>;

    /// Removes a folder. [`io::ErrorKind::DirectoryNotEmpty`]: something is in it; [`io::ErrorKind::NotFound`]: there
    /// is none. Durable, with the removal of what was in it, once the folder that holds it is synced.
    async fn remove_folder(&self, folder: &str) -> io::Result<()>;

    /// Makes the entries of a folder durable: what was created, renamed and removed in it; and its own entry in the
    /// folders that hold it. [`io::ErrorKind::NotFound`]: there is no such folder.
    async fn sync_dir(&self, folder: &str) -> io::Result<()>;
}

/// An open file.
#[async_trait]
pub trait File: Send + Sync {
    /// Its length in bytes.
    async fn size(&self) -> io::Result<u64>;

    /// Up to `bytes_max` bytes from `offset`; fewer only at the end of the file.
    async fn read_at(&self, offset: u64, bytes_max: usize) -> io::Result<Bytes>;

    /// Writes all of `bytes` at `offset`. An error may leave a part written.
    async fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or fills it up with zeros.
    async fn truncate(&self, size: u64) -> io::Result<()>;

    /// Makes durable what was written before the call.
    async fn sync(&self) -> io::Result<()>;
}

/// The wall clock, for stamping data. Nothing waits by it.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;
}

/// Numbers that nobody can guess: for what only those who were told may know.
pub trait Entropy: Send + Sync {
    /// The next one.
    fn draw(&self) -> u128;
}

/// What a process has of the outside.
#[derive(Clone)]
pub struct Host {
    /// A name that no other process has or had: it tells whether an entry of the manifest log whose
    /// answer was lost is ours.
    pub instance: Arc<str>,
    /// Its disk.
    pub disk: Arc<dyn Disk>,
    /// Its network.
    pub net: Arc<dyn Net>,
    /// Its wall clock.
    pub clock: Arc<dyn Clock>,
    /// Its randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Objects that outlive it.
    pub objects: Arc<dyn ObjectStore>,
}

/// Why a file was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// It is as it was.
    #[error(transparent)]
    Unchanged(io::Error),
    /// Whether it was replaced is unknown.
    #[error(transparent)]
    Unknown(io::Error),
}

/// Replaces a small file so that a reader finds the old bytes or the new ones, whatever happens.
pub async fn replace_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Result<(), ReplaceError> {
    let temporary = format!("{path}.new");
    let written = async {
        let file = disk.open(&temporary).await?;
        if file.size().await? > 0 {
            file.truncate(0).await?;
        }
        file.write_at(0, bytes).await?;
        file.sync().await
    };
    written.await.map_err(ReplaceError::Unchanged)?;
    let replaced = async {
        disk.rename(&temporary, path).await?;
        disk.sync_dir(folder_of(path)).await
    };
    replaced.await.map_err(ReplaceError::Unknown)
}

/// Reads a small file whole. Returns `None` if it is not there.
pub async fn read_file(disk: &dyn Disk, path: &str) -> io::Result<Option<Bytes>> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if !disk
        .list(folder_of(path))
        .await?
        .iter()
        .any(|known| known == name)
    {
        return Ok(None);
    }
    let file = disk.open(path).await?;
    let size = file.size().await?;
    Ok(Some(file.read_at(0, size as usize).await?))
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}
