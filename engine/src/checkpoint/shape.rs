//! Pure: what of a job stays as it is while it has checkpoints.

use crate::{guarantee::Guarantee, operator::window::Extent, sink::SinkKind, state::KeyGroups};
use serde::{Deserialize, Serialize};

/// What a checkpoint means only together with: where its output goes, and what its state is of. Coordinator and
/// workers must agree on it, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobShape {
    /// The job's name.
    pub name: String,
    /// What its operators are, with the topic that it reads: see [`Graph::describe`](crate::graph::Graph::describe).
    pub operators: String,
    /// Its windows.
    pub windows: Extent,
    /// How many groups its keys are divided into.
    pub key_groups: KeyGroups,
    /// What its output promises: it decides when `append` writes.
    pub claimed: Guarantee,
    /// Where its output goes.
    pub sink: SinkKind,
    /// The topic of its output, unless that goes to objects.
    pub output_topic: String,
    /// The topic of records that cannot be used, unless output goes to objects.
    pub dead_letter_topic: String,
    /// How many partitions those two topics have.
    pub output_partitions: i32,
}

impl JobShape {
    /// What is not as in `other`, in words; nothing if they are the same.
    pub fn instead_of(&self, other: &JobShape) -> Option<String> {
        let fields = |shape| match serde_json::to_value(shape).expect("plain data") {
            serde_json::Value::Object(fields) => fields,
            _ => unreachable!("a struct is an object"),
        };
        let (mine, others) = (fields(self), fields(other));
        let differ = mine.iter().filter(|(name, value)| others[*name] != **value);
        let differences: Vec<String> = differ
            .map(|(name, value)| format!("{name} = {value} instead of {}", others[name]))
            .collect();
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_its_field() {
        let shape = JobShape {
            name: "sums".into(),
            operators: "events > window > sink".into(),
            windows: Extent {
                size_ms: 60_000,
                lateness_ms: 0,
            },
            key_groups: KeyGroups(128),
            claimed: Guarantee::ExactlyOnce,
            sink: SinkKind::Transactional,
            output_topic: "out".into(),
            dead_letter_topic: "dead".into(),
            output_partitions: 4,
        };
        assert_eq!(shape.instead_of(&shape), None);
        let other = JobShape {
            sink: SinkKind::Append,
            output_partitions: 5,
            ..shape.clone()
        };
        let difference = shape.instead_of(&other).unwrap();
        assert!(difference.contains("output_partitions = 4 instead of 5"));
        assert!(difference.contains(r#"sink = "transactional" instead of "append""#));
        assert_eq!(difference.matches("instead").count(), 2);
    }
}
