//! What unpacks the records of a compressed batch.
//!
//! Whoever sends a batch says how large it is unpacked, and need not tell the truth: a codec here makes room for
//! what it has unpacked, not for what is claimed, and stops at [`MAX_UNPACKED_BYTES`]. (`kafka-protocol`'s
//! own codecs do neither.)

mod zstd;

use self::zstd::Zstd;
use super::batch::BatchError;
use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;
use std::io::{BufRead, BufReader, Error, Read};

/// The largest batch that a consumer unpacks. Producers fill batches of some 16 KiB to 1 MiB before they
/// compress them (`batch.size`, `max.request.size`), librdkafka up to 10,000 records.
pub(super) const MAX_UNPACKED_BYTES: usize = 64 << 20;

/// How snappy-java begins a stream of blocks: its magic, its version, and the oldest that can read it.
const XERIAL: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Unpacks what follows a batch's header, as its attributes say.
pub(super) fn unpack(packed: Bytes, attributes: i16) -> Result<Bytes, BatchError> {
    if attributes & 7 == 0 {
        return Ok(packed);
    }
    let unpacked = unpacker(packed, attributes, MAX_UNPACKED_BYTES).and_then(all);
    unpacked.map_err(|error| BatchError::Records(error.to_string()))
}

/// What unpacks it bit by bit, for who does not need all of it at once. Whoever reads more than `bytes_max` of it
/// must stop by itself.
pub(super) fn unpacker(
    packed: Bytes,
    attributes: i16,
    bytes_max: usize,
) -> Result<Box<dyn BufRead + Send>, Error> {
    let reader = |packed: Bytes| packed.reader();
    Ok(match attributes & 7 {
        0 => Box::new(reader(packed)),
        1 => Box::new(BufReader::new(MultiGzDecoder::new(reader(packed)))),
        2 => Box::new(Snappy::new(packed, bytes_max)),
        3 => Box::new(BufReader::new(FrameDecoder::new(reader(packed)))),
        4 => Box::new(Zstd::new(packed, bytes_max)?),
        other => return Err(Error::other(format!("compression {other} is not known"))),
    })
}

/// The size of a window, or of a block, of a codec that has no larger ones.
const WINDOW_BYTES: usize = 64 << 10;

/// How much an unpacker keeps at a time of what it has unpacked, at most: its window, or its largest block. It is what
/// the packed bytes say, which the unpacker goes by, too; it never keeps more than about `bytes_max`.
pub(super) fn kept_bytes(packed: &[u8], attributes: i16, bytes_max: usize) -> usize {
    let said = match attributes & 7 {
        2 => Snappy::largest_block(packed),
        // LZ4's frame format: the largest block is of 64 KiB times a power of four, 4 MiB at most. Two are kept.
        3 => match packed.get(5).map_or(7, |sizes| sizes >> 4 & 7) {
            size @ 4..=7 => 2 << (2 * size + 8),
            _ => 8 << 20,
        },
        4 => zstd::window_bytes(packed),
        _ => 0,
    };
    said.max(WINDOW_BYTES).min(bytes_max)
}

fn all(reader: impl Read) -> Result<Bytes, Error> {
    let mut plain = Vec::new();
    (reader.take(MAX_UNPACKED_BYTES as u64 + 1)).read_to_end(&mut plain)?;
    match plain.len() <= MAX_UNPACKED_BYTES {
        true => Ok(plain.into()),
        false => Err(too_much(MAX_UNPACKED_BYTES)),
    }
}

/// [`std::io::ErrorKind::FileTooLarge`]: it is a bomb, or a batch for somebody with more room.
pub(super) fn too_much(bytes_max: usize) -> Error {
    let text = format!("it unpacks to more than {bytes_max} bytes");
    Error::new(std::io::ErrorKind::FileTooLarge, text)
}

/// One block; or blocks after their lengths, as snappy-java and with it Kafka's producers write them.
struct Snappy {
    /// What is still packed.
    rest: Bytes,
    has_lengths: bool,
    bytes_max: usize,
    block: Vec<u8>,
    /// How much of the block was read.
    read: usize,
}

impl Snappy {
    fn new(mut packed: Bytes, bytes_max: usize) -> Self {
        let has_lengths = packed.starts_with(XERIAL);
        if has_lengths {
            packed.advance(XERIAL.len());
        }
        Snappy {
            rest: packed,
            has_lengths,
            bytes_max,
            block: Vec::new(),
            read: 0,
        }
    }

    /// What the largest block claims.
    fn largest_block(packed: &[u8]) -> usize {
        let claimed = |block: &[u8]| snap::raw::decompress_len(block).unwrap_or(0);
        let Some(mut rest) = packed.strip_prefix(XERIAL) else {
            return claimed(packed);
        };
        let mut largest = 0;
        while let Some((len, more)) = rest.split_first_chunk() {
            let (block, after) = more.split_at(more.len().min(u32::from_be_bytes(*len) as usize));
            largest = largest.max(claimed(block));
            rest = after;
        }
        largest
    }

