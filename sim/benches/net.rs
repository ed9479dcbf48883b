//! TCP round trips of our network, digest on, against madsim's own TCP, in one run.
//!
//! Both sides do the same: a client sends 64 bytes and waits for their echo, over and over.

#[cfg(madsim)]
mod simulated {
    use async_trait::async_trait;
    use criterion::{Criterion, Throughput};
    use madsim::{
        net::{TcpListener, TcpStream},
        runtime::Runtime,
    };
    use sim::{
        run, Amount, Findings, Ledger, Limits, Plan, Promise, Scenario, Seed, Shape, Verdict,
        Workload, World,
    };
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    };
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    const ROUND_TRIPS: u64 = 20_000;

    async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut bytes = [0; 64];
        while stream.read_exact(&mut bytes).await.is_ok() {
            if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }

    async fn ping(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut bytes = [7; 64];
        for _ in 0..ROUND_TRIPS {
            stream.write_all(&bytes).await.expect("sent");
            stream.flush().await.expect("sent");
            stream.read_exact(&mut bytes).await.expect("echoed");
        }
    }

    /// madsim's own TCP, in a fresh thread as ours is.
    fn madsim_tcp() {
        let run = || {
            let runtime = Runtime::with_seed_and_config(1, madsim::Config::default());
            runtime.block_on(async {
                let handle = madsim::runtime::Handle::current();
                let server = handle
                    .create_node()
                    .ip("10.0.0.1".parse().expect("ip"))
                    .build();
                let client = handle
                    .create_node()
                    .ip("10.0.0.2".parse().expect("ip"))
                    .build();
                server.spawn(async {
                    let listener = TcpListener::bind("10.0.0.1:80").await.expect("bound");
                    while let Ok((stream, _)) = listener.accept().await {
                        echo(stream).await;
                    }
                });
                let pinging = client.spawn(async {
                    madsim::time::sleep(std::time::Duration::from_secs(1)).await;
                    ping(TcpStream::connect("10.0.0.1:80").await.expect("connected")).await;
                });
                pinging.await.expect("it ends");
            });
        };
        std::thread::spawn(run).join().expect("no panic");
    }

    struct Echo;

    impl Workload for Echo {
        fn name(&self) -> &str {
            "echo"
        }

        fn shape(&self) -> Shape {
            Shape::new()
        }

        fn build(&self, world: &World, _: &Plan) -> Box<dyn Scenario> {
            world.node("server", |host| async move {
                let listener = host.listen(80).expect("the port is free");
                while let Ok((stream, _)) = listener.accept().await {
                    echo(stream).await;
                }
            });
            let done = Arc::new(AtomicBool::new(false));
            let told = done.clone();
            world.node("client", move |host| {
                let told = told.clone();
                async move {
                    ping(host.connect("server:80").await.expect("connected")).await;
                    told.store(true, Ordering::Relaxed);
                    std::future::pending().await
                }
            });
            Box::new(Echoing { done })
        }
    }

    struct Echoing {
        done: Arc<AtomicBool>,
    }

    #[async_trait(?Send)]
    impl Scenario for Echoing {
        fn is_fed(&self) -> bool {
            self.done.load(Ordering::Relaxed)
        }

        async fn waits_for(&mut self) -> Vec<String> {
            Vec::new()
        }

        async fn judge(&mut self) -> Findings {
            let mut ledger = Ledger::new("pings", Promise::exactly_once());
            ledger.must("all", Amount::default());
            ledger.saw("all", Amount::default());
            Findings {
                ledgers: vec![ledger],
                commits: 1,
                ..Findings::default()
            }
        }
    }

    /// Our network, with everything on that a run has: steps, trace, digest.
    fn our_tcp() {
        let workload: Arc<dyn Workload> = Arc::new(Echo);
        let plan = run::draw(&*workload, Seed(1));
        let report = run(&workload, &plan, &Limits::default());
        assert_eq!(report.verdict, Verdict::Clean);
        assert!(
            report.events > 4 * ROUND_TRIPS,
            "every send and delivery is in the digest"
        );
    }

    pub fn round_trips(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("round trips");
        group
            .throughput(Throughput::Elements(ROUND_TRIPS))
            .sample_size(20);
        group.bench_function("madsim", |bencher| bencher.iter(madsim_tcp));
        group.bench_function("ours, digest on", |bencher| bencher.iter(our_tcp));
        group.finish();
    }
}

#[cfg(madsim)]
criterion::criterion_group!(benches, simulated::round_trips);
#[cfg(madsim)]
criterion::criterion_main!(benches);

#[cfg(not(madsim))]
fn main() {}
