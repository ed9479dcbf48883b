//! A world for a test that only needs some nodes: no faults, no claims, just code that must not panic.

use async_trait::async_trait;
use engine::{
    host::Host,
    ids::BrokerId,
    log::{
        broker::{Broker, BrokerConfig, BrokerError},
        cluster::Cluster,
    },
};
use futures::future::{Either, LocalBoxFuture};
use sim::{
    objects::{self, Shelf},
    run, Amount, Fault, Findings, Ledger, Limits, Plan, Promise, Scenario, Seed, Shape, Trigger,
    Verdict, What, Workload, World,
};
use std::{
    future::Future,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    time::Duration,
};
use tokio::sync::oneshot;
use workloads::cluster;

type Body = Arc<dyn Fn(Host) -> LocalBoxFuture<'static, ()> + Send + Sync>;

struct Stage {
    brokers: usize,
    configure: fn(&mut BrokerConfig),
    body: Body,
}

/// After so long a broker closes a connection on which nothing comes.
pub const IDLE: Duration = Duration::from_secs(60);

/// The addresses of so many brokers.
pub fn addresses(brokers: usize) -> Vec<String> {
    (0..brokers).map(|id| format!("broker-{id}:9092")).collect()
}

/// Runs `body` on a node of a world that also has an object store and so many brokers, in forty worlds.
pub fn play<F>(brokers: usize, body: impl Fn(Host) -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + 'static,
{
    play_configured(brokers, |_| {}, body);
}

/// Like [`play`], with brokers that are set up in another way.
pub fn play_configured<F>(
    brokers: usize,
    configure: fn(&mut BrokerConfig),
    body: impl Fn(Host) -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + 'static,
{
    let body: Body = Arc::new(move |host| Box::pin(body(host)));
    let stage: Arc<dyn Workload> = Arc::new(Stage {
        brokers,
        configure,
        body,
    });
    for seed in 0..40 {
        let plan = run::draw(&*stage, Seed(seed));
        let report = run(&stage, &plan, &Limits::default());
        assert_eq!(report.verdict, Verdict::Clean, "seed {seed}");
    }
}

/// Like [`play`], in one world, to which this happens.
pub fn act<F>(
    brokers: usize,
    faults: &[(Trigger, What)],
    body: impl Fn(Host) -> F + Send + Sync + 'static,
) where
    F: Future<Output = ()> + 'static,
{
    let body: Body = Arc::new(move |host| Box::pin(body(host)));
    let stage: Arc<dyn Workload> = Arc::new(Stage {
        brokers,
        configure: |_| {},
        body,
    });
    let mut plan = run::draw(&*stage, Seed(0));
    let faults = faults.iter().cloned();
    plan.faults = faults.map(|(at, what)| Fault { at, what }).collect();
    let limits = Limits {
        faults_max: Duration::from_secs(600),
        ..Limits::default()
    };
    let report = run(&stage, &plan, &limits);
    assert_eq!(report.verdict, Verdict::Clean);
}

/// Runs a broker, the only one, on this node while `work` goes on, then stops it.
pub async fn with_broker<T, F: Future<Output = T>>(
    host: Host,
    config: BrokerConfig,
    work: impl FnOnce(Cluster) -> F,
) -> Result<T, BrokerError> {
    let cluster = Cluster::new(host.clone(), config.brokers.clone());
    let bound = Broker::bind(host, config).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let run = bound.run_until(async move { drop(stopped.await) });
    let work = work(cluster);
    futures::pin_mut!(run, work);
    match futures::future::select(&mut run, work).await {
        Either::Left((ended, _)) => Err(ended.expect_err("nobody stopped it")),
        Either::Right((done, _)) => {
            drop(stop);
            run.await.map(|()| done)
        }
    }
}

impl Workload for Stage {
    fn name(&self) -> &str {
        "stage"
    }

    fn shape(&self) -> Shape {
        Shape::new()
    }

    fn build(&self, world: &World, _: &Plan) -> Box<dyn Scenario> {
        let shelf = Shelf::default();
        world.node("objects", move |host| {
            let shelf = shelf.clone();
            async move { drop(objects::serve(host, 80, shelf).await) }
        });
        let brokers = addresses(self.brokers);
        for id in 0..brokers.len() {
            let (brokers, configure) = (brokers.clone(), self.configure);
            world.node(&format!("broker-{id}"), move |node| {
                let mut config = BrokerConfig {
                    segment_bytes: 4096,
                    reserve_bytes: 16 << 10,
                    connection_idle: IDLE,
                    ..BrokerConfig::new(BrokerId(id as i32), brokers.clone())
                };
                configure(&mut config);
                async move { drop(Broker::run(cluster::host(&node), config).await) }
            });
        }
        let done = Arc::new(AtomicBool::new(false));
        let (body, told) = (self.body.clone(), done.clone());
        world.node("actor", move |node| {
            let (body, told) = (body.clone(), told.clone());
            async move {
                body(cluster::host(&node)).await;
                told.store(true, Ordering::Relaxed);
                std::future::pending().await
            }
        });
        Box::new(Playing { done })
    }
}

struct Playing {
    done: Arc<AtomicBool>,
}

#[async_trait(?Send)]
impl Scenario for Playing {
    fn is_fed(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    async fn waits_for(&mut self) -> Vec<String> {
        Vec::new()
    }

    async fn judge(&mut self) -> Findings {
        let mut ledger = Ledger::new("the body", Promise::exactly_once());
        let one = Amount { count: 1, sum: 0 };
        ledger.must("end", one);
        ledger.saw("end", one);
        Findings {
            ledgers: vec![ledger],
            commits: 1,
            ..Findings::default()
        }
    }
}
