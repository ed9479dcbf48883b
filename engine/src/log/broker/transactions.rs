//! The coordinator of transactional ids: it decides, makes its decision durable, and carries it out.
//!
//! An id belongs to a partition of `__transaction_state`, and that partition's leader is its coordinator. Of an
//! id, one decision at a time is on its way; everybody else is told to come again.

mod adding;
mod describe;
mod markers;

use super::{to_its_end, Broker, TRANSACTIONS_TOPIC};
use crate::{
    ids::{PartitionId, ProducerEpoch, ProducerId},
    log::{
        fold::{Fold, Folded},
        partition::AppendError,
        transactions::{self, End, Init, State, TransactionVersion, Transactional, Transactions},
        TopicPartition,
    },
    record::NewRecord,
    wire::{
        batch::{self, Batch, Body, Identity, Outcome},
        validate::Checked,
    },
};
use kafka_protocol::{
    error::ResponseError,
    messages::{EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64;

/// The coordinator of the transactional ids of one partition of `__transaction_state`.
pub struct Coordinator {
    pub(super) fold: Fold<Transactions>,
    /// Ids with a decision on its way.
    busy: Mutex<BTreeSet<String>>,
}

impl Folded for Transactions {
    fn apply(&mut self, batch: &Batch) -> Result<(), String> {
        let Body::Data(records) = &batch.body else {
            return Err("a marker in the coordinator's own log".into());
        };
        for record in records {
            let id = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default());
            let next = match &record.value {
                None => None,
                Some(value) => serde_json::from_slice(value).map_err(|error| error.to_string())?,
            };
            Transactions::apply(self, &id, next)?;
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        Transactions::fingerprint(self)
    }
}

/// A decision on its way; ends when it is dropped.
struct Claim {
    coordinator: Arc<Coordinator>,
    id: String,
}

impl Coordinator {
    fn claim(self: &Arc<Self>, id: &str) -> Result<Claim, ResponseError> {
        match self.busy.lock().expect("busy").insert(id.to_owned()) {
            false => Err(ResponseError::ConcurrentTransactions),
            true => Ok(Claim {
                coordinator: self.clone(),
                id: id.to_owned(),
            }),
        }
    }

    fn get(&self, id: &str) -> Option<Transactional> {
        self.fold.look(|all| all.get(id).cloned())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.coordinator.busy.lock().expect("busy").remove(&self.id);
    }
}

/// What a decision is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// An instance begins that says of no epoch that it had it: whoever has the id is fenced.
    TakeOver,
    /// Who has the id takes its next epoch (KIP-360).
    Renewal,
    /// Partitions are added to a transaction.
    Adding,
    /// A transaction is ended by its producer.
    End,
    /// All markers of a transaction are durable.
    Completion,
    /// Time has passed.
    Clock,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::TakeOver => "take-over",
            Cause::Renewal => "renewal",
            Cause::Adding => "adding",
            Cause::End => "end",
            Cause::Completion => "completion",
            Cause::Clock => "clock",
        }
    }
}

/// What a decision comes to.
enum Step {
    /// This is to become true; nothing: the id is to be forgotten.
    Become(Option<Transactional>),
    /// It is as it should be.
    Stay,
}

/// How long a leader asks again while the transaction before is still being ended.
const JOIN_TRIES: u32 = 20;
const JOIN_PAUSE: Duration = Duration::from_millis(20);
const ADD_PARTITIONS_VERSION: i16 = 5;
/// The first version with which a client speaks the second version of transactions.
const END_TRANSACTIONS_2: i16 = 5;

impl Broker {
    /// Which partition of a coordinators' topic is responsible for `key`.
    pub(super) fn coordinator_of(&self, key: &str) -> PartitionId {
        let count = self.config.coordinators.max(1) as u64;
        PartitionId((xxh3_64(key.as_bytes()) % count) as i32)
    }

    pub(super) async fn coordinator_for(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<Arc<Coordinator>, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        self.transaction_coordinator(self.coordinator_of(id).0)
            .await
    }

