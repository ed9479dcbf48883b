//! Pure: who has appended what to a partition, whether a batch is new (KIP-98), and which transactions are
//! open there.
//!
//! | the batch's epoch and sequence | decision |
//! |---|---|
//! | no producer id | append, unless it is of a transaction |
//! | an older epoch | fenced |
//! | unknown producer, or a newer epoch; sequence 0 | append |
//! | unknown producer; any other sequence | unknown producer |
//! | the sequence that comes next | append |
//! | one of the last five batches, exactly | duplicate: its original offset |
//! | before those | duplicate: its offset is forgotten |
//! | anything else | out of order |
//!
//! While a transaction of its producer is open here, only batches of a transaction are appended, whatever their epoch
//! is: a batch outside of it could give the producer an epoch that its coordinator knows nothing of, and the marker
//! that ends the transaction would come too late for it.
//!
//! | the marker's number | decision |
//! |---|---|
//! | not above the last one's | done already |
//! | above it, but an older epoch, and nothing is open | done: there is nothing to end |
//! | above it, but an older epoch than that of what is open | fenced |
//! | anything else | append; what was open ends, its epoch is the producer's from now on |
//!
//! A batch that would begin a transaction needs a [`Guard`]: somebody has asked the coordinator, and no marker
//! has come since (KIP-890). The state is rebuilt from the log by the same `apply` that live appends use.

use crate::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    wire::batch::{BatchHeader, Marker, Outcome},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};
use xxhash_rust::xxh3::xxh3_64;

/// As many batches as a client may have in flight can be recognised when they are sent again.
pub const BATCHES_REMEMBERED: usize = 5;

/// All producers of a partition, and their transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producers {
    known: BTreeMap<ProducerId, Producer>,
    /// Transactions that ended without effect, by the offset of their marker.
    aborted: VecDeque<Aborted>,
    /// Transactions whose marker may not be durable yet.
    #[serde(skip)]
    closing: VecDeque<Closing>,
    #[serde(skip)]
    verifying: BTreeMap<ProducerId, Guard>,
    #[serde(skip)]
    guards: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: ProducerEpoch,
    batches: VecDeque<Batch>,
    /// The first offset of its transaction, if one is open here.
    open: Option<Offset>,
    /// The number of its last marker; -1 if there was none.
    number: i32,
    last_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Batch {
    first: Sequence,
    last: Sequence,
    base_offset: Offset,
    end_offset: Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Closing {
    first: Offset,
    marker: Offset,
}

/// A transaction that was aborted, as its readers need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aborted {
    /// Whose.
    pub producer: ProducerId,
    /// Its first record here.
    pub first: Offset,
    /// Its marker.
    pub marker: Offset,
}

/// A producer of a partition, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Who.
    pub producer: ProducerId,
    /// Which incarnation.
    pub epoch: ProducerEpoch,
    /// The sequence of its last record, if it has any.
    pub last_sequence: Option<Sequence>,
    /// The time of its last record.
    pub last_ms: i64,
    /// The number of its last marker; -1 if there was none.
    pub number: i32,
    /// Where its open transaction begins, if one is.
    pub open: Option<Offset>,
}

/// The right to begin one transaction in a partition, unless its marker comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    epoch: ProducerEpoch,
    number: u64,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is new.
    Append,
    /// It is new, and would begin a transaction: it needs a [`Guard`].
    Verify,
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
    /// It is not a producer's first batch, and nobody knows its producer.
    UnknownProducer,
    /// A newer incarnation of the producer has appended, or its transaction was ended.
    Fenced,
    /// A batch outside of the transaction that its producer has open here.
    NotTransactional,
}

/// What to do with a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerDecision {
    /// It is new.
    Append,
    /// It is there already, or one that came after it.
    Done,
    /// Its producer has a newer epoch.
    Fenced,
}

