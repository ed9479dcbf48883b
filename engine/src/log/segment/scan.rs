//! Pure: a scan of a segment: its good frames, and what follows them.

use super::{read_header, Owner, Salt, BATCH_BYTES_MAX, FRAME_HEADER_BYTES, HEADER_BYTES};
use crate::{
    ids::Offset,
    wire::batch::{self, BatchHeader, Body, Marker},
};
use bytes::Bytes;
use std::ops::Range;

/// So much of a segment is read at once, unless a frame is larger.
pub const WINDOW_BYTES: usize = 1 << 20;

/// A good frame that a scan has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where its batch begins in the file.
    pub position: u64,
    /// Its batch.
    pub header: BatchHeader,
}

/// What a scan has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// With which its frames begin; nothing without a header.
    pub salt: Option<Salt>,
    /// The good frames, from the start on.
    pub entries: Vec<Entry>,
    /// The markers in those that are control batches, in their order.
    pub markers: Vec<Marker>,
    /// Where the good frames end.
    pub good_bytes: u64,
    /// The checksum of everything before that.
    pub checksum: u32,
    /// The offset after the last good frame.
    pub end_offset: Offset,
    /// What follows the good frames.
    pub tail: Tail,
}

/// What follows the good frames of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Clean,
    /// There is not even a header: a crash came before the segment had begun, if this is the last one.
    Unbegun,
    /// Bytes that were never acknowledged, if this is the last segment.
    Torn {
        /// What is wrong with them.
        what: String,
        /// The offset after the last whole frame among them, if there is one.
        until: Option<Offset>,
    },
    /// Bytes that had been synced.
    Damaged(String),
}

/// A scan of a segment, which may be too large to be held whole: it says which bytes it needs next, and is given them.
pub struct Scanner {
    base: Offset,
    owner: Owner,
    /// The size of the file.
    size: u64,
    scan: Scan,
    /// Where it goes on.
    at: u64,
    /// How many bytes it needs from there, and how many it wants at least.
    needs: usize,
    window: usize,
    /// What is wrong with the first bad frame, and the offset after the last good one that follows it.
    bad: Option<(String, Option<Offset>)>,
    is_done: bool,
}

/// What a scanner finds at the start of some bytes.
enum Next {
    Frame(BatchHeader, Offset),
    /// So many bytes would tell.
    Needs(usize),
    Bad(String),
}

impl Scanner {
    /// Of a segment of a partition, of so many bytes, that begins with offset `base`.
    pub fn new(base: Offset, owner: Owner, size: u64) -> Scanner {
        Scanner {
            base,
            owner,
            size,
            scan: Scan {
                salt: None,
                entries: Vec::new(),
                markers: Vec::new(),
                good_bytes: 0,
                checksum: 0,
                end_offset: base,
                tail: Tail::Clean,
            },
            at: 0,
            needs: 1,
            window: WINDOW_BYTES,
            bad: None,
            is_done: false,
        }
    }

    /// The bytes that it needs next; nothing at its end.
    pub fn wants(&self) -> Option<Range<u64>> {
        let is_end = self.is_done || self.at >= self.size;
        let len = self.needs.max(self.window) as u64;
        (!is_end).then(|| self.at..self.size.min(self.at + len))
    }

    /// Goes on with the bytes that it wants. Fewer of them: the file has become shorter, and ends there.
    pub fn take(&mut self, bytes: &[u8]) {
        let wanted = self.wants().expect("it wants some");
        let there = wanted.start + bytes.len() as u64;
        assert!(there <= wanted.end, "it is given more than it wants");
        if there < wanted.end {
            self.size = there;
        }
        self.needs = 1;
        match (self.scan.salt, &self.bad) {
            (None, _) => self.take_header(bytes),
            (Some(salt), None) => self.take_frames(bytes, salt),
            (Some(salt), Some(_)) => self.take_tail(bytes, salt),
        }
    }

