//! Pure: why a task cannot go on, as its coordinator must know it: whether another attempt can help.

use crate::{checkpoint::store::StoreError, log::consumer::FetchError, sink::SinkError};
use serde::{Deserialize, Serialize};

/// Why a task, or something that works for it, cannot go on. Each comes with its text, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Somebody was not there, too slow, or fenced; or nobody knows. Another attempt may get further.
    #[error("{0}")]
    Passing(String),
    /// What a complete checkpoint has prepared can never be committed. No attempt must go on.
    #[error("{0}")]
    Gone(String),
    /// An object of the job is damaged, missing, or refused by its store.
    #[error("{0}")]
    Object(String),
    /// A partition of the input is gone, or cannot be read.
    #[error("{0}")]
    Input(String),
    /// A row is larger than a record may be.
    #[error("{0}")]
    TooLarge(String),
}

impl Failure {
    /// What somebody has to do before another attempt can help; nothing if none is needed, or nothing helps.
    pub fn remedy(&self) -> Option<&'static str> {
        let remedy = match self {
            Failure::Passing(_) | Failure::Gone(_) => None,
            Failure::Object(_) => Some(
                "Bring the object back from a copy, and start the job again; or start it under another name: \
                 then it reads its input again",
            ),
            Failure::Input(_) => Some(
                "Bring back what is missing, and start the job again. Under another name it reads its input from \
                 offset 0 on, and needs all of it",
            ),
            Failure::TooLarge(_) => {
                Some("Make the job's rows smaller, and start it again: it goes on from its newest checkpoint")
            }
        };
        assert!(
            remedy.is_none_or(|remedy| !remedy.ends_with('.')),
            "a part of a message"
        );
        remedy
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        match error.is_definite() {
            true => Failure::Object(error.to_string()),
            false => Failure::Passing(error.to_string()),
        }
    }
}

impl From<&SinkError> for Failure {
    fn from(error: &SinkError) -> Self {
        match error {
            SinkError::Store(error) => error.into(),
            SinkError::Gone(why) => Failure::Gone(why.clone()),
            SinkError::TooLarge { .. } => Failure::TooLarge(error.to_string()),
            SinkError::Send(_) | SinkError::Transaction(_) => Failure::Passing(error.to_string()),
        }
    }
}

impl From<&FetchError> for Failure {
    fn from(error: &FetchError) -> Self {
        // Each of these is what a broker has said, again and again if it may change.
        Failure::Input(error.to_string())
    }
}
