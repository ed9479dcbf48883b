//! A segment: a file of framed record batches.
//!
//! It begins with a header: a magic of four bytes, the number of this format, the offset of the first record, which
//! partition it belongs to, and a checksum over these. The header is durable before the first frame is written.
//!
//! A frame is a magic of four bytes, the length of the batch, a checksum over everything behind it, the
//! offset up to which the partition was known to be synced when the frame was written, and the batch. The checksum
//! begins with the partition, so that a frame counts in its own partition alone.
//!
//! After a power loss the frames behind the last sync may be there, missing or torn, in any combination:
//! they were never acknowledged, and opening cuts them off. A bad frame before a good one that
//! was written when the bad one's offset was already synced is not a torn tail but damage. So is a good frame of an
//! offset that had its place already, and so is any bad frame in a segment that has a successor, since it was synced
//! whole before that one began.

use crate::{
    ids::Offset,
    wire::batch::{self, BatchHeader},
};
use bytes::{BufMut, Bytes, BytesMut};

const MAGIC: [u8; 4] = *b"SBSG";
const FORMAT: u32 = 2;
/// The size of a segment's header.
pub const HEADER_BYTES: usize = 24;
const FRAME_MAGIC: [u8; 4] = *b"SBF2";
/// The size of a frame's own header.
pub const FRAME_HEADER_BYTES: usize = 20;

/// The partition that a segment belongs to, as its bytes say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u32);

impl Owner {
    /// The partition in `folder`.
    pub fn of(folder: &str) -> Owner {
        Owner(crc32c::crc32c(folder.as_bytes()))
    }
}

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
    /// The good frames, from the start on.
    pub entries: Vec<Entry>,
    /// Where the good frames end.
    pub good_bytes: u64,
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

/// The header of a segment that begins with offset `base`.
pub fn header(base: Offset, owner: Owner) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&FORMAT.to_be_bytes());
    header[8..16].copy_from_slice(&base.0.to_be_bytes());
    header[16..20].copy_from_slice(&owner.0.to_be_bytes());
    let checksum = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// What is wrong with the header of a segment.
fn check_header(found: &[u8; HEADER_BYTES], base: Offset, owner: Owner) -> Result<(), String> {
    let word = |at: usize| u32::from_be_bytes(found[at..at + 4].try_into().expect("four bytes"));
    if found[..4] != MAGIC {
        return Err("no segment begins here".into());
    }
    if word(4) != FORMAT {
        let format = word(4);
        return Err(format!(
            "it is of format {format}, and this broker reads format {FORMAT}"
        ));
    }
    if word(20) != crc32c::crc32c(&found[..20]) {
        return Err("the checksum of its header does not match".into());
    }
    let expected = header(base, owner);
    if found[16..20] != expected[16..20] {
        return Err("it is a segment of another partition".into());
    }
    if found[8..16] != expected[8..16] {
        return Err("it is another segment of this partition".into());
    }
    Ok(())
}

/// The frame of a batch.
pub fn frame(batch: &[u8], synced: Offset, owner: Owner) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + batch.len());
    frame.put_slice(&FRAME_MAGIC);
    frame.put_u32(batch.len() as u32);
    frame.put_u32(0);
    frame.put_i64(synced.0);
    frame.put_slice(batch);
    let checksum = crc32c::crc32c_append(owner.0, &frame[12..]);
    frame[8..12].copy_from_slice(&checksum.to_be_bytes());
    frame.freeze()
}

