//! Pure: the life of a transactional id (KIP-98, 360, 447, 588, 890).
//!
//! What a coordinator decides is the next [`Transactional`] of an id. It becomes true when it is durable in the
//! coordinator's log, and only then does anybody learn of it; [`Transactions::apply`] is the one way in, for what
//! was just appended and for what is read after a restart. [`LEGAL`] has all the moves there are.
//!
//! Two versions of transactions. In the first, an id keeps its producer epoch from one transaction to the next,
//! so a request that comes late may hit the wrong one; in the second (KIP-890) every end bumps the epoch, and
//! tells the client. Our markers bear the number of their transaction besides, so a late one is known in both.

mod decide;
mod known;

pub use decide::{add, end, init, successor, verify, End, Init};
pub use known::Transactions;

use super::TopicPartition;
use crate::{
    ids::{ProducerEpoch, ProducerId},
    wire::batch::{Marker, Outcome},
};
use kafka_protocol::error::ResponseError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Where a transactional id is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// It has a producer, and has not begun a transaction.
    Empty,
    /// A transaction is open.
    Ongoing,
    /// It is decided that it commits; markers are on their way.
    PrepareCommit,
    /// It is decided that it aborts; markers are on their way.
    PrepareAbort,
    /// All markers are durable.
    CompleteCommit,
    /// All markers are durable.
    CompleteAbort,
}

/// All moves from state to state.
pub const LEGAL: [(State, State); 14] = {
    use State::*;
    [
        (Empty, Empty),
        (Empty, Ongoing),
        (Empty, CompleteAbort),
        (Ongoing, Ongoing),
        (Ongoing, PrepareCommit),
        (Ongoing, PrepareAbort),
        (PrepareCommit, CompleteCommit),
        (PrepareAbort, CompleteAbort),
        (CompleteCommit, Empty),
        (CompleteCommit, Ongoing),
        (CompleteCommit, CompleteAbort),
        (CompleteAbort, Empty),
        (CompleteAbort, Ongoing),
        // An end of nothing still bumps the epoch, in the second version.
        (CompleteAbort, CompleteAbort),
    ]
};

/// Which version of transactions a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TransactionVersion {
    /// One epoch for many transactions.
    V1,
    /// An epoch for each (KIP-890).
    V2,
}

/// What is known of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transactional {
    /// Its producer.
    pub producer: ProducerId,
    /// Its producer's epoch; from the decision to end a transaction on, the epoch of its markers.
    pub epoch: ProducerEpoch,
    /// The epoch before, whose owner may come again: it did not hear of the bump (KIP-360), or its transaction
    /// timed out (KIP-588). Nothing if another instance has taken over.
    pub previous_epoch: Option<ProducerEpoch>,
    /// The producer before, if its epochs were used up.
    pub previous_producer: Option<ProducerId>,
    /// The producer to go on with after this transaction, if the epochs of this one are used up.
    pub next_producer: Option<ProducerId>,
    /// How long a transaction may take.
    pub timeout_ms: i32,
    /// Where it is.
    pub state: State,
    /// How many transactions it has begun.
    pub number: i32,
    /// The partitions of the transaction.
    pub partitions: BTreeSet<TopicPartition>,
    /// When the transaction began, by its coordinator's clock.
    pub started_ms: i64,
    /// When this was decided.
    pub updated_ms: i64,
}

/// The highest epoch of a marker; a producer's own end one below.
const EPOCH_MAX: i16 = i16::MAX;

impl Transactional {
    fn new(producer: ProducerId, timeout_ms: i32, now_ms: i64) -> Self {
        Transactional {
            producer,
            epoch: ProducerEpoch(0),
            previous_epoch: None,
            previous_producer: None,
            next_producer: None,
            timeout_ms,
            state: State::Empty,
            number: 0,
            partitions: BTreeSet::new(),
            started_ms: 0,
            updated_ms: now_ms,
        }
    }

    /// Whether its end is decided, and not yet complete; and which one.
    pub fn ending(&self) -> Option<Outcome> {
        match self.state {
            State::PrepareCommit => Some(Outcome::Commit),
            State::PrepareAbort => Some(Outcome::Abort),
            _ => None,
        }
    }

    /// The marker of its end.
    pub fn marker(&self) -> Option<Marker> {
        self.ending().map(|outcome| Marker {
            producer: self.producer,
            epoch: self.epoch,
            outcome,
            number: self.number,
        })
    }

