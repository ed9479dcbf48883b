//! Damage at rest: bits rot, entries vanish, pages and files go astray, old files come back.
//!
//! Only what has rested for [`REST`] is struck, so that a program has had the time to note elsewhere that it is there:
//! of what it has synced just now no program can tell a loss from a sync that never was. While the program does not
//! run, it notes nothing, and nothing comes to rest: all times here are those for which it has run. A volume remembers
//! its past only if its plan has damage.

use super::{
    inode::{InodeId, PAGE},
    tree::parent,
    volume::Volume,
};
use crate::{fault::What, seed::Stream, Seed};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// How long something must have been durable, and the program have run, before it is damaged.
pub(crate) const REST: Duration = Duration::from_secs(3);

/// Versions of a file that may come back.
const VERSIONS_MAX: usize = 8;

/// Pages of a file, each from one byte to another.
type Pages = Vec<(usize, usize)>;

/// What was damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wound {
    /// Which file.
    pub path: String,
    /// From which byte on.
    pub position: u64,
}

/// What a volume remembers of its past.
pub(super) struct Past {
    /// For how long the program has run, as of the operation that runs.
    pub now: Duration,
    /// Whether old versions of files are kept: they cost a copy with each sync.
    keeps_versions: bool,
    /// How much of each file was durable, and since when; never shrinks in between.
    lengths: BTreeMap<InodeId, VecDeque<(Duration, usize)>>,
    /// Since when each entry is as it is.
    entries: BTreeMap<String, Duration>,
    /// What each file was, and until when.
    versions: BTreeMap<String, VecDeque<(Duration, Vec<u8>)>>,
    /// The files that were damaged.
    wounded: BTreeSet<String>,
}

impl Past {
    pub fn new(keeps_versions: bool) -> Self {
        Past {
            now: Duration::ZERO,
            keeps_versions,
            lengths: BTreeMap::new(),
            entries: BTreeMap::new(),
            versions: BTreeMap::new(),
            wounded: BTreeSet::new(),
        }
    }

    pub fn is_wounded(&self, path: &str) -> bool {
        self.wounded.contains(path)
    }

    /// A file was synced up to this length.
    pub fn synced(&mut self, inode: InodeId, len: usize) {
        let lengths = self.lengths.entry(inode).or_default();
        // What is durable is no more than what is left.
        for (_, before) in lengths.iter_mut() {
            *before = len.min(*before);
        }
        lengths.push_back((self.now, len));
        while lengths
            .get(1)
            .is_some_and(|(since, _)| *since + REST <= self.now)
        {
            lengths.pop_front();
        }
        assert!(lengths.iter().is_sorted(), "they grow as time goes on");
        assert_eq!(lengths.back(), Some(&(self.now, len)), "what was synced");
    }

    /// An entry becomes another one; `before` is what its file was, if there was one.
    pub fn changed(&mut self, path: &str, before: Option<&[u8]>) {
        self.entries.insert(path.to_owned(), self.now);
        if let Some(before) = before {
            self.superseded(path, before);
        }
    }

    /// A file is no longer what it was.
    pub fn superseded(&mut self, path: &str, before: &[u8]) {
        if !self.keeps_versions {
            return;
        }
        let versions = self.versions.entry(path.to_owned()).or_default();
        versions.push_back((self.now, before.to_vec()));
        if versions.len() > VERSIONS_MAX {
            // Neither the oldest nor the newest ones alone.
            versions.remove(VERSIONS_MAX / 2);
        }
    }

    fn rests(&self, path: &str) -> bool {
        let since = self.entries.get(path).copied().unwrap_or_default();
        since + REST <= self.now
    }

    fn rested_len(&self, inode: InodeId) -> usize {
        let lengths = self.lengths.get(&inode).into_iter().flatten();
        let rested = lengths.take_while(|(since, _)| *since + REST <= self.now);
        rested.last().map_or(0, |(_, len)| *len)
    }
}

impl Volume {
    /// Damages something that rests, if there is anything that fits.
    pub fn decay(&mut self, what: &What, ran: Duration) -> Option<Wound> {
        let spot = what.damage().expect("it is damage");
        self.past.as_mut().expect("the plan has damage").now = ran;
        let mut draws = Seed(spot.pick).stream("decay", 0);
        let wound = match what {
            What::BitRot(_) => self.rot(&spot.file, &mut draws),
            What::LostFile(_) => self.lose(&spot.file, &mut draws),
            What::Misdirected(_) if draws.chance(500) => self.misdirect(&spot.file, &mut draws),
            What::Misdirected(_) => self.cross(&spot.file, &mut draws),
            _ => self.bring_back(&spot.file, &mut draws),
        }?;
        let past = self.past.as_mut().expect("the plan has damage");
        past.wounded.insert(wound.path.clone());
        Some(wound)
    }

    /// A bit is another one.
    fn rot(&mut self, file: &str, draws: &mut Stream) -> Option<Wound> {
        let (path, inode, pages) = pick(&self.resting(file), draws)?.clone();
        let (from, to) = *pick(&pages, draws)?;
        let at = from + draws.below((to - from) as u64) as usize;
        let bit = 1 << draws.below(8);
        let byte = self.inodes[&inode].platter[at] ^ bit;
        self.overwrite(inode, at, &[byte]);
        let position = at as u64;
        Some(Wound { path, position })
    }