    /// The coordinator, opened if need be; what it had decided before is then carried out.
    pub(super) async fn transaction_coordinator(
        self: &Arc<Self>,
        index: i32,
    ) -> Result<Arc<Coordinator>, ResponseError> {
        let key = TopicPartition::new(TRANSACTIONS_TOPIC, PartitionId(index));
        if !self.is_here(&key) {
            return Err(ResponseError::NotCoordinator);
        }
        if let Some(open) = self.transactions.lock().await.get(&index) {
            return Ok(open.clone());
        }
        let partition = self.partition(&key).await?;
        let broker = self.clone();
        to_its_end(async move {
            let mut all = broker.transactions.lock().await;
            if let Some(open) = all.get(&index) {
                return Ok(open.clone());
            }
            let fold = Fold::open(partition, key.to_string(), Transactions::default()).await;
            let fold = fold.map_err(|error| {
                broker.fail(error);
                ResponseError::KafkaStorageError
            })?;
            let coordinator = Arc::new(Coordinator {
                fold,
                busy: Mutex::default(),
            });
            let (following, failing) = (coordinator.clone(), broker.clone());
            tokio::spawn(async move {
                let error = following.fold.follow().await;
                failing.fail(error);
            });
            let (known, ending) = coordinator.fold.look(|all| {
                let ending = all.iter().filter(|(_, known)| known.ending().is_some());
                let ending: Vec<String> = ending.map(|(id, _)| id.clone()).collect();
                (all.iter().count(), ending)
            });
            tracing::info!(
                name: "transaction.coordinator-loaded",
                partition = index,
                known,
                ending = ending.len()
            );
            if known > 0 {
                tracing::info!(name: "transaction.coordinator-took-over", partition = index);
            }
            for id in ending {
                // Whether it was told before the crash is unknown.
                if let Some(known) = coordinator.get(&id) {
                    tell(&id, &known);
                }
                broker.spawn_finish(&coordinator, &id);
            }
            let own = broker.own_producer_ids();
            let newest = coordinator.fold.look(|all| {
                let held = all.iter().map(|(_, known)| known.producer);
                held.filter(|id| own.contains(id)).max()
            });
            broker.pass_producer_id(newest).await;
            all.insert(index, coordinator.clone());
            Ok(coordinator)
        })
        .await
    }

    /// Decides something about an id, makes it durable, and applies it. Returns what is known then.
    async fn settle(
        self: &Arc<Self>,
        coordinator: &Arc<Coordinator>,
        id: &str,
        cause: Cause,
        decide: impl FnOnce(Option<&Transactional>, i64) -> Result<Step, ResponseError> + Send + 'static,
    ) -> Result<Option<Transactional>, ResponseError> {
        let (broker, coordinator, id) = (self.clone(), coordinator.clone(), id.to_owned());
        to_its_end(async move {
            let claim = coordinator.claim(&id)?;
            let known = coordinator.get(&id);
            let now_ms = broker.host.clock.now_ms();
            let next = match decide(known.as_ref(), now_ms)? {
                Step::Stay => return Ok(known),
                Step::Become(next) => next,
            };
            say_raised(&id, cause, known.as_ref(), next.as_ref());
            let record = NewRecord {
                key: Some(id.clone().into()),
                value: next
                    .as_ref()
                    .map(|next| serde_json::to_vec(next).expect("plain data").into()),
                headers: Vec::new(),
                timestamp_ms: now_ms,
            };
            let bytes = batch::encode(&[record], Identity::NOBODY).expect("one record");
            let checked = Checked::ours(bytes).expect("it was just built");
            let partition = coordinator.fold.partition();
            let appended = match partition.append(&checked, None, now_ms).await {
                Ok(appended) => appended,
                Err(AppendError::Log(error)) => {
                    broker.fail(error);
                    return Err(ResponseError::NotCoordinator);
                }
                // Nothing of it is there.
                Err(_) => return Err(ResponseError::CoordinatorNotAvailable),
            };
            let applied = coordinator.fold.wait_applied(appended.end_offset);
            let is_durable = partition.wait_synced(appended.end_offset).await.is_ok();
            if !is_durable || applied.await.is_err() {
                // Whether it is there is unknown; the broker ends, and reads it again.
                return Err(ResponseError::NotCoordinator);
            }
            if let Some(next) = &next {
                tell(&id, next);
                if next.ending().is_some() {
                    broker.spawn_finish(&coordinator, &id);
                }
            }
            drop(claim);
            Ok(next)
        })
        .await
    }

