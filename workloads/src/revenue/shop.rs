//! Shops: what they write, and what they are told about it.
//!
//! A shop writes the events of its partitions in order, and again, with the same id, whatever it was not
//! told to be in the log: after an unknown outcome, and after a crash.

use super::{
    event::{Item, OrderEvent, HEARTBEAT, PAID},
    settings::Settings,
    EVENTS,
};
use crate::cluster;
use bytes::Bytes;
use engine::{
    ids::PartitionId,
    log::{
        cluster::Cluster,
        producer::{Producer, SendError},
        TopicPartition,
    },
    record::NewRecord,
    state::stable_hash,
};
use sim::{History, OpId, Seed, Told};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// The header that numbers what was sent: each send has its own, also of the same event.
pub const SEND: &str = "send";

/// One time that an event was handed to a producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Which event.
    pub item: usize,
    /// To which partition.
    pub partition: usize,
}

/// All that is to be written, and what became of it. Shared by the shops and their judge; it outlives
/// any crash.
#[derive(Clone)]
pub struct Orders {
    /// The events, each with its partition, in the order in which they are written.
    pub items: Arc<Vec<(usize, Item)>>,
    /// What was sent, and what the shops were told.
    pub sends: History<Send, ()>,
    /// Which events are done with: acknowledged at least once; or of an unknown outcome, for shops
    /// that never repeat themselves.
    pub acked: Arc<Mutex<Vec<bool>>>,
    /// Whether what was not acknowledged is sent again.
    repeats: bool,
}

impl Orders {
    /// The events of a plan.
    pub fn new(seed: Seed, settings: &Settings, input: Option<&[Item]>) -> Orders {
        let partitions = settings.partitions as usize;
        let mut items: Vec<(usize, Item)> = match input {
            None => draw(seed, settings),
            Some(items) => items.to_vec(),
        }
        .into_iter()
        .map(|item| ((stable_hash(&item.key) % partitions as u64) as usize, item))
        .collect();
        let times = items.iter().filter_map(|(_, item)| {
            OrderEvent::parse(&item.payload)
                .ok()
                .map(|event| event.event_time)
        });
        let last = times.max().unwrap_or(0);
        for partition in 0..partitions {
            let closing = OrderEvent {
                event_id: format!("closing-{partition}"),
                order_id: format!("closing-{partition}"),
                status: HEARTBEAT.into(),
                amount_cents: 0,
                event_time: last + 3_600_000,
            };
            items.push((partition, Item::of(&closing)));
        }
        let acked = vec![false; items.len()];
        Orders {
            items: Arc::new(items),
            sends: History::default(),
            acked: Arc::new(Mutex::new(acked)),
            repeats: settings.repeats,
        }
    }

    /// Whether every event is in the log.
    pub fn are_written(&self) -> bool {
        self.acked.lock().expect("acked").iter().all(|acked| *acked)
    }

    fn is_acked(&self, item: usize) -> bool {
        self.acked.lock().expect("acked")[item]
    }

    /// A shop begins: what one before it had sent, and was not told of, is not sent again by a shop that never
    /// repeats itself.
    fn begin(&self, is_mine: impl Fn(usize) -> bool) {
        if self.repeats {
            return;
        }
        let mut acked = self.acked.lock().expect("acked");
        for op in self.sends.ops() {
            if is_mine(op.asked.partition) {
                acked[op.asked.item] = true;
            }
        }
    }

    fn tell(&self, op: OpId, item: usize, delivered: Result<(), SendError>) {
        match delivered {
            Ok(()) => {
                self.acked.lock().expect("acked")[item] = true;
                self.sends.tell(op, Told::Ok(()));
            }
            Err(SendError::NotSent(_)) => self.sends.tell(op, Told::Failed),
            Err(SendError::Unknown(_)) => {
                self.acked.lock().expect("acked")[item] |= !self.repeats;
                self.sends.tell(op, Told::Unknown);
            }
        }
    }
}

