//! One node's disk: what programs do to it, what fails, and what a power loss leaves. Pure, without time.

use super::{
    decay::Past,
    inode::{Inode, InodeId, Sync, PAGE},
    tree::{above, is_below, parent, Entry, Tree},
    Damage,
};
use crate::{fault::DiskOp, seed::Stream};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

pub(super) const READ_ERROR: &str = "the disk could not read";
pub(super) const WRITE_ERROR: &str = "the disk could not write";
pub(super) const SYNC_ERROR: &str = "the disk could not sync";
pub(super) const NO_SPACE: &str = "no space left on the disk";

pub(super) struct Volume {
    pub inodes: BTreeMap<InodeId, Inode>,
    next: u64,
    /// What programs see.
    pub seen: Tree,
    /// What a power loss leaves for certain.
    pub durable: Tree,
    pending: Vec<Entry>,
    failing: BTreeMap<DiskOp, u64>,
    /// How many bytes there is room for; `None`: as many as anybody wants.
    free: Option<u64>,
    pub slow: u64,
    draws: Stream,
    /// What becomes of directories: apart, so that they reshuffle nothing else.
    folder_draws: Stream,
    /// Only for a plan with damage at rest.
    pub past: Option<Past>,
}

impl Volume {
    pub fn new(draws: Stream, folder_draws: Stream) -> Self {
        Volume {
            inodes: BTreeMap::new(),
            next: 0,
            seen: Tree::default(),
            durable: Tree::default(),
            pending: Vec::new(),
            failing: BTreeMap::new(),
            free: None,
            slow: 1,
            draws,
            folder_draws,
            past: None,
        }
    }

    pub fn latency_us(&mut self, mean_us: u64) -> u64 {
        (mean_us / 2 + self.draws.below(mean_us.max(1))) * self.slow
    }

    pub fn fail_next(&mut self, op: DiskOp, times: u64) {
        *self.failing.entry(op).or_default() += times;
    }

    pub fn heal(&mut self) {
        self.failing.clear();
        self.free = None;
        self.slow = 1;
    }

    /// Takes all room that is left, or gives it back. What is removed or cut meanwhile makes room.
    pub fn fill(&mut self, full: bool) {
        self.free = full.then_some(0);
    }

    fn make_room(&mut self, bytes: u64) {
        if let Some(free) = &mut self.free {
            *free += bytes;
        }
    }

    fn size_of(&self, path: &str) -> u64 {
        let inode = self.seen.files.get(path);
        let inode = inode.and_then(|inode| self.inodes.get(inode));
        inode.map_or(0, |inode| inode.cache.len() as u64)
    }