    /// A new producer id, or the next epoch of a transactional one.
    pub async fn init_producer_id(
        self: &Arc<Self>,
        request: InitProducerIdRequest,
    ) -> InitProducerIdResponse {
        let answer = InitProducerIdResponse::default();
        let is_half = (request.producer_id.0 == -1) != (request.producer_epoch == -1);
        let given = match &request.transactional_id {
            // A producer without an epoch, or the other way round, is nobody.
            _ if is_half => Err(ResponseError::InvalidRequest),
            None => match to_its_end(self.clone().next_producer_id()).await {
                Ok(id) => Ok((ProducerId(id), ProducerEpoch(0))),
                Err(_) => Err(ResponseError::CoordinatorNotAvailable),
            },
            Some(id) => {
                let claim = (request.producer_id.0 >= 0).then_some((
                    ProducerId(request.producer_id.0),
                    ProducerEpoch(request.producer_epoch),
                ));
                self.init_transactional(id, claim, request.transaction_timeout_ms)
                    .await
            }
        };
        match given {
            Ok((id, epoch)) => answer
                .with_producer_id(id.0.into())
                .with_producer_epoch(epoch.0),
            Err(error) => answer
                .with_error_code(error.code())
                .with_producer_id((-1).into())
                .with_producer_epoch(-1),
        }
    }

