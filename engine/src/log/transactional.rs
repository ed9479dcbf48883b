//! The transactional producer: records and consumed positions that count together, or not at all.
//!
//! | an error is | when | what to do |
//! |---|---|---|
//! | retriable | a broker is away, or busy with the transaction before | nothing: it is tried again here |
//! | [`TransactionError::Abortable`] | something of the transaction is missing, or its time was over | abort, begin again |
//! | [`TransactionError::Fenced`] | another instance has taken over | end this one |
//! | [`TransactionError::Unknown`] | nobody has answered the end | ask the log: it may have committed |
//!
//! Both versions of transactions, by what the broker says. In the first one, epochs live longer than transactions,
//! and a request whose answer was lost may still arrive and hit the next one: so after any such doubt the
//! producer takes a new epoch first (KIP-360). In the second one every end does that (KIP-890).

mod requests;

pub use requests::{end_prepared, take_over};

use super::{
    cluster::{name, Cluster, KeyType},
    member::Membership,
    producer::{Delivered, Lanes, ProducerConfig, Within, RECORD_BYTES_MAX},
    transactions::TransactionVersion,
    TopicPartition,
};
use crate::{
    ids::{Offset, ProducerEpoch, ProducerId},
    record::NewRecord,
    wire::batch::Outcome,
};
use futures::future::BoxFuture;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        add_partitions_to_txn_request::AddPartitionsToTxnTopic,
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
        AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, TransactionalId, TxnOffsetCommitRequest,
    },
    protocol::{Request, StrBytes},
};
use requests::{ask, end, initialize, EndError, Ended, Trouble};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// How a transactional producer works.
#[derive(Clone, Debug)]
pub struct TransactionalConfig {
    /// Who it is: of the instances with one id, only the newest can commit.
    pub transactional_id: String,
    /// A transaction that takes longer is aborted by its coordinator.
    pub timeout: Duration,
    /// Records that are larger are refused.
    pub record_bytes_max: usize,
    /// Speak this version of transactions, whatever the broker has.
    pub version: Option<TransactionVersion>,
    /// How it batches and waits.
    pub producer: ProducerConfig,
}

impl TransactionalConfig {
    /// With Kafka's defaults.
    pub fn new(transactional_id: &str) -> Self {
        TransactionalConfig {
            transactional_id: transactional_id.to_owned(),
            timeout: Duration::from_secs(60),
            record_bytes_max: RECORD_BYTES_MAX,
            version: None,
            producer: ProducerConfig::default(),
        }
    }
}

/// Why a transaction, or its producer, cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// The transaction cannot commit, and has not. Abort it, and begin another.
    #[error("to be aborted: {0}")]
    Abortable(String),
    /// Another instance has taken over, and the transaction was aborted. This producer is of no more use.
    #[error("fenced: {0}")]
    Fenced(String),
    /// Whether the transaction has committed is unknown. This producer is of no more use.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It was not the time for that.
    #[error("misused: {0}")]
    Misused(&'static str),
}

/// A transaction that has only to be ended: who it belongs to. Kept in a checkpoint, it can be ended by
/// another process, as long as nobody initializes the id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prepared {
    /// The transactional id.
    pub transactional_id: String,
    /// Its producer.
    pub producer: ProducerId,
    /// The epoch of the transaction.
    pub epoch: ProducerEpoch,
    /// Which version of transactions it speaks.
    pub version: TransactionVersion,
}

/// A producer of transactions.
pub struct TransactionalProducer {
    cluster: Cluster,
    config: TransactionalConfig,
    version: TransactionVersion,
    id: ProducerId,
    epoch: ProducerEpoch,
    lanes: Lanes,
    phase: Phase,
    /// The partitions that the coordinator knows of, and whether it knows of anything.
    added: BTreeSet<TopicPartition>,
    touched: bool,
    acks: Vec<BoxFuture<'static, Delivered>>,
    /// A request of this epoch may still be on its way.
    doubt: bool,
    begun_twice: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Ready,
    Open,
    Poisoned(String),
    Over(TransactionError),
}

