//! What a coordinator is asked, again and again while its answer may change.

use super::{Prepared, TransactionError, TransactionalConfig, END_TRANSACTIONS_1};
use crate::{
    ids::{ProducerEpoch, ProducerId},
    log::{
        cluster::{may_change, Cluster, ClusterError, KeyType, BACKOFF},
        connection::SharedConnection,
        transactions::TransactionVersion,
    },
    wire::batch::Outcome,
};
use kafka_protocol::{
    error::ResponseError,
    messages::{EndTxnRequest, InitProducerIdRequest},
    protocol::{Request, StrBytes},
};
use std::time::Duration;
use tokio::time::Instant;

/// Ends a transaction that another process has prepared. It may have ended so already. If it has ended in the
/// other way, because its time was over, that is [`TransactionError::Abortable`]: what was prepared is gone.
pub async fn end_prepared(
    cluster: &Cluster,
    prepared: &Prepared,
    outcome: Outcome,
    within: Duration,
) -> Result<(), TransactionError> {
    match end(cluster, prepared, outcome, Instant::now() + within).await {
        Ok(_) => Ok(()),
        Err(EndError::OtherWay) => Err(TransactionError::Abortable(format!(
            "the prepared transaction of {} has ended in the other way",
            prepared.transactional_id
        ))),
        Err(EndError::Fenced(why)) => Err(TransactionError::Fenced(why)),
        Err(EndError::Unknown(why)) => Err(TransactionError::Unknown(why)),
    }
}

/// Takes over a transactional id, once: whoever had it is fenced, and what was open is aborted.
pub async fn take_over(
    cluster: &Cluster,
    transactional_id: &str,
    within: Duration,
) -> Result<(), TransactionError> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(
            StrBytes::from_string(transactional_id.to_owned()).into(),
        ))
        .with_transaction_timeout_ms(TAKE_OVER_TIMEOUT_MS)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let of = (KeyType::Transaction, transactional_id.to_owned());
    let deadline = Instant::now() + within;
    let told = ask(cluster, &of, deadline, &request, i16::MAX, |answer| {
        answer.error_code
    });
    match told.await {
        Ok(_) => Ok(()),
        Err(trouble) if trouble.said.is_some() => Err(TransactionError::Fenced(trouble.what)),
        Err(trouble) => Err(TransactionError::Unknown(trouble.what)),
    }
}

/// Who only takes over does not begin a transaction.
const TAKE_OVER_TIMEOUT_MS: i32 = 60_000;

pub(super) struct Ended {
    /// Who to go on as, in the second version.
    pub successor: Option<(ProducerId, ProducerEpoch)>,
    pub in_doubt: bool,
}

pub(super) enum EndError {
    OtherWay,
    Fenced(String),
    Unknown(String),
}

pub(super) async fn end(
    cluster: &Cluster,
    prepared: &Prepared,
    outcome: Outcome,
    deadline: Instant,
) -> Result<Ended, EndError> {
    let request = EndTxnRequest::default()
        .with_transactional_id(StrBytes::from_string(prepared.transactional_id.clone()).into())
        .with_producer_id(prepared.producer.0.into())
        .with_producer_epoch(prepared.epoch.0)
        .with_committed(outcome == Outcome::Commit);
    let version = match prepared.version {
        TransactionVersion::V1 => END_TRANSACTIONS_1,
        TransactionVersion::V2 => i16::MAX,
    };
    let of = (KeyType::Transaction, prepared.transactional_id.clone());
    let told = ask(cluster, &of, deadline, &request, version, |answer| {
        answer.error_code
    })
    .await;
    match told {
        Ok(told) => {
            match outcome {
                Outcome::Commit => tracing::info!(name: "producer.committed", id = %of.1),
                Outcome::Abort => tracing::info!(name: "producer.aborted", id = %of.1),
            }
            let answer = told.answer;
            let successor = (prepared.version == TransactionVersion::V2).then_some((
                ProducerId(answer.producer_id.0),
                ProducerEpoch(answer.producer_epoch),
            ));
            Ok(Ended {
                successor,
                in_doubt: told.in_doubt,
            })
        }
        Err(trouble) => Err(match trouble.said {
            Some(ResponseError::InvalidTxnState) => EndError::OtherWay,
            // An earlier try may have ended it before somebody took over.
            Some(_) if trouble.in_doubt => EndError::Unknown(trouble.what),
            Some(_) => EndError::Fenced(trouble.what),
            None => EndError::Unknown(trouble.what),
        }),
    }
}

