//! Somebody who means well.

use super::{batch_of, fetch, produce, text};
use bytes::Bytes;
use engine::wire::{batch, frame};
use kafka_protocol::{
    messages::{create_topics_request::CreatableTopic, CreateTopicsRequest, TopicName},
    protocol::Request,
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Whoever is not answered for so long never is.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of one connection.
pub struct Good {
    stream: TcpStream,
    slowest: Duration,
}

impl Good {
    /// Connects.
    pub fn connect(address: &str) -> Good {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        Good {
            stream,
            slowest: Duration::ZERO,
        }
    }

    /// The longest that an answer took.
    pub fn slowest(&self) -> Duration {
        self.slowest
    }

    fn ask<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        let begun = Instant::now();
        let request = frame::encode_request(request, version, 7).expect("a request");
        self.stream.write_all(&request).expect("it is connected");
        let mut len = [0; 4];
        self.stream.read_exact(&mut len).expect("it is answered");
        let mut answer = vec![0; i32::from_be_bytes(len) as usize];
        self.stream.read_exact(&mut answer).expect("it is answered");
        self.slowest = self.slowest.max(begun.elapsed());
        frame::decode_response::<R>(&answer.into(), version).expect("a response")
    }

    /// Creates a topic.
    pub fn create(&mut self, topic: &str, partitions: i32) {
        let topic = CreatableTopic::default()
            .with_name(TopicName(text(topic)))
            .with_num_partitions(partitions)
            .with_replication_factor(1);
        let request = CreateTopicsRequest::default()
            .with_timeout_ms(5000)
            .with_topics(vec![topic]);
        let answer = self.ask(&request, 5);
        assert_eq!(answer.topics[0].error_code, 0);
    }

    /// Appends a record; its offset.
    pub fn produce(&mut self, topic: &str, value: Vec<u8>) -> i64 {
        self.append(topic, batch_of(value).into())
    }

    /// Appends a batch; its offset.
    pub fn append(&mut self, topic: &str, batch: Bytes) -> i64 {
        let answer = self.ask(&produce(topic, batch), 11);
        let answer = &answer.responses[0].partition_responses[0];
        assert_eq!(answer.error_code, 0);
        answer.base_offset
    }

    /// The value of a record.
    pub fn read(&mut self, topic: &str, offset: i64) -> Option<Bytes> {
        let answer = self.ask(&fetch(topic, offset, 1000), 12);
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        let records = partition.records.clone().unwrap_or_default();
        let batches = batch::decode(&records).expect("batches");
        match &batches.first()?.body {
            batch::Body::Data(records) => records[0].value.clone(),
            batch::Body::Control(_) => None,
        }
    }
}
