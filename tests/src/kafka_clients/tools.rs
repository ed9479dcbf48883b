//! Kafka's own command line tools, from topics to transactions: what they are asked for happens, and lasts.

use super::engines::java;
use crate::{
    running::Running,
    stock::{tools, Broker},
};
use std::{
    io::{Read, Write},
    process::Stdio,
};

/// A tool's class and its arguments, and what of its answer is certain. `AT` stands for the broker's address.
pub type Command = (&'static str, &'static [&'static str]);

/// In two parts, between which a broker can be killed: the second finds what the first has done.
pub const COMMANDS: [&[Command]; 2] = [
    &[
        (
            "TopicCommand AT --create --topic one --partitions 3 --config retention.ms=3600000",
            &["Created topic one."],
        ),
        ("TopicCommand AT --list", &["one"]),
        ("TopicCommand AT --alter --topic one --partitions 4", &[]),
        (
            "ConsoleProducer AT --topic one --reader-property parse.key=true \
             --reader-property key.separator=: -- a:1\\nb:2\\nc:3\\nd:4\\n",
            &[],
        ),
        // Where Kafka's own hash puts them.
        (
            "GetOffsetShell AT --topic one",
            &["one:0:2 one:1:1 one:2:1 one:3:0"],
        ),
        (
            "consumer.ConsoleConsumer AT --topic one --from-beginning --max-messages 4 --group console \
             --timeout-ms 60000 --formatter-property print.key=true",
            &["a 1", "b 2", "c 3", "d 4", "Processed a total of 4 messages"],
        ),
        (
            "kafka.admin.ConfigCommand AT --alter --entity-type topics --entity-name one \
             --add-config retention.ms=7200000,segment.bytes=1048576",
            &["Completed updating config for topic one."],
        ),
        (
            "DeleteRecordsCommand AT --offset-json-file FILE",
            &["one-0 low_watermark: 1", "one-1 low_watermark: 1"],
        ),
        (
            "ProducerPerformance AT --topic one --num-records 1000 --record-size 100 --throughput -1 \
             --transactional-id performance",
            &["1000 records sent"],
        ),
    ],
    &[
        (
            "TopicCommand AT --describe --topic one",
            &[
                "Topic: one TopicId: ",
                "PartitionCount: 4 ReplicationFactor: 1 Configs: ",
                "retention.ms=7200000",
                "segment.bytes=1048576",
                "Topic: one Partition: 3 Leader: ",
            ],
        ),
        (
            "kafka.admin.ConfigCommand AT --alter --entity-type topics --entity-name one \
             --delete-config segment.bytes",
            &["Completed updating config for topic one."],
        ),
        (
            "kafka.admin.ConfigCommand AT --describe --entity-type topics --entity-name one",
            &["Dynamic configs for topic one are: retention.ms=7200000 sensitive=false"],
        ),
        (
            "GetOffsetShell AT --topic one --time earliest",
            &["one:0:1 one:1:1 one:2:0 one:3:0"],
        ),
        (
            "GetOffsetShell AT --topic one --time 1",
            &["one:0:1", "one:2:0"],
        ),
        ("GetOffsetShell AT --topic one --time max-timestamp", &["one:0:"]),
        ("consumer.group.ConsumerGroupCommand AT --list", &["console"]),
        (
            "consumer.group.ConsumerGroupCommand AT --describe --group console",
            &[
                "Consumer group 'console' has no active members.",
                "console one 0 2 ",
                "console one 1 1 ",
                "console one 3 0 ",
            ],
        ),
        (
            "consumer.group.ConsumerGroupCommand AT --describe --group console --state",
            &["- Empty 0"],
        ),
        (
            "consumer.group.ConsumerGroupCommand AT --reset-offsets --group console --topic one --to-earliest --execute",
            &["console one 0 1", "console one 2 0"],
        ),
        (
            "consumer.group.ConsumerGroupCommand AT --delete-offsets --group console --topic one",
            &["one 0 Successful", "one 3 Successful"],
        ),
        ("GroupsCommand AT --list", &["console Classic consumer"]),
        (
            "consumer.group.ConsumerGroupCommand AT --delete --group console",
            &["Deletion of requested consumer groups ('console') was successful."],
        ),
        (
            "LogDirsCommand AT --describe --topic-list one",
            &["\"partition\":\"one-3\",\"size\":"],
        ),
        (
            "TransactionsCommand AT list",
            &["performance ", "CompleteCommit"],
        ),
        (
            "TransactionsCommand AT describe --transactional-id performance",
            &["CompleteCommit"],
        ),
        (
            "TransactionsCommand AT describe-producers --topic one --partition 0",
            &["None"],
        ),
        ("BrokerApiVersionsCommand AT", &["EndTxn(26): 0 to 5 [usable: 5]"]),
        (
            "FeatureCommand AT describe",
            &["transaction.version", "FinalizedVersionLevel: 2"],
        ),
        (
            "ConsumerPerformance AT --topic one --num-records 1002",
            &[", 1002, "],
        ),
        ("TopicCommand AT --delete --topic one", &[]),
        ("TopicCommand AT --describe", &[]),
    ],
];

/// Runs them against a broker, and holds them to what they must say.
pub fn run(address: &str, commands: &[Command]) {
    let offsets = r#"{"version": 1, "partitions": [
        {"topic": "one", "partition": 0, "offset": 1}, {"topic": "one", "partition": 1, "offset": -1}]}"#;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), offsets).expect("there is room");
    let mut script = String::new();
    for (command, _) in commands {
        if !command.starts_with("kafka.") {
            script += "org.apache.kafka.tools.";
        }
        let at = command.replace("AT", &format!("--bootstrap-server {address}"));
        script += &at.replace("FILE", &file.path().display().to_string());
        script += "\n";
    }
    let mut java = java(&tools().libs);
    java.arg("Tools")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = Running::start(&mut java);
    let mut input = process.0.stdin.take().expect("piped");
    input.write_all(script.as_bytes()).expect("it reads");
    drop(input);
    let mut said = String::new();
    let output = process.0.stdout.as_mut().expect("piped");
    output.read_to_string(&mut said).expect("text");
    process.succeeds("Kafka's tools");
    // In columns or in lines: between words is one space.
    let words: Vec<&str> = said.split_whitespace().collect();
    let said = words.join(" ") + " ";
    let mut rest = said.as_str();
    for (command, expected) in commands {
        let (answer, after) = rest.split_once("exit ").unwrap_or((rest, ""));
        let (code, after) = after.split_once(' ').unwrap_or((after, ""));
        assert_eq!(code, "0", "{command}: {answer}");
        for part in *expected {
            assert!(answer.contains(part), "{command}: no `{part}` in: {answer}");
        }
        rest = after;
    }
}

#[test]
fn kafkas_own_tools_get_what_they_ask_for() {
    let mut broker = Broker::start();
    let [first, second] = COMMANDS;
    run(&broker.address, first);
    broker.restart();
    run(&broker.address, second);
}
