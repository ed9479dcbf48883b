//! Final reads, and one ledger for each claim.

use super::{
    event::{OrderEvent, PAID},
    ghost::Testimony,
    oracle::{Oracle, Place},
    pipeline::{minute_name, Revenue, RevenueRow, DEDUP_MS},
    reader::{Readings, Seen},
    settings::Settings,
    shop::{Orders, SEND},
    DEAD_LETTERS, EVENTS, SUMS,
};
use engine::{
    checkpoint::{Entry, Manifest, Store},
    guarantee::Guarantee,
    ids::{Offset, PartitionId},
    log::{cluster::Cluster, consumer::Consumer, TopicPartition},
    record::Record,
    sink::{Objects, SinkKind},
};
use sim::{Amount, Findings, Kind, Ledger, Promise, Told};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use xxhash_rust::xxh3::xxh3_64;

/// What the run has left behind.
pub struct Evidence<'a> {
    /// Where to read.
    pub cluster: &'a Cluster,
    /// The job's objects.
    pub store: &'a Store,
    /// The plan's settings.
    pub settings: &'a Settings,
    /// What the shops sent.
    pub orders: &'a Orders,
    /// The manifest log.
    pub entries: &'a [Entry],
    /// What readers saw.
    pub readings: &'a Readings,
    /// What each incarnation of a reader saw in each partition, before the manifest log was read.
    pub seen: BTreeMap<(String, usize), Vec<Seen>>,
    /// What the ghost saw before that…
    pub before: Testimony,
    /// …and after it.
    pub testimony: Testimony,
}

/// A dead letter: where it comes from, why, and where it is.
struct DeadLetter {
    from: Place,
    reason: String,
    place: String,
}

