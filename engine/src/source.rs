//! Source tasks: a partition in, through a chain of operators, out to the window tasks.
//!
//! Records that the chain rejects become dead letters, with reason, source partition and offset. They go to a sink
//! like any output, and so become visible together with the positions behind them.
//!
//! A partition from which nothing comes for a while is idle: it must not hold back the watermark of all. Its
//! watermark follows that of the others then, by the clock; so whoever wakes up later may find that its
//! records are late, and their dead letters say why.

use crate::{
    checkpoint::store::encode_state,
    exchange::Outputs,
    ids::{CheckpointId, EventTime, Offset},
    log::{
        cluster::Cluster,
        consumer::{Consumer, FetchError},
        TopicPartition,
    },
    operator::{
        window::{Keyed, ENDED},
        Reject, Stage,
    },
    part::Part,
    record::{Message, Record, Timed},
    sink::{Row, Sink},
    task::{Checkpointing, Control, Progress, Report, Task, TaskError, TaskLink},
};
use futures::{select_biased, FutureExt};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// A topic that the job reads or writes, and that brokers do not know for so long, is missing.
pub(crate) const MISSING_AFTER: Duration = Duration::from_secs(60);
/// Polls that are read ahead.
const READ_AHEAD: usize = 2;

/// What a source's snapshot holds.
#[derive(Serialize, Deserialize)]
struct SourceState<S> {
    position: Offset,
    stage: S,
}

/// The task that reads one partition.
pub(crate) struct Source<S, T, K> {
    pub cluster: Cluster,
    pub from: TopicPartition,
    /// Where its input ends, if it does.
    pub until: Option<Offset>,
    /// After so long without a record it is idle.
    pub idle_after: Option<Duration>,
    pub stage: S,
    pub key: Arc<dyn Fn(&T) -> K + Send + Sync>,
    pub outputs: Outputs<Keyed<K, T>>,
    pub progress: Progress,
    pub checkpointing: Checkpointing,
    /// The object that it goes on from.
    pub restore: Option<String>,
    pub position: Offset,
    /// The watermark that those behind it know.
    pub sent: EventTime,
    pub idle: bool,
}

/// What was polled, and the position behind it: there may be nothing to read in between.
type Polled = Result<(Vec<Record>, Offset), FetchError>;

enum Event {
    Control(Control),
    Report(Report),
    Records(Option<Polled>),
    Idle,
}

impl<S, T, K> Task for Source<S, T, K>
where
    S: Stage<Out = Timed<T>>,
    T: Serialize + Send + Sync + 'static,
    K: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(&mut self, mut link: TaskLink) -> Result<Infallible, TaskError> {
        if let Some(object) = self.restore.take() {
            let state = self.checkpointing.store.read_state(&object).await?;
            let state: SourceState<S::State> = state;
            self.stage.restore(state.stage);
            self.position = state.position;
        }
        let consumer = Consumer::new(self.cluster.clone(), self.from.clone(), self.position)
            .missing_after(MISSING_AFTER);
        let (sender, mut polled) = mpsc::channel(READ_AHEAD);
        let _reading = Part(tokio::spawn(read_ahead(consumer, sender)));
        self.advance(self.stage.watermark()).await?;
        let mut finished = self.finish_at_end(&link).await?;
        let mut heard = Instant::now();
        loop {
            let idle_after = self.idle_after.filter(|_| !self.idle && !finished);
            let becomes_idle = async {
                match idle_after {
                    Some(after) => tokio::time::sleep_until(heard + after).await,
                    None => std::future::pending().await,
                }
            };
            let event = select_biased! {
                control = link.next().fuse() => Event::Control(control?),
                report = self.checkpointing.next().fuse() => Event::Report(report?),
                records = polled.recv().fuse() => Event::Records(records),
                () = becomes_idle.fuse() => Event::Idle,
            };
            match event {
                Event::Control(Control::Barrier(checkpoint)) => self.barrier(checkpoint).await?,
                Event::Control(Control::Complete(complete)) => self.checkpointing.commit(&complete),
                Event::Control(Control::Others(watermark)) => self.follow(watermark).await?,
                Event::Report(report) => link.report(report).await?,
                Event::Records(None) => return Err(TaskError::Ended("its reader")),
                Event::Records(Some(_)) if finished => {}
                Event::Records(Some(polled)) => {
                    let (mut records, position) = polled?;
                    records.retain(|record| self.until.is_none_or(|until| record.offset < until));
                    self.position = self.until.map_or(position, |until| position.min(until));
                    if !records.is_empty() {
                        heard = Instant::now();
                        if self.idle {
                            self.idle = false;
                            tracing::info!(name: "source.awake", task = %self.checkpointing.name);
                        }
                    }
                    self.process(records).await?;
                    self.advance(self.stage.watermark()).await?;
                    finished = self.finish_at_end(&link).await?;
                }
                Event::Idle => {
                    self.idle = true;
                    tracing::info!(name: "source.idle", task = %self.checkpointing.name);
                    self.tell_progress();
                }
            }
        }
    }

    fn sink(&mut self) -> &mut dyn Sink {
        &mut *self.checkpointing.sink
    }
}

