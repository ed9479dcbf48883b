//! Pure: what unpacks a frame of zstd (RFC 8878), and how much of it is kept meanwhile.
//!
//! Nothing leaves the window of a frame before it is full, and a window may be of 128 MiB: five kilobytes fill it. So
//! what is unpacked is counted as it comes. (A smaller window is no way out: the stock encoders claim such a one at
//! their highest levels, for little that is in it.)

use super::too_much;
use bytes::{buf::Reader, Buf, Bytes};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{BufRead, Error, Read};

/// How much is unpacked at a time, but for a part of a block.
const STEP_BYTES: usize = 256 << 10;
/// How much leaves the window at a time.
const PIECE_BYTES: usize = 16 << 10;

/// A frame that is being unpacked.
pub(super) struct Zstd {
    packed: Reader<Bytes>,
    decoder: FrameDecoder,
    bytes_max: usize,
    /// So much was unpacked, at least.
    unpacked: usize,
    /// What has left the window.
    piece: Vec<u8>,
    /// How much of that was read.
    read: usize,
}

impl Zstd {
    /// Begins a frame, which ends with an error once more than `bytes_max` of it were unpacked.
    pub fn new(packed: Bytes, bytes_max: usize) -> Result<Self, Error> {
        let (mut packed, mut decoder) = (packed.reader(), FrameDecoder::new());
        decoder.init(&mut packed).map_err(Error::other)?;
        Ok(Zstd {
            packed,
            decoder,
            bytes_max,
            unpacked: 0,
            piece: Vec::new(),
            read: 0,
        })
    }

    fn unpack_some(&mut self) -> Result<(), Error> {
        let some = BlockDecodingStrategy::UptoBytes(STEP_BYTES);
        let is_whole = self.decoder.decode_blocks(&mut self.packed, some);
        if !is_whole.map_err(Error::other)? {
            self.unpacked += STEP_BYTES;
        }
        match self.unpacked <= self.bytes_max {
            true => Ok(()),
            false => Err(too_much(self.bytes_max)),
        }
    }
}

impl BufRead for Zstd {
    fn fill_buf(&mut self) -> Result<&[u8], Error> {
        if self.read == self.piece.len() {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.unpack_some()?;
            }
            self.piece.resize(PIECE_BYTES, 0);
            let there = self.decoder.read(&mut self.piece)?;
            self.piece.truncate(there);
            self.read = 0;
        }
        Ok(&self.piece[self.read..])
    }

    fn consume(&mut self, count: usize) {
        self.read += count;
        assert!(self.read <= self.piece.len(), "only what is there");
    }
}

impl Read for Zstd {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

/// The window that a frame claims; the largest there is if it does not say.
pub(super) fn window_bytes(packed: &[u8]) -> usize {
    let window = claimed_window(packed).and_then(|window| usize::try_from(window).ok());
    window.unwrap_or(usize::MAX)
}

/// RFC 8878, 3.1.1.1: magic 4, descriptor 1, then the window in its own byte; or, for a frame of one segment, the
/// number of a dictionary and the size of the content, which is the window.
fn claimed_window(packed: &[u8]) -> Option<u64> {
    let descriptor = *packed.get(4)?;
    if descriptor & 0x20 == 0 {
        let window = u64::from(*packed.get(5)?);
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * (window & 7));
    }
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..len].copy_from_slice(packed.get(at..at + len)?);
    let size = u64::from_le_bytes(size);
    Some(if len == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_what_its_frame_claims() {
        let windowed = |window: u8| window_bytes(&[0x28, 0xb5, 0x2f, 0xfd, 0, window]);
        assert_eq!(windowed(0), 1 << 10);
        assert_eq!(windowed(0x88), 128 << 20);
        assert_eq!(windowed(0x89), (128 << 20) + (16 << 20));
        assert_eq!(window_bytes(&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 9]), 9);
        let two = [0x28, 0xb5, 0x2f, 0xfd, 0x61, 7, 1, 1];
        assert_eq!(
            window_bytes(&two),
            257 + 256,
            "after the number of a dictionary"
        );
        assert_eq!(window_bytes(&two[..7]), usize::MAX, "cut off");
    }
}
