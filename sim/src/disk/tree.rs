//! The names on a disk: files in directories, and changes of them that are not durable yet.

use super::inode::InodeId;
use std::collections::{BTreeMap, BTreeSet};

/// The files and directories that there are. The root is always there, and is not named.
#[derive(Clone, Default)]
pub(super) struct Tree {
    pub files: BTreeMap<String, InodeId>,
    folders: BTreeSet<String>,
}

/// A change of a directory that is not durable yet.
pub(super) enum Entry {
    Created(String, InodeId),
    Renamed(String, String, InodeId),
    Removed(String),
    Made(String),
    RemovedFolder(String),
}

impl Tree {
    pub fn has_folder(&self, folder: &str) -> bool {
        folder.is_empty() || self.folders.contains(folder)
    }

    /// The names of the files directly in a directory.
    pub fn files_in(&self, directory: &str) -> Vec<String> {
        names_in(self.files.keys(), directory)
    }

    /// The names of the directories directly in a directory.
    pub fn folders_in(&self, directory: &str) -> Vec<String> {
        names_in(self.folders.iter(), directory)
    }

    /// Whether each file is in directories that are there.
    pub fn is_whole(&self) -> bool {
        self.files.keys().all(|path| self.has_folder(parent(path)))
    }

    /// A file that is there is in directories that are.
    pub fn insert(&mut self, path: &str, inode: InodeId) {
        if !self.has_folder(parent(path)) {
            self.folders.extend(above(path).map(str::to_owned));
        }
        self.files.insert(path.to_owned(), inode);
    }
}

impl Entry {
    /// What it is a change of.
    pub fn path(&self) -> &str {
        match self {
            Entry::Created(path, _)
            | Entry::Renamed(_, path, _)
            | Entry::Removed(path)
            | Entry::Made(path)
            | Entry::RemovedFolder(path) => path,
        }
    }

    pub fn apply(&self, tree: &mut Tree) {
        match self {
            Entry::Created(path, inode) => tree.insert(path, *inode),
            Entry::Renamed(from, to, inode) => {
                // If the creation of `from` was lost, the rename still names the file.
                if tree.files.get(from) == Some(inode) {
                    tree.files.remove(from);
                }
                tree.insert(to, *inode);
            }
            Entry::Removed(path) => drop(tree.files.remove(path)),
            Entry::Made(folder) => {
                tree.folders.extend(above(folder).map(str::to_owned));
                tree.folders.insert(folder.clone());
            }
            Entry::RemovedFolder(gone) => {
                tree.files.retain(|path, _| !is_below(path, gone));
                tree.folders
                    .retain(|folder| folder != gone && !is_below(folder, gone));
            }
        }
    }
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The directories that hold `path`, the nearest one first, without the root.
pub(super) fn above(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(parent(path)), |folder| Some(parent(folder)))
        .take_while(|folder| !folder.is_empty())
}

pub(super) fn is_below(path: &str, folder: &str) -> bool {
    (path.strip_prefix(folder)).is_some_and(|rest| rest.starts_with('/'))
}

/// The names of those of `paths` that are directly in a directory.
fn names_in<'a>(paths: impl Iterator<Item = &'a String>, directory: &str) -> Vec<String> {
    let prefix = match directory.is_empty() {
        true => 0,
        false => directory.len() + 1,
    };
    paths
        .filter(|path| parent(path) == directory)
        .map(|path| path[prefix..].to_owned())
        .collect()
}
