//! A buffer that a decoder cannot be lied to with.
//!
//! The generated decoders reserve room for as many elements as an array claims to have, before they read
//! the first one: eight bytes of garbage can claim billions, and end the process. In the flexible
//! versions that we speak (KIP-482) every such claim is a variable-length integer, read byte by byte; and
//! every element takes at least a byte. So a claim beyond what is left is refused as it is read. (What a broker is
//! sent is walked over before: see `skeleton`.)

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::buf::ByteBuf;
use std::ops::Range;

/// Bytes of a peer.
pub(super) struct Guarded {
    bytes: Bytes,
    /// The variable-length integer that is being read, and how many bits of it were.
    claim: u64,
    bits: u32,
}

impl Guarded {
    pub fn new(bytes: Bytes) -> Self {
        Guarded {
            bytes,
            claim: 0,
            bits: 0,
        }
    }
}

impl Buf for Guarded {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    // A flag is read in the same way; it claims 0 or 1.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        self.claim |= u64::from(byte & 0x7f)
            .checked_shl(self.bits)
            .unwrap_or(u64::MAX);
        self.bits += 7;
        // A decoder takes five bytes at most, whatever the last one says.
        if byte & 0x80 == 0 || self.bits == 35 {
            // Lengths are written as one more than they are.
            let (claim, left) = (self.claim, self.bytes.remaining());
            (self.claim, self.bits) = (0, 0);
            if claim > left as u64 + 1 {
                return Err(TryGetError {
                    requested: usize::try_from(claim).unwrap_or(usize::MAX),
                    available: left,
                });
            }
        }
        Ok(byte)
    }
}

impl ByteBuf for Guarded {
    fn peek_bytes(&mut self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, count: usize) -> Bytes {
        self.bytes.split_to(count)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame;
    use bytes::Bytes;
    use kafka_protocol::messages::{FetchRequest, MetadataRequest, ProduceRequest};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_is_an_error_or_a_message_and_takes_no_memory(
            garbage in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut bytes = vec![0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0];
            bytes.extend(garbage);
            let bytes = Bytes::from(bytes);
            let _ = frame::decode_request::<ProduceRequest>(&bytes, 9);
            let _ = frame::decode_request::<FetchRequest>(&bytes, 12);
            let _ = frame::decode_request::<MetadataRequest>(&bytes, 12);
        }
    }

    #[test]
    fn an_array_that_claims_more_than_there_is_is_refused() {
        let lie = [
            0, 3, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0,
        ];
        let lie = Bytes::copy_from_slice(&lie);
        assert!(frame::decode_request::<MetadataRequest>(&lie, 12).is_err());
    }
}