    pub fn open(&mut self, path: &str) -> io::Result<InodeId> {
        if let Some(inode) = self.seen.files.get(path) {
            return Ok(*inode);
        }
        if self.seen.has_folder(path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if above(path).any(|folder| self.seen.files.contains_key(folder)) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        self.check(DiskOp::Write)?;
        if self.free == Some(0) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, NO_SPACE));
        }
        let inode = self.next_inode();
        self.inodes.insert(inode, Inode::default());
        let mut folders: Vec<&str> = above(path).collect();
        folders.retain(|folder| !self.seen.has_folder(folder));
        let made = folders
            .into_iter()
            .rev()
            .map(|folder| Entry::Made(folder.to_owned()));
        let entries = made.chain([Entry::Created(path.to_owned(), inode)]);
        for entry in entries.collect::<Vec<_>>() {
            self.change(entry);
        }
        Ok(inode)
    }

    pub fn list(&self, directory: &str) -> Vec<String> {
        self.seen.files_in(directory)
    }

    pub fn folders(&self, directory: &str) -> Vec<String> {
        self.seen.folders_in(directory)
    }

    pub fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.check(DiskOp::Write)?;
        let inode = self.seen.files.get(from).copied();
        let inode = inode.ok_or(io::ErrorKind::NotFound)?;
        if self.seen.has_folder(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !self.seen.has_folder(parent(to)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.make_room(self.size_of(to));
        self.change(Entry::Renamed(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    pub fn remove(&mut self, path: &str) -> io::Result<()> {
        self.check(DiskOp::Write)?;
        if self.seen.has_folder(path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !self.seen.files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.make_room(self.size_of(path));
        self.change(Entry::Removed(path.to_owned()));
        Ok(())
    }

    pub fn remove_folder(&mut self, folder: &str) -> io::Result<()> {
        self.check(DiskOp::Write)?;
        if folder.is_empty() || !self.seen.has_folder(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !self.list(folder).is_empty() || !self.folders(folder).is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.change(Entry::RemovedFolder(folder.to_owned()));
        Ok(())
    }

    pub fn sync_dir(&mut self, directory: &str) -> io::Result<()> {
        if !self.seen.has_folder(directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.check(DiskOp::Sync)?;
        // Its own entry, and those of the directories above it, become durable with it; so does what was done under
        // that name before the directory was made: it must not come later, and take what is durable by then.
        let own: BTreeSet<&str> = above(directory).chain([directory]).collect();
        let made = self.last(|entry| match entry {
            Entry::Made(folder) if own.contains(folder.as_str()) => Some(folder),
            _ => None,
        });
        // So does what was done in a directory before it was removed.
        let gone = self.last(|entry| match entry {
            Entry::RemovedFolder(gone) if parent(gone) == directory => Some(gone),
            _ => None,
        });
        let mut later = Vec::new();
        for (at, entry) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let path = entry.path();
            let is_made = (made.iter())
                .any(|(made, end)| at <= *end && (path == made || is_below(path, made)));
            let is_gone = (gone.iter()).any(|(gone, end)| at < *end && is_below(path, gone));
            if parent(path) == directory || is_made || is_gone {
                self.remember_entry(&entry);
                entry.apply(&mut self.durable);
            } else {
                later.push(entry);
            }
        }
        self.pending = later;
        let is_done = |entry: &Entry| parent(entry.path()) != directory;
        assert!(self.pending.iter().all(is_done), "nothing is left to sync");
        assert!(self.durable.has_folder(directory), "it is durable itself");
        assert!(self.durable.is_whole(), "a file is in a directory");
        Ok(())
    }

    /// The directories that a change which is not durable yet picks, each with the place of the last such change.
    fn last(&self, picks: impl Fn(&Entry) -> Option<&String>) -> BTreeMap<String, usize> {
        let changes = self.pending.iter().enumerate();
        let picked = changes.filter_map(|(at, entry)| Some((picks(entry)?.clone(), at)));
        picked.collect()
    }

    /// Before an entry becomes durable: what it takes the place of is of the past.
    fn remember_entry(&mut self, entry: &Entry) {
        let Some(past) = &mut self.past else { return };
        let mut changes = |path: &str| {
            let before = self.durable.files.get(path);
            let before = before.and_then(|inode| self.inodes.get(inode));
            past.changed(path, before.map(|inode| inode.platter.as_slice()));
        };
        match entry {
            Entry::Created(path, _) | Entry::Removed(path) => changes(path),
            Entry::Renamed(from, to, _) => [from, to].into_iter().for_each(|path| changes(path)),
            Entry::Made(_) | Entry::RemovedFolder(_) => {}
        }
    }

    /// Before a file is synced: what the platter has of it is of the past.
    fn remember_content(&mut self, inode: InodeId) {
        let Some(past) = &mut self.past else { return };
        let Some(content) = self.inodes.get(&inode) else {
            return;
        };
        let mut names = self.durable.files.iter();
        if let Some((path, _)) = names.find(|(_, named)| **named == inode) {
            past.superseded(path, &content.platter);
        }
    }

    /// A new file, with bytes that are durable.
    pub fn add_durable(&mut self, bytes: Vec<u8>) -> InodeId {
        let inode = self.next_inode();
        self.inodes.insert(inode, Inode::durable(bytes));
        inode
    }

    fn next_inode(&mut self) -> InodeId {
        self.next += 1;
        InodeId(self.next - 1)
    }

    fn change(&mut self, entry: Entry) {
        entry.apply(&mut self.seen);
        self.pending.push(entry);
    }

    pub fn len(&mut self, inode: InodeId) -> io::Result<u64> {
        Ok(self.inode(inode)?.cache.len() as u64)
    }

    pub fn read_at(&mut self, inode: InodeId, offset: u64, len: usize) -> io::Result<Bytes> {
        self.check(DiskOp::Read)?;
        let cache = &self.inode(inode)?.cache;
        let from = (offset as usize).min(cache.len());
        let to = from.saturating_add(len).min(cache.len());
        Ok(Bytes::copy_from_slice(&cache[from..to]))
    }

    pub fn write_at(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (offset, before) = (offset as usize, self.inode(inode)?.cache.len());
        assert!(offset <= before, "a write past the end");
        let grown = |len: usize| (offset + len).saturating_sub(before) as u64;
        let failed = match self.free {
            Some(free) if grown(bytes.len()) > free => {
                Err(io::Error::new(io::ErrorKind::StorageFull, NO_SPACE))
            }
            _ => self.check(DiskOp::Write),
        };
        // A write that fails may have written a part, as far as there is room.
        let mut len = match failed {
            Ok(()) => bytes.len(),
            Err(_) => self.draws.below(bytes.len() as u64 + 1) as usize,
        };
        if let Some(free) = &mut self.free {
            len = len.min((before - offset).saturating_add(*free as usize));
            *free -= grown(len);
        }
        self.inode(inode)?.write(offset, &bytes[..len]);
        failed
    }

    pub fn truncate(&mut self, inode: InodeId, len: u64) -> io::Result<()> {
        self.check(DiskOp::Write)?;
        let before = self.len(inode)?;
        self.inode(inode)?.truncate(len as usize);
        self.make_room(before.saturating_sub(len));
        Ok(())
    }

    pub fn begin_sync(&mut self, inode: InodeId) -> io::Result<Sync> {
        Ok(self.inode(inode)?.begin_sync())
    }

    pub fn end_sync(&mut self, inode: InodeId, sync: Sync) -> io::Result<()> {
        let result = self.check(DiskOp::Sync);
        // What was written while the sync ran stays dirty.
        let dirty = &mut self.inode(inode)?.dirty;
        dirty.retain(|page, write| sync.pages.get(page).map(|(synced, _)| synced) != Some(write));
        let Sync { mut pages, mut len } = sync;
        if result.is_err() {
            // In doubt: each page did or did not get there, and the kernel calls all of them clean.
            pages.retain(|_, _| self.draws.chance(500));
            if self.draws.chance(500) {
                len.1 = 0;
            }
        }
        self.remember_content(inode);
        self.inode(inode)?.store(len, &pages);
        if let (Some(past), Ok(())) = (&mut self.past, &result) {
            past.synced(inode, self.inodes[&inode].platter.len());
        }
        result
    }

    /// Whether the first `bytes` of a file would survive a power loss for certain.
    pub fn is_durable(&self, path: &str, bytes: usize) -> bool {
        // What was damaged was durable.
        if self.past.as_ref().is_some_and(|past| past.is_wounded(path)) {
            return true;
        }
        let Some(inode) = self.seen.files.get(path) else {
            return false;
        };
        let same = |inode: &Inode| {
            let mut pages = inode.dirty.keys().map(|page| page * PAGE);
            inode.platter.len() >= bytes
                && pages.all(|from| {
                    let to = (from + PAGE).min(bytes);
                    from >= to || inode.platter[from..to] == inode.cache[from..to]
                })
        };
        self.durable.files.get(path) == Some(inode) && self.inodes.get(inode).is_some_and(same)
    }

    /// Leaves what reached the platter, and shows it to whoever comes next.
    pub fn power_loss(&mut self) -> Damage {
        let mut damage = Damage::default();
        for entry in std::mem::take(&mut self.pending) {
            let draws = match entry {
                Entry::Made(_) | Entry::RemovedFolder(_) => &mut self.folder_draws,
                _ => &mut self.draws,
            };
            if draws.chance(500) {
                entry.apply(&mut self.durable);
            } else {
                damage.entries_lost += 1;
            }
        }
        for inode in self.inodes.values_mut() {
            inode.power_loss(&mut self.draws, &mut damage);
        }
        assert!(self.durable.is_whole(), "a file is in a directory");
        self.seen = self.durable.clone();
        let named: BTreeSet<InodeId> = self.seen.files.values().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
        assert_eq!(named.len(), self.inodes.len(), "each name has its file");
        damage
    }

    fn inode(&mut self, inode: InodeId) -> io::Result<&mut Inode> {
        self.inodes
            .get_mut(&inode)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check(&mut self, op: DiskOp) -> io::Result<()> {
        match self.failing.get_mut(&op) {
            Some(times) if *times > 0 => {
                *times -= 1;
                Err(io::Error::other(match op {
                    DiskOp::Read => READ_ERROR,
                    DiskOp::Write => WRITE_ERROR,
                    DiskOp::Sync => SYNC_ERROR,
                }))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    fn volume(seed: u64) -> Volume {
        let stream = |name| Seed(seed).stream(name, 0);
        Volume::new(stream("disk"), stream("disk-folders"))
    }

    fn sync(volume: &mut Volume, inode: InodeId) -> io::Result<()> {
        let begun = volume.begin_sync(inode)?;
        volume.end_sync(inode, begun)
    }

    #[test]
    fn what_is_synced_survives_and_the_rest_may_go_any_way() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let mut volume = volume(seed);
            let file = volume.open("d/f").unwrap();
            volume.write_at(file, 0, &[1; 5000]).unwrap();
            sync(&mut volume, file).unwrap();
            volume.sync_dir("d").unwrap();
            volume.write_at(file, 4096, &[2; 4096]).unwrap();
            volume.power_loss();
            let file = volume.open("d/f").unwrap();
            let bytes = volume.read_at(file, 0, 10_000).unwrap();
            assert_eq!(bytes[..4096], [1; 4096], "the first page was synced");
            let new = bytes.iter().filter(|byte| **byte == 2).count();
            seen.insert((bytes.len(), new));
        }
        assert!(seen.contains(&(5000, 0)), "length and page lost");
        assert!(seen.contains(&(8192, 4096)), "both kept");
        assert!(seen.contains(&(8192, 0)), "a length without its page");
        assert!(seen.len() > 6, "torn in many ways: {seen:?}");
    }

    #[test]
    fn syncs_that_overlap_may_end_in_any_order() {
        let mut volume = volume(1);
        let file = volume.open("f").unwrap();
        volume.sync_dir("").unwrap();
        volume.write_at(file, 0, &[1; 6000]).unwrap();
        let first = volume.begin_sync(file).unwrap();
        volume.write_at(file, 6000, &[2; 6000]).unwrap();
        let second = volume.begin_sync(file).unwrap();
        volume.end_sync(file, second).unwrap();
        volume.end_sync(file, first).unwrap();
        volume.power_loss();
        let bytes = volume.read_at(file, 0, 20_000).unwrap();
        assert_eq!(bytes.len(), 12_000);
        assert!(bytes[..6000].iter().all(|b| *b == 1) && bytes[6000..].iter().all(|b| *b == 2));
    }

    #[test]
    fn an_entry_lasts_once_its_directory_is_synced() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..50 {
            let mut volume = volume(seed);
            let file = volume.open("d/new").unwrap();
            sync(&mut volume, file).unwrap();
            volume.rename("d/new", "d/name").unwrap();
            volume.power_loss();
            outcomes.insert(volume.list("d"));
        }
        assert_eq!(outcomes.len(), 3, "lost, created, renamed: {outcomes:?}");
    }

    #[test]
    fn a_directory_lasts_once_it_or_one_in_it_is_synced() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..100 {
            let mut volume = volume(seed);
            volume.open("d/e/kept").unwrap();
            volume.sync_dir("d/e").unwrap();
            volume.open("d/new/f").unwrap();
            volume.open("d/lost/f").unwrap();
            volume.remove("d/lost/f").unwrap();
            volume.remove_folder("d/lost").unwrap();
            volume.power_loss();
            assert_eq!(volume.list("d/e"), ["kept"]);
            outcomes.insert((volume.folders("d"), volume.list("d/new")));
            let synced = volume.sync_dir("d/new").map_err(|error| error.kind());
            let is_there = volume.folders("d").contains(&"new".to_owned());
            assert_eq!(synced.is_ok(), is_there);
        }
        let new = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            (vec!["e".to_owned(), "new".to_owned()], files)
        };
        assert!(outcomes.contains(&(vec!["e".to_owned()], vec![])));
        assert!(outcomes.contains(&new(&[])), "made, and nothing in it");
        assert!(outcomes.contains(&new(&["f"])), "{outcomes:?}");
    }

    #[test]
    fn what_was_in_a_removed_directory_goes_with_it() {
        for seed in 0..50 {
            let mut volume = volume(seed);
            volume.open("d/e/old").unwrap();
            volume.sync_dir("d/e").unwrap();
            volume.remove("d/e/old").unwrap();
            volume.remove_folder("d/e").unwrap();
            volume.open("d/e/new").unwrap();
            volume.sync_dir("d").unwrap();
            volume.power_loss();
            assert!(!volume.list("d/e").contains(&"old".to_owned()));
        }
    }

    #[test]
    fn what_is_synced_in_a_directory_that_was_made_again_lasts() {
        for (removed, made) in [("d/e", "d/e"), ("d", "d/e"), ("d", "d")] {
            for seed in 0..50 {
                let mut volume = volume(seed);
                volume.open("d/e/old").unwrap();
                volume.sync_dir("d/e").unwrap();
                volume.remove("d/e/old").unwrap();
                volume.remove_folder("d/e").unwrap();
                if removed == "d" {
                    volume.remove_folder("d").unwrap();
                }
                let new = format!("{made}/new");
                volume.open(&new).unwrap();
                volume.sync_dir(made).unwrap();
                if seed % 2 == 0 {
                    volume.sync_dir(parent(made)).unwrap();
                }
                volume.power_loss();
                assert_eq!(volume.list(made), ["new"], "{removed}, then {new}");
            }
        }
    }

    #[test]
    fn what_is_removed_from_a_full_disk_makes_room() {
        let mut volume = volume(1);
        let file = volume.open("f").unwrap();
        volume.write_at(file, 0, &[1; 100]).unwrap();
        let other = volume.open("g").unwrap();
        volume.write_at(other, 0, &[1; 30]).unwrap();
        volume.fill(true);
        volume.write_at(file, 0, &[2; 100]).expect("it is there");
        volume.write_at(file, 100, &[3]).unwrap_err();
        assert_eq!(volume.len(file).unwrap(), 100);
        volume.open("h").unwrap_err();
        volume.remove("g").unwrap();
        volume.write_at(file, 100, &[3; 30]).unwrap();
        volume.write_at(file, 130, &[3]).unwrap_err();
        volume.truncate(file, 129).unwrap();
        volume.write_at(file, 129, &[3]).unwrap();
        volume.fill(false);
        volume.write_at(file, 130, &[3; 100]).unwrap();
    }

    #[test]
    fn a_failed_sync_leaves_doubt_that_a_later_sync_does_not_remove() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..50 {
            let mut volume = volume(seed);
            let file = volume.open("f").unwrap();
            volume.sync_dir("").unwrap();
            volume.write_at(file, 0, b"new").unwrap();
            volume.fail_next(DiskOp::Sync, 1);
            sync(&mut volume, file).unwrap_err();
            sync(&mut volume, file).unwrap();
            volume.power_loss();
            let file = volume.open("f").unwrap();
            outcomes.insert(volume.read_at(file, 0, 3).unwrap().to_vec());
        }
        assert!(outcomes.contains(b"new".as_slice()), "{outcomes:?}");
        assert!(outcomes.len() > 1, "{outcomes:?}");
    }
}
