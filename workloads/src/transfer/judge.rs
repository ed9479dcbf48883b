//! Final reads, and one ledger for each claim.

use super::{
    command::{weight, Command, Entry},
    ghost::{Ghost, Number, Testimony},
    lives::Lives,
    reader::{Reading, Readings},
    scan::{Closed, Log},
    settings::Settings,
    teller::Till,
    worker::{Attempts, Ended},
    CHATTER, COMMANDS, ENTRIES, GROUP,
};
use engine::{
    ids::{Offset, PartitionId},
    log::{
        cluster::Cluster, member, offsets::Entry as Position, partition::Isolation,
        topics::OFFSETS_TOPIC, TopicPartition,
    },
    wire::batch::{Body, Outcome},
};
use sim::{Amount, Findings, Kind, Ledger, Promise, Told};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What the run has left behind.
pub struct Evidence {
    /// Where to read.
    pub cluster: Cluster,
    /// The plan's settings.
    pub settings: Settings,
    /// Commands, as the tellers know them.
    pub till: Till,
    /// Topics that come and go.
    pub lives: Lives,
    /// Transactions, as the workers know them.
    pub attempts: Attempts,
    /// Entries, as the readers see them.
    pub readings: Readings,
    /// What the ghost sees.
    pub ghost: Ghost,
    /// The addresses of the brokers; the coordinators' topics have as many partitions.
    pub brokers: Vec<String>,
}

/// The log, read and taken apart.
struct Found {
    testimony: Testimony,
    readings: Vec<Reading>,
    commands: Vec<Log>,
    entries: Vec<Log>,
    /// Of each partition of the entries.
    closed: Vec<Vec<Closed>>,
    /// How each transaction ended.
    outcomes: BTreeMap<Number, Outcome>,
}

impl Evidence {
    /// Reads what there is, and compares it with what was asked and told.
    pub async fn judge(self) -> Findings {
        let (commands, entries, positions) = self.read_still().await;
        let testimony = self.ghost.testimony();
        let mut log = Ledger::new("the log", Promise::exactly_once());
        let closed: Vec<Vec<Closed>> = entries.iter().map(|of| of.transactions(&mut log)).collect();
        let of_positions: Vec<Vec<Closed>> = positions
            .iter()
            .map(|of| of.transactions(&mut log))
            .collect();
        commands
            .iter()
            .chain(&entries)
            .for_each(|of| of.check_sequences(&mut log, true));
        let outcomes = outcomes(closed.iter().chain(&of_positions), &testimony, &mut log);
        let found = Found {
            testimony,
            readings: self.readings.all(),
            commands,
            entries,
            closed,
            outcomes,
        };
        let moves = found.testimony.moves.iter();
        let moves = moves.map(|(name, count)| ((*name).to_owned(), *count));
        let moves = moves.collect();
        let commits = found
            .outcomes
            .values()
            .filter(|outcome| **outcome == Outcome::Commit)
            .count();
        let mut ledgers = vec![
            brokers(&found.testimony),
            log,
            self.commands(&found),
            self.transfers(&found),
            self.attempts(&found),
            self.positions(&found, &positions, &of_positions).await,
            self.readers(&found).await,
            self.chatter().await,
            self.lives
                .judge(&self.cluster, &self.brokers, &self.settings)
                .await,
        ];
        for ledger in &mut ledgers {
            explain(ledger, &found.testimony.cut);
        }
        Findings {
            ledgers,
            commits: commits as u64,
            moves,
            ..Findings::default()
        }
    }

    /// The log of commands, entries and positions, while no transaction is open and none moves: all is done, but
    /// an instance that does not know yet that others did its work may begin one.
    async fn read_still(&self) -> (Vec<Log>, Vec<Log>, Vec<Log>) {
        let (partitions, entry_partitions) =
            (self.settings.partitions, self.settings.entry_partitions);
        let mut tries = 3;
        loop {
            self.settle().await;
            let moves = self.ghost.moves();
            let read = (
                self.read_all(COMMANDS, partitions as i32).await,
                self.read_all(ENTRIES, entry_partitions as i32).await,
                self.read_all(OFFSETS_TOPIC, self.brokers.len() as i32)
                    .await,
            );
            tries -= 1;
            if tries == 0 || moves == self.ghost.moves() {
                return read;
            }
        }
    }