    /// What it has found, once it wants nothing more.
    pub fn end(mut self) -> Scan {
        assert_eq!(self.wants(), None, "it is not at its end");
        let scan = &mut self.scan;
        if scan.salt.is_none() && scan.tail == Tail::Clean {
            scan.tail = Tail::Unbegun;
        }
        if let Some((what, until)) = self.bad {
            if scan.tail == Tail::Clean {
                scan.tail = Tail::Torn { what, until };
            }
        }
        assert!(scan.good_bytes <= self.size && scan.end_offset >= self.base);
        assert_eq!(
            scan.tail == Tail::Clean,
            scan.good_bytes == self.size && self.size > 0
        );
        self.scan
    }

    fn take_header(&mut self, bytes: &[u8]) {
        let Some(found) = bytes.first_chunk::<HEADER_BYTES>() else {
            self.is_done = true;
            return;
        };
        match read_header(found, self.base, self.owner) {
            Ok(salt) => {
                self.scan.salt = Some(salt);
                self.accept(found);
                self.take_frames(&bytes[HEADER_BYTES..], salt);
            }
            Err(what) => {
                self.is_done = true;
                // Nothing but a header: a crash came before it was durable.
                if self.size > HEADER_BYTES as u64 {
                    self.scan.tail = Tail::Damaged(what);
                }
            }
        }
    }

    /// More of it is good.
    fn accept(&mut self, bytes: &[u8]) {
        self.scan.checksum = crc32c::crc32c_append(self.scan.checksum, bytes);
        self.scan.good_bytes += bytes.len() as u64;
        self.at = self.scan.good_bytes;
    }

    fn take_frames(&mut self, mut bytes: &[u8], salt: Salt) {
        while !bytes.is_empty() {
            let what = match self.next(self.at, bytes, salt) {
                Next::Needs(needs) => {
                    self.needs = needs;
                    return;
                }
                Next::Frame(header, _) if header.base_offset == self.scan.end_offset => {
                    let end = FRAME_HEADER_BYTES + header.bytes;
                    let batch = &bytes[FRAME_HEADER_BYTES..end];
                    match header.control.then(|| marker_of(batch)) {
                        Some(None) => {
                            let what = "a control batch without a marker";
                            self.scan.tail = Tail::Damaged(what.into());
                            self.is_done = true;
                            return;
                        }
                        Some(Some(marker)) => self.scan.markers.push(marker),
                        None => {}
                    }
                    let position = self.at + FRAME_HEADER_BYTES as u64;
                    self.scan.entries.push(Entry { position, header });
                    self.scan.end_offset = header.end_offset();
                    self.accept(&bytes[..end]);
                    bytes = &bytes[end..];
                    continue;
                }
                Next::Frame(header, _) => {
                    let what = format!("offset {} is there instead", header.base_offset);
                    if header.base_offset < self.scan.end_offset {
                        self.scan.tail = Tail::Damaged(what);
                        self.is_done = true;
                        return;
                    }
                    what
                }
                Next::Bad(what) => what,
            };
            self.bad = Some((what, None));
            return self.take_tail(bytes, salt);
        }
    }

    /// What follows the good frames is damage, if a good frame in it was written when the offset that should follow was
    /// already synced.
    fn take_tail(&mut self, bytes: &[u8], salt: Salt) {
        let mut from = 0;
        while let Some(at) = find(bytes, from, salt.mark) {
            from = match self.next(self.at + at as u64, &bytes[at..], salt) {
                Next::Needs(needs) => {
                    self.at += at as u64;
                    self.needs = needs;
                    return;
                }
                Next::Frame(header, synced) => {
                    let (what, until) = self.bad.as_mut().expect("this is its tail");
                    if synced > self.scan.end_offset {
                        self.scan.tail = Tail::Damaged(std::mem::take(what));
                        self.is_done = true;
                        return;
                    }
                    *until = (*until).max(Some(header.end_offset()));
                    at + FRAME_HEADER_BYTES + header.bytes
                }
                Next::Bad(_) => at + 1,
            };
        }
        let end = self.at + bytes.len() as u64;
        // A mark may be cut by the end of the window.
        let last = end.saturating_sub(salt.mark.len() as u64 - 1);
        self.at = match end < self.size {
            true => last.max(self.at + from as u64),
            false => end,
        };
    }