impl Producers {
    /// What to do with a batch that has this header.
    pub fn decide(&self, batch: &BatchHeader, guard: Option<Guard>) -> Decision {
        if batch.producer.0 < 0 {
            return match batch.transactional {
                // Nobody could end it.
                true => Decision::NotTransactional,
                false => Decision::Append,
            };
        }
        let known = self.known.get(&batch.producer);
        if known.is_some_and(|known| known.epoch > batch.epoch) {
            return Decision::Fenced;
        }
        match in_sequence(known, batch) {
            Decision::Append => {}
            other => return other,
        }
        let open = known.filter(|known| known.open.is_some());
        if !batch.transactional && open.is_some() {
            return Decision::NotTransactional;
        }
        let is_open = open.is_some_and(|known| known.epoch == batch.epoch);
        match (batch.transactional, is_open) {
            (false, _) | (true, true) => Decision::Append,
            (true, false) if guard.is_some() && self.guard(batch) == guard => Decision::Append,
            (true, false) => Decision::Verify,
        }
    }

    fn guard(&self, batch: &BatchHeader) -> Option<Guard> {
        let guard = self.verifying.get(&batch.producer).copied();
        guard.filter(|guard| guard.epoch == batch.epoch)
    }

    /// The guard for the transaction that a batch would begin: taken before the coordinator is asked.
    pub fn begin_verification(&mut self, batch: &BatchHeader) -> Guard {
        if let Some(guard) = self.guard(batch) {
            return guard;
        }
        self.guards += 1;
        let guard = Guard {
            epoch: batch.epoch,
            number: self.guards,
        };
        self.verifying.insert(batch.producer, guard);
        guard
    }

    /// What to do with a marker.
    pub fn decide_marker(&self, marker: &Marker) -> MarkerDecision {
        match self.known.get(&marker.producer) {
            Some(known) if marker.number <= known.number => MarkerDecision::Done,
            Some(known) if marker.epoch < known.epoch => match known.open {
                Some(_) => MarkerDecision::Fenced,
                None => MarkerDecision::Done,
            },
            _ => MarkerDecision::Append,
        }
    }

