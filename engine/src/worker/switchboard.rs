//! The switchboard: where the connections of other workers come in, and find the edges that they are for.

use super::{fail, Directions};
use crate::{
    exchange::remote::Ends,
    host::{Listener, Net},
    ids::AttemptId,
    link::{self, garbage},
    task::{Part, Report},
};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::mpsc;

/// The first message on a connection between workers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Dial {
    attempt: AttemptId,
    /// Which of the attempt's workers calls.
    from: u32,
}

/// Between two tries to reach a worker that does not know of the attempt yet.
const DIAL_AGAIN: Duration = Duration::from_millis(30);
/// Whoever connects says who it is within this time.
const DIAL_WITHIN: Duration = Duration::from_secs(3);

/// Takes the connections of other workers.
pub(super) struct Switchboard<M> {
    board: Arc<Mutex<Board<M>>>,
    _accepting: Part,
}

/// What connections are waited for, in the newest attempt.
struct Board<M> {
    attempt: AttemptId,
    ends: BTreeMap<u32, Ends<M>>,
    report: Option<mpsc::Sender<Report>>,
    /// Those that are connected.
    parts: Vec<Part>,
}

impl<M: DeserializeOwned + Send + 'static> Switchboard<M> {
    /// Nothing is waited for yet.
    pub fn new(listener: Box<dyn Listener>) -> Self {
        let board = Arc::new(Mutex::new(Board {
            attempt: AttemptId(0),
            ends: BTreeMap::new(),
            report: None,
            parts: Vec::new(),
        }));
        let accepting = tokio::spawn(accept(listener, board.clone()));
        Switchboard {
            board,
            _accepting: Part(accepting),
        }
    }

    /// Waits for the edges of an attempt, by the worker that they come from. Those of an attempt before end.
    pub fn expect(
        &self,
        attempt: AttemptId,
        ends: BTreeMap<u32, Ends<M>>,
        report: mpsc::Sender<Report>,
    ) {
        let mut board = self.board.lock().expect("the board");
        *board = Board {
            attempt,
            ends,
            report: Some(report),
            parts: Vec::new(),
        };
    }
}

async fn accept<M: DeserializeOwned + Send + 'static>(
    listener: Box<dyn Listener>,
    board: Arc<Mutex<Board<M>>>,
) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            tokio::time::sleep(DIAL_AGAIN).await;
            continue;
        };
        let board = board.clone();
        tokio::spawn(async move {
            // Whoever it was, it calls again if it matters.
            let _ = answer(link::split(connection), &board).await;
        });
    }
}

async fn answer<M: DeserializeOwned + Send + 'static>(
    (mut reader, mut writer): Directions,
    board: &Mutex<Board<M>>,
) -> io::Result<()> {
    let dial = tokio::time::timeout(DIAL_WITHIN, reader.read::<Dial>()).await;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let dial = dial.map_err(late)??.ok_or(io::ErrorKind::UnexpectedEof)?;
    let ends = {
        let mut board = board.lock().expect("the board");
        let ends = match board.attempt == dial.attempt {
            true => board.ends.remove(&dial.from),
            false => None,
        };
        ends.zip(board.report.clone())
    };
    writer.write(&ends.is_some()).await?;
    let Some((ends, report)) = ends else {
        return Ok(());
    };
    let receiving = async move {
        if let Err(error) = ends.receive((reader, writer)).await {
            fail(
                &report,
                &format!("edges from worker {}", dial.from),
                error.to_string(),
            )
            .await;
        }
    };
    let mut board = board.lock().expect("the board");
    if board.attempt == dial.attempt {
        board.parts.push(Part(tokio::spawn(receiving)));
    }
    Ok(())
}

/// Reaches another worker, as soon as it knows of the attempt.
pub(super) async fn dial(
    net: Arc<dyn Net>,
    address: String,
    attempt: AttemptId,
    me: u32,
) -> io::Result<Directions> {
    loop {
        if let Ok(connection) = net.connect(&address).await {
            let (mut reader, mut writer) = link::split(connection);
            let dial = Dial { attempt, from: me };
            writer.write(&dial).await?;
            match reader.read::<bool>().await {
                Ok(Some(true)) => return Ok((reader, writer)),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(garbage(format!("{address} is no worker: {error}")));
                }
                _ => {}
            }
        }
        tokio::time::sleep(DIAL_AGAIN).await;
    }
}