    /// An entry vanishes. Whoever has the file open does not notice.
    fn lose(&mut self, file: &str, draws: &mut Stream) -> Option<Wound> {
        let path = pick(&self.entries_at_rest(file), draws)?.clone();
        self.seen.files.remove(&path);
        self.durable.files.remove(&path);
        Some(Wound { path, position: 0 })
    }

    /// A page was written to the place of another one.
    fn misdirect(&mut self, file: &str, draws: &mut Stream) -> Option<Wound> {
        let (path, inode, pages) = pick(&self.resting(file), draws)?.clone();
        let (from, to) = *pick(&pages, draws)?;
        let (_, other, pages) = pick(&self.resting(""), draws)?.clone();
        let (other_from, other_to) = *pick(&pages, draws)?;
        let len = (to - from).min(other_to - other_from);
        let bytes = self.inodes[&other].platter[other_from..other_from + len].to_vec();
        if bytes == self.inodes[&inode].platter[from..from + len] {
            return None;
        }
        self.overwrite(inode, from, &bytes);
        let position = from as u64;
        Some(Wound { path, position })
    }

    /// An entry names a copy of another file. Whoever has the file open does not notice.
    fn cross(&mut self, file: &str, draws: &mut Stream) -> Option<Wound> {
        let path = pick(&self.entries_at_rest(file), draws)?.clone();
        let other = pick(&self.entries_at_rest(""), draws)?.clone();
        let content = |path| &self.inodes[&self.durable.files[path]].platter;
        let bytes = content(&other).clone();
        if bytes == *content(&path) {
            return None;
        }
        self.put(&path, bytes);
        Some(Wound { path, position: 0 })
    }

    /// A file is what it was before, or is there again. Whoever has the file open does not notice.
    fn bring_back(&mut self, file: &str, draws: &mut Stream) -> Option<Wound> {
        let past = self.past.as_ref().expect("the plan has damage");
        let mut candidates = Vec::new();
        for (path, versions) in &past.versions {
            let fits = path.contains(file)
                && past.rests(path)
                && self.seen.has_folder(parent(path))
                && self.seen.files.get(path) == self.durable.files.get(path);
            if !fits {
                continue;
            }
            let now = self.durable.files.get(path);
            let now = now.map(|inode| &self.inodes[inode].platter);
            let old = versions.iter().filter(|(until, old)| {
                *until + REST <= past.now && now.is_none_or(|now| now != old)
            });
            let old: Vec<&Vec<u8>> = old.map(|(_, old)| old).collect();
            if !old.is_empty() {
                candidates.push((path.clone(), old));
            }
        }
        let (path, old) = pick(&candidates, draws)?;
        let (path, bytes) = (path.clone(), (*pick(old, draws)?).clone());
        self.put(&path, bytes);
        Some(Wound { path, position: 0 })
    }

    /// The files whose path holds this text, and the pages of each that rest.
    fn resting(&self, file: &str) -> Vec<(String, InodeId, Pages)> {
        let past = self.past.as_ref().expect("the plan has damage");
        let mut all = Vec::new();
        for path in self.entries_at_rest(file) {
            let id = self.durable.files[&path];
            let inode = &self.inodes[&id];
            let len = inode.platter.len().min(inode.cache.len());
            let len = len.min(past.rested_len(id));
            let pages = (0..len)
                .step_by(PAGE)
                .map(|from| (from, len.min(from + PAGE)));
            let pages = pages.filter(|(from, to)| {
                let is_clean = !inode.dirty.contains_key(&(from / PAGE));
                is_clean && inode.platter[*from..*to] == inode.cache[*from..*to]
            });
            let pages: Vec<_> = pages.collect();
            if !pages.is_empty() {
                all.push((path, id, pages));
            }
        }
        all
    }

    /// The paths that hold this text, and whose entries rest.
    fn entries_at_rest(&self, file: &str) -> Vec<String> {
        let past = self.past.as_ref().expect("the plan has damage");
        let entries = self.durable.files.iter().filter(|(path, inode)| {
            path.contains(file) && self.seen.files.get(*path) == Some(*inode) && past.rests(path)
        });
        entries.map(|(path, _)| path.clone()).collect()
    }

    /// Writes into cache and platter alike.
    fn overwrite(&mut self, inode: InodeId, at: usize, bytes: &[u8]) {
        let inode = self.inodes.get_mut(&inode).expect("a file that was picked");
        inode.platter[at..at + bytes.len()].copy_from_slice(bytes);
        inode.cache[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets an entry name another file with these bytes.
    fn put(&mut self, path: &str, bytes: Vec<u8>) {
        let inode = self.add_durable(bytes);
        self.seen.insert(path, inode);
        self.durable.insert(path, inode);
    }
}

fn pick<'a, T>(all: &'a [T], draws: &mut Stream) -> Option<&'a T> {
    if all.is_empty() {
        return None;
    }
    all.get(draws.below(all.len() as u64) as usize)
}
