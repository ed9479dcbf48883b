//! Disks: per node, a page cache over a platter.
//!
//! Reads see the cache. `sync` moves a file's pages and length to the platter, `sync_dir` the entries
//! of a directory. A crash of the process loses nothing. At a power loss, in any combination:
//! each unsynced page is kept, lost, or torn at sector size; an unsynced length is kept or lost; each
//! unsynced entry (created, renamed, removed; of files and of directories) is kept or lost. A directory that
//! is lost takes along what is in it; so does one whose removal is durable. Operations can fail: reads, writes and
//! syncs with an I/O error, writes that need room with "no space", until something is removed or cut. A failed
//! write may have written a part. After a failed sync the dirty pages are in doubt: the cache shows them and counts them as clean,
//! whether or not they reached the platter (as Linux does: "fsyncgate", 2018), so that a later sync
//! that succeeds says nothing about them.
//!
//! What is durable may be damaged at rest, if the plan says so: see [`What::DAMAGE`](crate::What::DAMAGE).

mod decay;
mod file;
mod inode;
mod tree;
mod volume;

pub use file::File;

use crate::{
    fault::{DiskOp, Fault, What},
    node::{Dead, Host, NodeIndex},
    plan::DiskProfile,
    trace::Value,
    Seed,
};
use decay::Past;
pub(crate) use decay::Wound;
use madsim::{plugin::Simulator, rand::GlobalRng, time::TimeHandle, Config};
use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use volume::Volume;

/// All disks of a world: a madsim plugin.
pub struct Disks {
    inner: Mutex<Inner>,
}

struct Inner {
    seed: Seed,
    profile: DiskProfile,
    volumes: BTreeMap<NodeIndex, Volume>,
    /// The plan has damage at rest, and whether old versions of files come back.
    damage: Option<bool>,
}

impl Simulator for Disks {
    fn new(_: &GlobalRng, _: &TimeHandle, _: &Config) -> Self {
        Disks {
            inner: Mutex::new(Inner {
                seed: Seed(0),
                profile: DiskProfile::default(),
                volumes: BTreeMap::new(),
                damage: None,
            }),
        }
    }
}

/// What a power loss did to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Unsynced pages that reached the platter.
    pub pages_kept: u64,
    /// Unsynced pages that did not.
    pub pages_lost: u64,
    /// Unsynced pages of which some sectors did.
    pub pages_torn: u64,
    /// Unsynced lengths that did not.
    pub lengths_lost: u64,
    /// Unsynced directory entries that did not.
    pub entries_lost: u64,
}

impl Disks {
    pub(crate) fn configure(&self, seed: Seed, profile: DiskProfile, faults: &[Fault]) {
        let mut inner = self.lock();
        inner.seed = seed;
        inner.profile = profile;
        let mut damage = faults.iter().filter(|fault| fault.what.damage().is_some());
        let comes_back = |fault: &Fault| matches!(fault.what, What::StaleFile(_));
        let has_damage = damage.clone().next().is_some();
        inner.damage = has_damage.then(|| damage.any(comes_back));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("disks")
    }

    fn with<T>(&self, node: NodeIndex, body: impl FnOnce(&mut Volume) -> T) -> T {
        let mut inner = self.lock();
        let (seed, damage) = (inner.seed, inner.damage);
        let volume = inner.volumes.entry(node);
        let stream = |name| seed.stream(name, u64::from(node));
        body(volume.or_insert_with(|| {
            let mut volume = Volume::new(stream("disk"), stream("disk-folders"));
            volume.past = damage.map(Past::new);
            volume
        }))
    }

    /// Damages what is at rest, if there is anything that fits. The node's process has run for `ran`.
    pub(crate) fn decay(&self, node: NodeIndex, what: &What, ran: Duration) -> Option<Wound> {
        self.with(node, |volume| volume.decay(what, ran))
    }

    pub(crate) fn power_loss(&self, node: NodeIndex) -> Damage {
        self.with(node, Volume::power_loss)
    }

    pub(crate) fn is_durable(&self, node: NodeIndex, path: &str, bytes: u64) -> bool {
        self.with(node, |volume| volume.is_durable(path, bytes as usize))
    }

    pub(crate) fn fail_next(&self, node: NodeIndex, op: DiskOp, times: u64) {
        self.with(node, |volume| volume.fail_next(op, times));
    }

    pub(crate) fn fill(&self, node: NodeIndex, full: bool) {
        self.with(node, |volume| volume.fill(full));
    }

