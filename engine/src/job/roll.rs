//! The roll: who has come to a coordinator, and is still there.

use super::{
    protocol::{Hello, StoppedAt, ToCoordinator, ToWorker},
    JobConfig,
};
use crate::{
    checkpoint::JobShape,
    host::Listener,
    ids::{CheckpointId, EventTime, PartitionId},
    link::{self, Reader, Token, Writer},
    part::Part,
    task::Report,
};
use futures::{select_biased, FutureExt};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Which worker, in the order in which they came.
pub(super) type WorkerNumber = u64;

/// Messages to a worker that are not written yet; one that does not take them is lost.
const QUEUED_MAX: usize = 256;

/// Something that happened.
pub(super) enum Event {
    /// A worker has come.
    Came,
    /// A worker is gone: which, who, and why.
    Lost(WorkerNumber, String, String),
    /// A task of a worker says something.
    Report(WorkerNumber, Report),
    /// Somebody wants the job to stop.
    Stop,
}

enum Heard {
    Came(Box<Arrival>),
    Said(WorkerNumber, ToCoordinator),
    Gone(WorkerNumber, String),
    Stop(Writer),
}

struct Arrival {
    instance: String,
    address: String,
    reader: Reader,
    writer: Writer,
}

struct Worker {
    instance: String,
    address: String,
    queue: mpsc::Sender<ToWorker>,
    heard: Instant,
    progress: BTreeMap<PartitionId, (EventTime, bool)>,
    _parts: [Part; 2],
}

/// The workers of a coordinator.
pub(super) struct Roll {
    workers: BTreeMap<WorkerNumber, Worker>,
    next: WorkerNumber,
    heard: mpsc::Receiver<Heard>,
    hear: mpsc::Sender<Heard>,
    beat: Instant,
    heartbeat: Duration,
    silence: Duration,
    /// Who waits for the job to stop.
    stoppers: Vec<Writer>,
    _accepting: Part,
}

impl Roll {
    /// Nobody yet. Workers must have the token, and know the same job.
    pub fn new(
        listener: Box<dyn Listener>,
        token: Token,
        job: JobShape,
        config: &JobConfig,
    ) -> Roll {
        let (hear, heard) = mpsc::channel(QUEUED_MAX);
        let (job, told) = (Arc::new(job), hear.clone());
        let accepting = tokio::spawn(link::welcome(listener, token, move |hello, connection| {
            greet(hello, connection, job.clone(), told.clone())
        }));
        Roll {
            workers: BTreeMap::new(),
            next: 0,
            heard,
            hear,
            beat: Instant::now(),
            heartbeat: config.heartbeat,
            silence: config.silence,
            stoppers: Vec::new(),
            _accepting: Part(accepting),
        }
    }

    /// Who is there, and where.
    pub fn workers(&self) -> Vec<(WorkerNumber, String)> {
        let workers = self.workers.iter();
        workers
            .map(|(number, worker)| (*number, worker.address.clone()))
            .collect()
    }

    /// Tells a worker something. One that takes nothing more is found to be lost.
    pub fn tell(&mut self, worker: WorkerNumber, what: ToWorker) {
        if let Some(known) = self.workers.get_mut(&worker) {
            // It is not heard of any more, either.
            let _ = known.queue.try_send(what);
        }
    }

    /// Forgets a worker: its connection ends, and with it what it does. It may come again.
    pub fn dismiss(&mut self, worker: WorkerNumber) {
        self.workers.remove(&worker);
    }

    /// Whether somebody wants the job to stop.
    pub fn is_to_stop(&self) -> bool {
        !self.stoppers.is_empty()
    }

    /// Tells whoever wanted the job to stop that it has.
    pub async fn stopped(&mut self, checkpoint: CheckpointId) {
        for mut stopper in self.stoppers.drain(..) {
            // Who is not there any more need not know.
            let _ = stopper.write(&StoppedAt(checkpoint)).await;
        }
    }

    /// The watermark of the partitions that are not idle; nothing if there is none, or not all are known.
    fn watermark(&self, partitions: usize) -> Option<EventTime> {
        let all = self.workers.values().flat_map(|worker| &worker.progress);
        let known: BTreeMap<_, _> = all.collect();
        if known.len() < partitions {
            return None;
        }
        let awake = known.values().filter(|(_, idle)| !idle);
        awake.map(|(watermark, _)| *watermark).min()
    }

