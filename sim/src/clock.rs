//! Wall clocks, one per node: skewed against each other by up to a second, from the seed.
//!
//! Only what is stamped on data comes from here; waiting is the runtime's, and the same for all.

use crate::node::Host;

/// The wall clock of a node.
#[derive(Clone)]
pub struct Clock {
    host: Host,
}

impl Clock {
    pub(crate) fn new(host: Host) -> Self {
        Clock { host }
    }

    /// Milliseconds since 1970. The world begins on 1 January 2025.
    pub fn now_ms(&self) -> i64 {
        const BEGIN_MS: i64 = 1_735_689_600_000;
        let mut skew = self
            .host
            .net
            .seed()
            .stream("clock", u64::from(self.host.id.node));
        let skew_ms = skew.below(2000) as i64 - 1000;
        BEGIN_MS + skew_ms + self.host.nodes.now().as_millis() as i64
    }
}