/// The newest versions within a transaction of the first version.
const END_TRANSACTIONS_1: i16 = 4;
const COMMIT_TRANSACTIONS_1: i16 = 4;
/// Clients add partitions in this version; the newer ones are for brokers.
const ADD_PARTITIONS_BY_CLIENTS: i16 = 3;

impl TransactionalProducer {
    /// Takes over a transactional id: whoever had it is fenced, and what was open is aborted. Tries until a
    /// coordinator answers.
    pub async fn new(
        cluster: Cluster,
        config: TransactionalConfig,
    ) -> Result<Self, TransactionError> {
        let begun = initialize(&cluster, &config, None).await?;
        let (id, epoch) = begun.who;
        let version = config.version.unwrap_or(match begun.has_2 {
            true => TransactionVersion::V2,
            false => TransactionVersion::V1,
        });
        let lanes = lanes(&cluster, &config, (id, epoch), version);
        Ok(TransactionalProducer {
            cluster,
            config,
            version,
            id,
            epoch,
            lanes,
            phase: Phase::Ready,
            added: BTreeSet::new(),
            touched: false,
            acks: Vec::new(),
            doubt: false,
            begun_twice: begun.in_doubt,
        })
    }

    /// Whether a request that took over the id was not answered, so that it was sent again. The first one may still
    /// arrive, and fences whoever has the id then, this producer as well: no protocol version tells the two apart.
    pub fn may_fence_itself(&self) -> bool {
        self.begun_twice
    }

    /// Its producer id and epoch.
    pub fn identity(&self) -> (ProducerId, ProducerEpoch) {
        (self.id, self.epoch)
    }

    /// Begins a transaction.
    pub async fn begin(&mut self) -> Result<(), TransactionError> {
        match &self.phase {
            Phase::Ready => {}
            Phase::Over(error) => return Err(error.clone()),
            _ => return Err(TransactionError::Misused("a transaction is open")),
        }
        if self.doubt {
            self.renew().await?;
        }
        self.phase = Phase::Open;
        Ok(())
    }

    /// Takes a new epoch: what is still on its way belongs to an older one then.
    async fn renew(&mut self) -> Result<(), TransactionError> {
        let claim = Some((self.id, self.epoch));
        let renewed = initialize(&self.cluster, &self.config, claim).await;
        let renewed = renewed.inspect_err(|error| self.phase = Phase::Over(error.clone()))?;
        let (id, epoch) = renewed.who;
        self.go_on_as(id, epoch);
        Ok(())
    }

    fn go_on_as(&mut self, id: ProducerId, epoch: ProducerEpoch) {
        if (id, epoch) != (self.id, self.epoch) {
            (self.id, self.epoch) = (id, epoch);
            self.lanes = lanes(&self.cluster, &self.config, (id, epoch), self.version);
        }
        self.doubt = false;
    }

