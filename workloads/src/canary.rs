//! `canary`: must fail. A counter that acknowledges before it syncs; a fleet that finds nothing in it
//! has stopped finding anything.

use async_trait::async_trait;
use sim::{Amount, Findings, History, Host, Plan, Promise, Scenario, Shape, Told, Workload, World};
use std::{io, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NUMBERS: u8 = 40;

/// The workload.
pub struct Canary;

impl Workload for Canary {
    fn name(&self) -> &str {
        "canary"
    }

    fn about(&self) -> &str {
        "must fail: a server that acknowledges before it syncs"
    }

    fn shape(&self) -> Shape {
        Shape::new()
            .durable("server", &[])
            .steady("client", &["server"])
    }

    fn build(&self, world: &World, _: &Plan) -> Box<dyn Scenario> {
        let puts: History<u8, ()> = History::default();
        world.node("server", |host| async move { drop(serve(host).await) });
        let told = puts.clone();
        world.node("client", move |host| {
            let told = told.clone();
            async move {
                for number in 0..NUMBERS {
                    let op = told.invoke(Duration::ZERO, number);
                    let put = put(&host, number);
                    match tokio::time::timeout(Duration::from_secs(2), put).await {
                        Ok(Ok(())) => told.tell(op, Told::Ok(())),
                        Ok(Err(_)) | Err(_) => told.tell(op, Told::Unknown),
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                std::future::pending().await
            }
        });
        let observer = world.observer();
        Box::new(Running { observer, puts })
    }
}

async fn serve(host: Host) -> io::Result<()> {
    let file = host.disk().open("numbers").await?;
    host.disk().sync_dir("").await?;
    let listener = host.listen(80)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        // A peer may go without a word: its FIN was lost with the link.
        let patience = Duration::from_secs(3);
        while let Ok(Ok(number)) = tokio::time::timeout(patience, stream.read_u8()).await {
            if number < NUMBERS {
                // The sync that belongs here is missing on purpose.
                file.write_at(file.len().await?, &[number]).await?;
                stream.write_u8(number).await?;
            } else {
                let numbers = file.read_at(0, usize::from(u8::MAX)).await?;
                stream.write_u8(numbers.len() as u8).await?;
                stream.write_all(&numbers).await?;
            }
        }
    }
}

async fn put(host: &Host, number: u8) -> io::Result<()> {
    let mut stream = host.connect("server:80").await?;
    stream.write_u8(number).await?;
    stream.read_u8().await.map(drop)
}

async fn read(host: &Host) -> io::Result<Vec<u8>> {
    let mut stream = host.connect("server:80").await?;
    stream.write_u8(u8::MAX).await?;
    let mut numbers = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut numbers).await?;
    Ok(numbers)
}

struct Running {
    observer: Host,
    puts: History<u8, ()>,
}

#[async_trait(?Send)]
impl Scenario for Running {
    fn is_fed(&self) -> bool {
        let ops = self.puts.ops();
        ops.len() == usize::from(NUMBERS) && ops.iter().all(|op| op.told != Told::Invoked)
    }

    async fn waits_for(&mut self) -> Vec<String> {
        Vec::new()
    }

    async fn judge(&mut self) -> Findings {
        let numbers = loop {
            let read = tokio::time::timeout(Duration::from_secs(5), read(&self.observer));
            match read.await {
                Ok(Ok(numbers)) => break numbers,
                Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        let key = |number: &u8| format!("number {number}");
        let (mut ledger, commits) = self.puts.claim("numbers", Promise::at_least_once(), key);
        for number in numbers {
            ledger.saw(key(&number), Amount { count: 1, sum: 0 });
        }
        Findings {
            ledgers: vec![ledger],
            commits,
            why: vec!["it acknowledges before it syncs, on purpose".into()],
            ..Findings::default()
        }
    }
}