/// Initializes a transactional id, as `claim` if there was an epoch before. Tries until it is told.
pub(super) async fn initialize(
    cluster: &Cluster,
    config: &TransactionalConfig,
    claim: Option<(ProducerId, ProducerEpoch)>,
) -> Result<Initialized, TransactionError> {
    let (id, epoch) = claim.unwrap_or((ProducerId(-1), ProducerEpoch(-1)));
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(
            StrBytes::from_string(config.transactional_id.clone()).into(),
        ))
        .with_transaction_timeout_ms(config.timeout.as_millis() as i32)
        .with_producer_id(id.0.into())
        .with_producer_epoch(epoch.0);
    let of = (KeyType::Transaction, config.transactional_id.clone());
    let mut in_doubt = false;
    loop {
        // A day: it tries until it is told.
        let deadline = Instant::now() + Duration::from_secs(24 * 3600);
        let told = ask(cluster, &of, deadline, &request, i16::MAX, |answer| {
            answer.error_code
        });
        match told.await {
            Ok(told) => {
                let answer = &told.answer;
                let id = ProducerId(answer.producer_id.0);
                let (name, epoch) = (config.transactional_id.as_str(), answer.producer_epoch);
                match claim {
                    None => tracing::info!(name: "producer.initialized", id = name, epoch),
                    Some(_) => tracing::info!(name: "producer.renewed", id = name, epoch),
                }
                return Ok(Initialized {
                    who: (id, ProducerEpoch(answer.producer_epoch)),
                    has_2: told.has_2,
                    in_doubt: in_doubt || told.in_doubt,
                });
            }
            Err(Trouble {
                said: Some(_),
                what,
                ..
            }) => return Err(TransactionError::Fenced(what)),
            Err(Trouble { said: None, .. }) => in_doubt = true,
        }
    }
}

/// A transactional id that is taken over.
pub(super) struct Initialized {
    pub who: (ProducerId, ProducerEpoch),
    /// The cluster has the second version of transactions.
    pub has_2: bool,
    /// An earlier try was not answered.
    pub in_doubt: bool,
}

/// An answer that is no error.
pub(super) struct Told<A> {
    pub answer: A,
    pub has_2: bool,
    /// An earlier try was not answered.
    pub in_doubt: bool,
}

/// No answer, or one that is an error.
pub(super) struct Trouble {
    pub said: Option<ResponseError>,
    pub what: String,
    /// A try was not answered: it may have had its effect, or have it yet.
    pub in_doubt: bool,
}

/// Asks a coordinator, again and again while what it says may change.
pub(super) async fn ask<R: Request>(
    cluster: &Cluster,
    (kind, key): &(KeyType, String),
    deadline: Instant,
    request: &R,
    version: i16,
    code: impl Fn(&R::Response) -> i16,
) -> Result<Told<R::Response>, Trouble> {
    let mut in_doubt = false;
    loop {
        let what = match cluster.share_coordinator(*kind, key).await {
            Err(ClusterError::Refused(error)) => format!("{error:?}"),
            Err(error) => error.to_string(),
            Ok(connection) => match connection.call_at(request, version).await {
                Err(error) => {
                    in_doubt = true;
                    forget(cluster, *kind, key, &connection);
                    error.to_string()
                }
                Ok(answer) => match ResponseError::try_from_code(code(&answer)) {
                    None => {
                        return Ok(Told {
                            answer,
                            has_2: connection.has_transactions_2(),
                            in_doubt,
                        })
                    }
                    Some(error) if may_change(error) => {
                        forget(cluster, *kind, key, &connection);
                        format!("{error:?}")
                    }
                    Some(error) => {
                        return Err(Trouble {
                            said: Some(error),
                            what: format!("{error:?}"),
                            in_doubt,
                        })
                    }
                },
            },
        };
        if Instant::now() >= deadline {
            return Err(Trouble {
                said: None,
                what,
                in_doubt: true,
            });
        }
        tokio::time::sleep(BACKOFF / 5).await;
    }
}

fn forget(cluster: &Cluster, kind: KeyType, key: &str, connection: &SharedConnection) {
    cluster.forget_coordinator(kind, key);
    if connection.is_closed() {
        cluster.forget_connection(connection);
    }
}
