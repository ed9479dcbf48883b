//! Bounded edges between tasks: in one process, or over the network ([`remote`]). A full edge makes its sender
//! wait.

pub mod remote;

use crate::{ids::CheckpointId, record::Message, state::KeyGroups};
use remote::{Credits, RemoteSender};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    future::poll_fn,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// Messages that an edge holds.
pub const EDGE_MESSAGES_MAX: usize = 16;

/// Which edge: from a source task to a window task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EdgeId {
    /// The number of the source task.
    pub from: u32,
    /// The number of the window task.
    pub to: u32,
}

impl fmt::Display for EdgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}>{}", self.from, self.to)
    }
}

/// The edges out of one task.
pub struct Outputs<T> {
    edges: Vec<Output<T>>,
    key_groups: KeyGroups,
}

/// The beginning of an edge.
pub struct Output<T> {
    id: EdgeId,
    sender: Sender<T>,
    /// How many records went through it in this attempt.
    records: u64,
}

enum Sender<T> {
    Local(mpsc::Sender<Message<T>>),
    Remote(RemoteSender),
}

/// The edges into one task.
pub struct Inputs<T> {
    edges: Vec<Input<T>>,
    next: usize,
}

/// The end of an edge.
pub struct Input<T> {
    id: EdgeId,
    receiver: mpsc::Receiver<Message<T>>,
    /// If its beginning is elsewhere: who is told that there is room again.
    credits: Option<Credits>,
    records: u64,
}

/// A task at the other end has ended, or the network between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task at the other end of an edge has ended")]
pub struct EdgeClosed;

/// An edge within one process.
pub fn local<T>(id: EdgeId) -> (Output<T>, Input<T>) {
    let (sender, receiver) = mpsc::channel(EDGE_MESSAGES_MAX);
    (
        Output::new(id, Sender::Local(sender)),
        Input::new(id, receiver, None),
    )
}

impl<T> Output<T> {
    fn new(id: EdgeId, sender: Sender<T>) -> Self {
        Output {
            id,
            sender,
            records: 0,
        }
    }
}

impl<T: Serialize> Output<T> {
    async fn send(&mut self, message: Message<T>) -> Result<(), EdgeClosed> {
        match &message {
            Message::Batch(batch) => self.records += batch.len() as u64,
            Message::Watermark(_) => {}
            Message::Barrier(CheckpointId(checkpoint)) => tracing::debug!(
                name: "edge.barrier-sent",
                edge = %self.id,
                checkpoint,
                records = self.records
            ),
        }
        match &self.sender {
            Sender::Local(sender) => sender.send(message).await.map_err(|_| EdgeClosed),
            Sender::Remote(sender) => sender.send(&message).await,
        }
    }
}

impl<T: Serialize> Outputs<T> {
    /// The edges out of a task, in the order of the tasks that they lead to.
    pub fn new(edges: Vec<Output<T>>, key_groups: KeyGroups) -> Self {
        Outputs { edges, key_groups }
    }

    /// Sends records to the tasks that own the groups of their keys, in order.
    pub async fn send_by<K: Serialize>(
        &mut self,
        records: Vec<T>,
        key: impl Fn(&T) -> &K,
    ) -> Result<(), EdgeClosed> {
        let tasks = self.edges.len();
        let mut batches: Vec<Vec<T>> = self.edges.iter().map(|_| Vec::new()).collect();
        for record in records {
            let group = self.key_groups.of(key(&record));
            batches[self.key_groups.task(group, tasks)].push(record);
        }
        for (edge, batch) in self.edges.iter_mut().zip(batches) {
            if !batch.is_empty() {
                edge.send(Message::Batch(batch)).await?;
            }
        }
        Ok(())
    }

    /// Sends the same message to all tasks.
    pub async fn send_all(&mut self, message: impl Fn() -> Message<T>) -> Result<(), EdgeClosed> {
        for edge in &mut self.edges {
            edge.send(message()).await?;
        }
        Ok(())
    }
}

impl<T> Input<T> {
    fn new(id: EdgeId, receiver: mpsc::Receiver<Message<T>>, credits: Option<Credits>) -> Self {
        Input {
            id,
            receiver,
            credits,
            records: 0,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message<T>, EdgeClosed>> {
        let Poll::Ready(message) = self.receiver.poll_recv(cx) else {
            return Poll::Pending;
        };
        let message = message.ok_or(EdgeClosed)?;
        if let Some(credits) = &self.credits {
            credits.give(self.id);
        }
        match &message {
            Message::Batch(batch) => self.records += batch.len() as u64,
            Message::Watermark(_) => {}
            Message::Barrier(CheckpointId(checkpoint)) => tracing::debug!(
                name: "edge.barrier-received",
                edge = %self.id,
                checkpoint,
                records = self.records
            ),
        }
        Poll::Ready(Ok(message))
    }
}

impl<T> Inputs<T> {
    /// The edges into a task, in the order of the tasks that they come from.
    pub fn new(edges: Vec<Input<T>>) -> Self {
        Inputs { edges, next: 0 }
    }

    /// How many edges there are.
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// The next message, and the edge that it came from; nothing from edges that `waits` names. Edges
    /// are asked in turn, so that none starves.
    pub async fn next(
        &mut self,
        waits: impl Fn(usize) -> bool,
    ) -> Result<(usize, Message<T>), EdgeClosed> {
        poll_fn(|cx| {
            for turn in 0..self.edges.len() {
                let edge = (self.next + turn) % self.edges.len();
                if waits(edge) {
                    continue;
                }
                if let Poll::Ready(message) = self.edges[edge].poll_next(cx) {
                    self.next = edge + 1;
                    return Poll::Ready(message.map(|message| (edge, message)));
                }
            }
            Poll::Pending
        })
        .await
    }
}
