//! Pure: what a coordinator makes of each request about a transactional id.

use super::{State, TransactionVersion, Transactional, EPOCH_MAX};
use crate::{
    ids::{ProducerEpoch, ProducerId},
    log::TopicPartition,
    wire::batch::Outcome,
};
use kafka_protocol::error::ResponseError;
use std::collections::BTreeSet;

/// What an init comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// This is to become true.
    Become(Transactional),
    /// The answer to an earlier one was lost.
    Same,
    /// A transaction is open: this ends it first, and the init has to be tried again.
    Fence(Transactional),
    /// A producer id that is new is needed.
    NeedsProducer,
}

/// What an end comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// This is to become true.
    Become(Transactional),
    /// It has ended so already.
    Same,
    /// A producer id that is new is needed.
    NeedsProducer,
}

/// Somebody wants to use an id; `claim` is who it was before, if it says so.
pub fn init(
    known: Option<&Transactional>,
    claim: Option<(ProducerId, ProducerEpoch)>,
    timeout_ms: i32,
    now_ms: i64,
    fresh: Option<ProducerId>,
) -> Result<Init, ResponseError> {
    let Some(known) = known else {
        // Whoever claims to have been somebody was forgotten: it goes on as somebody new, as over Kafka.
        return Ok(match fresh {
            None => Init::NeedsProducer,
            Some(fresh) => Init::Become(Transactional::new(fresh, timeout_ms, now_ms)),
        });
    };
    if known.ending().is_some() {
        return Err(ResponseError::ConcurrentTransactions);
    }
    if let Some((producer, epoch)) = claim {
        let is_current = known.producer == producer && known.epoch == epoch;
        let before = known.previous_producer.unwrap_or(known.producer);
        let is_previous = before == producer && known.previous_epoch == Some(epoch);
        match (is_current, is_previous, known.state) {
            (true, _, _) => {}
            // Nothing was begun under the new epoch: whoever owned the one before never heard of it.
            (_, true, State::Ongoing) => return Err(ResponseError::ProducerFenced),
            (_, true, _) => return Ok(Init::Same),
            _ => return Err(ResponseError::ProducerFenced),
        }
    }
    if known.state == State::Ongoing {
        let fence = Transactional {
            previous_epoch: claim.map(|(_, epoch)| epoch),
            ..known.fenced(now_ms)
        };
        assert_eq!(fence.ending(), Some(Outcome::Abort));
        return Ok(Init::Fence(fence));
    }
    let Some(mut next) = known.bumped(fresh) else {
        return Ok(Init::NeedsProducer);
    };
    if claim.is_none() {
        // A new instance: the one before is not to come again.
        next.previous_epoch = None;
        next.previous_producer = None;
    }
    next.timeout_ms = timeout_ms;
    assert!(who(&next) != who(known), "nobody else is who it was before");
    Ok(Init::Become(next.next(State::Empty, now_ms)))
}

/// A producer wants to write to partitions within its transaction. Nothing if it may already.
pub fn add(
    known: Option<&Transactional>,
    who: (ProducerId, ProducerEpoch),
    partitions: &BTreeSet<TopicPartition>,
    now_ms: i64,
) -> Result<Option<Transactional>, ResponseError> {
    let known = known.ok_or(ResponseError::InvalidProducerIdMapping)?;
    known.check(who)?;
    if known.ending().is_some() {
        return Err(ResponseError::ConcurrentTransactions);
    }
    if known.state == State::Ongoing && partitions.is_subset(&known.partitions) {
        return Ok(None);
    }
    let mut next = known.next(State::Ongoing, now_ms);
    if known.state != State::Ongoing {
        next.number += 1;
        next.started_ms = now_ms;
        next.partitions.clear();
    }
    next.partitions.extend(partitions.iter().cloned());
    assert!(partitions.is_subset(&next.partitions) && next.ending().is_none());
    Ok(Some(next))
}

