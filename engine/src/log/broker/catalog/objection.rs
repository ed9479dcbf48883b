//! Why something about a topic is refused: a code, and a sentence that says what would be right.

use kafka_protocol::{error::ResponseError, protocol::StrBytes};

/// Why a wish is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::log::broker) struct Objection {
    pub error: ResponseError,
    why: Option<String>,
}

impl Objection {
    pub fn new(error: ResponseError, why: impl Into<String>) -> Self {
        let why = Some(why.into());
        Objection { error, why }
    }

    /// The code and the sentence, as an answer has them.
    pub fn told(self) -> (i16, Option<StrBytes>) {
        (self.error.code(), self.why.map(StrBytes::from_string))
    }
}

impl From<ResponseError> for Objection {
    fn from(error: ResponseError) -> Self {
        Objection { error, why: None }
    }
}

/// What an answer has where nothing is refused.
pub(in crate::log::broker) fn told(refused: Option<Objection>) -> (i16, Option<StrBytes>) {
    refused.map_or((0, None), Objection::told)
}