/// Reads a segment of a partition that begins with offset `base`.
pub fn scan(bytes: &[u8], base: Offset, owner: Owner) -> Scan {
    let mut scan = Scan {
        entries: Vec::new(),
        good_bytes: 0,
        end_offset: base,
        tail: Tail::Clean,
    };
    let Some(found) = bytes.first_chunk::<HEADER_BYTES>() else {
        scan.tail = Tail::Unbegun;
        return scan;
    };
    if let Err(what) = check_header(found, base, owner) {
        scan.tail = match bytes.len() > HEADER_BYTES {
            true => Tail::Damaged(what),
            false => Tail::Unbegun,
        };
        return scan;
    }
    scan.good_bytes = HEADER_BYTES as u64;
    while (scan.good_bytes as usize) < bytes.len() {
        let rest = &bytes[scan.good_bytes as usize..];
        match read_frame(rest, owner) {
            Ok((header, _)) if header.base_offset == scan.end_offset => {
                let position = scan.good_bytes + FRAME_HEADER_BYTES as u64;
                scan.entries.push(Entry { position, header });
                scan.good_bytes = position + header.bytes as u64;
                scan.end_offset = header.end_offset();
            }
            Ok((header, _)) => {
                let what = format!("offset {} is there instead", header.base_offset);
                scan.tail = match header.base_offset < scan.end_offset {
                    true => Tail::Damaged(what),
                    false => tail_of(rest, what, scan.end_offset, owner),
                };
                break;
            }
            Err(what) => {
                scan.tail = tail_of(rest, what, scan.end_offset, owner);
                break;
            }
        }
    }
    scan
}

/// What follows the good frames, when `offset` should follow: damage, if a good frame in it was written when that
/// offset was already synced.
fn tail_of(bytes: &[u8], what: String, offset: Offset, owner: Owner) -> Tail {
    let (mut from, mut until) = (0, None);
    while let Some(at) = find_magic(bytes, from) {
        if let Ok((header, synced)) = read_frame(&bytes[at..], owner) {
            if synced > offset {
                return Tail::Damaged(what);
            }
            until = until.max(Some(header.end_offset()));
        }
        from = at + 1;
    }
    Tail::Torn { what, until }
}

fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let at = rest
        .windows(FRAME_MAGIC.len())
        .position(|window| window == FRAME_MAGIC)?;
    Some(from + at)
}

fn read_frame(bytes: &[u8], owner: Owner) -> Result<(BatchHeader, Offset), String> {
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(format!("a frame of {} bytes", bytes.len()));
    };
    if head[..4] != FRAME_MAGIC {
        return Err("no frame begins here".into());
    }
    let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if len < batch::HEADER_BYTES || len > rest.len() {
        return Err(format!(
            "a batch of {len} bytes where {} are left",
            rest.len()
        ));
    }
    let claimed = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    if claimed != crc32c::crc32c_append(owner.0, &bytes[12..FRAME_HEADER_BYTES + len]) {
        return Err("the checksum does not match".into());
    }
    let synced = i64::from_be_bytes(head[12..].try_into().expect("eight bytes"));
    let header = BatchHeader::read(&rest[..len]).map_err(|error| error.to_string())?;
    Ok((header, Offset(synced)))
}

/// The name of the segment that begins with offset `base`.
pub fn file_name(base: Offset) -> String {
    format!("{:020}.log", base.0)
}

/// The offset with which the segment called `name` begins; nothing if it is not a segment's name.
pub fn base_of(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok().map(Offset))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{ProducerEpoch, ProducerId, Sequence},
        record::NewRecord,
    };
    use proptest::prelude::*;

    const OWNER: Owner = Owner(7);

    /// Frames of one record each; each knows that all before it were synced.
    fn segment(frames: i64) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header(Offset(0), OWNER).to_vec();
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
            bytes.extend(frame(&one, Offset(offset), OWNER));
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
        let mut other = header(Offset(0), Owner(8)).to_vec();
        other.extend(&bytes[HEADER_BYTES..]);
        assert_eq!(scan(&other, Offset(0), Owner(8)).end_offset, Offset(0));
        let mut twice = bytes.clone();
        twice.extend(&bytes[ends[1]..ends[2]]);
        let scan = scan(&twice, Offset(0), OWNER);
        assert!(matches!(scan.tail, Tail::Damaged(_)), "{:?}", scan.tail);
    }

    proptest! {
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
