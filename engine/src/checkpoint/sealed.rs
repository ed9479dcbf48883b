//! Pure: what every object of a job begins with: a line with the format's number and a checksum.
//!
//! The checksum covers the object's path as well, so that an object which stands in another's place is found, like
//! one with another bit. What follows the line is as it was: a manifest can still be read by a person.

use bytes::Bytes;
use std::fmt::Write;

/// The number of the format. A reader refuses those that it does not know.
const FORMAT: &str = "seedbed 2 ";
/// The line: the format, eight digits of checksum, the end of the line.
const LINE_BYTES: usize = FORMAT.len() + 9;

/// The object that holds `bytes` and stands at `path`.
pub(super) fn seal(path: &str, bytes: &[u8]) -> Bytes {
    let mut line = String::with_capacity(LINE_BYTES);
    writeln!(line, "{FORMAT}{:08x}", checksum(path, bytes)).expect("a string takes all");
    assert_eq!(line.len(), LINE_BYTES);
    let object: Bytes = [line.as_bytes(), bytes].concat().into();
    assert_eq!(object.len(), LINE_BYTES + bytes.len());
    object
}

/// What the object at `path` holds. The message says what is wrong with it.
pub(super) fn open(path: &str, object: Bytes) -> Result<Bytes, String> {
    if object.len() < LINE_BYTES {
        return Err(format!("it has {} bytes, and is cut off", object.len()));
    }
    let (line, bytes) = object.split_at(LINE_BYTES);
    if !line.starts_with(FORMAT.as_bytes()) {
        return Err(format!(
            "it begins with {:?} instead of `{FORMAT}` and a checksum",
            String::from_utf8_lossy(&line[..FORMAT.len()])
        ));
    }
    let expected = format!("{:08x}\n", checksum(path, bytes));
    assert_eq!(FORMAT.len() + expected.len(), LINE_BYTES);
    match line[FORMAT.len()..] == *expected.as_bytes() {
        true => Ok(object.slice(LINE_BYTES..)),
        false => Err("its checksum does not match: it was changed, or belongs elsewhere".into()),
    }
}

fn checksum(path: &str, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(path.as_bytes()), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_or_moved_is_refused() {
        let sealed = seal("jobs/a/1", b"content");
        assert_eq!(open("jobs/a/1", sealed.clone()).unwrap(), "content");
        assert!(open("jobs/a/2", sealed.clone()).is_err(), "another place");
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.to_vec();
                changed[at] ^= 1 << bit;
                assert!(
                    open("jobs/a/1", changed.into()).is_err(),
                    "bit {bit} of byte {at}"
                );
            }
            assert!(open("jobs/a/1", sealed.slice(..at)).is_err(), "cut at {at}");
        }
        let twice = [&sealed[..], &sealed[..]].concat();
        assert!(open("jobs/a/1", twice.into()).is_err());
        assert!(open("jobs/a/1", vec![0; sealed.len()].into()).is_err());
    }
}