    fn check_open(&self) -> Result<(), TransactionError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Ready => Err(TransactionError::Misused("no transaction is open")),
            Phase::Poisoned(why) => Err(TransactionError::Abortable(why.clone())),
            Phase::Over(error) => Err(error.clone()),
        }
    }

    fn poison(&mut self, why: String) -> TransactionError {
        self.phase = Phase::Poisoned(why.clone());
        TransactionError::Abortable(why)
    }

    /// Sends a record within the transaction. Whether it has arrived shows at the commit.
    pub async fn send(
        &mut self,
        to: &TopicPartition,
        record: NewRecord,
    ) -> Result<(), TransactionError> {
        self.check_open()?;
        let bytes = |field: &Option<bytes::Bytes>| field.as_ref().map_or(0, bytes::Bytes::len);
        let len = bytes(&record.key) + bytes(&record.value);
        if len > self.config.record_bytes_max {
            let max = self.config.record_bytes_max;
            let why = format!("a record of {len} bytes for {to}; {max} are allowed");
            return Err(self.poison(why));
        }
        if self.version == TransactionVersion::V1 && !self.added.contains(to) {
            self.touched = true;
            let topic = AddPartitionsToTxnTopic::default()
                .with_name(name(&to.topic))
                .with_partitions(vec![to.partition.0]);
            let request = AddPartitionsToTxnRequest::default()
                .with_v3_and_below_transactional_id(self.transactional_id())
                .with_v3_and_below_producer_id(self.id.0.into())
                .with_v3_and_below_producer_epoch(self.epoch.0)
                .with_v3_and_below_topics(vec![topic]);
            let added = self
                .coordinate(&request, ADD_PARTITIONS_BY_CLIENTS, |answer| {
                    let topics = answer.results_by_topic_v3_and_below.iter();
                    let mut all = topics.flat_map(|topic| &topic.results_by_partition);
                    all.find(|one| one.partition_error_code != 0)
                        .map_or(0, |one| one.partition_error_code)
                })
                .await;
            self.within(added)?;
        }
        self.touched = true;
        self.added.insert(to.clone());
        let ack = self.lanes.send(to, record).await;
        self.acks.push(Box::pin(ack));
        Ok(())
    }

    /// The positions of a group become those of the transaction when it commits. `member` is who has consumed;
    /// if the group has gone on without it, the transaction cannot commit.
    pub async fn send_positions(
        &mut self,
        group: &str,
        member: Option<&Membership>,
        positions: &[(TopicPartition, Offset)],
    ) -> Result<(), TransactionError> {
        self.send_noted(group, member, positions, "").await
    }

    /// As [`send_positions`](Self::send_positions), with a note beside each position.
    pub async fn send_noted(
        &mut self,
        group: &str,
        member: Option<&Membership>,
        positions: &[(TopicPartition, Offset)],
        metadata: &str,
    ) -> Result<(), TransactionError> {
        self.check_open()?;
        self.touched = true;
        let group_id = StrBytes::from_string(group.to_owned());
        if self.version == TransactionVersion::V1 {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(self.transactional_id())
                .with_producer_id(self.id.0.into())
                .with_producer_epoch(self.epoch.0)
                .with_group_id(group_id.clone().into());
            let added = self
                .coordinate(&request, i16::MAX, |answer| answer.error_code)
                .await;
            self.within(added)?;
        }
        let topics = positions.iter().map(|(of, position)| {
            let partition = TxnOffsetCommitRequestPartition::default()
                .with_partition_index(of.partition.0)
                .with_committed_offset(position.0)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::from_string(metadata.to_owned())));
            TxnOffsetCommitRequestTopic::default()
                .with_name(name(&of.topic))
                .with_partitions(vec![partition])
        });
        let (generation, member) = member.map_or((-1, ""), |m| (m.generation, &m.member));
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_group_id(group_id.into())
            .with_producer_id(self.id.0.into())
            .with_producer_epoch(self.epoch.0)
            .with_generation_id(generation)
            .with_member_id(StrBytes::from_string(member.to_owned()))
            .with_topics(topics.collect());
        let version = match self.version {
            TransactionVersion::V1 => COMMIT_TRANSACTIONS_1,
            TransactionVersion::V2 => i16::MAX,
        };
        let of = (KeyType::Group, group.to_owned());
        let deadline = self.deadline();
        let told = ask(&self.cluster, &of, deadline, &request, version, |answer| {
            let mut all = answer.topics.iter().flat_map(|topic| &topic.partitions);
            all.find(|one| one.error_code != 0)
                .map_or(0, |one| one.error_code)
        });
        let told = told.await;
        self.within(told.map(drop))
    }

    fn transactional_id(&self) -> TransactionalId {
        StrBytes::from_string(self.config.transactional_id.clone()).into()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.producer.delivery_timeout
    }

    /// Asks the coordinator within the transaction.
    async fn coordinate<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<(), Trouble> {
        let of = (KeyType::Transaction, self.config.transactional_id.clone());
        let told = ask(&self.cluster, &of, self.deadline(), request, version, code);
        told.await.map(drop)
    }

    /// What an answer within the transaction means for it.
    fn within(&mut self, told: Result<(), Trouble>) -> Result<(), TransactionError> {
        let trouble = match told {
            Ok(()) => return Ok(()),
            Err(trouble) => trouble,
        };
        self.doubt |= trouble.in_doubt;
        match trouble.said {
            Some(error @ ResponseError::ProducerFenced)
                if self.version == TransactionVersion::V1 =>
            {
                let error = TransactionError::Fenced(format!("{error:?}"));
                self.phase = Phase::Over(error.clone());
                Err(error)
            }
            _ => Err(self.poison(trouble.what)),
        }
    }

    /// Waits until everything that was sent has arrived.
    async fn flush(&mut self) -> Result<(), TransactionError> {
        for ack in std::mem::take(&mut self.acks) {
            if let Err(error) = ack.await {
                self.doubt = true;
                if !matches!(self.phase, Phase::Poisoned(_)) {
                    self.phase = Phase::Poisoned(error.to_string());
                }
            }
        }
        self.check_open()
    }

    /// Waits until everything has arrived, and says whose transaction it is that is left to be ended.
    pub async fn prepare(&mut self) -> Result<Prepared, TransactionError> {
        self.check_open()?;
        self.flush().await?;
        Ok(Prepared {
            transactional_id: self.config.transactional_id.clone(),
            producer: self.id,
            epoch: self.epoch,
            version: self.version,
        })
    }

    /// Commits the transaction. Without an error it is decided, and will show; with
    /// [`TransactionError::Abortable`] it never will.
    pub async fn commit(&mut self) -> Result<(), TransactionError> {
        self.check_open()?;
        self.flush().await?;
        if !self.touched {
            self.reset();
            return Ok(());
        }
        let prepared = self.prepare().await?;
        match end(&self.cluster, &prepared, Outcome::Commit, self.deadline()).await {
            Ok(ended) => {
                self.ended(ended);
                Ok(())
            }
            Err(EndError::OtherWay) => {
                Err(self.poison("its time was over: the coordinator has aborted it".into()))
            }
            Err(EndError::Fenced(why)) => self.over(TransactionError::Fenced(why)),
            Err(EndError::Unknown(why)) => self.over(TransactionError::Unknown(why)),
        }
    }

    /// Aborts the transaction: nothing of it will ever show.
    pub async fn abort(&mut self) -> Result<(), TransactionError> {
        match &self.phase {
            Phase::Open | Phase::Poisoned(_) => {}
            Phase::Ready => return Err(TransactionError::Misused("no transaction is open")),
            Phase::Over(error) => return Err(error.clone()),
        }
        // What is still queued or in flight may arrive late.
        self.doubt |= !self.acks.is_empty();
        self.acks.clear();
        if !self.touched {
            self.reset();
            return Ok(());
        }
        if self.doubt && self.version == TransactionVersion::V1 {
            // A marker under this epoch could be overtaken (KAFKA-14053): the new epoch aborts it.
            self.renew().await?;
            self.reset();
            return Ok(());
        }
        let prepared = Prepared {
            transactional_id: self.config.transactional_id.clone(),
            producer: self.id,
            epoch: self.epoch,
            version: self.version,
        };
        match end(&self.cluster, &prepared, Outcome::Abort, self.deadline()).await {
            Ok(ended) => {
                self.ended(ended);
                Ok(())
            }
            // Nothing had reached the coordinator; or it was ended so, and forgotten.
            Err(EndError::OtherWay) => {
                self.renew().await?;
                self.reset();
                Ok(())
            }
            Err(EndError::Fenced(why)) => self.over(TransactionError::Fenced(why)),
            Err(EndError::Unknown(why)) => self.over(TransactionError::Unknown(why)),
        }
    }

    fn ended(&mut self, ended: Ended) {
        self.reset();
        match ended.successor {
            Some((id, epoch)) => self.go_on_as(id, epoch),
            None => self.doubt |= ended.in_doubt,
        }
    }

    fn reset(&mut self) {
        self.phase = Phase::Ready;
        self.touched = false;
        self.added.clear();
    }

    fn over(&mut self, error: TransactionError) -> Result<(), TransactionError> {
        self.phase = Phase::Over(error.clone());
        Err(error)
    }
}

fn lanes(
    cluster: &Cluster,
    config: &TransactionalConfig,
    who: (ProducerId, ProducerEpoch),
    version: TransactionVersion,
) -> Lanes {
    let within = Within {
        id: config.transactional_id.clone(),
        version,
    };
    Lanes::new(cluster.clone(), who, Some(within), config.producer.clone())
}
