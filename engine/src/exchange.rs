//! Bounded edges between tasks, here in one process: a full edge makes its sender wait.

use crate::record::Message;
use serde::Serialize;
use std::{
    future::poll_fn,
    task::{Context, Poll},
};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

/// Messages that an edge holds.
const EDGE_MESSAGES_MAX: usize = 16;

/// The edges out of one task.
pub struct Outputs<T> {
    edges: Vec<mpsc::Sender<Message<T>>>,
}

/// The edges into one task.
pub struct Inputs<T> {
    edges: Vec<mpsc::Receiver<Message<T>>>,
    next: usize,
}

/// A task at the other end has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task at the other end of an edge has ended")]
pub struct EdgeClosed;

/// Edges from each of `from` tasks to each of `to` tasks.
pub fn connect<T>(from: usize, to: usize) -> (Vec<Outputs<T>>, Vec<Inputs<T>>) {
    let mut outputs: Vec<Outputs<T>> = (0..from).map(|_| Outputs { edges: Vec::new() }).collect();
    let mut inputs = Vec::new();
    for _ in 0..to {
        let mut edges = Vec::new();
        for output in &mut outputs {
            let (sender, receiver) = mpsc::channel(EDGE_MESSAGES_MAX);
            output.edges.push(sender);
            edges.push(receiver);
        }
        inputs.push(Inputs { edges, next: 0 });
    }
    (outputs, inputs)
}

impl<T> Outputs<T> {
    /// Sends records to the tasks that their keys belong to, in order.
    pub async fn send_by<K: Serialize>(
        &self,
        records: Vec<T>,
        key: impl Fn(&T) -> &K,
    ) -> Result<(), EdgeClosed> {
        let mut batches: Vec<Vec<T>> = self.edges.iter().map(|_| Vec::new()).collect();
        for record in records {
            let to = (stable_hash(key(&record)) % self.edges.len() as u64) as usize;
            batches[to].push(record);
        }
        for (edge, batch) in self.edges.iter().zip(batches) {
            if !batch.is_empty() {
                edge.send(Message::Batch(batch))
                    .await
                    .map_err(|_| EdgeClosed)?;
            }
        }
        Ok(())
    }

    /// Sends the same message to all tasks.
    pub async fn send_all(&self, message: impl Fn() -> Message<T>) -> Result<(), EdgeClosed> {
        for edge in &self.edges {
            edge.send(message()).await.map_err(|_| EdgeClosed)?;
        }
        Ok(())
    }
}

impl<T> Inputs<T> {
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
        poll_fn(|cx| self.poll_next(&waits, cx)).await
    }

    fn poll_next(
        &mut self,
        waits: &impl Fn(usize) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(usize, Message<T>), EdgeClosed>> {
        for turn in 0..self.edges.len() {
            let edge = (self.next + turn) % self.edges.len();
            if waits(edge) {
                continue;
            }
            match self.edges[edge].poll_recv(cx) {
                Poll::Pending => {}
                Poll::Ready(None) => return Poll::Ready(Err(EdgeClosed)),
                Poll::Ready(Some(message)) => {
                    self.next = edge + 1;
                    return Poll::Ready(Ok((edge, message)));
                }
            }
        }
        Poll::Pending
    }
}

/// A hash that is the same in every process and version of Rust.
pub fn stable_hash(key: &impl Serialize) -> u64 {
    let bytes = postcard::to_stdvec(key).expect("a key is plain data");
    xxh3_64(&bytes)
}
