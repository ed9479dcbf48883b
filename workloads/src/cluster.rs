//! The seams joined to the world: the only place where an engine's host is made of a simulated one.

use async_trait::async_trait;
use bytes::Bytes;
use engine::host::{Clock, Connection, Disk, Entropy, File, Host, Listener, Net};
use sim::objects::ObjectClient;
use std::{io, sync::Arc};

/// Where the object store of a world listens.
pub const OBJECTS_ADDRESS: &str = "objects:80";

/// What the engine has of the outside when it runs on a node of a world.
pub fn host(node: &sim::Host) -> Host {
    Host {
        instance: format!("{}#{}", node.name(), node.incarnation()).into(),
        disk: Arc::new(SimDisk(node.disk())),
        net: Arc::new(SimNet(node.clone())),
        clock: Arc::new(SimClock(node.clock())),
        entropy: Arc::new(SimEntropy(node.clone())),
        objects: Arc::new(ObjectClient::new(node.clone(), OBJECTS_ADDRESS)),
    }
}

/// A simulated disk behind the engine's seam.
pub struct SimDisk(pub sim::disk::Disk);

struct SimFile(sim::disk::File);

#[async_trait]
impl Disk for SimDisk {
    async fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(SimFile(self.0.open(path).await?)))
    }

    async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.list(folder).await
    }

    async fn folders(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.folders(folder).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to).await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path).await
    }

    async fn remove_folder(&self, folder: &str) -> io::Result<()> {
        self.0.remove_folder(folder).await
    }

    async fn sync_dir(&self, folder: &str) -> io::Result<()> {
        self.0.sync_dir(folder).await
    }
}

#[async_trait]
impl File for SimFile {
    async fn size(&self) -> io::Result<u64> {
        self.0.len().await
    }

    async fn read_at(&self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        self.0.read_at(offset, bytes_max).await
    }

    async fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes).await
    }

    async fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.truncate(size).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.sync().await
    }
}

/// A simulated network behind the engine's seam.
pub struct SimNet(pub sim::Host);

struct SimListener(sim::net::Listener, u16);

#[async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(self.0.connect(address).await?))
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let port = address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let port = port.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Box::new(SimListener(self.0.listen(port)?, port)))
    }
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, String)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((Box::new(stream), peer))
    }

    fn port(&self) -> u16 {
        self.1
    }
}

struct SimClock(sim::clock::Clock);

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        self.0.now_ms()
    }
}

struct SimEntropy(sim::Host);

impl Entropy for SimEntropy {
    fn draw(&self) -> u128 {
        self.0.draw()
    }
}