/// A partition's leader asks whether a producer may write to it (KIP-890).
pub fn verify(
    known: Option<&Transactional>,
    who: (ProducerId, ProducerEpoch),
    partition: &TopicPartition,
) -> Result<(), ResponseError> {
    let known = known.ok_or(ResponseError::InvalidProducerIdMapping)?;
    known.check(who)?;
    match known.state {
        State::Ongoing if known.partitions.contains(partition) => Ok(()),
        _ => Err(ResponseError::TransactionAbortable),
    }
}

/// A producer wants to end its transaction.
pub fn end(
    known: Option<&Transactional>,
    who: (ProducerId, ProducerEpoch),
    outcome: Outcome,
    version: TransactionVersion,
    now_ms: i64,
    fresh: Option<ProducerId>,
) -> Result<End, ResponseError> {
    let known = known.ok_or(ResponseError::InvalidProducerIdMapping)?;
    let is_again = match version {
        TransactionVersion::V1 => known.producer == who.0 && known.epoch == who.1,
        // The epoch was bumped when the end was decided, or the producer was replaced.
        TransactionVersion::V2 => match known.previous_producer {
            Some(before) if known.epoch.0 == 0 => before == who.0,
            _ => known.producer == who.0 && i32::from(known.epoch.0) - 1 == i32::from(who.1 .0),
        },
    };
    match (known.state, outcome) {
        (State::CompleteCommit, Outcome::Commit) | (State::CompleteAbort, Outcome::Abort)
            if is_again =>
        {
            return Ok(End::Same)
        }
        (State::PrepareCommit, Outcome::Commit) | (State::PrepareAbort, Outcome::Abort)
            if is_again =>
        {
            return Err(ResponseError::ConcurrentTransactions)
        }
        // It has ended, in the other way.
        (State::CompleteCommit | State::CompleteAbort, _)
        | (State::PrepareCommit | State::PrepareAbort, _)
            if is_again =>
        {
            return Err(ResponseError::InvalidTxnState)
        }
        _ => {}
    }
    // In the first version the epoch was raised by nothing else.
    if version == TransactionVersion::V1 && known.has_timed_out(who) {
        return Err(ResponseError::InvalidTxnState);
    }
    known.check(who)?;
    match (known.state, version, outcome) {
        (State::Ongoing, _, _) => {}
        (
            State::Empty | State::CompleteCommit | State::CompleteAbort,
            TransactionVersion::V2,
            Outcome::Abort,
        ) => {
            // Nothing was written; the epoch moves on all the same.
            return Ok(match known.bumped(fresh) {
                None => End::NeedsProducer,
                Some(next) => End::Become(next.next(State::CompleteAbort, now_ms)),
            });
        }
        _ => return Err(ResponseError::InvalidTxnState),
    }
    let state = match outcome {
        Outcome::Commit => State::PrepareCommit,
        Outcome::Abort => State::PrepareAbort,
    };
    let mut next = known.next(state, now_ms);
    if version == TransactionVersion::V2 {
        next.previous_epoch = Some(known.epoch);
        next.epoch = ProducerEpoch(known.epoch.0 + 1);
        if next.epoch.0 == EPOCH_MAX {
            match fresh {
                None => return Ok(End::NeedsProducer),
                Some(fresh) => next.next_producer = Some(fresh),
            }
        }
    }
    assert_eq!(next.ending(), Some(outcome));
    assert_eq!(
        (next.number, &next.partitions),
        (known.number, &known.partitions)
    );
    Ok(End::Become(next))
}

/// Who to go on as after an end was decided: the producer and its epoch, as an answer tells them.
pub fn successor(known: &Transactional) -> (ProducerId, ProducerEpoch) {
    match known.next_producer {
        Some(next) => (next, ProducerEpoch(0)),
        None => (known.producer, known.epoch),
    }
}

fn who(known: &Transactional) -> (ProducerId, ProducerEpoch) {
    (known.producer, known.epoch)
}