    pub(crate) fn slow(&self, node: NodeIndex, factor: u64) {
        self.with(node, |volume| volume.slow = factor);
    }

    pub(crate) fn heal_all(&self) {
        for volume in self.lock().volumes.values_mut() {
            volume.heal();
        }
    }
}

/// The disk of one node, as its running incarnation sees it. Paths are relative and use `/`;
/// directories are made with the first file in them, and are there until they are removed.
#[derive(Clone)]
pub struct Disk {
    host: Host,
}

impl Disk {
    pub(crate) fn new(host: Host) -> Self {
        Disk { host }
    }

    /// Opens a file, creating it if it does not exist. Its entry is durable after `sync_dir`.
    pub async fn open(&self, path: &str) -> io::Result<File> {
        self.step("disk.open", path, 0).await;
        let inode = self.on_volume(|volume| volume.open(path))?;
        Ok(File::new(self.host.clone(), path, inode))
    }

    /// The names of the files directly in a directory, in order.
    pub async fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.step("disk.list", directory, 0).await;
        self.on_volume(|volume| Ok(volume.list(directory)))
    }

    /// Renames a file, replacing what was there. Durable after `sync_dir`.
    pub async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step("disk.rename", to, 0).await;
        self.on_volume(|volume| volume.rename(from, to))
    }

    /// Removes a file. Durable after `sync_dir`.
    pub async fn remove(&self, path: &str) -> io::Result<()> {
        self.step("disk.remove", path, 0).await;
        self.on_volume(|volume| volume.remove(path))
    }

    /// The names of the directories directly in a directory, in order.
    pub async fn folders(&self, directory: &str) -> io::Result<Vec<String>> {
        self.step("disk.folders", directory, 0).await;
        self.on_volume(|volume| Ok(volume.folders(directory)))
    }

    /// Removes a directory that is empty. Durable, with the removal of what was in it, after `sync_dir`
    /// of the one that holds it.
    pub async fn remove_folder(&self, directory: &str) -> io::Result<()> {
        self.step("disk.remove-folder", directory, 0).await;
        self.on_volume(|volume| volume.remove_folder(directory))
    }

    /// Makes the entries of a directory durable, and its own in those that hold it.
    pub async fn sync_dir(&self, directory: &str) -> io::Result<()> {
        self.step("disk.sync-dir", directory, 0).await;
        self.wait_sync().await;
        self.on_volume(|volume| volume.sync_dir(directory))
    }

    /// Makes an operation a step of its node; a dead incarnation gets no further.
    async fn step(&self, name: &str, path: &str, bytes: u64) {
        let fields = [("path", Value::Text(path)), ("bytes", Value::Num(bytes))];
        if let Err(Dead) = self.host.nodes.step(self.host.id, name, &fields) {
            std::future::pending().await
        }
        let access_us = self.host.disks.lock().profile.access_us;
        self.wait(access_us).await;
    }

    async fn wait_sync(&self) {
        let sync_us = self.host.disks.lock().profile.sync_us;
        self.wait(sync_us).await;
    }

    async fn wait(&self, mean_us: u64) {
        let node = self.host.id.node;
        let us = self
            .host
            .disks
            .with(node, |volume| volume.latency_us(mean_us));
        if us >= 1000 {
            crate::net::sleep(Duration::from_micros(us)).await;
        } else {
            // Too short for a timer: another task may run in between.
            madsim::task::yield_now().await;
        }
        if !self.host.nodes.is_alive(self.host.id) {
            std::future::pending().await
        }
    }

    fn on_volume<T>(&self, body: impl FnOnce(&mut Volume) -> io::Result<T>) -> io::Result<T> {
        let result = self.host.disks.with(self.host.id.node, |volume| {
            if let Some(past) = &mut volume.past {
                past.now = self.host.nodes.has_run(self.host.id.node);
            }
            body(volume)
        });
        if let Err(error) = &result {
            let kind = match error.get_ref().map(ToString::to_string).as_deref() {
                Some(volume::READ_ERROR) => "read-error",
                Some(volume::WRITE_ERROR) => "write-error",
                Some(volume::SYNC_ERROR) => "sync-error",
                Some(volume::NO_SPACE) => "no-space",
                _ => return result,
            };
            self.host.nodes.trace.count(kind);
            self.host.nodes.note(self.host.id.node, kind, &[]);
        }
        result
    }
}
