//! The content of a file: its page cache over its platter, and what a power loss leaves of both.

use super::Damage;
use crate::seed::Stream;
use std::collections::BTreeMap;

pub(super) const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// Which file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InodeId(pub u64);

#[derive(Default)]
pub(super) struct Inode {
    pub cache: Vec<u8>,
    pub platter: Vec<u8>,
    /// Pages of the cache that are newer than the platter, as far as the kernel knows, each with
    /// the number of the write that changed it last.
    pub dirty: BTreeMap<usize, u64>,
    writes: u64,
    /// The write that changed the length last.
    len_write: u64,
    /// Which write of each page, and of the length, the platter has: syncs that overlap may end in any
    /// order, and an older one never takes back what a newer one has stored.
    platter_writes: BTreeMap<usize, u64>,
    platter_len_write: u64,
}

/// A sync that has begun: what it will make durable.
pub(super) struct Sync {
    /// The dirty pages, each with its last write, and their bytes.
    pub pages: BTreeMap<usize, (u64, Vec<u8>)>,
    /// The length, and the write that made it so.
    pub len: (usize, u64),
}

impl Inode {
    /// A file whose bytes are durable.
    pub fn durable(bytes: Vec<u8>) -> Inode {
        Inode {
            cache: bytes.clone(),
            platter: bytes,
            ..Inode::default()
        }
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if bytes.is_empty() {
            return;
        }
        self.touch(offset / PAGE, (end - 1) / PAGE);
        if end > self.cache.len() {
            self.cache.resize(end, 0);
            self.len_write = self.writes;
        }
        self.cache[offset..end].copy_from_slice(bytes);
    }

    pub fn truncate(&mut self, len: usize) {
        let old = self.cache.len();
        self.cache.resize(len, 0);
        self.writes += 1;
        self.len_write = self.writes;
        self.dirty.retain(|page, _| page * PAGE < len);
        // The page in which the file now ends has changed; a length alone is no page.
        if len > 0 && old != len {
            self.touch(old.min(len - 1) / PAGE, (len - 1) / PAGE);
        }
    }

    fn touch(&mut self, first: usize, last: usize) {
        self.writes += 1;
        let write = self.writes;
        self.dirty.extend((first..=last).map(|page| (page, write)));
    }

    /// What a sync that begins now will make durable.
    pub fn begin_sync(&self) -> Sync {
        let len = self.cache.len();
        let copy = |page: usize| {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(len));
            self.cache[from.min(len)..to].to_vec()
        };
        let pages = (self.dirty.iter()).map(|(page, write)| (*page, (*write, copy(*page))));
        Sync {
            pages: pages.collect(),
            len: (len, self.len_write),
        }
    }

    /// Moves copies of pages, and a length, to the platter, unless it has newer ones.
    pub fn store(&mut self, len: (usize, u64), pages: &BTreeMap<usize, (u64, Vec<u8>)>) {
        if len.1 > self.platter_len_write {
            self.platter_len_write = len.1;
            self.platter.resize(len.0, 0);
        }
        for (page, (write, copy)) in pages {
            let known = self.platter_writes.entry(*page).or_default();
            if *write > *known {
                *known = *write;
                let from = (page * PAGE).min(self.platter.len());
                let to = (from + copy.len()).min(self.platter.len());
                self.platter[from..to].copy_from_slice(&copy[..to - from]);
            }
        }
    }

    pub fn power_loss(&mut self, draws: &mut Stream, damage: &mut Damage) {
        let len_new = self.cache.len();
        let mut len = self.platter.len();
        if len_new != len {
            if draws.chance(600) {
                len = len_new;
            } else {
                damage.lengths_lost += 1;
            }
        }
        let mut after = self.platter.clone();
        after.resize(len, 0);
        for page in self.dirty.keys() {
            let (from, to) = (
                (page * PAGE).min(len),
                ((page + 1) * PAGE).min(len).min(len_new),
            );
            if from >= to {
                damage.pages_lost += 1;
                continue;
            }
            match draws.below(3) {
                0 => damage.pages_lost += 1,
                1 => {
                    damage.pages_kept += 1;
                    after[from..to].copy_from_slice(&self.cache[from..to]);
                }
                _ => {
                    damage.pages_torn += 1;
                    for sector in (from..to).step_by(SECTOR) {
                        if draws.chance(500) {
                            let end = (sector + SECTOR).min(to);
                            after[sector..end].copy_from_slice(&self.cache[sector..end]);
                        }
                    }
                }
            }
        }
        assert!(after.len() == len_new || after.len() == self.platter.len());
        self.cache = after.clone();
        self.platter = after;
        self.dirty.clear();
        self.platter_len_write = self.len_write;
    }
}
