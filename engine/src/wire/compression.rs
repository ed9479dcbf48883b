//! What unpacks the records of a compressed batch.
//!
//! Whoever sends a batch says how large it is unpacked, and need not tell the truth: a codec here makes room for
//! what it has unpacked, not for what is claimed, and stops at [`MAX_UNPACKED_BYTES`]. (`kafka-protocol`'s
//! own codecs do neither.)

use super::batch::BatchError;
use bytes::Bytes;
use ruzstd::decoding::StreamingDecoder;
use std::io::{Error, Read};

/// The largest batch that a consumer unpacks. Producers fill batches of some 16 KiB to 1 MiB before they
/// compress them (`batch.size`, `max.request.size`), librdkafka up to 10,000 records.
pub(super) const MAX_UNPACKED_BYTES: usize = 64 << 20;

/// How snappy-java begins a stream of blocks: its magic, its version, and the oldest that can read it.
const XERIAL: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// Unpacks what follows a batch's header, as its attributes say.
pub(super) fn unpack(packed: Bytes, attributes: i16) -> Result<Bytes, BatchError> {
    let unpacked = match attributes & 7 {
        0 => Ok(packed),
        1 => all(flate2::read::MultiGzDecoder::new(&packed[..])),
        2 => snappy(&packed),
        3 => all(lz4_flex::frame::FrameDecoder::new(&packed[..])),
        4 => StreamingDecoder::new(&packed[..])
            .map_err(Error::other)
            .and_then(all),
        other => Err(Error::other(format!("compression {other} is not known"))),
    };
    unpacked.map_err(|error| BatchError::Records(error.to_string()))
}

fn all(reader: impl Read) -> Result<Bytes, Error> {
    let mut plain = Vec::new();
    (reader.take(MAX_UNPACKED_BYTES as u64 + 1)).read_to_end(&mut plain)?;
    within(plain.len())?;
    Ok(plain.into())
}

fn within(bytes: usize) -> Result<(), Error> {
    match bytes <= MAX_UNPACKED_BYTES {
        true => Ok(()),
        false => Err(Error::other(format!(
            "it unpacks to more than {MAX_UNPACKED_BYTES} bytes"
        ))),
    }
}

/// One block; or blocks behind their lengths, as snappy-java and with it Kafka's producers write them.
fn snappy(packed: &[u8]) -> Result<Bytes, Error> {
    let mut plain = Vec::new();
    let Some(mut rest) = packed.strip_prefix(XERIAL) else {
        block(packed, &mut plain)?;
        return Ok(plain.into());
    };
    while !rest.is_empty() {
        let cut_off = || Error::other("a snappy block that is cut off");
        let (len, behind) = rest.split_first_chunk().ok_or_else(cut_off)?;
        let len = u32::from_be_bytes(*len) as usize;
        let (packed, behind) = behind.split_at_checked(len).ok_or_else(cut_off)?;
        block(packed, &mut plain)?;
        rest = behind;
    }
    Ok(plain.into())
}

/// Appends what a block unpacks to. Three bytes of snappy, a copy, give 64 at most: a block that claims more lies.
fn block(packed: &[u8], plain: &mut Vec<u8>) -> Result<(), Error> {
    let claimed = snap::raw::decompress_len(packed)?;
    if claimed > packed.len() * 64 / 3 {
        return Err(Error::other(format!(
            "{} bytes of snappy claim {claimed}",
            packed.len()
        )));
    }
    let from = plain.len();
    within(from + claimed)?;
    plain.resize(from + claimed, 0);
    let there = snap::raw::Decoder::new().decompress(packed, &mut plain[from..])?;
    plain.truncate(from + there);
    Ok(())
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

    /// Found by the fuzz test, in CI: three bytes that claim four gigabytes ended the process.
    #[test]
    fn a_block_that_lies_takes_no_memory() {
        let lie = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x61];
        let mut blocks = XERIAL.to_vec();
        blocks.extend((lie.len() as u32).to_be_bytes());
        blocks.extend(lie);
        for packed in [lie.to_vec(), blocks] {
            let error = unpack(packed.into(), 2).unwrap_err().to_string();
            assert!(error.contains("claim 4294967295"), "{error}");
        }
    }
}