    /// Unpacks the next block. Three bytes of snappy, a copy, give 64 at most: a block that claims more lies.
    fn next_block(&mut self) -> Result<(), Error> {
        let packed = match self.has_lengths {
            false => std::mem::take(&mut self.rest),
            true => {
                let cut_off = |_| Error::other("a snappy block that is cut off");
                let len = self.rest.try_get_u32().map_err(cut_off)? as usize;
                if len > self.rest.len() {
                    return Err(Error::other("a snappy block that is cut off"));
                }
                self.rest.split_to(len)
            }
        };
        let claimed = snap::raw::decompress_len(&packed)?;
        if claimed > self.bytes_max {
            return Err(too_much(self.bytes_max));
        }
        if claimed > packed.len() * 64 / 3 {
            return Err(Error::other(format!(
                "{} bytes of snappy claim {claimed}",
                packed.len()
            )));
        }
        self.read = 0;
        self.block.resize(claimed, 0);
        let there = snap::raw::Decoder::new().decompress(&packed, &mut self.block)?;
        self.block.truncate(there);
        Ok(())
    }
}

impl BufRead for Snappy {
    fn fill_buf(&mut self) -> Result<&[u8], Error> {
        while self.read == self.block.len() && !self.rest.is_empty() {
            self.next_block()?;
        }
        Ok(&self.block[self.read..])
    }

    fn consume(&mut self, count: usize) {
        self.read += count;
    }
}

impl Read for Snappy {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ruzstd::encoding::{compress_to_vec, CompressionLevel};
    use std::io::Write;

    /// As each codec packs it, with the number of the codec; snappy both ways.
    fn pack(plain: &[u8]) -> Vec<(i16, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        gzip.write_all(plain).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(plain).unwrap();
        let zstd = compress_to_vec(plain, CompressionLevel::Fastest);
        let mut blocks = XERIAL.to_vec();
        for block in plain.chunks(32 << 10) {
            let block = snap::raw::Encoder::new().compress_vec(block).unwrap();
            blocks.extend((block.len() as u32).to_be_bytes());
            blocks.extend(block);
        }
        vec![
            (0, plain.to_vec()),
            (1, gzip.finish().unwrap()),
            (2, snap::raw::Encoder::new().compress_vec(plain).unwrap()),
            (2, blocks),
            (3, lz4.finish().unwrap()),
            (4, zstd),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn what_is_packed_comes_back(
            plain in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..100_000)
        ) {
            for (codec, packed) in pack(&plain) {
                prop_assert_eq!(&unpack(packed.into(), codec).unwrap()[..], &plain[..], "codec {}", codec);
            }
        }
    }

    #[test]
    fn what_unpacks_to_too_much_is_refused() {
        let bombs = pack(&vec![0; MAX_UNPACKED_BYTES + 1]);
        for (codec, bomb) in bombs.into_iter().filter(|(codec, _)| *codec != 0) {
            let error = unpack(bomb.into(), codec).unwrap_err().to_string();
            assert!(error.contains("unpacks to more than"), "{codec}: {error}");
        }
    }

    #[test]
    fn what_is_kept_at_a_time_is_known_before() {
        let plain = vec![7; 300_000];
        let kept = pack(&plain).into_iter().map(|(codec, packed)| {
            let kept = kept_bytes(&packed, codec, 1 << 20);
            let most = kept_bytes(&packed, codec, 1000);
            assert_eq!(most, 1000, "codec {codec}");
            kept
        });
        let (window, block) = (WINDOW_BYTES, 32 << 10);
        let kept: Vec<usize> = kept.collect();
        // As it is, gzip, snappy both ways, lz4, zstd.
        assert_eq!(kept[..3], [window, window, plain.len()]);
        assert_eq!(kept[3], window.max(block));
        assert_eq!(kept[4], 1 << 20, "two blocks of a mebibyte or more");
        assert_eq!(kept[5], 128 << 10, "the window of that encoder");
    }

    /// Found by the fuzz test, in CI: three bytes that claim four gigabytes ended the process.
    #[test]
    fn a_block_that_lies_takes_no_memory() {
        let lie = [0xff, 0xff, 0xff, 0x0f, 0x00, 0x61];
        let mut blocks = XERIAL.to_vec();
        blocks.extend((lie.len() as u32).to_be_bytes());
        blocks.extend(lie);
        for packed in [lie.to_vec(), blocks] {
            let error = unpack(packed.into(), 2).unwrap_err().to_string();
            assert!(error.contains("claim 33554431"), "{error}");
        }
    }
}
