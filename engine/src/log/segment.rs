//! A segment: a file of framed record batches.
//!
//! A frame is a magic of four bytes, the length of the batch, a checksum over everything behind it, the
//! offset up to which the partition was known to be synced when the frame was written, and the batch.
//!
//! After a power loss the frames behind the last sync may be there, missing or torn, in any combination:
//! they were never acknowledged, and opening cuts them off. A bad frame in front of a good one that
//! was written when the bad one's offset was already synced is not a torn tail but damage. So is any bad
//! frame in a segment that has a successor, since it was synced whole before that one began.

use crate::{
    ids::Offset,
    wire::batch::{BatchHeader, HEADER_BYTES},
};
use bytes::{BufMut, Bytes, BytesMut};

const MAGIC: [u8; 4] = *b"SBF1";
/// The size of a frame's own header.
pub const FRAME_HEADER_BYTES: usize = 20;

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
    /// Bytes that were never acknowledged, if this is the last segment.
    Torn(String),
    /// Bytes that had been synced.
    Damaged(String),
}

/// The frame of a batch.
pub fn frame(batch: &[u8], synced: Offset) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + batch.len());
    frame.put_slice(&MAGIC);
    frame.put_u32(batch.len() as u32);
    frame.put_u32(0);
    frame.put_i64(synced.0);
    frame.put_slice(batch);
    let checksum = crc32c::crc32c(&frame[12..]);
    frame[8..12].copy_from_slice(&checksum.to_be_bytes());
    frame.freeze()
}

/// Reads a segment that begins with offset `base`.
pub fn scan(bytes: &[u8], base: Offset) -> Scan {
    let mut scan = Scan {
        entries: Vec::new(),
        good_bytes: 0,
        end_offset: base,
        tail: Tail::Clean,
    };
    while (scan.good_bytes as usize) < bytes.len() {
        let at = scan.good_bytes as usize;
        match read_frame(&bytes[at..]) {
            Ok((header, _)) if header.base_offset == scan.end_offset => {
                let position = scan.good_bytes + FRAME_HEADER_BYTES as u64;
                scan.entries.push(Entry { position, header });
                scan.good_bytes = position + header.bytes as u64;
                scan.end_offset = header.end_offset();
            }
            other => {
                let what = match other {
                    Ok((header, _)) => format!("offset {} is there instead", header.base_offset),
                    Err(what) => what,
                };
                let damaged = knows_more(&bytes[at..], scan.end_offset);
                scan.tail = if damaged {
                    Tail::Damaged(what)
                } else {
                    Tail::Torn(what)
                };
                break;
            }
        }
    }
    scan
}

/// Whether a good frame in `bytes` was written when `offset` was already synced.
fn knows_more(bytes: &[u8], offset: Offset) -> bool {
    let mut from = 1;
    while let Some(at) = find_magic(bytes, from) {
        if read_frame(&bytes[at..]).is_ok_and(|(_, synced)| synced > offset) {
            return true;
        }
        from = at + 1;
    }
    false
}

fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let at = rest
        .windows(MAGIC.len())
        .position(|window| window == MAGIC)?;
    Some(from + at)
}

fn read_frame(bytes: &[u8]) -> Result<(BatchHeader, Offset), String> {
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(format!("a frame of {} bytes", bytes.len()));
    };
    if head[..4] != MAGIC {
        return Err("no frame begins here".into());
    }
    let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if len < HEADER_BYTES || len > rest.len() {
        return Err(format!(
            "a batch of {len} bytes where {} are left",
            rest.len()
        ));
    }
    let claimed = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    if claimed != crc32c::crc32c(&bytes[12..FRAME_HEADER_BYTES + len]) {
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
        wire::batch,
    };
    use proptest::prelude::*;

    /// Frames of one record each; each knows that all before it were synced.
    fn segment(frames: i64) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
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
            bytes.extend(frame(&one, Offset(offset)));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    proptest! {
        #[test]
        fn a_cut_anywhere_leaves_the_frames_in_front_of_it(cut in 0usize..2000) {
            let (bytes, ends) = segment(10);
            let cut = cut % (bytes.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            let scan = scan(&bytes[..cut], Offset(0));
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
            let whole = ends.iter().filter(|end| **end <= bit / 8).count() - 1;
            let scan = scan(&bytes, Offset(0));
            prop_assert_eq!(scan.end_offset, Offset(whole as i64));
            match scan.tail {
                // The frame behind it was written when it was synced.
                Tail::Damaged(_) => prop_assert!(whole < 9),
                Tail::Torn(_) => prop_assert_eq!(whole, 9),
                Tail::Clean => prop_assert!(false, "a flipped bit was not seen"),
            }
        }
    }
}
