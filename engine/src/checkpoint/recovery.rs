//! Pure: what an attempt goes on from, by the entry in front of its own.

use super::Entry;
use crate::ids::CheckpointId;

/// What the entry in front of a new attempt's own means for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It goes on from the newest complete checkpoint, or from the start.
    From(Option<CheckpointId>),
    /// There is nothing to do any more.
    Finished(CheckpointId),
    /// It must not go on.
    Halted(String),
}

impl Beginning {
    /// Decides by the entry in front of a free place. Entries there never change.
    pub fn behind(entry: Option<&Entry>) -> Beginning {
        match entry {
            None => Beginning::From(None),
            Some(Entry::Begun { restores, .. }) => Beginning::From(*restores),
            Some(Entry::Complete(manifest)) => Beginning::From(Some(manifest.checkpoint)),
            Some(Entry::Stopped(checkpoint)) => Beginning::From(Some(*checkpoint)),
            Some(Entry::Finished(checkpoint)) => Beginning::Finished(*checkpoint),
            Some(Entry::Halted(why)) => Beginning::Halted(why.clone()),
        }
    }
}