impl Evidence<'_> {
    /// Reads what there is, and compares it with what was asked and told.
    pub async fn judge(self) -> Findings {
        let input = self.read_topic(EVENTS).await;
        let letters = self.dead_letters().await;
        // What is claimed of the output knows each event once, whatever the pipeline does.
        let mut oracle = self.oracle(&letters, true);
        let events: Vec<Vec<Option<OrderEvent>>> = (input.iter())
            .map(|log| {
                log.iter()
                    .map(|r| OrderEvent::parse(payload(r)).ok())
                    .collect()
            })
            .collect();
        for (partition, log) in events.iter().enumerate() {
            for (offset, event) in log.iter().enumerate() {
                oracle.read((partition, offset as i64), event.as_ref());
            }
        }
        let (rows, unread) = self.rows().await;
        let mut ledgers = vec![
            self.check_sums(&oracle, &rows, unread),
            self.check_log(&input),
            self.check_dead_letters(&oracle, &letters),
            self.check_conservation(&oracle, &events),
            self.check_cuts(&events, &letters),
            self.check_phases(),
            self.check_readers(&rows),
        ];
        let heard = self.testimony.to_ledger();
        ledgers.insert(0, heard);
        let commits = self
            .manifests()
            .flat_map(|manifest| manifest.tasks.values())
            .filter(|task| task.prepared.rows > 0)
            .count();
        Findings {
            ledgers,
            commits: commits as u64,
            why: self.attempts(),
            ..Findings::default()
        }
    }

    fn oracle(&self, letters: &[DeadLetter], dedup: bool) -> Oracle {
        let idle = letters
            .iter()
            .filter(|letter| letter.reason == "late-after-idle");
        let idle: BTreeSet<Place> = idle.map(|letter| letter.from).collect();
        let partitions = self.settings.partitions as usize;
        Oracle::new(partitions, self.settings.lateness_ms as i64, dedup, idle)
    }

    fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Complete(manifest) => Some(manifest),
            _ => None,
        })
    }

    /// The watermark at the cut of the last checkpoint.
    fn last_watermark(&self) -> i64 {
        let last = self.manifests().last();
        let cut = last.and_then(|last| self.testimony.cuts.get(&(last.checkpoint.0 as i64)));
        cut.and_then(|cut| cut.watermark).unwrap_or(i64::MIN)
    }

    fn promise(&self) -> Promise {
        match self.settings.guarantee {
            Guarantee::ExactlyOnce => Promise::exactly_once(),
            Guarantee::AtLeastOnce => Promise::at_least_once(),
            Guarantee::AtMostOnce => Promise::at_most_once(),
        }
    }

    /// All records of a topic, by partition. Everything is calm: it tries until it is told.
    async fn read_topic(&self, topic: &str) -> Vec<Vec<Record>> {
        let mut all = Vec::new();
        for index in 0..self.settings.partitions {
            let of = TopicPartition::new(topic, PartitionId(index as i32));
            let end = loop {
                match self.cluster.stable_offset(&of).await {
                    Ok(end) => break end,
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            };
            let mut consumer = Consumer::new(self.cluster.clone(), of, Offset(0));
            let mut records = Vec::new();
            while consumer.position() < end {
                match consumer.poll().await {
                    Ok(polled) => records.extend(polled),
                    Err(_) => break,
                }
            }
            all.push(records);
        }
        all
    }

    /// The rows of output, in the order in which they are there; and what could not be read.
    async fn rows(&self) -> (Vec<Vec<Seen>>, Vec<String>) {
        let (mut rows, mut unread) = (Vec::new(), Vec::new());
        if self.settings.sink != SinkKind::Objects {
            for (index, records) in self.read_topic(SUMS).await.iter().enumerate() {
                let of = TopicPartition::new(SUMS, PartitionId(index as i32));
                rows.push(
                    records
                        .iter()
                        .map(|record| Seen::of_record(&of, record))
                        .collect(),
                );
            }
            return (rows, unread);
        }
        let mut all = Vec::new();
        for manifest in self.manifests() {
            match Seen::of_manifest(self.store, manifest).await {
                Ok(rows) => all.extend(rows),
                Err(what) => unread.push(what),
            }
        }
        rows.push(all);
        (rows, unread)
    }

    /// The last result of each minute is the oracle's; each result is there once.
    fn check_sums(&self, oracle: &Oracle, rows: &[Vec<Seen>], unread: Vec<String>) -> Ledger {
        let mut ledger = Ledger::new(SUMS, self.promise());
        for what in unread {
            ledger.found(Kind::Torn, what);
        }
        let watermark = match self.settings.bounded {
            true => i64::MAX,
            // Idle partitions went on with the others.
            false if self.settings.idle_ms > 0 => self.last_watermark(),
            false => oracle.watermark_of_all(),
        };
        for (minute, revenue) in oracle.closed(watermark) {
            ledger.must(minute_name(minute), amount_of(&revenue));
        }
        let mut panes = BTreeMap::<&str, BTreeMap<(u64, u32), Vec<&Seen>>>::new();
        for row in rows.iter().flatten() {
            let of = panes.entry(&row.key).or_default();
            of.entry((row.version.unwrap_or(0), row.pane))
                .or_default()
                .push(row);
        }
        let is_table = self.settings.sink == SinkKind::Idempotent;
        for (key, panes) in panes {
            let last = panes.last_key_value().map(|(pane, _)| *pane);
            for (index, (pane, rows)) in panes.iter().enumerate() {
                if pane.1 as usize != index {
                    let kind = if (pane.1 as usize) < index {
                        Kind::Duplicated
                    } else {
                        Kind::Lost
                    };
                    ledger.found(
                        kind,
                        format!("{key}: result {index} is numbered {}", pane.1),
                    );
                }
                // In a table, what is written again is what was there.
                let differ = rows.iter().any(|row| row.value != rows[0].value);
                if is_table && differ {
                    ledger.found(
                        Kind::Inconsistent,
                        format!("{key}: version {pane:?} has two values"),
                    );
                }
                let rows = if is_table { &rows[..1] } else { &rows[..] };
                if Some(*pane) == last {
                    rows.iter().for_each(|row| saw_sum(&mut ledger, row));
                } else if rows.len() > 1 {
                    let what = format!("{key}: result {} is there {} times", pane.1, rows.len());
                    ledger.found(Kind::Duplicated, what);
                }
            }
        }
        ledger
    }

    /// What was acknowledged to the shops is in the log, once; what is in the log was sent.
    fn check_log(&self, input: &[Vec<Record>]) -> Ledger {
        let mut ledger = Ledger::new("the log", Promise::exactly_once());
        let amount = |payload: &[u8]| Amount {
            count: 1,
            sum: xxh3_64(payload) as i64,
        };
        for (number, op) in self.orders.sends.ops().into_iter().enumerate() {
            let key = format!("send {number} to {EVENTS}-{}", op.asked.partition);
            let amount = amount(&self.orders.items[op.asked.item].1.payload);
            match op.told {
                Told::Ok(()) => ledger.must(key, amount),
                Told::Unknown | Told::Invoked => ledger.may(key, amount),
                Told::Failed => {}
            }
        }
        for (partition, log) in input.iter().enumerate() {
            for (index, record) in log.iter().enumerate() {
                if record.offset != Offset(index as i64) {
                    let what = format!("offset {index} of {EVENTS}-{partition} is missing");
                    ledger.found(Kind::Lost, what);
                    return ledger;
                }
                let send = record.headers.iter().find(|(name, _)| name == SEND);
                let number = send.map_or("?".into(), |(_, value)| String::from_utf8_lossy(value));
                let key = format!("send {number} to {EVENTS}-{partition}");
                ledger.saw_at(key, amount(payload(record)), format!("offset {index}"));
            }
        }
        ledger
    }

    /// All dead letters.
    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let mut rows: Vec<(BTreeMap<String, String>, String)> = Vec::new();
        if self.settings.sink == SinkKind::Objects {
            for manifest in self.manifests() {
                // What cannot be read is found with the sums.
                let read = Objects::read(self.store, manifest)
                    .await
                    .unwrap_or_default();
                let letters = read
                    .into_iter()
                    .filter(|(task, _)| task.starts_with("source"));
                rows.extend(letters.map(|(_, row)| {
                    let place = format!("checkpoint {}", manifest.checkpoint);
                    (row.headers.into_iter().collect(), place)
                }));
            }
        } else {
            for (index, records) in self.read_topic(DEAD_LETTERS).await.into_iter().enumerate() {
                rows.extend(records.into_iter().map(|record| {
                    let place = format!("offset {} of {DEAD_LETTERS}-{index}", record.offset);
                    let headers = record.headers.into_iter();
                    let text = |bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned();
                    (
                        headers.map(|(name, value)| (name, text(value))).collect(),
                        place,
                    )
                }));
            }
        }
        let letters = rows.into_iter().map(|(headers, place)| {
            let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
            let source = header("source");
            let partition = source
                .rsplit('-')
                .next()
                .and_then(|index| index.parse().ok());
            DeadLetter {
                from: (
                    partition.unwrap_or(usize::MAX),
                    header("offset").parse().unwrap_or(-1),
                ),
                reason: header("reason").split(':').next().unwrap_or("?").to_owned(),
                place,
            }
        });
        letters.collect()
    }

    /// Every record that cannot be used is among the dead letters, and nothing else is.
    fn check_dead_letters(&self, oracle: &Oracle, letters: &[DeadLetter]) -> Ledger {
        let mut ledger = Ledger::new("dead letters", self.promise());
        let one = Amount { count: 1, sum: 0 };
        let key = |(partition, offset): Place, reason: &str| {
            format!("{EVENTS}-{partition}@{offset} {reason}")
        };
        for (place, reason) in oracle.dead_letters() {
            ledger.must(key(*place, reason), one);
        }
        let mut seen = BTreeSet::new();
        for letter in letters {
            // In a table, what is written again is what was there.
            if self.settings.sink == SinkKind::Idempotent && !seen.insert(letter.from) {
                continue;
            }
            ledger.saw_at(key(letter.from, &letter.reason), one, letter.place.clone());
            if letter.reason == "late-after-idle" && self.settings.idle_ms == 0 {
                let what = format!(
                    "{}: no partition is ever idle here",
                    key(letter.from, "late-after-idle")
                );
                ledger.found(Kind::Phantom, what);
            }
        }
        ledger
    }

    /// Each input is in exactly one of: applied, dead letter, filtered.
    fn check_conservation(&self, oracle: &Oracle, input: &[Vec<Option<OrderEvent>>]) -> Ledger {
        let mut ledger = Ledger::new("the oracle", Promise::exactly_once());
        let all: u64 = input.iter().map(|log| log.len() as u64).sum();
        let applied: u64 = oracle
            .closed(i64::MAX)
            .values()
            .map(|revenue| revenue.orders)
            .sum();
        let letters = oracle.dead_letters().len() as u64;
        ledger.compared_here(all);
        if applied + letters + oracle.filtered() != all {
            let what = format!(
                "{applied} applied, {letters} dead letters and {} filtered are not {all}",
                oracle.filtered()
            );
            ledger.found(Kind::Lost, what);
        }
        let events = input.iter().flatten().flatten();
        let paid = events.filter(|event| event.status == PAID).count() as u64;
        if applied > paid {
            ledger.found(Kind::Phantom, format!("{applied} applied of {paid} paid"));
        }
        debug_assert!(self.settings.lateness_ms <= DEDUP_MS as u64);
        ledger
    }

    /// Every complete checkpoint is a correct cut: its state is what the oracle has at its positions.
    fn check_cuts(&self, input: &[Vec<Option<OrderEvent>>], letters: &[DeadLetter]) -> Ledger {
        let mut ledger = Ledger::new("checkpoints", Promise::exactly_once());
        let mut oracle = self.oracle(letters, self.settings.dedup);
        let mut at = vec![0i64; self.settings.partitions as usize];
        let mut latest = i64::MIN;
        for manifest in self.manifests() {
            let checkpoint = manifest.checkpoint;
            for (partition, position) in manifest.positions() {
                let from = &mut at[partition.0 as usize];
                if position.0 < *from {
                    let what = format!(
                        "checkpoint {checkpoint} is at {position} of {EVENTS}-{partition}, one before it at {from}"
                    );
                    ledger.found(Kind::Mismatched, what);
                }
                let log = input[partition.0 as usize].iter().enumerate();
                let read = log.take(position.0 as usize).skip(*from as usize);
                for (offset, event) in read {
                    oracle.read((partition.0 as usize, offset as i64), event.as_ref());
                }
                *from = position.0.max(*from);
            }
            let windows = manifest
                .tasks
                .keys()
                .filter(|task| task.starts_with("window"));
            let windows: BTreeSet<String> = windows.cloned().collect();
            let Some(cut) = self.testimony.cuts.get(&(checkpoint.0 as i64)) else {
                ledger.found(
                    Kind::Miscut,
                    format!("nobody has aligned checkpoint {checkpoint}"),
                );
                continue;
            };
            ledger.compared_here(1);
            let watermark = cut.watermark.unwrap_or(i64::MIN);
            let ended = self.settings.bounded && watermark == i64::MAX;
            let by_log = oracle.watermark_of_all();
            let may_lead = self.settings.idle_ms > 0 || ended;
            if cut.tasks != windows {
                let what = format!(
                    "{:?} have aligned checkpoint {checkpoint} of {windows:?}",
                    cut.tasks
                );
                ledger.found(Kind::Miscut, what);
            }
            if watermark < by_log || (watermark > by_log && !may_lead) {
                let what = format!(
                    "checkpoint {checkpoint} is at watermark {watermark}; its positions are at {by_log}"
                );
                ledger.found(Kind::Miscut, what);
            }
            if watermark < latest {
                let what = format!("checkpoint {checkpoint} is at watermark {watermark}, one before it at {latest}");
                ledger.found(Kind::Misordered, what);
            }
            latest = watermark;
            if cut.fingerprint != oracle.fingerprint(watermark) {
                let what =
                    format!(
                    "the windows of checkpoint {checkpoint} are not those of its positions {:?}",
                    manifest.positions().values().map(|at| at.0).collect::<Vec<_>>()
                );
                ledger.found(Kind::Miscut, what);
            }
        }
        ledger
    }

    /// Two-phase discipline: what was prepared is committed if its checkpoint is complete, and not otherwise; none is
    /// left open.
    fn check_phases(&self) -> Ledger {
        let mut ledger = Ledger::new("two phases", Promise::exactly_once());
        let complete: BTreeSet<i64> = self.manifests().map(|m| m.checkpoint.0 as i64).collect();
        for checkpoint in self.before.complete.difference(&complete) {
            let what = format!("checkpoint {checkpoint} was called complete, and has no manifest");
            ledger.found(Kind::Phantom, what);
        }
        for (checkpoint, tasks) in &self.before.committed {
            ledger.compared_here(tasks.len() as u64);
            if !complete.contains(checkpoint) {
                let what =
                    format!("{tasks:?} committed checkpoint {checkpoint}, which is not complete");
                ledger.found(Kind::Premature, what);
            }
        }
        // What is visible through the manifest needs no commit; what is written at once, or at most once, neither.
        let needs = match self.settings.sink {
            SinkKind::Objects | SinkKind::Append => false,
            SinkKind::Transactional | SinkKind::Idempotent => true,
        };
        let manifests: Vec<&Manifest> = self.manifests().filter(|_| needs).collect();
        // The last one may be about to be committed.
        for manifest in &manifests[..manifests.len().saturating_sub(1)] {
            let none = BTreeSet::new();
            let id = manifest.checkpoint.0 as i64;
            let committed = self.testimony.committed.get(&id).unwrap_or(&none);
            let prepared = manifest
                .tasks
                .iter()
                .filter(|(_, task)| task.prepared.rows > 0);
            let left = prepared.filter(|(task, _)| !committed.contains(*task));
            let left: Vec<&String> = left.map(|(task, _)| task).collect();
            ledger.compared_here(1);
            if !left.is_empty() {
                let what =
                    format!("checkpoint {id} is complete, and {left:?} have never committed it");
                ledger.found(Kind::Undecided, what);
            }
        }
        ledger
    }

    /// What a reader has seen does not go away; versions only grow; and what a restore needs is always there.
    fn check_readers(&self, rows: &[Vec<Seen>]) -> Ledger {
        let mut ledger = Ledger::new("readers", Promise::exactly_once());
        for ((who, partition), seen) in &self.seen {
            let is_there = &rows[*partition];
            ledger.compared_here(seen.len() as u64);
            let same = seen
                .iter()
                .zip(is_there)
                .take_while(|(seen, there)| seen == there)
                .count();
            if let Some(gone) = seen.get(same) {
                let what = format!(
                    "{who} saw {:?} at {}; there is {:?} now",
                    gone.value,
                    gone.place,
                    is_there.get(same).map(|row| (&row.value, &row.place))
                );
                ledger.found(Kind::Retracted, what);
            }
            if self.settings.sink == SinkKind::Idempotent {
                self.check_versions(who, seen, &mut ledger);
            }
        }
        let (missing, looked) = self.readings.missing();
        ledger.compared_here(looked);
        for what in missing {
            ledger.found(Kind::Unreachable, what);
        }
        ledger
    }

    /// A newer version of a row never knows less than an older one.
    fn check_versions(&self, who: &str, seen: &[Seen], ledger: &mut Ledger) {
        let mut newest = BTreeMap::<&str, (u64, u32, u64)>::new();
        for row in seen {
            let orders = serde_json::from_str::<RevenueRow>(&row.value).map_or(0, |row| row.orders);
            let this = (row.version.unwrap_or(0), row.pane, orders);
            let known = newest.entry(&row.key).or_insert(this);
            let (newer, more) = ((this.0, this.1) > (known.0, known.1), this.2 >= known.2);
            if newer && !more {
                let what = format!(
                    "{who} saw version {} of {} with {} orders after version {} with {}",
                    this.0, row.key, this.2, known.0, known.2
                );
                ledger.found(Kind::Retracted, what);
            }
            *known = this.max(*known);
        }
    }

    /// The attempts of the job, for people.
    fn attempts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (number, entry) in self.entries.iter().enumerate() {
            match entry {
                Entry::Begun { instance, restores } => {
                    let from = restores.map_or("the start".into(), |id| format!("checkpoint {id}"));
                    lines.push(format!("attempt {number} began on {instance}, from {from}"));
                }
                Entry::Complete(manifest) if manifest.rows() > 0 => {
                    let rows = manifest.rows();
                    lines.push(format!("checkpoint {number} completed with {rows} rows"));
                }
                Entry::Complete(_) => {}
                Entry::Stopped(checkpoint) => {
                    lines.push(format!("the job was stopped at checkpoint {checkpoint}"));
                }
                Entry::Finished(checkpoint) => {
                    lines.push(format!("the job finished at checkpoint {checkpoint}"));
                }
                Entry::Halted(why) => lines.push(format!("the job halted: {why}")),
            }
        }
        lines
    }
}

fn payload(record: &Record) -> &[u8] {
    record.value.as_deref().unwrap_or_default()
}

fn amount_of(revenue: &Revenue) -> Amount {
    Amount {
        count: revenue.orders,
        sum: revenue.cents,
    }
}

fn saw_sum(ledger: &mut Ledger, row: &Seen) {
    match serde_json::from_str::<RevenueRow>(&row.value) {
        Err(error) => ledger.found(Kind::Torn, format!("{}: {error}", row.place)),
        Ok(sum) => {
            let amount = Amount {
                count: sum.orders,
                sum: sum.cents,
            };
            ledger.saw_at(minute_name(sum.minute_ms), amount, row.place.clone());
        }
    }
}
