//! Operators: what a task does to records between two exchanges, chained by static dispatch.
//!
//! A [`Stage`] takes a record of the log and gives a value or nothing; stages wrap each other like
//! iterator adapters: `Decode`, then `Stamp` (event time), then `Filter`, `Dedup`, `Map`, in any order.

pub mod decode;
pub mod dedup;
pub mod filter;
pub mod map;
pub mod window;

pub use decode::{Decode, Stamp};
pub use dedup::Dedup;
pub use filter::Filter;
pub use map::Map;

use crate::{ids::EventTime, record::Record};
use serde::{de::DeserializeOwned, Serialize};

/// Why a record goes to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// It cannot be decoded: why.
    Undecodable(String),
    /// Its time is further behind the watermark of its partition than is allowed.
    Late,
    /// It would not be late if its partition had not been idle: the watermark went on without it.
    LateAfterIdle,
}

impl Reject {
    /// The reason as it stands in the dead letter.
    pub fn reason(&self) -> String {
        match self {
            Reject::Undecodable(why) => format!("undecodable: {why}"),
            Reject::Late => "late".to_owned(),
            Reject::LateAfterIdle => "late-after-idle".to_owned(),
        }
    }
}

/// A chain of operators behind one source partition. Cloned, without state, for each of them.
pub trait Stage: Clone + Send + Sync + 'static {
    /// What comes out.
    type Out: Send + 'static;
    /// What a snapshot holds.
    type State: Serialize + DeserializeOwned + Send + Sync;

    /// What becomes of a record: a value, nothing, or a dead letter. Decided in log order, by what the
    /// log says and nothing else.
    fn process(&mut self, record: &Record) -> Result<Option<Self::Out>, Reject>;

    /// No value that is further behind this than the allowed lateness comes out any more.
    fn watermark(&self) -> EventTime;

    /// The partition is idle, and the others have come to this watermark: go on with them. What comes then and
    /// is late because of it says so.
    fn follow(&mut self, watermark: EventTime);

    /// The state at this point of the log.
    fn snapshot(&self) -> Self::State;

    /// Goes on from a snapshot.
    fn restore(&mut self, state: Self::State);
}