    /// Whether `who` may speak for it. "Fenced" is final; who may come again is told that its epoch is over (KIP-588).
    fn check(&self, who: (ProducerId, ProducerEpoch)) -> Result<(), ResponseError> {
        if self.producer != who.0 {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        match who.1 {
            epoch if epoch == self.epoch => Ok(()),
            epoch if Some(epoch) == self.previous_epoch => Err(ResponseError::InvalidProducerEpoch),
            _ => Err(ResponseError::ProducerFenced),
        }
    }

    /// Whether a transaction of `who` was aborted, with nobody who has taken over: its time was over.
    fn has_timed_out(&self, who: (ProducerId, ProducerEpoch)) -> bool {
        let is_aborted = matches!(self.state, State::PrepareAbort | State::CompleteAbort);
        is_aborted && self.producer == who.0 && self.previous_epoch == Some(who.1)
    }

    fn next(&self, state: State, now_ms: i64) -> Self {
        Transactional {
            state,
            updated_ms: now_ms,
            ..self.clone()
        }
    }

    /// The next epoch; that of `fresh` if the epochs are used up. Nothing if that is needed and not there.
    fn bumped(&self, fresh: Option<ProducerId>) -> Option<Self> {
        let mut next = self.clone();
        if self.epoch.0 + 1 < EPOCH_MAX {
            next.epoch = ProducerEpoch(self.epoch.0 + 1);
            next.previous_producer = None;
        } else {
            next.producer = fresh?;
            next.epoch = ProducerEpoch(0);
            next.previous_producer = Some(self.producer);
        }
        next.previous_epoch = Some(self.epoch);
        Some(next)
    }

    /// Decides on the abort of what is open, under a new epoch: whoever was at it is fenced.
    fn fenced(&self, now_ms: i64) -> Self {
        Transactional {
            epoch: ProducerEpoch(self.epoch.0.saturating_add(1)),
            ..self.next(State::PrepareAbort, now_ms)
        }
    }

    /// What is to be done if its transaction takes too long.
    pub fn time_out(&self, now_ms: i64) -> Option<Self> {
        let is_late = now_ms.saturating_sub(self.started_ms) > i64::from(self.timeout_ms);
        (self.state == State::Ongoing && is_late).then(|| Transactional {
            previous_epoch: Some(self.epoch),
            ..self.fenced(now_ms)
        })
    }

    /// What becomes true when all markers are durable.
    pub fn complete(&self, now_ms: i64) -> Option<Self> {
        let state = match self.ending()? {
            Outcome::Commit => State::CompleteCommit,
            Outcome::Abort => State::CompleteAbort,
        };
        let mut next = self.next(state, now_ms);
        next.partitions.clear();
        if let Some(fresh) = next.next_producer.take() {
            next.previous_producer = Some(self.producer);
            next.producer = fresh;
            next.epoch = ProducerEpoch(0);
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;
    use proptest::prelude::*;

    const ID: &str = "t";

    fn partitions() -> BTreeSet<TopicPartition> {
        [TopicPartition::new("a", PartitionId(0))].into()
    }

    fn who(known: &Transactional) -> (ProducerId, ProducerEpoch) {
        (known.producer, known.epoch)
    }

    fn begun(epoch: i16) -> Transactional {
        let mut fresh = Transactional::new(ProducerId(7), 1000, 0);
        fresh.epoch = ProducerEpoch(epoch);
        let me = who(&fresh);
        add(Some(&fresh), me, &partitions(), 10).unwrap().unwrap()
    }

    fn ended(
        known: &Transactional,
        outcome: Outcome,
        version: TransactionVersion,
    ) -> Transactional {
        let End::Become(next) = end(
            Some(known),
            who(known),
            outcome,
            version,
            20,
            Some(ProducerId(8)),
        )
        .unwrap() else {
            panic!("it ends")
        };
        next.complete(30).unwrap()
    }

    #[test]
    fn an_end_that_comes_again_is_known_by_its_epoch_and_its_outcome() {
        use TransactionVersion::{V1, V2};
        for version in [V1, V2] {
            let open = begun(3);
            let done = ended(&open, Outcome::Commit, version);
            let again = |outcome| end(Some(&done), who(&open), outcome, version, 40, None);
            assert_eq!(again(Outcome::Commit), Ok(End::Same));
            assert_eq!(again(Outcome::Abort), Err(ResponseError::InvalidTxnState));
            assert_eq!(done.epoch.0, if version == V2 { 4 } else { 3 });
        }
    }

    #[test]
    fn a_late_end_does_not_hit_the_next_transaction() {
        let open = begun(3);
        let done = ended(&open, Outcome::Commit, TransactionVersion::V2);
        let next = add(Some(&done), who(&done), &partitions(), 50)
            .unwrap()
            .unwrap();
        for outcome in [Outcome::Commit, Outcome::Abort] {
            let late = end(
                Some(&next),
                who(&open),
                outcome,
                TransactionVersion::V2,
                60,
                None,
            );
            // Nobody has taken over: it is the epoch that is over (KIP-588).
            assert_eq!(late, Err(ResponseError::InvalidProducerEpoch));
        }
    }

    #[test]
    fn when_epochs_are_used_up_another_producer_goes_on() {
        let open = begun(EPOCH_MAX - 1);
        let done = ended(&open, Outcome::Commit, TransactionVersion::V2);
        assert_eq!(who(&done), (ProducerId(8), ProducerEpoch(0)));
        let again = end(
            Some(&done),
            who(&open),
            Outcome::Commit,
            TransactionVersion::V2,
            40,
            None,
        );
        assert_eq!(again, Ok(End::Same));
    }

    #[test]
    fn who_timed_out_may_come_again_and_who_was_replaced_may_not() {
        let open = begun(3);
        assert_eq!(open.time_out(1010), None);
        let aborted = open.time_out(1011).unwrap().complete(1012).unwrap();
        assert_eq!(aborted.epoch, ProducerEpoch(4));
        let me = Some(who(&open));
        assert_eq!(init(Some(&aborted), me, 1000, 2000, None), Ok(Init::Same));
        let add_to = |known| add(Some(known), who(&open), &partitions(), 2000);
        assert_eq!(add_to(&aborted), Err(ResponseError::InvalidProducerEpoch));
        for version in [TransactionVersion::V1, TransactionVersion::V2] {
            let late = end(
                Some(&aborted),
                who(&open),
                Outcome::Commit,
                version,
                40,
                None,
            );
            assert_eq!(late, Err(ResponseError::InvalidTxnState), "{version:?}");
        }
        let Ok(Init::Fence(taken)) = init(Some(&open), None, 1000, 20, None) else {
            panic!("a new instance fences")
        };
        let taken = taken.complete(30).unwrap();
        let late = init(Some(&taken), me, 1000, 2000, None);
        assert_eq!(late, Err(ResponseError::ProducerFenced));
        assert_eq!(add_to(&taken), Err(ResponseError::ProducerFenced));
        let late = end(
            Some(&taken),
            who(&open),
            Outcome::Commit,
            TransactionVersion::V2,
            40,
            None,
        );
        assert!(late.is_err(), "{late:?}");
    }

    #[derive(Clone, Debug)]
    enum Ask {
        Init(bool),
        Add,
        End(bool, bool),
        Complete,
        TimeOut,
        Late(usize, bool),
    }

    fn ask() -> impl Strategy<Value = Ask> {
        prop_oneof![
            any::<bool>().prop_map(Ask::Init),
            Just(Ask::Add),
            (any::<bool>(), any::<bool>()).prop_map(|(commit, two)| Ask::End(commit, two)),
            Just(Ask::Complete),
            Just(Ask::TimeOut),
            (0usize..20, any::<bool>()).prop_map(|(which, commit)| Ask::Late(which, commit)),
        ]
    }

    proptest! {
        /// Whatever is asked: every move is legal, and nobody with an old epoch moves anything.
        #[test]
        fn every_decision_is_a_legal_move(first in 0i16.., asks in prop::collection::vec(ask(), 0..60)) {
            let mut all = Transactions::default();
            let mut start = Transactional::new(ProducerId(1), 100, 0);
            start.epoch = ProducerEpoch(first.min(EPOCH_MAX - 1));
            all.apply(ID, Some(start)).unwrap();
            let (mut now, mut owners, mut fresh) = (0, Vec::new(), 1);
            for ask in asks {
                now += 50;
                fresh += 1;
                let id = Some(ProducerId(fresh));
                let known = all.get(ID).unwrap().clone();
                let me = who(&known);
                let next = match ask {
                    Ask::Init(claims) => match init(Some(&known), claims.then_some(me), 100, now, id) {
                        Ok(Init::Become(next) | Init::Fence(next)) => Some(next),
                        _ => None,
                    },
                    Ask::Add => add(Some(&known), me, &partitions(), now).unwrap_or(None),
                    Ask::End(commit, two) => {
                        let outcome = if commit { Outcome::Commit } else { Outcome::Abort };
                        let version = if two { TransactionVersion::V2 } else { TransactionVersion::V1 };
                        match end(Some(&known), me, outcome, version, now, id) {
                            Ok(End::Become(next)) => Some(next),
                            _ => None,
                        }
                    }
                    Ask::Complete => known.complete(now),
                    Ask::TimeOut => known.time_out(now),
                    Ask::Late(which, commit) => {
                        let outcome = if commit { Outcome::Commit } else { Outcome::Abort };
                        if let Some(old) = owners.get(which).filter(|old| **old != me) {
                            let late = end(Some(&known), *old, outcome, TransactionVersion::V2, now, id);
                            prop_assert!(!matches!(late, Ok(End::Become(_))));
                            prop_assert!(add(Some(&known), *old, &partitions(), now).is_err());
                        }
                        None
                    }
                };
                if let Some(next) = next {
                    owners.push(who(&next));
                    prop_assert_eq!(all.apply(ID, Some(next)), Ok(()));
                }
            }
        }
    }
}
