//! Pure: who has appended what to a partition, and whether a batch is new (KIP-98).
//!
//! | the batch's epoch and sequence | decision |
//! |---|---|
//! | no producer id | append |
//! | an older epoch | fenced |
//! | unknown producer, or a newer epoch; sequence 0 | append |
//! | the sequence that comes next | append |
//! | one of the last five batches, exactly | duplicate: its original offset |
//! | before those | duplicate: its offset is forgotten |
//! | anything else | out of order |
//!
//! The state is rebuilt from the log by the same `apply` that live appends use.

use crate::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    wire::batch::BatchHeader,
};
use std::collections::{BTreeMap, VecDeque};

/// As many batches as a client may have in flight can be recognised when they are sent again.
pub const BATCHES_REMEMBERED: usize = 5;

/// All producers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers(BTreeMap<ProducerId, Producer>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: ProducerEpoch,
    batches: VecDeque<Batch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    first: Sequence,
    last: Sequence,
    base_offset: Offset,
    end_offset: Offset,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is new.
    Append,
    /// It is there already.
    Duplicate {
        /// Where its first record is.
        base_offset: Offset,
        /// The offset after its last record.
        end_offset: Offset,
    },
    /// It is there already, so long ago that nobody knows where.
    Forgotten,
    /// A sequence is missing between the last batch and this one.
    OutOfOrder,
    /// A newer incarnation of the producer has appended.
    Fenced,
}

impl Producers {
    /// What to do with a batch that has this header.
    pub fn decide(&self, batch: &BatchHeader) -> Decision {
        if batch.producer.0 < 0 {
            return Decision::Append;
        }
        let known = self.0.get(&batch.producer);
        let Some(producer) = known.filter(|known| known.epoch >= batch.epoch) else {
            return match batch.sequence {
                Sequence(0) => Decision::Append,
                _ => Decision::OutOfOrder,
            };
        };
        if producer.epoch > batch.epoch {
            return Decision::Fenced;
        }
        let last = producer
            .batches
            .back()
            .expect("a producer has appended a batch");
        if batch.sequence == last.last.plus(1) {
            return Decision::Append;
        }
        let same =
            |seen: &&Batch| seen.first == batch.sequence && seen.last == batch.last_sequence();
        if let Some(seen) = producer.batches.iter().find(same) {
            return Decision::Duplicate {
                base_offset: seen.base_offset,
                end_offset: seen.end_offset,
            };
        }
        // Sequences wrap: "before" is the shorter way round.
        let behind = last.last.0.wrapping_sub(batch.last_sequence().0) & i32::MAX;
        match behind < i32::MAX / 2 {
            true => Decision::Forgotten,
            false => Decision::OutOfOrder,
        }
    }

    /// Takes note of a batch that was appended, at the base offset that its header has.
    pub fn apply(&mut self, batch: &BatchHeader) {
        if batch.producer.0 < 0 {
            return;
        }
        let producer = self.0.entry(batch.producer).or_insert_with(|| Producer {
            epoch: batch.epoch,
            batches: VecDeque::new(),
        });
        if producer.epoch != batch.epoch {
            producer.epoch = batch.epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == BATCHES_REMEMBERED {
            producer.batches.pop_front();
        }
        producer.batches.push_back(Batch {
            first: batch.sequence,
            last: batch.last_sequence(),
            base_offset: batch.base_offset,
            end_offset: batch.end_offset(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(epoch: i16, sequence: i32, count: i32, offset: i64) -> BatchHeader {
        BatchHeader {
            base_offset: Offset(offset),
            bytes: 100,
            count,
            producer: ProducerId(9),
            epoch: ProducerEpoch(epoch),
            sequence: Sequence(sequence),
        }
    }

    #[test]
    fn the_last_five_batches_are_known_with_their_offsets() {
        let mut producers = Producers::default();
        for index in 0..6 {
            let new = batch(0, index * 10, 10, i64::from(index) * 10);
            assert_eq!(producers.decide(&new), Decision::Append);
            producers.apply(&new);
        }
        assert_eq!(producers.decide(&batch(0, 0, 10, 0)), Decision::Forgotten);
        for index in 1..6 {
            let decision = producers.decide(&batch(0, index * 10, 10, 0));
            let offset = i64::from(index) * 10;
            let (base_offset, end_offset) = (Offset(offset), Offset(offset + 10));
            assert_eq!(
                decision,
                Decision::Duplicate {
                    base_offset,
                    end_offset
                }
            );
        }
        assert_eq!(producers.decide(&batch(0, 70, 10, 0)), Decision::OutOfOrder);
        assert_eq!(producers.decide(&batch(-1, 60, 10, 0)), Decision::Fenced);
        assert_eq!(producers.decide(&batch(1, 60, 10, 0)), Decision::OutOfOrder);
        assert_eq!(producers.decide(&batch(1, 0, 10, 0)), Decision::Append);
    }

    #[test]
    fn sequences_wrap() {
        let mut producers = Producers::default();
        producers.apply(&batch(0, 0, 1, 0));
        producers.apply(&batch(0, i32::MAX - 1, 4, 1));
        let next = batch(0, 2, 3, 5);
        assert_eq!(producers.decide(&next), Decision::Append);
        producers.apply(&next);
        assert_eq!(
            producers.decide(&batch(0, i32::MAX - 9, 8, 0)),
            Decision::Forgotten
        );
    }

    proptest! {
        /// However a client sends its batches again, each is appended once, and in order.
        #[test]
        fn retries_append_nothing_twice(sends in prop::collection::vec((0usize..5, any::<bool>()), 0..200)) {
            let (mut producers, mut log) = (Producers::default(), Vec::new());
            // A client sends from its first batch without an answer on, up to five.
            let mut acked = 0;
            for (ahead, answered) in sends {
                for index in acked..=acked + ahead {
                    let mut header = batch(0, index as i32 * 3, 3, 0);
                    header.base_offset = Offset(log.len() as i64 * 3);
                    match producers.decide(&header) {
                        Decision::Append => {
                            producers.apply(&header);
                            log.push(index);
                        }
                        Decision::Duplicate { base_offset, .. } => {
                            prop_assert_eq!(log[base_offset.0 as usize / 3], index);
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                acked += usize::from(answered);
            }
            prop_assert!(log.iter().enumerate().all(|(place, index)| place == *index));
        }
    }
}
