//! One newtype per unit, so that two integers of one type never sit side by side.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// A record's place in its partition, counted from zero.
    Offset(i64)
);
id!(
    /// A slice of a topic.
    PartitionId(i32)
);
id!(
    /// A broker of the log.
    BrokerId(i32)
);
id!(
    /// Who appends idempotently (KIP-98).
    ProducerId(i64)
);
id!(
    /// Which incarnation of a producer: an older one is fenced.
    ProducerEpoch(i16)
);
id!(
    /// The number of a record among those of its producer and partition; wraps at 2^31 - 1.
    Sequence(i32)
);
id!(
    /// Which checkpoint. It is also the number of its entry in the manifest log, so no two attempts
    /// ever use the same one.
    CheckpointId(u64)
);
id!(
    /// Which attempt to run a job; also the number of the entry that began it.
    AttemptId(u64)
);
id!(
    /// A running instance of an operator, counted from zero within its stage.
    TaskId(u32)
);
id!(
    /// Milliseconds since 1970, as the data says.
    EventTime(i64)
);

impl Sequence {
    /// The sequence `count` records later.
    pub fn plus(self, count: i32) -> Sequence {
        Sequence(self.0.wrapping_add(count) & i32::MAX)
    }
}

impl Offset {
    /// The offset `count` records later.
    pub fn plus(self, count: i64) -> Offset {
        Offset(self.0 + count)
    }
}
