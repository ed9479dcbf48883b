//! Damage at rest, drawn: in every way that a disk or a person has, to every kind of file. Whatever was damaged is
//! refused by its name, repaired, or harmless; nothing is lost in silence, nothing panics, nothing waits for ever.

mod broker;

use sim::Seed;
use std::{collections::BTreeMap, fs, path::Path};

/// The files of a folder, by their paths.
pub type Image = BTreeMap<String, Vec<u8>>;

/// A way in which files are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A bit is another one.
    Flip,
    /// The end is gone.
    Cut,
    /// A range is zero.
    Zero,
    /// A range is there a second time, in another place of the file.
    DuplicateRange,
    /// The file is there a second time, under the name of its neighbour.
    DuplicateFile,
    /// The bytes of another file of this kind are in its place.
    Misdirect,
    /// A range of another file of this kind is in its place.
    MisdirectRange,
    /// It is gone.
    Delete,
    /// Something else is in its place, or after it.
    Garbage,
}

pub const WAYS: [Way; 9] = [
    Way::Flip,
    Way::Cut,
    Way::Zero,
    Way::DuplicateRange,
    Way::DuplicateFile,
    Way::Misdirect,
    Way::MisdirectRange,
    Way::Delete,
    Way::Garbage,
];

/// What was done to an image.
#[derive(Clone, Debug)]
pub struct Damage {
    /// In words.
    pub what: String,
    /// The file that is not what it was.
    pub path: String,
}

/// Damages the file at `path` of an image. `others` are files of its kind. Returns `None` if that changes nothing.
pub fn damage(
    image: &mut Image,
    path: &str,
    way: Way,
    others: &[String],
    seed: u64,
) -> Option<Damage> {
    let mut draws = Seed(seed).stream("damage", 0);
    let mut draw = |below: usize| draws.below(below.max(1) as u64) as usize;
    let before = image.get(path).cloned().unwrap_or_default();
    let mut bytes = before.clone();
    let len = bytes.len();
    let (from, size) = (draw(len), 1 + draw(64));
    let range = from..(from + size).min(len);
    let other = match others.is_empty() {
        true => None,
        false => Some(others[draw(others.len())].clone()),
    };
    let (mut changed, mut detail) = (path.to_owned(), format!("at {range:?}"));
    match way {
        _ if len == 0 && !matches!(way, Way::Delete | Way::Garbage) => return None,
        Way::Flip => bytes[from] ^= 1 << draw(8),
        Way::Cut => {
            bytes.truncate(from);
            detail = format!("at {from} of {len}");
        }
        Way::Zero => bytes[range].fill(0),
        Way::DuplicateRange => {
            let copy = bytes[range].to_vec();
            let at = draw(len);
            let end = (at + copy.len()).min(len);
            bytes[at..end].copy_from_slice(&copy[..end - at]);
            detail += &format!(" to {at}");
        }
        Way::DuplicateFile => {
            changed = neighbour(path);
            if image.contains_key(&changed) {
                return None;
            }
            detail = format!("as {changed}");
        }
        Way::Misdirect => {
            let other = other?;
            bytes = image[&other].clone();
            detail = format!("from {other}");
        }
        Way::MisdirectRange => {
            let other = other?;
            let source = &image[&other];
            let end = range.end.min(source.len());
            if from >= end {
                return None;
            }
            bytes[from..end].copy_from_slice(&source[from..end]);
            detail += &format!(" from {other}");
        }
        Way::Delete => {
            image.remove(path);
            return Some(Damage {
                what: format!("{path}: {way:?}"),
                path: changed,
            });
        }
        Way::Garbage => {
            let garbage: Vec<u8> = (0..size).map(|_| draw(256) as u8).collect();
            match draw(2) {
                0 => bytes = garbage,
                _ => bytes.extend(garbage),
            }
            detail = format!("{size} bytes, then {} are there", bytes.len());
        }
    }
    if changed == path && bytes == before {
        return None;
    }
    image.insert(changed.clone(), bytes);
    Some(Damage {
        what: format!("{path}: {way:?} {detail}"),
        path: changed,
    })
}

/// A name that a file of this kind could have: the next segment's, or the temporary one of a small file.
fn neighbour(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name.strip_suffix(".log").map(str::parse::<u64>) {
        Some(Ok(base)) => format!("{folder}/{:020}.log", base + 1),
        _ => format!("{path}.new"),
    }
}

/// Reads what is in a folder.
pub fn read_image(root: &Path) -> Image {
    fn visit(root: &Path, folder: &Path, image: &mut Image) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                visit(root, &path, image);
            } else {
                let name = path
                    .strip_prefix(root)
                    .expect("within it")
                    .to_string_lossy();
                image.insert(name.into_owned(), fs::read(&path).expect("readable"));
            }
        }
    }
    let mut image = Image::new();
    visit(root, root, &mut image);
    image
}

/// Writes an image to a folder.
pub fn write_image(root: &Path, image: &Image) {
    for (path, bytes) in image {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
        fs::write(path, bytes).expect("a new file");
    }
}