impl<S, T, K> Source<S, T, K>
where
    S: Stage<Out = Timed<T>>,
    T: Serialize + Send + Sync + 'static,
    K: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    async fn process(&mut self, records: Vec<Record>) -> Result<(), TaskError> {
        let (mut out, mut letters) = (Vec::new(), Vec::new());
        for record in records {
            match self.stage.process(&record) {
                Ok(None) => {}
                Ok(Some(Timed { time, value })) => {
                    let key = (self.key)(&value);
                    out.push(Keyed { key, time, value });
                }
                Err(reject) => letters.push(dead_letter(&self.from, &record, &reject)),
            }
        }
        if !letters.is_empty() {
            self.checkpointing.sink.write(letters).await?;
        }
        Ok(self.outputs.send_by(out, |keyed| &keyed.key).await?)
    }

    async fn advance(&mut self, watermark: EventTime) -> Result<(), TaskError> {
        if watermark > self.sent {
            self.sent = watermark;
            self.outputs
                .send_all(|| Message::Watermark(watermark))
                .await?;
        }
        self.tell_progress();
        Ok(())
    }

    fn tell_progress(&self) {
        self.progress.set(self.from.partition, self.sent, self.idle);
    }

    /// The others have come to a watermark; it only matters to who is idle.
    async fn follow(&mut self, watermark: EventTime) -> Result<(), TaskError> {
        if self.idle && watermark > self.stage.watermark() {
            self.stage.follow(watermark);
            tracing::info!(
                name: "source.followed",
                task = %self.checkpointing.name,
                watermark = watermark.0
            );
            self.advance(self.stage.watermark()).await?;
        }
        Ok(())
    }

    /// Whether the input has ended here: then no window waits for it any more.
    async fn finish_at_end(&mut self, link: &TaskLink) -> Result<bool, TaskError> {
        let finished = self.until.is_some_and(|until| self.position >= until);
        if finished {
            self.advance(ENDED).await?;
            tracing::info!(name: "source.finished", task = %self.checkpointing.name);
            let task = self.checkpointing.name.clone();
            link.report(Report::Finished { task }).await?;
        }
        Ok(finished)
    }

    async fn barrier(&mut self, checkpoint: CheckpointId) -> Result<(), TaskError> {
        let state = SourceState {
            position: self.position,
            stage: self.stage.snapshot(),
        };
        tracing::info!(
            name: "source.snapshot",
            task = %self.checkpointing.name,
            checkpoint = checkpoint.0,
            position = self.position.0
        );
        let position = Some((self.from.partition, self.position));
        self.checkpointing
            .begin(checkpoint, encode_state(&state), position, None);
        self.outputs
            .send_all(|| Message::Barrier(checkpoint))
            .await?;
        Ok(())
    }
}

async fn read_ahead(mut consumer: Consumer, sender: mpsc::Sender<Polled>) {
    loop {
        let before = consumer.position();
        let polled = consumer.poll().await;
        let position = consumer.position();
        let failed = polled.is_err();
        let nothing = polled.is_ok() && position == before;
        let polled = polled.map(|records| (records, position));
        if !nothing && sender.send(polled).await.is_err() || failed {
            return;
        }
    }
}

/// No more than so much of a payload is in its dead letter: where it is whole stands beside it.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// No more than so much of a reason.
const REASON_BYTES_MAX: usize = 1 << 10;

/// A record that cannot be used, as a row of output: what it was, or how it began; why; and where it is.
fn dead_letter(from: &TopicPartition, record: &Record, reject: &Reject) -> Row {
    let reason = reject.reason();
    tracing::info!(
        name: "source.dead-letter",
        from = %from,
        offset = record.offset.0,
        reason = %reason
    );
    let payload = record.value.as_deref().unwrap_or_default();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (value, encoding) = match std::str::from_utf8(payload) {
        Ok(text) => (
            text[..text.floor_char_boundary(PAYLOAD_BYTES_MAX)].to_owned(),
            "text",
        ),
        Err(_) => (hex(&payload[..payload.len().min(PAYLOAD_BYTES_MAX)]), "hex"),
    };
    let mut reason = reason;
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    Row {
        key: format!("{from}@{}", record.offset),
        value,
        pane: 0,
        headers: vec![
            ("reason".to_owned(), reason),
            ("source".to_owned(), from.to_string()),
            ("offset".to_owned(), record.offset.to_string()),
            ("encoding".to_owned(), encoding.to_owned()),
            ("bytes".to_owned(), payload.len().to_string()),
        ],
    }
}
