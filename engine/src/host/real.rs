//! The real outside: files, TCP, the system's clock and its randomness.
//!
//! Blocking calls go to tokio's blocking threads. Under simulation the disk still works (those threads
//! are then run inline), so that the contract tests compare it with the simulated one in one run; the
//! network does not, since sockets are then madsim's.

mod descriptors;

use self::descriptors::{Descriptor, Descriptors};
use super::{Clock, Connection, Disk, Entropy, File, Listener, Net};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
    time::SystemTime,
};
use tokio::net::{TcpListener, TcpStream};

/// A folder of the file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
    descriptors: Arc<Descriptors>,
}

/// Files that a disk has open at one moment, unless it is told otherwise.
const OPEN_MAX: usize = 256;

impl RealDisk {
    /// The disk whose paths are relative to `root`, which is created.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        let descriptors = Arc::new(Descriptors::new(OPEN_MAX));
        Ok(RealDisk { root, descriptors })
    }

    /// With so many files open at one moment; there may be more in use.
    pub fn with_open_max(self, open_max: usize) -> Self {
        let descriptors = Arc::new(Descriptors::new(open_max));
        RealDisk {
            descriptors,
            ..self
        }
    }
}

/// The right to use a folder; held by one process at a time. Dropping it, or dying, gives it back.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] fs::File);

impl RealDisk {
    /// Locks the folder. [`io::ErrorKind::WouldBlock`]: another process has it.
    pub fn lock(&self) -> io::Result<Lock> {
        let path = self.root.join(".lock");
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

struct RealFile(Descriptor);

#[async_trait]
impl Disk for RealDisk {
    async fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        let (all, path) = (self.descriptors.clone(), self.root.join(path));
        let opened = self.descriptors.blocking(move || {
            let shared = all.file(path)?;
            Ok(Descriptor { all, shared })
        });
        Ok(Arc::new(RealFile(opened.await?)))
    }

    async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.names(folder, fs::FileType::is_file).await
    }

    async fn folders(&self, folder: &str) -> io::Result<Vec<String>> {
        self.names(folder, fs::FileType::is_dir).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.root.join(from), self.root.join(to));
        let all = self.descriptors.clone();
        self.descriptors
            .blocking(move || all.rename(&from, &to))
            .await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        let (all, path) = (self.descriptors.clone(), self.root.join(path));
        self.descriptors.blocking(move || all.remove(&path)).await
    }

    async fn remove_folder(&self, folder: &str) -> io::Result<()> {
        let path = self.root.join(folder);
        self.descriptors
            .blocking(move || fs::remove_dir(path))
            .await
    }

    async fn sync_dir(&self, folder: &str) -> io::Result<()> {
        let (root, path) = (self.root.clone(), self.root.join(folder));
        let all = self.descriptors.clone();
        self.descriptors
            .blocking(move || {
                // The folder itself is an entry of the one above it, and may be new.
                let mut above = Some(path.as_path());
                while let Some(folder) = above.filter(|folder| folder.starts_with(&root)) {
                    all.with_room(|| fs::File::open(folder))?.sync_all()?;
                    above = folder.parent();
                }
                Ok(())
            })
            .await
    }
}

impl RealDisk {
    /// The names of what is directly in a folder and of one kind, sorted.
    async fn names(
        &self,
        folder: &str,
        is_one: fn(&fs::FileType) -> bool,
    ) -> io::Result<Vec<String>> {
        let (all, folder) = (self.descriptors.clone(), self.root.join(folder));
        self.descriptors
            .blocking(move || {
                let entries = match all.with_room(|| fs::read_dir(&folder)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                    entries => entries?,
                };
                let mut names = Vec::new();
                for entry in entries {
                    let entry = entry?;
                    if is_one(&entry.file_type()?) {
                        names.push(entry.file_name().to_string_lossy().into_owned());
                    }
                }
                names.sort();
                Ok(names)
            })
            .await
    }
}

#[async_trait]
impl File for RealFile {
    async fn size(&self) -> io::Result<u64> {
        let file = self.0.clone();
        self.0
            .all
            .blocking(move || Ok(file.read()?.metadata()?.len()))
            .await
    }

    async fn read_at(&self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        let file = self.0.clone();
        self.0
            .all
            .blocking(move || {
                let file = file.read()?;
                let there = file.metadata()?.len().saturating_sub(offset);
                let mut bytes = vec![0; bytes_max.min(there as usize)];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(Bytes::from(bytes))
            })
            .await
    }

    async fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, bytes) = (self.0.clone(), bytes.to_vec());
        self.0
            .all
            .blocking(move || file.write(|file| file.write_all_at(&bytes, offset)))
            .await
    }

    async fn truncate(&self, size: u64) -> io::Result<()> {
        let file = self.0.clone();
        self.0
            .all
            .blocking(move || file.write(|file| file.set_len(size)))
            .await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = self.0.clone();
        self.0.all.blocking(move || file.sync()).await
    }
}

/// TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealNet;

struct RealListener(TcpListener, u16);

#[async_trait]
impl Net for RealNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(address).await?;
        let port = listener.local_addr()?.port();
        Ok(Box::new(RealListener(listener, port)))
    }
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether a failed accept says nothing about the next one: the peer has gone, or there are too many files open
/// (ENFILE 23, EMFILE 24) or no buffers left (ENOBUFS 105 on Linux, 55 on macOS; ENOMEM 12).
fn passes(error: &io::Error) -> bool {
    let is_gone = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    );
    is_gone || matches!(error.raw_os_error(), Some(12 | 23 | 24 | 55 | 105))
}

#[async_trait]
impl Listener for RealListener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, String)> {
        loop {
            match self.0.accept().await {
                Ok((stream, peer)) => {
                    // A connection that is gone already is found by whoever reads it.
                    let _ = stream.set_nodelay(true);
                    return Ok((Box::new(stream), peer.to_string()));
                }
                Err(error) if passes(&error) => {
                    tracing::warn!(name: "host.accept-failed", %error, "a connection was not taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn port(&self) -> u16 {
        self.1
    }
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealClock;

impl Clock for RealClock {
    // The seam itself: everybody else asks it.
    #[allow(clippy::disallowed_methods)]
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as i64)
    }
}

/// The system's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealEntropy;

impl Entropy for RealEntropy {
    fn draw(&self) -> u128 {
        let mut bytes = [0; 16];
        let drawn = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        // A number that can be guessed would open what it is to keep shut.
        drawn.expect("the system has /dev/urandom");
        u128::from_ne_bytes(bytes)
    }
}
