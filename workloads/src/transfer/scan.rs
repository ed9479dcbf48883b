//! The log itself, as it stands at the end: every batch, and which transaction it belongs to.

use super::ghost::Number;
use engine::{
    ids::{Offset, ProducerEpoch, ProducerId, Sequence},
    log::{cluster::Cluster, consumer::Consumer, partition::Isolation, TopicPartition},
    wire::batch::{Batch, Body, Outcome},
};
use sim::{Kind, Ledger};
use std::{collections::BTreeMap, time::Duration};

/// All batches of a partition.
pub struct Log {
    /// Which.
    pub of: TopicPartition,
    /// What it holds.
    pub batches: Vec<Batch>,
}

/// A transaction in one partition.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Which.
    pub number: Number,
    /// How it ended.
    pub outcome: Outcome,
    /// Where its marker is.
    pub marker: Offset,
    /// Its batches, by their place in the log.
    pub batches: Vec<usize>,
}

/// Between two tries. Everything is calm: it tries until it is told.
const PAUSE: Duration = Duration::from_millis(200);

impl Log {
    /// Reads a partition up to its end: the last stable offset, for a reader of committed records.
    pub async fn read(cluster: &Cluster, of: &TopicPartition, isolation: Isolation) -> Log {
        let (start, end) = loop {
            let end = match isolation {
                Isolation::ReadCommitted => cluster.stable_offset(of).await,
                Isolation::ReadUncommitted => cluster.end_offset(of).await,
            };
            match (cluster.start_offset(of).await, end) {
                (Ok(start), Ok(end)) => break (start, end),
                _ => tokio::time::sleep(PAUSE).await,
            }
        };
        let mut consumer = Consumer::isolated(cluster.clone(), of.clone(), start, isolation);
        let mut batches = Vec::new();
        while consumer.position() < end {
            match consumer.poll_batches().await {
                Ok(polled) => batches.extend(polled),
                Err(_) => break,
            }
        }
        Log {
            of: of.clone(),
            batches,
        }
    }

    /// The transactions of the partition, in the order of their markers. Says what is wrong with them: for each
    /// producer the log is data and then a marker, again and again; its epochs never go down; its numbers only
    /// grow; and nothing is left open.
    pub fn transactions(&self, ledger: &mut Ledger) -> Vec<Closed> {
        let mut open = BTreeMap::<ProducerId, Vec<usize>>::new();
        let mut epochs = BTreeMap::<ProducerId, ProducerEpoch>::new();
        let mut numbers = BTreeMap::<ProducerId, i32>::new();
        let mut closed = Vec::new();
        for (index, batch) in self.batches.iter().enumerate() {
            let header = &batch.header;
            let place = format!("offset {} of {}", header.base_offset, self.of);
            if header.producer.0 < 0 {
                continue;
            }
            ledger.compared_here(1);
            let epoch = epochs.entry(header.producer).or_insert(header.epoch);
            if *epoch > header.epoch {
                let what = format!("{place}: epoch {} after {epoch}", header.epoch);
                ledger.found(Kind::Unfenced, what);
            }
            *epoch = header.epoch.max(*epoch);
            match &batch.body {
                Body::Data(_) if header.transactional => {
                    let batches = open.entry(header.producer).or_default();
                    let first = batches
                        .first()
                        .map(|first| self.batches[*first].header.epoch);
                    if first.is_some_and(|first| first != header.epoch) {
                        let what = format!("{place}: a transaction of two epochs");
                        ledger.found(Kind::Ungrammatical, what);
                    }
                    batches.push(index);
                }
                Body::Data(_) => {}
                Body::Control(marker) => {
                    let before = numbers.insert(header.producer, marker.number);
                    if before.is_some_and(|before| before >= marker.number) {
                        let what = format!("{place}: marker {} again", marker.number);
                        ledger.found(Kind::Ungrammatical, what);
                    }
                    closed.push(Closed {
                        number: (header.producer.0, marker.number.into()),
                        outcome: marker.outcome,
                        marker: header.base_offset,
                        batches: open.remove(&header.producer).unwrap_or_default(),
                    });
                }
            }
        }
        for (producer, batches) in open {
            let first = self.batches[batches[0]].header.base_offset;
            let what = format!(
                "{}: producer {producer} has left a transaction open at offset {first}",
                self.of
            );
            ledger.found(Kind::Unstable, what);
        }
        closed
    }

    /// Whether every producer's sequences stand in the log in their order, without a gap.
    pub fn check_sequences(&self, ledger: &mut Ledger, starts_at_zero: bool) {
        let mut next = BTreeMap::<(ProducerId, ProducerEpoch), Sequence>::new();
        for batch in &self.batches {
            let header = &batch.header;
            if header.producer.0 < 0 || header.sequence.0 < 0 || header.control {
                continue;
            }
            ledger.compared_here(1);
            let expected = next.get(&(header.producer, header.epoch)).copied();
            let expected = expected.or(starts_at_zero.then_some(Sequence(0)));
            if expected.is_some_and(|expected| expected != header.sequence) {
                let what = format!(
                    "offset {} of {} has sequence {} of producer {} where {} should be",
                    header.base_offset,
                    self.of,
                    header.sequence,
                    header.producer,
                    expected.unwrap_or_default()
                );
                ledger.found(Kind::Misordered, what);
            }
            next.insert(
                (header.producer, header.epoch),
                header.sequence.plus(header.count),
            );
        }
    }
}
