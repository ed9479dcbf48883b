//! The memory in which a broker unpacks batches, to check them or to look into them: bounded for all of them together.

use crate::wire::validate::UNPACKED_BYTES_MAX;
use tokio::sync::{Semaphore, SemaphorePermit};

/// As much as the two largest batches take.
const ROOM_BYTES: usize = 2 * UNPACKED_BYTES_MAX;

/// Room for what is unpacked. Who comes first is served first.
pub struct Unpacking(Semaphore);

impl Unpacking {
    /// All of it is free.
    pub fn new() -> Self {
        Unpacking(Semaphore::new(ROOM_BYTES))
    }

    /// Takes some, once it is free; for what is larger all there is. It is given back when it is dropped, and whoever has
    /// some must not take more.
    pub async fn take(&self, bytes: usize) -> SemaphorePermit<'_> {
        let bytes = bytes.min(ROOM_BYTES) as u32;
        let permit = self.0.acquire_many(bytes).await;
        permit.expect("it is never closed")
    }
}

impl Default for Unpacking {
    fn default() -> Self {
        Unpacking::new()
    }
}
