//! A snapshot: a small file that is replaced as a whole, with a checksum in front of it.

use super::LogError;
use crate::{
    host::{self, Disk},
    ids::Offset,
};
use serde::{de::DeserializeOwned, Serialize};

/// Replaces the snapshot at `path`, durably.
pub async fn write<T: Serialize>(disk: &dyn Disk, path: &str, state: &T) -> Result<(), LogError> {
    let json = serde_json::to_vec(state).expect("a snapshot is plain data");
    let mut bytes = format!("{:08x}\n", crc32c::crc32c(&json)).into_bytes();
    bytes.extend(json);
    let written = host::replace_file(disk, path, &bytes).await;
    written.map_err(LogError::io(path))
}

/// Reads the snapshot at `path`; nothing if there is none.
pub async fn read<T: DeserializeOwned>(disk: &dyn Disk, path: &str) -> Result<Option<T>, LogError> {
    let bytes = host::read_file(disk, path).await;
    let Some(bytes) = bytes.map_err(LogError::io(path))? else {
        return Ok(None);
    };
    let damaged = |what: String| LogError::Damaged {
        path: path.to_owned(),
        position: 0,
        offset: Offset(0),
        what,
    };
    let parts = bytes.split_at_checked(9);
    let (checksum, json) = parts.ok_or_else(|| damaged("it is cut off".into()))?;
    if checksum != format!("{:08x}\n", crc32c::crc32c(json)).as_bytes() {
        return Err(damaged("the checksum does not match".into()));
    }
    let state = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(state))
}