/// Draws events: in about the order of their time, some late, some repeated, some that are none.
fn draw(seed: Seed, settings: &Settings) -> Vec<Item> {
    let records = settings.records;
    const BEGIN_MS: i64 = 1_735_725_600_000;
    const STEP_MS: i64 = 600;
    let mut draws = seed.stream("orders", 0);
    let mut items: Vec<Item> = Vec::new();
    for index in 0..records {
        let kind = draws.below(100);
        if kind == 0 {
            let key = format!("order-{}", draws.below(records));
            let payload = format!("{{\"event_id\": \"e-{index}\", broken").into_bytes();
            items.push(Item { key, payload });
            continue;
        }
        if kind < 6 && settings.repeats && !items.is_empty() {
            // A shop that was not told says it again.
            let back = 1 + draws.below(items.len().min(30) as u64) as usize;
            items.push(items[items.len() - back].clone());
            continue;
        }
        let behind = match kind {
            6..=7 => 40_000 + draws.below(120_000),
            _ => draws.below(20_000),
        };
        let status = match draws.below(10) {
            0..=5 => PAID,
            6..=7 => "created",
            _ => "shipped",
        };
        items.push(Item::of(&OrderEvent {
            event_id: format!("e-{index}"),
            order_id: format!("order-{}", draws.below(records / 3 + 1)),
            status: status.into(),
            amount_cents: draws.below(20_000) as i64 - 500,
            event_time: BEGIN_MS + index as i64 * STEP_MS - behind as i64,
        }));
    }
    items
}

/// Runs a shop: it writes the events of every `of`-th partition, from the `index`-th on.
pub async fn run(
    node: sim::Host,
    brokers: Vec<String>,
    orders: Orders,
    settings: Settings,
    share: (usize, usize),
) {
    let (index, of) = share;
    let host = cluster::host(&node);
    let clock = host.clock.clone();
    let cluster = Cluster::new(host, brokers);
    if cluster
        .ensure_topic(EVENTS, settings.partitions as i32)
        .await
        .is_err()
    {
        return;
    }
    let total = orders.items.len() as u64;
    let due_ms = |item: usize| settings.feed_ms * item as u64 / total;
    let begun = tokio::time::Instant::now();
    orders.begin(|partition| partition % of == index);
    // After a restart the clock of the feed goes on where it was.
    let mut mine: Vec<usize> = (0..orders.items.len())
        .filter(|item| orders.items[*item].0 % of == index && !orders.is_acked(*item))
        .collect();
    let from_ms = mine.first().map_or(0, |item| due_ms(*item));
    while !mine.is_empty() {
        let producer = Producer::new(cluster.clone(), settings.producer()).await;
        let failed = Arc::new(Mutex::new(false));
        let mut deliveries = Vec::new();
        for item in mine {
            let due = Duration::from_millis(due_ms(item).saturating_sub(from_ms));
            let tick = Duration::from_millis(settings.tick_ms);
            while begun.elapsed() < due {
                tokio::time::sleep(tick).await;
            }
            if *failed.lock().expect("failed") {
                break;
            }
            let (partition, what) = &orders.items[item];
            let send = Send {
                item,
                partition: *partition,
            };
            let op = orders.sends.invoke(begun.elapsed(), send);
            let record = NewRecord {
                key: Some(what.key.clone().into()),
                value: Some(what.payload.clone().into()),
                headers: vec![(SEND.to_owned(), Bytes::from(op.to_string()))],
                timestamp_ms: clock.now_ms(),
            };
            let to = TopicPartition::new(EVENTS, PartitionId(*partition as i32));
            let delivered = producer.send(&to, record).await;
            let (orders, failed) = (orders.clone(), failed.clone());
            deliveries.push(tokio::spawn(async move {
                let delivered = delivered.await.map(drop);
                if delivered.is_err() {
                    *failed.lock().expect("failed") = true;
                }
                orders.tell(op, item, delivered);
            }));
        }
        for delivery in deliveries {
            let _ = delivery.await;
        }
        mine = (0..orders.items.len())
            .filter(|item| orders.items[*item].0 % of == index && !orders.is_acked(*item))
            .collect();
    }
    std::future::pending().await
}
