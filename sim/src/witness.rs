//! `Said`: a named event of the program under test, for who watches a run as it happens.
//!
//! A checker that watches finds a broken claim at the event that breaks it, and may ask the world what the
//! program cannot know: whether what it calls durable is.

use crate::trace::Value;
use std::time::Duration;

/// A named event of the program under test.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// When, in virtual time.
    pub at: Duration,
    /// On which node.
    pub node: &'a str,
    /// In which incarnation of it, counted from zero.
    pub incarnation: u64,
    /// What.
    pub name: &'static str,
    pub(crate) fields: &'a [(&'static str, Value<'a>)],
}

impl Said<'_> {
    fn field(&self, key: &str) -> Option<Value<'_>> {
        let mut fields = self.fields.iter();
        fields
            .find(|(known, _)| *known == key)
            .map(|(_, value)| *value)
    }

    /// A number of it; nothing if it has no such field.
    pub fn num(&self, key: &str) -> Option<i64> {
        match self.field(key)? {
            Value::Num(num) => Some(num as i64),
            Value::Text(_) => None,
        }
    }

    /// A text of it; nothing if it has no such field.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.field(key)? {
            Value::Num(_) => None,
            Value::Text(text) => Some(text),
        }
    }
}
