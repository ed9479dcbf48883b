//! Pure: which inputs of a task wait until barriers align (Chandy and Lamport; Carbone et al., 2015).
//!
//! From its barrier on, an input waits until all others have delivered theirs: what it carries behind the
//! barrier belongs to the next checkpoint, and must not enter the state of this one. An input that has
//! ended counts as aligned.

use crate::ids::CheckpointId;
use std::collections::BTreeSet;

/// The barriers of one task's inputs.
#[derive(Clone, Debug)]
pub struct Aligner {
    inputs: usize,
    last: Option<CheckpointId>,
    waiting: Option<(CheckpointId, BTreeSet<usize>)>,
}

/// What a barrier means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// The input waits for the others.
    Waits,
    /// All inputs have delivered it: snapshot now; all inputs go on.
    Aligned(CheckpointId),
    /// Barriers came out of order: the attempt is broken.
    OutOfOrder,
}

impl Aligner {
    /// A task with this many inputs.
    pub fn new(inputs: usize) -> Self {
        assert!(inputs > 0, "a task without inputs aligns nothing");
        Aligner {
            inputs,
            last: None,
            waiting: None,
        }
    }

    /// Whether nothing may be taken from an input now.
    pub fn is_waiting(&self, input: usize) -> bool {
        self.waiting
            .as_ref()
            .is_some_and(|(_, inputs)| inputs.contains(&input))
    }

    /// An input has delivered a barrier.
    pub fn barrier(&mut self, input: usize, checkpoint: CheckpointId) -> Alignment {
        assert!(input < self.inputs, "input {input} of {}", self.inputs);
        assert!(
            !self.is_waiting(input),
            "nothing is taken from a waiting input"
        );
        if self.last.is_some_and(|last| checkpoint <= last) {
            return Alignment::OutOfOrder;
        }
        let (current, inputs) = self.waiting.get_or_insert((checkpoint, BTreeSet::new()));
        if *current != checkpoint {
            return Alignment::OutOfOrder;
        }
        inputs.insert(input);
        if inputs.len() < self.inputs {
            return Alignment::Waits;
        }
        self.waiting = None;
        self.last = Some(checkpoint);
        Alignment::Aligned(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the inputs are interleaved, what is taken in front of an alignment is exactly what
        /// was sent in front of the barriers.
        #[test]
        fn an_alignment_is_a_cut(picks in prop::collection::vec(0usize..3, 0..400)) {
            // Each input sends five records, a barrier, five records, a barrier, …
            let mut aligner = Aligner::new(3);
            let (mut taken, mut aligned) = ([0u64; 3], 0);
            for input in picks {
                if aligner.is_waiting(input) {
                    continue;
                }
                taken[input] += 1;
                if taken[input].is_multiple_of(6) {
                    match aligner.barrier(input, CheckpointId(taken[input] / 6)) {
                        Alignment::Waits => {}
                        Alignment::Aligned(CheckpointId(id)) => {
                            aligned += 1;
                            prop_assert_eq!(id, aligned);
                            prop_assert_eq!(taken, [aligned * 6; 3]);
                        }
                        Alignment::OutOfOrder => prop_assert!(false),
                    }
                }
            }
        }
    }

    #[test]
    fn barriers_out_of_order_are_seen() {
        let mut aligner = Aligner::new(2);
        assert_eq!(aligner.barrier(0, CheckpointId(3)), Alignment::Waits);
        assert_eq!(aligner.barrier(1, CheckpointId(4)), Alignment::OutOfOrder);
        let mut aligner = Aligner::new(1);
        assert_eq!(
            aligner.barrier(0, CheckpointId(3)),
            Alignment::Aligned(CheckpointId(3))
        );
        assert_eq!(aligner.barrier(0, CheckpointId(3)), Alignment::OutOfOrder);
    }
}