    async fn init_transactional(
        self: &Arc<Self>,
        id: &str,
        claim: Option<(ProducerId, ProducerEpoch)>,
        timeout_ms: i32,
    ) -> Result<(ProducerId, ProducerEpoch), ResponseError> {
        let longest = self.config.transaction_max_timeout.as_millis();
        if timeout_ms <= 0 || timeout_ms as u128 > longest {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let coordinator = self.coordinator_for(id).await?;
        let cause = match claim {
            None => Cause::TakeOver,
            Some(_) => Cause::Renewal,
        };
        let mut fresh = None;
        loop {
            let with = fresh;
            let settled =
                self.settle(
                    &coordinator,
                    id,
                    cause,
                    move |known, now| match transactions::init(known, claim, timeout_ms, now, with)?
                    {
                        Init::Become(next) | Init::Fence(next) => Ok(Step::Become(Some(next))),
                        Init::Same => Ok(Step::Stay),
                        Init::NeedsProducer => Err(NEEDS_PRODUCER),
                    },
                );
            let known = match settled.await {
                Err(NEEDS_PRODUCER) if fresh.is_none() => {
                    fresh = Some(self.fresh_producer().await?);
                    continue;
                }
                known => known?.ok_or(ResponseError::UnknownServerError)?,
            };
            if known.ending().is_some() {
                tracing::info!(name: "transaction.fenced", id);
                return Err(ResponseError::ConcurrentTransactions);
            }
            tracing::info!(
                name: "transaction.initialized",
                id,
                producer = known.producer.0,
                epoch = known.epoch.0
            );
            return Ok((known.producer, known.epoch));
        }
    }

    async fn fresh_producer(self: &Arc<Self>) -> Result<ProducerId, ResponseError> {
        let id = to_its_end(self.clone().next_producer_id()).await;
        id.map(ProducerId)
            .map_err(|_| ResponseError::CoordinatorNotAvailable)
    }

    /// Ends a transaction: once the decision is durable it is told, and carried out.
    pub async fn end_transaction(
        self: &Arc<Self>,
        request: EndTxnRequest,
        api_version: i16,
    ) -> EndTxnResponse {
        let version = match api_version >= END_TRANSACTIONS_2 {
            true => TransactionVersion::V2,
            false => TransactionVersion::V1,
        };
        let answer = EndTxnResponse::default()
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        match self.decide_end(&request, version).await {
            Ok((id, epoch)) if version == TransactionVersion::V2 => answer
                .with_producer_id(id.0.into())
                .with_producer_epoch(epoch.0),
            Ok(_) => answer,
            Err(error) => answer.with_error_code(error.code()),
        }
    }

    async fn decide_end(
        self: &Arc<Self>,
        request: &EndTxnRequest,
        version: TransactionVersion,
    ) -> Result<(ProducerId, ProducerEpoch), ResponseError> {
        let outcome = match request.committed {
            true => Outcome::Commit,
            false => Outcome::Abort,
        };
        let who = (
            ProducerId(request.producer_id.0),
            ProducerEpoch(request.producer_epoch),
        );
        let id = &request.transactional_id;
        let coordinator = self.coordinator_for(id).await?;
        let mut fresh = None;
        loop {
            let with = fresh;
            let settled =
                self.settle(
                    &coordinator,
                    id,
                    Cause::End,
                    move |known, now| match transactions::end(
                        known, who, outcome, version, now, with,
                    )? {
                        End::Become(next) => Ok(Step::Become(Some(next))),
                        End::Same => Ok(Step::Stay),
                        End::NeedsProducer => Err(NEEDS_PRODUCER),
                    },
                );
            match settled.await {
                Err(NEEDS_PRODUCER) if fresh.is_none() => {
                    fresh = Some(self.fresh_producer().await?);
                }
                known => {
                    let known = known?.ok_or(ResponseError::UnknownServerError)?;
                    return Ok(transactions::successor(&known));
                }
            }
        }
    }

    /// Aborts transactions that take too long, and forgets ids that nobody has used for very long.
    pub(super) async fn end_overdue_transactions(self: &Arc<Self>) {
        let open: Vec<_> = self.transactions.lock().await.values().cloned().collect();
        let now = self.host.clock.now_ms();
        let silent_since = now.saturating_sub(self.config.producer_retention.as_millis() as i64);
        let is_unused = move |known: &Transactional| {
            let rests = !matches!(known.state, State::Ongoing) && known.ending().is_none();
            rests && known.updated_ms < silent_since
        };
        for coordinator in open {
            let overdue: Vec<(String, bool)> = coordinator.fold.look(|all| {
                let overdue = all.iter().filter_map(|(id, known)| {
                    let late = known.time_out(now).is_some();
                    (late || is_unused(known)).then(|| (id.clone(), late))
                });
                overdue.collect()
            });
            for (id, late) in overdue {
                let settled = self.settle(&coordinator, &id, Cause::Clock, move |known, now| {
                    if known.is_some_and(is_unused) {
                        return Ok(Step::Become(None));
                    }
                    let next = known.and_then(|known| known.time_out(now));
                    Ok(next.map_or(Step::Stay, |next| Step::Become(Some(next))))
                });
                if settled.await.is_ok_and(|known| known.is_some()) && late {
                    tracing::info!(name: "transaction.timed-out", id);
                }
            }
        }
    }
}

/// Says within the coordinator that a decision needs a producer id first; nobody else is told.
const NEEDS_PRODUCER: ResponseError = ResponseError::UnknownProducerId;

/// Says that an epoch goes up, and what for: before that is durable, and so before anybody can be fenced by it.
fn say_raised(id: &str, by: Cause, known: Option<&Transactional>, next: Option<&Transactional>) {
    let Some(next) = next else { return };
    let before = known.map(|known| (known.producer, known.epoch));
    if before != Some((next.producer, next.epoch)) {
        tracing::debug!(
            name: "transaction.epoch-raised",
            id,
            producer = next.producer.0,
            epoch = next.epoch.0,
            by = by.name()
        );
    }
}

/// Says what was decided, once it is durable.
fn tell(id: &str, next: &Transactional) {
    let (producer, epoch) = (next.producer.0, next.epoch.0);
    let (number, partitions) = (next.number, next.partitions.len());
    match next.state {
        State::Empty => {}
        State::Ongoing => {
            tracing::info!(name: "transaction.ongoing", id, producer, epoch, number, partitions);
        }
        State::PrepareCommit => {
            tracing::info!(name: "transaction.commit-decided", id, producer, epoch, number, partitions);
        }
        State::PrepareAbort => {
            tracing::info!(name: "transaction.abort-decided", id, producer, epoch, number, partitions);
        }
        State::CompleteCommit => {
            tracing::info!(name: "transaction.committed", id, producer, epoch, number);
        }
        State::CompleteAbort => {
            tracing::info!(name: "transaction.aborted", id, producer, epoch, number);
        }
    }
}