    /// What the bytes at `at` of the file begin with.
    fn next(&self, at: u64, bytes: &[u8], salt: Salt) -> Next {
        let left = self.size - at;
        let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return match left > bytes.len() as u64 {
                true => Next::Needs(FRAME_HEADER_BYTES),
                false => Next::Bad(format!("a frame of {left} bytes")),
            };
        };
        if head[..4] != salt.mark {
            return Next::Bad("no frame begins here".into());
        }
        let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let room = left - FRAME_HEADER_BYTES as u64;
        if !(batch::HEADER_BYTES..=BATCH_BYTES_MAX).contains(&len) || len as u64 > room {
            let what = format!("a batch of {len} bytes where {room} are left");
            return Next::Bad(what);
        }
        let Some(frame) = bytes.get(..FRAME_HEADER_BYTES + len) else {
            return Next::Needs(FRAME_HEADER_BYTES + len);
        };
        match read_frame(frame, self.owner, salt) {
            Ok((header, synced)) => Next::Frame(header, synced),
            Err(what) => Next::Bad(what),
        }
    }
}

fn find(bytes: &[u8], from: usize, mark: [u8; 4]) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let at = rest.windows(mark.len()).position(|window| window == mark)?;
    Some(from + at)
}

/// The batch of a whole frame, and what was synced when it was written.
fn read_frame(frame: &[u8], owner: Owner, salt: Salt) -> Result<(BatchHeader, Offset), String> {
    let claimed = u32::from_be_bytes(frame[8..12].try_into().expect("four bytes"));
    if claimed != salt.checksum(owner, &frame[12..]) {
        return Err("the checksum does not match".into());
    }
    let synced = i64::from_be_bytes(frame[12..20].try_into().expect("eight bytes"));
    let header = BatchHeader::read(&frame[FRAME_HEADER_BYTES..]);
    let header = header.map_err(|error| error.to_string())?;
    Ok((header, Offset(synced)))
}

