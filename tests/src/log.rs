//! What the log's broker makes of peers that do not speak as they should.

use crate::stage::{addresses, play};
use engine::{
    ids::{Offset, PartitionId},
    log::{cluster::Cluster, TopicPartition},
    wire::frame,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A peer that sends garbage gets its connection closed, and nobody else notices.
#[test]
fn garbage_closes_its_connection_and_nothing_else() {
    play(1, |host| async move {
        let cluster = Cluster::new(host.clone(), addresses(1));
        cluster.ensure_topic("t", 1).await.unwrap();
        let mut runner = TestRunner::deterministic();
        let garbage = prop::collection::vec(any::<u8>(), 0..300);
        for round in 0..60 {
            let mut bytes = garbage.new_tree(&mut runner).unwrap().current();
            match round % 4 {
                // A length that lies: far too large, or negative.
                0 => drop(bytes.splice(0..0, i32::MAX.to_be_bytes())),
                1 => drop(bytes.splice(0..0, (-5i32).to_be_bytes())),
                // A whole frame of garbage.
                2 => drop(bytes.splice(0..0, (bytes.len() as i32).to_be_bytes())),
                // The head of a request that is served, then garbage.
                _ => {
                    let head = [0, 3, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0];
                    bytes.splice(0..0, head);
                    bytes.splice(0..0, (bytes.len() as i32).to_be_bytes());
                }
            }
            let mut connection = host.net.connect("broker-0:9092").await.unwrap();
            // The broker may close before all is written.
            let _ = connection.write_all(&bytes).await;
            let _ = connection.shutdown().await;
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer).await;
        }
        let of = TopicPartition::new("t", PartitionId(0));
        assert_eq!(
            cluster.end_offset(&of).await.unwrap(),
            Offset(0),
            "it still serves"
        );
    });
}

#[test]
fn a_client_that_is_newer_learns_what_the_broker_knows() {
    play(1, |host| async move {
        let mut connection = host.net.connect("broker-0:9092").await.unwrap();
        // ApiVersions (18) in version 99, correlation id 7, no client id.
        let request = [0, 0, 0, 10, 0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff];
        connection.write_all(&request).await.unwrap();
        let answer = frame::read_frame(&mut connection).await.unwrap().unwrap();
        assert_eq!(answer[..4], 7i32.to_be_bytes());
        assert_eq!(
            answer[4..6],
            35i16.to_be_bytes(),
            "UNSUPPORTED_VERSION, in version 0"
        );
        assert!(answer.len() > 20, "with the versions that it knows");
    });
}