    /// Waits until no transaction is open, as long as one may be.
    async fn settle(&self) {
        let timeout = self.settings.transaction_timeout_ms + 10_000;
        let settled = async {
            let entries = self.all_of(ENTRIES, self.settings.entry_partitions as i32);
            let positions = self.all_of(OFFSETS_TOPIC, self.brokers.len() as i32);
            for of in entries.into_iter().chain(positions) {
                loop {
                    let stable = self.cluster.stable_offset(&of).await;
                    let end = self.cluster.end_offset(&of).await;
                    if matches!((stable, end), (Ok(stable), Ok(end)) if stable == end) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        // What is still open then is found in the log.
        let _ = tokio::time::timeout(Duration::from_millis(timeout), settled).await;
    }

    fn all_of(&self, topic: &str, count: i32) -> Vec<TopicPartition> {
        (0..count)
            .map(|index| TopicPartition::new(topic, PartitionId(index)))
            .collect()
    }

    async fn read_all(&self, topic: &str, count: i32) -> Vec<Log> {
        let mut all = Vec::new();
        for of in self.all_of(topic, count) {
            all.push(Log::read(&self.cluster, &of, Isolation::ReadUncommitted).await);
        }
        all
    }

    /// What was acknowledged to the tellers is in the log, once.
    fn commands(&self, found: &Found) -> Ledger {
        let mut ledger = Ledger::new(COMMANDS, Promise::exactly_once());
        let key = |send: &str, partition: i32| format!("send {send} to {COMMANDS}-{partition}");
        let amount = |command: &Command| Amount {
            count: 1,
            sum: weight(command.from * 1_000_000 + command.to, command.cents),
        };
        for op in self.till.sends.ops() {
            let (command, partition) = (&op.asked.command, op.asked.partition);
            match op.told {
                Told::Ok(()) => ledger.must(key(&command.send, partition), amount(command)),
                Told::Unknown | Told::Invoked => {
                    ledger.may(key(&command.send, partition), amount(command));
                }
                Told::Failed => {}
            }
        }
        for log in &found.commands {
            for (offset, command) in commands_of(log) {
                let key = key(&command.send, log.of.partition.0);
                ledger.saw_at(key, amount(&command), format!("offset {offset}"));
            }
        }
        ledger
    }

    /// Every command in the log has its effect once: both of its entries, in one transaction.
    fn transfers(&self, found: &Found) -> Ledger {
        let mut ledger = Ledger::new("transfers", Promise::exactly_once());
        let key =
            |partition: PartitionId, offset: Offset| format!("the command at {partition}@{offset}");
        for log in &found.commands {
            for (offset, command) in commands_of(log) {
                let legs = command.entries(log.of.partition, offset, "");
                let amount = Amount {
                    count: 2,
                    sum: legs.iter().map(Entry::weight).sum(),
                };
                ledger.must(key(log.of.partition, offset), amount);
            }
        }
        let mut effects = BTreeMap::<(PartitionId, Offset, Number), Amount>::new();
        let mut total = 0;
        for (index, closed) in found.closed.iter().enumerate() {
            for transaction in closed
                .iter()
                .filter(|closed| closed.outcome == Outcome::Commit)
            {
                for (_, entry) in entries_of(&found.entries[index], transaction) {
                    total += entry.cents;
                    let effect = (entry.partition, entry.offset, transaction.number);
                    let amount = effects.entry(effect).or_default();
                    amount.count += 1;
                    amount.sum += entry.weight();
                }
            }
        }
        for ((partition, offset, number), amount) in effects {
            let place = format!("transaction {} of producer {}", number.1, number.0);
            ledger.saw_at(key(partition, offset), amount, place);
        }
        if total != 0 {
            ledger.found(Kind::Torn, format!("{total} cents came from nowhere"));
        }
        ledger
    }

    /// Transactions ended as their workers were told, all of each in the same way.
    fn attempts(&self, found: &Found) -> Ledger {
        let mut ledger = Ledger::new("attempts", Promise::exactly_once());
        let mut numbers = BTreeMap::<String, BTreeSet<Number>>::new();
        let mut names = BTreeMap::<Number, BTreeSet<String>>::new();
        for (index, closed) in found.closed.iter().enumerate() {
            for transaction in closed {
                for (_, entry) in entries_of(&found.entries[index], transaction) {
                    numbers
                        .entry(entry.attempt.clone())
                        .or_default()
                        .insert(transaction.number);
                    names
                        .entry(transaction.number)
                        .or_default()
                        .insert(entry.attempt);
                }
            }
        }
        for (number, names) in names.iter().filter(|(_, names)| names.len() > 1) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let what = format!(
                "attempts {} are one transaction, {number:?}",
                names.join(" and ")
            );
            ledger.found(Kind::Ungrammatical, what);
        }
        for op in self.attempts.ops() {
            let attempt = &op.asked;
            let numbers = numbers.get(&attempt.name).cloned().unwrap_or_default();
            ledger.compared_here(1);
            if numbers.len() > 1 {
                let what = format!("attempt {} is in transactions {numbers:?}", attempt.name);
                ledger.found(Kind::Torn, what);
            }
            let is_committed =
                |number: &Number| found.outcomes.get(number) == Some(&Outcome::Commit);
            let committed = numbers.iter().any(is_committed);
            let told = match op.told {
                Told::Ok(Ended::Committed) if !committed => "committed, and it was not",
                Told::Ok(Ended::Aborted) if committed => "aborted, and it was committed",
                _ if committed && !attempt.commits => {
                    let what = format!(
                        "attempt {} was committed, and nobody asked for it",
                        attempt.name
                    );
                    ledger.found(Kind::Disagreed, what);
                    continue;
                }
                _ => continue,
            };
            let what = format!(
                "the worker of attempt {} was told that it was {told}",
                attempt.name
            );
            ledger.found(Kind::Disagreed, what);
        }
        ledger
    }

    /// The positions in a transaction are those of its output, and they are what the group has in the end.
    async fn positions(&self, found: &Found, logs: &[Log], closed: &[Vec<Closed>]) -> Ledger {
        let mut ledger = Ledger::new("positions", Promise::exactly_once());
        let mut outputs = BTreeMap::<Number, BTreeSet<(PartitionId, Offset)>>::new();
        for (index, closed) in found.closed.iter().enumerate() {
            for transaction in closed
                .iter()
                .filter(|closed| closed.outcome == Outcome::Commit)
            {
                for (_, entry) in entries_of(&found.entries[index], transaction) {
                    let output = outputs.entry(transaction.number).or_default();
                    output.insert((entry.partition, entry.offset));
                }
            }
        }
        let mut at = BTreeMap::<PartitionId, Offset>::new();
        for (log, closed) in logs.iter().zip(closed) {
            for transaction in closed
                .iter()
                .filter(|closed| closed.outcome == Outcome::Commit)
            {
                let mut consumed = BTreeSet::new();
                for (partition, position) in positions_of(log, transaction) {
                    let before = at.insert(partition, position).unwrap_or(Offset(0));
                    if position < before {
                        let what =
                            format!("{COMMANDS}-{partition} went back from {before} to {position}");
                        ledger.found(Kind::Mismatched, what);
                    }
                    consumed
                        .extend((before.0..position.0).map(|offset| (partition, Offset(offset))));
                }
                ledger.compared_here(1);
                let output = outputs.remove(&transaction.number).unwrap_or_default();
                if consumed != output {
                    let missing: Vec<_> = consumed.difference(&output).take(3).collect();
                    let extra: Vec<_> = output.difference(&consumed).take(3).collect();
                    let what = format!(
                        "transaction {:?} consumed {missing:?} without output, and has output of {extra:?}",
                        transaction.number
                    );
                    ledger.found(Kind::Mismatched, what);
                }
            }
        }
        for number in outputs.keys() {
            ledger.found(
                Kind::Mismatched,
                format!("transaction {number:?} has output, and no positions"),
            );
        }
        for log in &found.commands {
            let of = &log.of;
            let told = member::position(&self.cluster, GROUP, of).await;
            let last = at.get(&of.partition).copied();
            ledger.compared_here(1);
            if told != last {
                let what = format!(
                    "the group is told that it is at {told:?} of {of}; its log says {last:?}"
                );
                ledger.found(Kind::Mismatched, what);
            }
        }
        ledger
    }

    /// Readers saw what was committed, when it was, in its order; and so does whoever reads it now.
    async fn readers(&self, found: &Found) -> Ledger {
        let mut ledger = Ledger::new("readers", Promise::exactly_once());
        for (index, log) in found.entries.iter().enumerate() {
            let mut places = BTreeMap::<Offset, (Number, Entry)>::new();
            for transaction in &found.closed[index] {
                for (offset, entry) in entries_of(log, transaction) {
                    places.insert(offset, (transaction.number, entry));
                }
            }
            let is_committed = |(_, (number, _)): &(&Offset, &(Number, Entry))| {
                found.outcomes.get(number) == Some(&Outcome::Commit)
            };
            let expected: Vec<Offset> = places
                .iter()
                .filter(is_committed)
                .map(|(at, _)| *at)
                .collect();
            let readings = found
                .readings
                .iter()
                .filter(|reading| reading.partition == log.of.partition);
            for reading in readings {
                self.check_reading(reading, &log.of, &places, &expected, found, &mut ledger);
            }
            let now = Log::read(&self.cluster, &log.of, Isolation::ReadCommitted).await;
            let now = now.batches.iter().flat_map(|batch| match &batch.body {
                Body::Data(records) => records.iter().map(|record| record.offset).collect(),
                Body::Control(_) => Vec::new(),
            });
            let now: Vec<Offset> = now.collect();
            ledger.compared_here(now.len() as u64);
            if now != expected {
                let (kind, what) = difference(&now, &expected);
                ledger.found(kind, format!("{} in the end: {what}", log.of));
            }
        }
        ledger
    }

    fn check_reading(
        &self,
        reading: &Reading,
        of: &TopicPartition,
        places: &BTreeMap<Offset, (Number, Entry)>,
        expected: &[Offset],
        found: &Found,
        ledger: &mut Ledger,
    ) {
        let who = &reading.who;
        for seen in &reading.seen {
            ledger.compared_here(1);
            let place = format!("{who} saw offset {} of {of}", seen.offset);
            let Some((number, entry)) = places.get(&seen.offset) else {
                ledger.found(Kind::Inconsistent, format!("{place}, where nothing is now"));
                continue;
            };
            if seen.entry.as_ref() != Some(entry) {
                ledger.found(
                    Kind::Inconsistent,
                    format!("{place} with another value than is there now"),
                );
            }
            match found.outcomes.get(number) {
                Some(Outcome::Commit) => {}
                _ => {
                    ledger.found(
                        Kind::AbortedRead,
                        format!("{place}, of a transaction that was aborted"),
                    );
                    continue;
                }
            }
            let decided = found.testimony.decided.get(number);
            if decided.is_none_or(|decided| decided.at > seen.at) {
                ledger.found(
                    Kind::PrecommittedRead,
                    format!("{place} before its transaction was decided"),
                );
            }
        }
        let seen: Vec<Offset> = reading.seen.iter().map(|seen| seen.offset).collect();
        if !expected.starts_with(&seen) {
            let (kind, what) = difference(&seen, expected);
            ledger.found(kind, format!("{who} in {of}: {what}"));
        }
    }

    /// What is left of the topic that keeps only its newest records is in order, without a gap.
    async fn chatter(&self) -> Ledger {
        let mut ledger = Ledger::new(CHATTER, Promise::exactly_once());
        let of = TopicPartition::new(CHATTER, PartitionId(0));
        let log = Log::read(&self.cluster, &of, Isolation::ReadUncommitted).await;
        log.check_sequences(&mut ledger, false);
        let mut last = BTreeMap::<Vec<u8>, u64>::new();
        for batch in &log.batches {
            let Body::Data(records) = &batch.body else {
                continue;
            };
            for record in records {
                let who = record.key.as_deref().unwrap_or_default().to_vec();
                let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
                let number: u64 = text.parse().unwrap_or(u64::MAX);
                let before = last.insert(who, number);
                ledger.compared_here(1);
                match before {
                    Some(before) if number <= before => {
                        let what = format!("offset {}: {number} after {before}", record.offset);
                        ledger.found(Kind::Misordered, what);
                    }
                    Some(before) if number > before + 1 => {
                        let what = format!("offset {}: {number} after {before}", record.offset);
                        ledger.found(Kind::Lost, what);
                    }
                    _ => {}
                }
            }
        }
        ledger
    }
}

/// What may show if damage was cut off the end of a partition, and said: by topic and claim. Nothing else is explained.
const EXPLAINED: [(&str, &str, Kind); 5] = [
    (COMMANDS, COMMANDS, Kind::Lost),
    (ENTRIES, "transfers", Kind::Lost),
    (ENTRIES, "readers", Kind::Skipped),
    (OFFSETS_TOPIC, "positions", Kind::Mismatched),
    (CHATTER, CHATTER, Kind::Lost),
];

fn explain(ledger: &mut Ledger, cut: &BTreeSet<String>) {
    let is_cut = |topic| {
        cut.iter()
            .any(|folder| folder.rsplit('/').nth(1) == Some(topic))
    };
    let explained = EXPLAINED
        .into_iter()
        .filter(|(topic, claim, _)| ledger.claim() == *claim && is_cut(topic));
    let kinds: Vec<Kind> = explained.map(|(_, _, kind)| kind).collect();
    ledger.explain(kinds);
}

/// What the ghost has found.
pub(super) fn brokers(testimony: &Testimony) -> Ledger {
    let mut ledger = Ledger::new("the brokers", Promise::exactly_once());
    ledger.compared_here(testimony.compared);
    for (kind, what) in &testimony.found {
        ledger.found(*kind, what.clone());
    }
    ledger
}

/// How each transaction ended: in the same way everywhere, and as it was decided.
fn outcomes<'a>(
    closed: impl Iterator<Item = &'a Vec<Closed>>,
    testimony: &Testimony,
    ledger: &mut Ledger,
) -> BTreeMap<Number, Outcome> {
    let mut outcomes = BTreeMap::new();
    for transaction in closed.flatten() {
        let (number, outcome) = (transaction.number, transaction.outcome);
        ledger.compared_here(1);
        let before = outcomes.insert(number, outcome);
        if before.is_some_and(|before| before != outcome) {
            let what = format!("transaction {number:?} has markers of both kinds");
            ledger.found(Kind::Torn, what);
        }
        let decided = testimony
            .decided
            .get(&number)
            .map(|decided| decided.commits);
        if decided != Some(outcome == Outcome::Commit) {
            let what = format!(
                "transaction {number:?} has a marker {outcome:?}, and was decided {decided:?}"
            );
            ledger.found(Kind::Disagreed, what);
        }
    }
    outcomes
}

fn commands_of(log: &Log) -> Vec<(Offset, Command)> {
    let records = log.batches.iter().flat_map(|batch| match &batch.body {
        Body::Data(records) => records.as_slice(),
        Body::Control(_) => &[],
    });
    records
        .filter_map(|record| Some((record.offset, Command::of(record)?)))
        .collect()
}

fn entries_of(log: &Log, transaction: &Closed) -> Vec<(Offset, Entry)> {
    let batches = transaction.batches.iter().map(|index| &log.batches[*index]);
    let records = batches.flat_map(|batch| match &batch.body {
        Body::Data(records) => records.as_slice(),
        Body::Control(_) => &[],
    });
    records
        .filter_map(|record| Some((record.offset, Entry::of(record)?)))
        .collect()
}

fn positions_of(log: &Log, transaction: &Closed) -> BTreeMap<PartitionId, Offset> {
    let batches = transaction.batches.iter().map(|index| &log.batches[*index]);
    let records = batches.flat_map(|batch| match &batch.body {
        Body::Data(records) => records.as_slice(),
        Body::Control(_) => &[],
    });
    let positions = records.filter_map(|record| match Position::of_record(record) {
        Ok(Position::Position {
            group,
            of,
            position: Some(position),
        }) if group == GROUP => Some((of.partition, position.offset)),
        _ => None,
    });
    positions.collect()
}

/// How what was seen differs from what should have been.
fn difference(seen: &[Offset], expected: &[Offset]) -> (Kind, String) {
    let parted = seen
        .iter()
        .zip(expected)
        .position(|(seen, expected)| seen != expected);
    match parted {
        None if seen.len() < expected.len() => (
            Kind::Skipped,
            format!("offset {} was not seen", expected[seen.len()]),
        ),
        None => (
            Kind::Phantom,
            format!(
                "offset {} was seen, and is not committed",
                seen[expected.len()]
            ),
        ),
        Some(index) if !expected.contains(&seen[index]) => (
            Kind::AbortedRead,
            format!("offset {} was seen, and is not committed", seen[index]),
        ),
        Some(index) if seen[index] < expected[index] => (
            Kind::Duplicated,
            format!("offset {} was seen again", seen[index]),
        ),
        Some(index) => (
            Kind::Skipped,
            format!("offset {} was not seen", expected[index]),
        ),
    }
}