/// The marker in a control batch.
fn marker_of(batch: &[u8]) -> Option<Marker> {
    let batches = batch::decode(&Bytes::copy_from_slice(batch)).ok()?;
    match batches.first().map(|batch| &batch.body) {
        Some(Body::Control(marker)) => Some(*marker),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{frame, header},
        *,
    };
    use crate::{
        ids::{ProducerEpoch, ProducerId, Sequence},
        record::NewRecord,
    };
    use proptest::prelude::*;

    const OWNER: Owner = Owner(7);

    fn salt() -> Salt {
        Salt::new(0x5eed_0001_dead_beef)
    }

    /// Reads a segment that begins with offset `base`, whole.
    fn scan(bytes: &[u8], base: Offset, owner: Owner) -> Scan {
        scan_by(WINDOW_BYTES, bytes, base, owner)
    }

    fn scan_by(window: usize, bytes: &[u8], base: Offset, owner: Owner) -> Scan {
        let mut scanner = Scanner::new(base, owner, bytes.len() as u64);
        scanner.window = window;
        while let Some(range) = scanner.wants() {
            scanner.take(&bytes[range.start as usize..range.end as usize]);
        }
        scanner.end()
    }

    /// Frames of one record each; each knows that all before it were synced.
    fn segment(frames: i64) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header(Offset(0), OWNER, salt()).to_vec();
        let mut ends = vec![bytes.len()];
        for offset in 0..frames {
            let record = NewRecord {
                value: Some(format!("value {offset}").into()),
                ..NewRecord::default()
            };
            let by = batch::Identity {
                producer: ProducerId(1),
                epoch: ProducerEpoch(0),
                sequence: Sequence(offset as i32),
                transactional: false,
            };
            let mut one = batch::encode(&[record], by).unwrap().to_vec();
            batch::set_base_offset(&mut one, Offset(offset));
            bytes.extend(frame(&one, Offset(offset), OWNER, salt()));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn a_segment_counts_in_its_own_place_alone() {
        let (bytes, ends) = segment(3);
        for (base, owner) in [(Offset(1), OWNER), (Offset(0), Owner(8))] {
            let tail = scan(&bytes, base, owner).tail;
            assert!(matches!(tail, Tail::Damaged(_)), "{tail:?}");
        }
        // A frame of another partition under the right header is no frame; an old one of this partition is damage.
        let mut other = header(Offset(0), Owner(8), salt()).to_vec();
        other.extend(&bytes[HEADER_BYTES..]);
        assert_eq!(scan(&other, Offset(0), Owner(8)).end_offset, Offset(0));
        let mut twice = bytes.clone();
        twice.extend(&bytes[ends[1]..ends[2]]);
        let scan = scan(&twice, Offset(0), OWNER);
        assert!(matches!(scan.tail, Tail::Damaged(_)), "{:?}", scan.tail);
    }

    /// A client knows all of a frame but the salt, and its record is torn after the frame that it has made up: that is no
    /// damage. (Under the right salt it would be, or this says nothing.)
    #[test]
    fn no_record_passes_for_a_frame() {
        let (inside, _) = segment(1);
        let batch = &inside[HEADER_BYTES + FRAME_HEADER_BYTES..];
        for (guess, is_damage) in [(Salt::new(1), false), (salt(), true)] {
            let record = NewRecord {
                value: Some(frame(batch, Offset(99), OWNER, guess)),
                headers: vec![("after".into(), "x".repeat(100).into())],
                ..NewRecord::default()
            };
            let one = batch::encode(&[record], batch::Identity::NOBODY).unwrap();
            let mut bytes = header(Offset(0), OWNER, salt()).to_vec();
            bytes.extend(frame(&one, Offset(0), OWNER, salt()));
            bytes.truncate(bytes.len() - 50);
            let tail = scan(&bytes, Offset(0), OWNER).tail;
            assert_eq!(matches!(tail, Tail::Damaged(_)), is_damage, "{tail:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_at_once_the_same_is_found(
            window in 32usize..600,
            cut in 0usize..2000,
            bit in 0usize..16_000,
        ) {
            let (mut bytes, _) = segment(10);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.truncate(bytes.len() - cut % 200);
            let whole = scan(&bytes, Offset(0), OWNER);
            prop_assert_eq!(scan_by(window, &bytes, Offset(0), OWNER), whole);
        }

        #[test]
        fn a_cut_anywhere_leaves_the_frames_before_it(cut in 0usize..2000) {
            let (bytes, ends) = segment(10);
            let cut = cut % (bytes.len() + 1);
            let scan = scan(&bytes[..cut], Offset(0), OWNER);
            if cut < HEADER_BYTES {
                prop_assert_eq!(scan.tail, Tail::Unbegun);
                return Ok(());
            }
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!(scan.end_offset, Offset(whole as i64));
            prop_assert_eq!(scan.good_bytes as usize, ends[whole]);
            prop_assert_eq!(scan.tail == Tail::Clean, cut == ends[whole]);
            prop_assert!(!matches!(scan.tail, Tail::Damaged(_)));
        }

        #[test]
        fn a_flipped_bit_is_damage_unless_it_is_in_the_last_frame(bit in 0usize..16_000) {
            let (mut bytes, ends) = segment(10);
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = ends.iter().filter(|end| **end <= bit / 8).count();
            let scan = scan(&bytes, Offset(0), OWNER);
            prop_assert_eq!(scan.end_offset, Offset(whole.saturating_sub(1) as i64));
            match scan.tail {
                // The frame behind it was written when it was synced.
                Tail::Damaged(_) => prop_assert!(whole < 10),
                Tail::Torn { .. } => prop_assert_eq!(whole, 10),
                other => prop_assert!(false, "a flipped bit was not seen: {other:?}"),
            }
        }
    }
}
