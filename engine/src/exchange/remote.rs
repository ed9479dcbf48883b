//! Edges over the network: all edges from one worker to another share a connection.
//!
//! Each edge has credits, one for each message that its end has room for. A sender without credit waits, alone: an
//! edge that waits for the barriers of others holds up nobody else on the connection. Whatever a peer sends, no
//! more than its credits is kept.

use super::{EdgeClosed, EdgeId, Input, Output, Sender, EDGE_MESSAGES_MAX};
use crate::{
    link::{self, Reader, Writer},
    record::Message,
};
use serde::{de::DeserializeOwned, Serialize};
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::{mpsc, Semaphore};

/// Frames of one connection that are ready to be written.
const FRAMES_MAX: usize = 64;

/// The beginning of a remote edge.
#[derive(Clone)]
pub struct RemoteSender {
    id: EdgeId,
    credits: Arc<Semaphore>,
    frames: mpsc::Sender<link::Frame>,
}

/// Where the end of a remote edge says that it has room again.
#[derive(Clone)]
pub struct Credits(mpsc::UnboundedSender<EdgeId>);

impl Credits {
    pub(super) fn give(&self, edge: EdgeId) {
        // If the connection is broken, nobody waits for it.
        let _ = self.0.send(edge);
    }
}

impl RemoteSender {
    pub(super) async fn send<T: Serialize>(&self, message: &Message<T>) -> Result<(), EdgeClosed> {
        let credit = self.credits.acquire().await.map_err(|_| EdgeClosed)?;
        credit.forget();
        let frame = link::frame(&(self.id, message));
        self.frames.send(frame).await.map_err(|_| EdgeClosed)
    }
}

/// What goes into edges to another worker, until a connection carries it.
pub struct Beginnings {
    credits: BTreeMap<EdgeId, Arc<Semaphore>>,
    queued: mpsc::Receiver<link::Frame>,
}

/// The beginnings of edges to another worker.
pub fn begin<T>(edges: &[EdgeId]) -> (Vec<Output<T>>, Beginnings) {
    let (frames, queued) = mpsc::channel(FRAMES_MAX);
    let mut credits = BTreeMap::new();
    let mut outputs = Vec::new();
    for id in edges {
        let semaphore = Arc::new(Semaphore::new(EDGE_MESSAGES_MAX));
        credits.insert(*id, semaphore.clone());
        let sender = RemoteSender {
            id: *id,
            credits: semaphore,
            frames: frames.clone(),
        };
        outputs.push(Output::new(*id, Sender::Remote(sender)));
    }
    (outputs, Beginnings { credits, queued })
}

impl Beginnings {
    /// Carries it, until the connection breaks or nobody sends any more.
    pub async fn carry(self, (reader, writer): (Reader, Writer)) -> io::Result<()> {
        let done = futures::future::try_select(
            Box::pin(take_credits(reader, &self.credits)),
            Box::pin(write_frames(writer, self.queued)),
        );
        let done = done.await.map(drop).map_err(|error| error.factor_first().0);
        // Whoever waits for credit waits in vain.
        self.credits.values().for_each(|credits| credits.close());
        done
    }
}

async fn take_credits(
    mut reader: Reader,
    credits: &BTreeMap<EdgeId, Arc<Semaphore>>,
) -> io::Result<()> {
    while let Some((edge, count)) = reader.read::<(EdgeId, u32)>().await? {
        let known = credits.get(&edge);
        let known = known.ok_or_else(|| link::garbage(format!("credit for edge {edge}")))?;
        if known.available_permits() + count as usize > EDGE_MESSAGES_MAX {
            return Err(link::garbage(format!("{count} credits for edge {edge}")));
        }
        known.add_permits(count as usize);
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

async fn write_frames(
    mut writer: Writer,
    mut queued: mpsc::Receiver<link::Frame>,
) -> io::Result<()> {
    while let Some(frame) = queued.recv().await {
        writer.write_frame(&frame).await?;
        while let Ok(frame) = queued.try_recv() {
            writer.write_frame(&frame).await?;
        }
        writer.flush().await?;
    }
    Ok(())
}

/// The ends of edges from another worker.
pub struct Ends<T> {
    senders: BTreeMap<EdgeId, mpsc::Sender<Message<T>>>,
    credits: mpsc::UnboundedReceiver<EdgeId>,
}

/// The ends of edges from another worker, and where what comes for them is to be put.
pub fn end<T>(edges: &[EdgeId]) -> (Vec<Input<T>>, Ends<T>) {
    let (credit, credits) = mpsc::unbounded_channel();
    let mut senders = BTreeMap::new();
    let mut inputs = Vec::new();
    for id in edges {
        let (sender, receiver) = mpsc::channel(EDGE_MESSAGES_MAX);
        senders.insert(*id, sender);
        inputs.push(Input::new(*id, receiver, Some(Credits(credit.clone()))));
    }
    (inputs, Ends { senders, credits })
}

impl<T: DeserializeOwned> Ends<T> {
    /// Which edges.
    pub fn edges(&self) -> Vec<EdgeId> {
        self.senders.keys().copied().collect()
    }

    /// Takes what comes over a connection, until it breaks.
    pub async fn receive(self, (reader, writer): (Reader, Writer)) -> io::Result<()> {
        let done = futures::future::try_select(
            Box::pin(put_messages(reader, &self.senders)),
            Box::pin(write_credits(writer, self.credits)),
        );
        done.await.map(drop).map_err(|error| error.factor_first().0)
    }
}

async fn put_messages<T: DeserializeOwned>(
    mut reader: Reader,
    senders: &BTreeMap<EdgeId, mpsc::Sender<Message<T>>>,
) -> io::Result<()> {
    while let Some((edge, message)) = reader.read::<(EdgeId, Message<T>)>().await? {
        let sender = senders.get(&edge);
        let sender = sender.ok_or_else(|| link::garbage(format!("a message for edge {edge}")))?;
        match sender.try_send(message) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(link::garbage(format!(
                    "more than its credits on edge {edge}"
                )));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Ok(()),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

async fn write_credits(
    mut writer: Writer,
    mut credits: mpsc::UnboundedReceiver<EdgeId>,
) -> io::Result<()> {
    while let Some(first) = credits.recv().await {
        let mut counts = BTreeMap::from([(first, 1u32)]);
        while let Ok(edge) = credits.try_recv() {
            *counts.entry(edge).or_default() += 1;
        }
        for credit in counts {
            writer.write_frame(&link::frame(&credit)).await?;
        }
        writer.flush().await?;
    }
    Ok(())
}
