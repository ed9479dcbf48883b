//! The switchboard: where the connections of other workers come in, and find the edges that they are for.

use super::{fail, Directions};
use crate::{
    exchange::remote::Ends,
    failure::Failure,
    host::{Listener, Net},
    ids::AttemptId,
    link::{self, garbage, Token},
    part::Part,
    task::Report,
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
    pub fn new(listener: Box<dyn Listener>, token: Token) -> Self {
        let board = Arc::new(Mutex::new(Board {
            attempt: AttemptId(0),
            ends: BTreeMap::new(),
            report: None,
            parts: Vec::new(),
        }));
        let asked = board.clone();
        let accepting = tokio::spawn(link::welcome(listener, token, move |dial, connection| {
            let board = asked.clone();
            async move {
                // Whoever it was, it calls again if it matters.
                let _ = answer(dial, connection, &board).await;
            }
        }));
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

async fn answer<M: DeserializeOwned + Send + 'static>(
    dial: Dial,
    (reader, mut writer): Directions,
    board: &Mutex<Board<M>>,
) -> io::Result<()> {
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
                Failure::Passing(error.to_string()),
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
    token: Token,
    attempt: AttemptId,
    me: u32,
) -> io::Result<Directions> {
    loop {
        if let Ok((mut reader, mut writer)) = link::call(&*net, &address, token).await {
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
