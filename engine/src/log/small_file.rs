//! A small file: replaced as a whole, with a header that tells whether it is what was written, and of which file.
//!
//! The header is a line, `seedbed-file FORMAT LENGTH CHECKSUM`: the number of this format, the length in bytes of what
//! follows, and the CRC-32C of the file's name and what follows, in hexadecimal. What follows is JSON. With the name in
//! the checksum, the bytes of one file in another's place are seen.

use super::LogError;
use crate::host::{self, Disk, ReplaceError};
use serde::{de::DeserializeOwned, Serialize};

const MAGIC: &str = "seedbed-file";
const FORMAT: u32 = 1;

/// Replaces the file at `path`, durably. [`LogError::Unchanged`]: it is as it was. See also [`Reserve::write`].
///
/// [`Reserve::write`]: super::reserve::Reserve::write
pub async fn write<T: Serialize>(disk: &dyn Disk, path: &str, state: &T) -> Result<(), LogError> {
    write_as(disk, path, path, state).await
}

/// Like [`write()`], for a file that will be renamed to `name`.
pub async fn write_as<T: Serialize>(
    disk: &dyn Disk,
    path: &str,
    name: &str,
    state: &T,
) -> Result<(), LogError> {
    let bytes = encode(name, state);
    let replaced = host::replace_file(disk, path, &bytes).await;
    replaced.map_err(|error| match error {
        ReplaceError::Unknown(source) => LogError::io(path)(source),
        ReplaceError::Unchanged(source) => LogError::Unchanged {
            path: path.to_owned(),
            source,
        },
    })
}

/// Reads the file at `path`. Returns `None` if there is none; one that is not what was written is
/// [`LogError::DamagedFile`].
pub async fn read<T: DeserializeOwned>(disk: &dyn Disk, path: &str) -> Result<Option<T>, LogError> {
    read_as(disk, path, path).await
}

/// Like [`read`], for a file that was written to be renamed to `name`.
pub async fn read_as<T: DeserializeOwned>(
    disk: &dyn Disk,
    path: &str,
    name: &str,
) -> Result<Option<T>, LogError> {
    let bytes = host::read_file(disk, path).await;
    let Some(bytes) = bytes.map_err(LogError::io(path))? else {
        return Ok(None);
    };
    let state = decode(name, &bytes).map_err(|what| LogError::DamagedFile {
        path: path.to_owned(),
        what,
    })?;
    Ok(Some(state))
}

fn encode<T: Serialize>(name: &str, state: &T) -> Vec<u8> {
    let json = serde_json::to_vec(state).expect("a small file is plain data");
    let checksum = checksum_of(name, &json);
    let mut bytes = format!("{MAGIC} {FORMAT} {} {checksum:08x}\n", json.len()).into_bytes();
    bytes.extend(json);
    bytes
}

fn decode<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or("it has no header")?;
    let (header, json) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err("its header is not one of this broker".into());
    }
    let format = words.next().unwrap_or_default();
    if format != FORMAT.to_string() {
        return Err(format!(
            "it is of format `{format}`, and this broker reads format {FORMAT}"
        ));
    }
    let expected = format!("{} {:08x}", json.len(), checksum_of(name, json));
    let claimed: Vec<&str> = words.collect();
    if claimed.join(" ") != expected {
        return Err(format!(
            "its header claims `{}` (length and checksum), and it has `{expected}`",
            claimed.join(" ")
        ));
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn checksum_of(name: &str, json: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_is_read_as_it_was_written_and_under_its_own_name_alone() {
        let bytes = encode("a/file", &vec![1, 2, 3]);
        assert_eq!(decode::<Vec<i32>>("a/file", &bytes), Ok(vec![1, 2, 3]));
        let other = decode::<Vec<i32>>("b/file", &bytes).unwrap_err();
        assert!(other.contains("checksum"), "{other}");
        let newer = String::from_utf8(bytes).unwrap().replacen(" 1 ", " 2 ", 1);
        let newer = decode::<Vec<i32>>("a/file", newer.as_bytes()).unwrap_err();
        assert!(newer.contains("format `2`"), "{newer}");
    }

    proptest! {
        #[test]
        fn no_flipped_bit_and_no_cut_is_read(at in any::<prop::sample::Index>()) {
            let whole = encode("a/file", &"what is in it");
            let mut flipped = whole.clone();
            let bit = at.index(whole.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode::<String>("a/file", &flipped).is_err());
            let cut = at.index(whole.len());
            prop_assert!(decode::<String>("a/file", &whole[..cut]).is_err());
        }
    }
}
