//! Something that was spawned, and ends with who has spawned it.

use tokio::task::JoinHandle;

/// Work that goes on beside its owner, and ends when this is dropped.
pub(crate) struct Part(pub JoinHandle<()>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.abort();
    }
}
