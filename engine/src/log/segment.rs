//! Pure: a segment, a file of framed record batches.
//!
//! It begins with a header: a magic of four bytes, the number of this format, the offset of the first record, which
//! partition it belongs to, its salt, and a checksum over these. The header is durable before the first frame is written.
//!
//! A frame is a mark of four bytes, the length of the batch, a checksum over everything behind it, the
//! offset up to which the partition was known to be synced when the frame was written, and the batch. Mark and
//! checksum begin with the salt, which is drawn for each segment and told to nobody: what a client has put into a record
//! never passes for a frame. The checksum also begins with the partition, so that a frame counts in its own alone.
//!
//! After a power loss the frames behind the last sync may be there, missing or torn, in any combination:
//! they were never acknowledged, and opening cuts them off. A bad frame before a good one that
//! was written when the bad one's offset was already synced is not a torn tail but damage. So is a good frame of an
//! offset that had its place already, and so is any bad frame in a segment that has a successor, since it was synced
//! whole before that one began.

mod scan;

pub use scan::{Entry, Scan, Scanner, Tail, WINDOW_BYTES};

use crate::{ids::Offset, wire::batch};
use bytes::{BufMut, Bytes, BytesMut};

const MAGIC: [u8; 4] = *b"SBSG";
const FORMAT: u32 = 3;
/// The size of a segment's header.
pub const HEADER_BYTES: usize = 32;
/// No batch of a segment is larger: who reads one has so much memory.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
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

/// What tells the frames of a segment from all other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt {
    mark: [u8; 4],
    seed: u32,
}

impl Salt {
    /// From a number that nobody can guess.
    pub fn new(drawn: u128) -> Salt {
        Salt {
            mark: (drawn as u32).to_be_bytes(),
            seed: (drawn >> 32) as u32,
        }
    }

    /// The checksum of what follows it in a frame.
    fn checksum(self, owner: Owner, bytes: &[u8]) -> u32 {
        let owner = crc32c::crc32c_append(self.seed, &owner.0.to_be_bytes());
        crc32c::crc32c_append(owner, bytes)
    }
}

/// The header of a segment that begins with offset `base`.
pub fn header(base: Offset, owner: Owner, salt: Salt) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&FORMAT.to_be_bytes());
    header[8..16].copy_from_slice(&base.0.to_be_bytes());
    header[16..20].copy_from_slice(&owner.0.to_be_bytes());
    header[20..24].copy_from_slice(&salt.mark);
    header[24..28].copy_from_slice(&salt.seed.to_be_bytes());
    let checksum = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// Reads the header of a segment; or says what is wrong with it.
fn read_header(found: &[u8; HEADER_BYTES], base: Offset, owner: Owner) -> Result<Salt, String> {
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
    if word(28) != crc32c::crc32c(&found[..28]) {
        return Err("the checksum of its header does not match".into());
    }
    let salt = Salt {
        mark: found[20..24].try_into().expect("four bytes"),
        seed: word(24),
    };
    let expected = header(base, owner, salt);
    if found[16..20] != expected[16..20] {
        return Err("it is a segment of another partition".into());
    }
    if found[8..16] != expected[8..16] {
        return Err("it is another segment of this partition".into());
    }
    Ok(salt)
}

/// The frame of a batch.
pub fn frame(batch: &[u8], synced: Offset, owner: Owner, salt: Salt) -> Bytes {
    assert!(
        (batch::HEADER_BYTES..=BATCH_BYTES_MAX).contains(&batch.len()),
        "a batch of {} bytes",
        batch.len()
    );
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + batch.len());
    frame.put_slice(&salt.mark);
    frame.put_u32(batch.len() as u32);
    frame.put_u32(0);
    frame.put_i64(synced.0);
    frame.put_slice(batch);
    let checksum = salt.checksum(owner, &frame[12..]);
    frame[8..12].copy_from_slice(&checksum.to_be_bytes());
    frame.freeze()
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
