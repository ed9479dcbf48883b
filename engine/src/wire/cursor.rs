//! Pure: walks over the fields of records as they are unpacked; nothing is kept of them.

use super::validate::Refusal;
use integer_encoding::VarInt;
use std::io::{self, BufRead};

/// Reads a part of a source that may not be longer than `len`.
pub(super) struct Cursor<'a, R> {
    source: &'a mut R,
    len: usize,
    /// So much of it was read.
    pub taken: usize,
}

impl<'a, R: BufRead> Cursor<'a, R> {
    /// A part of so many bytes.
    pub fn new(source: &'a mut R, len: usize) -> Self {
        Cursor {
            source,
            len,
            taken: 0,
        }
    }

    /// A number in zigzag varint.
    pub fn number(&mut self) -> Result<i64, Refusal> {
        let there = self.source.fill_buf().map_err(unreadable)?;
        let number = match i64::decode_var(there) {
            Some((number, bytes)) => {
                self.source.consume(bytes);
                self.taken += bytes;
                number
            }
            // It goes on after what is unpacked, or never ends.
            None => self.number_in_pieces()?,
        };
        match self.taken <= self.len {
            true => Ok(number),
            false => Err(cut_off()),
        }
    }

    fn number_in_pieces(&mut self) -> Result<i64, Refusal> {
        let mut bytes = [0; 10];
        for read in 1..=bytes.len() {
            let there = self.source.fill_buf().map_err(unreadable)?;
            bytes[read - 1] = *there.first().ok_or_else(cut_off)?;
            self.source.consume(1);
            self.taken += 1;
            if let Some((number, _)) = i64::decode_var(&bytes[..read]) {
                return Ok(number);
            }
        }
        Err(invalid("a number without an end"))
    }

    /// Skips bytes after their length, which may say that there are none.
    pub fn skip_bytes(&mut self, may_be_none: bool) -> Result<(), Refusal> {
        match self.number()? {
            -1 if may_be_none => Ok(()),
            len => {
                let count = usize::try_from(len).map_err(|_| invalid(format!("{len} bytes")))?;
                self.skip(count)
            }
        }
    }

    /// Skips so many bytes.
    pub fn skip(&mut self, count: usize) -> Result<(), Refusal> {
        if count > self.len - self.taken {
            return Err(cut_off());
        }
        self.taken += count;
        let mut left = count;
        while left > 0 {
            let there = self.source.fill_buf().map_err(unreadable)?.len();
            if there == 0 {
                return Err(cut_off());
            }
            let skipped = there.min(left);
            self.source.consume(skipped);
            left -= skipped;
        }
        Ok(())
    }
}

fn cut_off() -> Refusal {
    invalid("a record that is cut off")
}

/// The bytes say what cannot be.
pub(super) fn invalid(what: impl ToString) -> Refusal {
    Refusal::Invalid(what.to_string())
}

/// The bytes do not unpack.
pub(super) fn unreadable(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Refusal::TooLarge,
        io::ErrorKind::UnexpectedEof => cut_off(),
        _ => Refusal::Packed(error.to_string()),
    }
}
