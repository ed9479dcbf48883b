//! A warning that is said now and then, however often there is reason to: what strangers do must not fill the disk with
//! warnings.

use std::{sync::Mutex, time::Duration};
use tokio::time::Instant;

/// Between two of the same kind.
const PAUSE: Duration = Duration::from_secs(10);

/// When it was last said, and how often it was not.
#[derive(Default)]
pub struct Rarely {
    said: Mutex<Option<(Instant, u64)>>,
}

impl Rarely {
    /// Whether it is time to say it again, and how often it was not said meanwhile.
    pub fn say(&self) -> Option<u64> {
        let mut said = self.said.lock().expect("said");
        let now = Instant::now();
        match &mut *said {
            Some((last, unsaid)) if now.saturating_duration_since(*last) < PAUSE => {
                *unsaid += 1;
                None
            }
            before => {
                let unsaid = before.map_or(0, |(_, unsaid)| unsaid);
                *before = Some((now, 0));
                Some(unsaid)
            }
        }
    }
}