    /// Does something that takes its time, while workers come and go, and are given signs of life. Only while none of
    /// them has tasks: what they report is forgotten.
    pub async fn meanwhile<T>(&mut self, work: impl std::future::Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work.fuse());
        loop {
            select_biased! {
                done = work => return done,
                _ = self.next(usize::MAX).fuse() => {}
            }
        }
    }

    /// What happens next. Meanwhile workers are given signs of life; `partitions` is how many must be known before
    /// a watermark is.
    pub async fn next(&mut self, partitions: usize) -> Event {
        loop {
            let heard = select_biased! {
                heard = self.heard.recv().fuse() => Some(heard.expect("it holds a sender itself")),
                () = tokio::time::sleep_until(self.beat).fuse() => None,
            };
            match heard {
                None => {
                    self.beat = Instant::now() + self.heartbeat;
                    let silent = |worker: &Worker| worker.heard.elapsed() >= self.silence;
                    let lost = self.workers.iter().find(|(_, worker)| silent(worker));
                    if let Some((number, _)) = lost {
                        let number = *number;
                        return self.lose(number, "it gives no sign of life".into());
                    }
                    let watermark = self.watermark(partitions);
                    for number in self.workers.keys().copied().collect::<Vec<_>>() {
                        self.tell(number, ToWorker::Beat(watermark));
                    }
                }
                Some(Heard::Came(arrival)) => {
                    self.enter(*arrival);
                    return Event::Came;
                }
                Some(Heard::Gone(number, why)) if self.workers.contains_key(&number) => {
                    return self.lose(number, why);
                }
                Some(Heard::Gone(..)) => {}
                Some(Heard::Stop(writer)) => {
                    self.stoppers.push(writer);
                    return Event::Stop;
                }
                Some(Heard::Said(number, said)) => {
                    // Who was dismissed has nothing to say.
                    let Some(worker) = self.workers.get_mut(&number) else {
                        continue;
                    };
                    worker.heard = Instant::now();
                    match said {
                        ToCoordinator::Beat(progress) => {
                            let progress = progress.into_iter();
                            worker.progress = progress
                                .map(|(partition, watermark, idle)| (partition, (watermark, idle)))
                                .collect();
                        }
                        ToCoordinator::Report(report) => return Event::Report(number, report),
                    }
                }
            }
        }
    }

    fn lose(&mut self, number: WorkerNumber, why: String) -> Event {
        let worker = self.workers.remove(&number).expect("it was there");
        tracing::info!(name: "job.worker-lost", worker = worker.instance.as_str(), why);
        Event::Lost(number, worker.instance, why)
    }

    fn enter(&mut self, arrival: Arrival) {
        let number = self.next;
        self.next += 1;
        tracing::info!(name: "job.worker-came", worker = arrival.instance.as_str());
        let (queue, queued) = mpsc::channel(QUEUED_MAX);
        let reading = tokio::spawn(read(arrival.reader, number, self.hear.clone()));
        let writing = tokio::spawn(write(arrival.writer, queued, number, self.hear.clone()));
        let worker = Worker {
            instance: arrival.instance,
            address: arrival.address,
            queue,
            heard: Instant::now(),
            progress: BTreeMap::new(),
            _parts: [Part(reading), Part(writing)],
        };
        self.workers.insert(number, worker);
    }
}

/// Somebody says hello.
async fn greet(
    hello: Hello,
    (reader, mut writer): (Reader, Writer),
    job: Arc<JobShape>,
    hear: mpsc::Sender<Heard>,
) {
    let heard = match hello {
        Hello::Worker {
            instance,
            address,
            job: known,
        } => {
            if let Some(difference) = job.instead_of(&known) {
                let why = format!("the coordinator's job has {difference}");
                let _ = writer.write(&ToWorker::Refused(why)).await;
                return;
            }
            Heard::Came(Box::new(Arrival {
                instance,
                address,
                reader,
                writer,
            }))
        }
        Hello::Stop => Heard::Stop(writer),
    };
    // If the coordinator has ended, nobody needs to know.
    let _ = hear.send(heard).await;
}

async fn read(mut reader: Reader, number: WorkerNumber, hear: mpsc::Sender<Heard>) {
    let why = loop {
        match reader.read().await {
            Ok(Some(said)) => {
                if hear.send(Heard::Said(number, said)).await.is_err() {
                    return;
                }
            }
            Ok(None) => break "it has closed its connection".into(),
            Err(error) => break error.to_string(),
        }
    };
    let _ = hear.send(Heard::Gone(number, why)).await;
}

async fn write(
    mut writer: Writer,
    mut queued: mpsc::Receiver<ToWorker>,
    number: WorkerNumber,
    hear: mpsc::Sender<Heard>,
) {
    while let Some(message) = queued.recv().await {
        if let Err(error) = writer.write(&message).await {
            let _ = hear.send(Heard::Gone(number, error.to_string())).await;
            return;
        }
    }
}