    /// Takes note of a batch that was appended, at the base offset that its header has; `marker` is what
    /// it holds if it is a control batch.
    pub fn apply(&mut self, batch: &BatchHeader, marker: Option<&Marker>) {
        if batch.producer.0 < 0 {
            return;
        }
        let id = batch.producer;
        let producer = self.known.entry(id).or_insert_with(|| Producer {
            epoch: batch.epoch,
            batches: VecDeque::new(),
            open: None,
            number: -1,
            last_ms: 0,
        });
        if producer.epoch != batch.epoch {
            producer.epoch = batch.epoch;
            producer.batches.clear();
        }
        producer.last_ms = producer.last_ms.max(batch.max_timestamp_ms);
        self.verifying.remove(&id);
        if let Some(marker) = marker {
            producer.number = marker.number;
            if let Some(first) = producer.open.take() {
                let at = batch.base_offset;
                self.closing.push_back(Closing { first, marker: at });
                if marker.outcome == Outcome::Abort {
                    self.aborted.push_back(Aborted {
                        producer: id,
                        first,
                        marker: at,
                    });
                }
            }
            return;
        }
        if batch.transactional {
            producer.open.get_or_insert(batch.base_offset);
        }
        if batch.sequence.0 < 0 {
            return;
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

    /// The last stable offset of a partition that is durable up to `synced`: in front of it, every
    /// transaction has ended, durably.
    pub fn stable(&mut self, synced: Offset) -> Offset {
        self.closing.retain(|closing| closing.marker >= synced);
        let open = self.known.values().filter_map(|producer| producer.open);
        let closing = self.closing.iter().map(|closing| closing.first);
        open.chain(closing).fold(synced, Offset::min)
    }

    /// The transactions that were aborted among the records from `from` to `until`.
    pub fn aborted(&self, from: Offset, until: Offset) -> Vec<Aborted> {
        let first = self
            .aborted
            .partition_point(|aborted| aborted.marker < from);
        let rest = self.aborted.iter().skip(first);
        rest.filter(|aborted| aborted.first < until)
            .copied()
            .collect()
    }

    /// What is still of use once the records in front of `start` are gone: all producers but for those whose
    /// records are gone too, and older than `silent_since_ms` (KIP-854). A producer may give its records any time:
    /// one whose records are still there is never forgotten.
    pub fn retained(&self, start: Offset, silent_since_ms: i64) -> Producers {
        let mut kept = self.clone();
        kept.aborted.retain(|aborted| aborted.marker >= start);
        kept.known.retain(|_, producer| {
            let last = producer.batches.back();
            producer.open.is_some()
                || last.is_some_and(|last| last.end_offset > start)
                || producer.last_ms >= silent_since_ms
        });
        kept
    }

    /// Goes on with what [`Producers::retained`] has kept.
    pub fn become_retained(&mut self, kept: Producers) {
        self.known = kept.known;
        self.aborted = kept.aborted;
    }

    /// The greatest id that is known among some.
    pub fn newest(&self, among: Range<ProducerId>) -> Option<ProducerId> {
        let newest = self.known.range(among).next_back();
        newest.map(|(id, _)| *id)
    }

    /// How many are known.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// What is known of each producer, for people.
    pub fn active(&self) -> Vec<ActiveProducer> {
        let all = self.known.iter().map(|(id, producer)| ActiveProducer {
            producer: *id,
            epoch: producer.epoch,
            last_sequence: producer.batches.back().map(|batch| batch.last),
            last_ms: producer.last_ms,
            number: producer.number,
            open: producer.open,
        });
        all.collect()
    }

    /// A number that tells states apart: what is rebuilt from the log has the one that live state had.
    pub fn fingerprint(&self) -> u64 {
        let mut all: Vec<i64> = Vec::new();
        for (id, producer) in &self.known {
            let open = producer.open.map_or(-1, |open| open.0);
            all.extend([
                id.0,
                i64::from(producer.epoch.0),
                open,
                i64::from(producer.number),
            ]);
            for batch in &producer.batches {
                all.extend([i64::from(batch.first.0), i64::from(batch.last.0)]);
                all.extend([batch.base_offset.0, batch.end_offset.0]);
            }
        }
        for aborted in &self.aborted {
            all.extend([aborted.producer.0, aborted.first.0, aborted.marker.0]);
        }
        let bytes: Vec<u8> = all.iter().flat_map(|number| number.to_le_bytes()).collect();
        xxh3_64(&bytes)
    }
}

/// What the sequence of a batch says, if its producer is not fenced.
fn in_sequence(known: Option<&Producer>, batch: &BatchHeader) -> Decision {
    if batch.sequence.0 < 0 {
        // Consumed positions, which their coordinator appends for the producer.
        return Decision::Append;
    }
    let Some(producer) = known.filter(|known| known.epoch == batch.epoch) else {
        return match (batch.sequence, known) {
            (Sequence(0), _) => Decision::Append,
            (_, None) => Decision::UnknownProducer,
            _ => Decision::OutOfOrder,
        };
    };
    let Some(last) = producer.batches.back() else {
        return match batch.sequence {
            Sequence(0) => Decision::Append,
            _ => Decision::OutOfOrder,
        };
    };
    if batch.sequence == last.last.plus(1) {
        return Decision::Append;
    }
    let same = |seen: &&Batch| seen.first == batch.sequence && seen.last == batch.last_sequence();
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(epoch: i16, sequence: i32, count: i32, offset: i64) -> BatchHeader {
        BatchHeader {
            base_offset: Offset(offset),
            bytes: 100,
            count,
            records: count,
            producer: ProducerId(9),
            epoch: ProducerEpoch(epoch),
            sequence: Sequence(sequence),
            transactional: false,
            control: false,
            max_timestamp_ms: 0,
        }
    }

    #[test]
    fn the_last_five_batches_are_known_with_their_offsets() {
        let mut producers = Producers::default();
        for index in 0..6 {
            let new = batch(0, index * 10, 10, i64::from(index) * 10);
            assert_eq!(producers.decide(&new, None), Decision::Append);
            producers.apply(&new, None);
        }
        assert_eq!(
            producers.decide(&batch(0, 0, 10, 0), None),
            Decision::Forgotten
        );
        for index in 1..6 {
            let decision = producers.decide(&batch(0, index * 10, 10, 0), None);
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
        assert_eq!(
            producers.decide(&batch(0, 70, 10, 0), None),
            Decision::OutOfOrder
        );
        assert_eq!(
            producers.decide(&batch(-1, 60, 10, 0), None),
            Decision::Fenced
        );
        assert_eq!(
            producers.decide(&batch(1, 60, 10, 0), None),
            Decision::OutOfOrder
        );
        assert_eq!(
            producers.decide(&batch(1, 0, 10, 0), None),
            Decision::Append
        );
    }

    #[test]
    fn sequences_wrap() {
        let mut producers = Producers::default();
        producers.apply(&batch(0, 0, 1, 0), None);
        producers.apply(&batch(0, i32::MAX - 1, 4, 1), None);
        let next = batch(0, 2, 3, 5);
        assert_eq!(producers.decide(&next, None), Decision::Append);
        producers.apply(&next, None);
        assert_eq!(
            producers.decide(&batch(0, i32::MAX - 9, 8, 0), None),
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
                    match producers.decide(&header, None) {
                        Decision::Append => {
                            producers.apply(&header, None);
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

    proptest! {
        /// Whatever others append with a producer's id, the marker of its coordinator ends what is open. (A batch
        /// outside of the transaction, with a newer epoch, once fenced the marker.)
        #[test]
        fn no_forged_batch_keeps_a_transaction_open(
            steps in prop::collection::vec((0u8..3, 0i16..6, 0i32..3, any::<bool>()), 1..60)
        ) {
            let mut producers = Producers::default();
            let (mut end, mut epoch, mut number) = (0, 0, 0);
            let mut append = |producers: &mut Producers, header: &BatchHeader, guard| {
                let decision = producers.decide(header, guard);
                if decision == Decision::Append {
                    producers.apply(&BatchHeader { base_offset: Offset(end), ..*header }, None);
                    end += 1;
                }
                decision
            };
            for (what, forged, sequence, transactional) in steps {
                match what {
                    // Its coordinator knows of this one.
                    0 => {
                        let own = BatchHeader { transactional: true, ..batch(epoch, 0, 1, 0) };
                        if append(&mut producers, &own, None) == Decision::Verify {
                            let guard = producers.begin_verification(&own);
                            let decision = append(&mut producers, &own, Some(guard));
                            prop_assert_eq!(decision, Decision::Append);
                        }
                    }
                    1 => {
                        let header = BatchHeader { transactional, ..batch(forged, sequence, 1, 0) };
                        append(&mut producers, &header, None);
                    }
                    _ => {
                        number += 1;
                        let marker = Marker {
                            producer: ProducerId(9),
                            epoch: ProducerEpoch(epoch),
                            outcome: Outcome::Commit,
                            number,
                        };
                        match producers.decide_marker(&marker) {
                            MarkerDecision::Append => {
                                let header = BatchHeader { control: true, ..batch(epoch, -1, 1, 0) };
                                producers.apply(&header, Some(&marker));
                            }
                            MarkerDecision::Done => {}
                            MarkerDecision::Fenced => prop_assert!(false, "it stays open for ever"),
                        }
                        prop_assert!(producers.active().iter().all(|one| one.open.is_none()));
                        epoch += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn a_producer_of_old_records_is_known_as_long_as_they_are_there() {
        let mut producers = Producers::default();
        producers.apply(&batch(0, 0, 0, 5), None);
        let now = i64::MAX;
        assert_eq!(producers.retained(Offset(4), now).active().len(), 1);
        assert_eq!(producers.retained(Offset(5), now).active().len(), 0);
        assert_eq!(
            producers.retained(Offset(5), 0).active().len(),
            1,
            "it was not silent"
        );
    }
}
