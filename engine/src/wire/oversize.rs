//! Requests that are larger than a frame may be.
//!
//! A producer whose batch is too large is to be told so: whoever only loses its connection sends it again, for ever. So
//! of a Produce request that is too large the names of its partitions are read, as it comes, and its records are
//! dropped. Whatever else is too large closes its connection.

use super::{
    api_of,
    frame::{garbage, peek_head, Head},
};
use kafka_protocol::messages::ApiKey;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Nothing larger is read at all: Kafka's default of `socket.request.max.bytes`.
pub(super) const OVERSIZE_BYTES_MAX: usize = 100 << 20;
/// More partitions of one request are not remembered, nor more bytes of their topics' names, each of which takes some
/// beside its own.
const PARTITIONS_MAX: usize = 10_000;
const NAMES_BYTES_MAX: usize = 1 << 20;
const NAME_OVERHEAD: usize = 64;

/// What may be kept of one, in bytes.
pub const KEPT_BYTES_MAX: usize = NAMES_BYTES_MAX + 4 * PARTITIONS_MAX;

/// What is left of a Produce request that was too large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oversized {
    /// What it was.
    pub head: Head,
    /// How many replicas it waits for; without any, it wants no answer.
    pub acks: i16,
    /// Where its records were to go.
    pub topics: Vec<(String, Vec<i32>)>,
}

/// Reads a request of so many bytes, and keeps little of it.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: usize,
) -> io::Result<Oversized> {
    let mut rest = Rest {
        stream: stream.take(bytes as u64),
        names_left: NAMES_BYTES_MAX,
    };
    let mut first = [0; 8];
    rest.stream.read_exact(&mut first).await?;
    let head = peek_head(&first)?;
    let api = api_of(ApiKey::Produce as i16).expect("it is served");
    let is_served = (api.version_min..=api.version_max).contains(&head.version);
    if head.key != ApiKey::Produce as i16 || !is_served {
        return Err(garbage(format!("a frame of {bytes} bytes")));
    }
    let is_flexible = head.version >= api.flexible;
    // The client's id, which has the older format in all versions.
    let id = rest.stream.read_i16().await?;
    rest.skip(id.max(0) as u64).await?;
    if is_flexible {
        rest.skip_tags().await?;
    }
    // The transactional id.
    let id = rest.length(is_flexible, Kind::Text).await?;
    rest.skip(id).await?;
    let acks = rest.stream.read_i16().await?;
    let _timeout = rest.stream.read_i32().await?;
    let (mut topics, mut partitions_left) = (Vec::new(), PARTITIONS_MAX);
    for _ in 0..rest.length(is_flexible, Kind::List).await? {
        let name = rest.name(is_flexible).await?;
        let mut indexes = Vec::new();
        for _ in 0..rest.length(is_flexible, Kind::List).await? {
            partitions_left = partitions_left
                .checked_sub(1)
                .ok_or_else(|| garbage("a request of too many partitions"))?;
            indexes.push(rest.stream.read_i32().await?);
            let records = rest.length(is_flexible, Kind::Blob).await?;
            rest.skip(records).await?;
            if is_flexible {
                rest.skip_tags().await?;
            }
        }
        if is_flexible {
            rest.skip_tags().await?;
        }
        topics.push((name, indexes));
    }
    let left = rest.stream.limit();
    rest.skip(left).await?;
    Ok(Oversized { head, acks, topics })
}

/// What a length is of; before the flexible versions some take two bytes, others four.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Blob,
    List,
}

/// What is left of the request.
struct Rest<S> {
    stream: tokio::io::Take<S>,
    names_left: usize,
}

