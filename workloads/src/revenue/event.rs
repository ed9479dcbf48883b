//! Order events: as they are written, drawn from a seed, or read from a person's file.

use engine::ids::EventTime;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// Something that happened to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderEvent {
    /// Stamped where the event was made; an event that repeats itself has the same.
    pub event_id: String,
    /// Which order.
    pub order_id: String,
    /// `created`, `paid`, `shipped`, …; `heartbeat` only tells the time.
    pub status: String,
    /// How much, in cents; may be negative.
    pub amount_cents: i64,
    /// When, in milliseconds since 1970.
    pub event_time: i64,
}

/// The status that counts.
pub const PAID: &str = "paid";
/// A status that only tells the time: at the end of the input it closes all windows.
pub const HEARTBEAT: &str = "heartbeat";

impl OrderEvent {
    /// Reads an event; why it cannot be, otherwise.
    pub fn parse(bytes: &[u8]) -> Result<OrderEvent, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// The event as it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event is plain data")
    }

    /// When it happened.
    pub fn time(&self) -> EventTime {
        EventTime(self.event_time)
    }
}

/// What a shop writes: a payload, and the order that picks its partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The order's id.
    pub key: String,
    /// The event, or something that is none.
    pub payload: Vec<u8>,
}

impl Item {
    /// An event on its way.
    pub fn of(event: &OrderEvent) -> Item {
        Item {
            key: event.order_id.clone(),
            payload: event.to_bytes(),
        }
    }
}

/// Why a file of events cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {what}", line.map_or(String::new(), |line| format!(", line {line}")))]
pub struct InputError {
    file: String,
    line: Option<usize>,
    what: String,
}

/// Reads a file of events, one JSON object a line.
pub fn read_input(path: &Path) -> Result<Vec<Item>, InputError> {
    let wrong = |line, what: String| InputError {
        file: path.display().to_string(),
        line,
        what,
    };
    let text = fs::read_to_string(path).map_err(|error| wrong(None, error.to_string()))?;
    let mut items = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let event = OrderEvent::parse(line.as_bytes()).map_err(|what| {
            let right = "an object with event_id, order_id, status, amount_cents and event_time";
            wrong(Some(index + 1), format!("{what}; {right} would be right"))
        })?;
        items.push(Item::of(&event));
    }
    if items.is_empty() {
        return Err(wrong(None, "it holds no event".into()));
    }
    Ok(items)
}