impl<S: AsyncRead + Unpin> Rest<S> {
    /// A length; 0 where there is nothing.
    async fn length(&mut self, is_flexible: bool, kind: Kind) -> io::Result<u64> {
        let length = match (is_flexible, kind) {
            (true, _) => i64::from(self.varint().await?) - 1,
            (false, Kind::Text) => i64::from(self.stream.read_i16().await?),
            (false, _) => i64::from(self.stream.read_i32().await?),
        };
        let length = length.max(0) as u64;
        // An element takes a byte at least.
        match length <= self.stream.limit() {
            true => Ok(length),
            false => Err(garbage(format!(
                "{length} bytes claimed, {} are left",
                self.stream.limit()
            ))),
        }
    }

    async fn varint(&mut self) -> io::Result<u32> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.stream.read_u8().await?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(garbage("a number of more than five bytes"))
    }

    async fn name(&mut self, is_flexible: bool) -> io::Result<String> {
        let length = self.length(is_flexible, Kind::Text).await? as usize;
        self.names_left = self
            .names_left
            .checked_sub(length + NAME_OVERHEAD)
            .ok_or_else(|| garbage("a request of too many names"))?;
        let mut name = vec![0; length];
        self.stream.read_exact(&mut name).await?;
        String::from_utf8(name).map_err(garbage)
    }

    async fn skip_tags(&mut self) -> io::Result<()> {
        for _ in 0..self.varint().await? {
            let _tag = self.varint().await?;
            let bytes = u64::from(self.varint().await?);
            self.skip(bytes).await?;
        }
        Ok(())
    }

    async fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        let mut scratch = [0; 4096];
        while bytes > 0 {
            let some = bytes.min(scratch.len() as u64) as usize;
            let read = self.stream.read(&mut scratch[..some]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes -= read as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::encode_request;
    use bytes::Bytes;
    use futures::FutureExt;
    use kafka_protocol::messages::{
        produce_request::{PartitionProduceData, TopicProduceData},
        ProduceRequest, TransactionalId,
    };
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    fn request(version: i16) -> Bytes {
        let data = |index| {
            PartitionProduceData::default()
                .with_index(index)
                .with_records(Some(vec![7; 10_000].into()))
        };
        let topic = |name: &'static str, indexes: &[i32]| {
            TopicProduceData::default()
                .with_name(StrBytes::from_static_str(name).into())
                .with_partition_data(indexes.iter().map(|index| data(*index)).collect())
        };
        let id = TransactionalId(StrBytes::from_static_str("id"));
        let request = ProduceRequest::default()
            .with_transactional_id((version % 2 == 0).then_some(id))
            .with_acks(-1)
            .with_topic_data(vec![topic("a", &[3, 1]), topic("b", &[0])]);
        encode_request(&request, version, 7).unwrap().slice(4..)
    }

    #[test]
    fn the_partitions_of_each_version_are_read() {
        for version in 3..=12 {
            let bytes = request(version);
            let mut stream = &bytes[..];
            let read = read(&mut stream, bytes.len()).now_or_never().unwrap();
            let read = read.unwrap();
            let topics = vec![("a".to_owned(), vec![3, 1]), ("b".to_owned(), vec![0])];
            assert_eq!((read.topics, read.acks), (topics, -1), "version {version}");
            assert_eq!((read.head.version, read.head.correlation), (version, 7));
            assert!(stream.is_empty(), "what comes after it is another request");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_little(
            version in 3i16..=12,
            garbage in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = vec![0, 0, 0, version as u8, 0, 0, 0, 1, 0xff, 0xff];
            bytes.extend(garbage);
            let read = read(&mut &bytes[..], bytes.len()).now_or_never();
            prop_assert!(read.is_some(), "it never waits for more than there is");
        }
    }

    #[test]
    fn what_claims_more_than_there_is_is_refused() {
        for version in [3, 12] {
            let bytes = request(version);
            for cut in [9, 20, 30, 40, 5000] {
                let mut stream = &bytes[..cut];
                let read = read(&mut stream, cut).now_or_never().unwrap();
                assert!(read.is_err(), "version {version} cut at {cut}");
            }
        }
    }
}
