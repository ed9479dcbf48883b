//! The skeletons of requests: how long each part is, and how many elements there are.
//!
//! The generated decoders reserve room for as many elements as an array claims to have, before they read the first
//! one, and an element of a byte takes up to 350 once it is decoded: eight bytes of garbage could claim billions,
//! and 15 MiB of tiny elements made gigabytes. So a request is walked over first, along the skeleton of its
//! version, which takes no memory: an array that claims more elements than there are bytes left is refused, and so
//! is a request of more than [`ELEMENTS_MAX`] elements. The layouts are Kafka's (its message definitions). In
//! versions since KIP-482 lengths are varints, and structures end with tagged fields.

use super::Api;
use kafka_protocol::messages::ApiKey::{self, *};
use Part::*;

/// A request has at most so many elements, in all its arrays together: a broker leads fewer partitions, a group has
/// fewer members.
pub const ELEMENTS_MAX: usize = 50_000;

/// A part of a message, as far as its length goes.
enum Part {
    /// So many bytes.
    Skip(usize),
    /// A string, or none.
    Text,
    /// Bytes, or none.
    Blob,
    /// Structures of these parts, or none.
    List(&'static [Part]),
    /// Values of this kind, or none: not structures, so without tagged fields.
    Values(&'static Part),
}

type Row = (ApiKey, i16, i16, &'static [Part]);

const NUMBERS: Part = Values(&Skip(4));
const TEXTS: Part = Values(&Text);
/// Topics by name, and some of their partitions.
const INDEXES: Part = List(&[Text, NUMBERS]);
const NAMED_BLOBS: Part = List(&[Text, Blob]);

/// Request, first and last version, skeleton.
#[rustfmt::skip]
const SKELETONS: &[Row] = &[
    (Produce, 3, 12, &[Text, Skip(6), List(&[Text, List(&[Skip(4), Blob])])]),
    (Produce, 13, 13, &[Text, Skip(6), List(&[Skip(16), List(&[Skip(4), Blob])])]),
    (Fetch, 4, 4, &[Skip(17), List(&[Text, List(&[Skip(16)])])]),
    (Fetch, 5, 6, &[Skip(17), List(&[Text, List(&[Skip(24)])])]),
    (Fetch, 7, 8, &[Skip(25), List(&[Text, List(&[Skip(24)])]), INDEXES]),
    (Fetch, 9, 10, &[Skip(25), List(&[Text, List(&[Skip(28)])]), INDEXES]),
    (Fetch, 11, 11, &[Skip(25), List(&[Text, List(&[Skip(28)])]), INDEXES, Text]),
    (Fetch, 12, 12, &[Skip(25), List(&[Text, List(&[Skip(32)])]), INDEXES, Text]),
    (Fetch, 13, 14, &[Skip(25), List(&[Skip(16), List(&[Skip(32)])]), List(&[Skip(16), NUMBERS]), Text]),
    (Fetch, 15, 18, &[Skip(21), List(&[Skip(16), List(&[Skip(32)])]), List(&[Skip(16), NUMBERS]), Text]),
    (ListOffsets, 1, 1, &[Skip(4), List(&[Text, List(&[Skip(12)])])]),
    (ListOffsets, 2, 3, &[Skip(5), List(&[Text, List(&[Skip(12)])])]),
    (ListOffsets, 4, 9, &[Skip(5), List(&[Text, List(&[Skip(16)])])]),
    (ListOffsets, 10, 10, &[Skip(5), List(&[Text, List(&[Skip(16)])]), Skip(4)]),
    (Metadata, 1, 3, &[List(&[Text])]),
    (Metadata, 4, 7, &[List(&[Text]), Skip(1)]),
    (Metadata, 8, 9, &[List(&[Text]), Skip(3)]),
    (Metadata, 10, 10, &[List(&[Skip(16), Text]), Skip(3)]),
    (Metadata, 11, 13, &[List(&[Skip(16), Text]), Skip(2)]),
    (OffsetCommit, 2, 4, &[Text, Skip(4), Text, Skip(8), List(&[Text, List(&[Skip(12), Text])])]),
    (OffsetCommit, 5, 5, &[Text, Skip(4), Text, List(&[Text, List(&[Skip(12), Text])])]),
    (OffsetCommit, 6, 6, &[Text, Skip(4), Text, List(&[Text, List(&[Skip(16), Text])])]),
    (OffsetCommit, 7, 9, &[Text, Skip(4), Text, Text, List(&[Text, List(&[Skip(16), Text])])]),
    (OffsetFetch, 1, 6, &[Text, INDEXES]),
    (OffsetFetch, 7, 7, &[Text, INDEXES, Skip(1)]),
    (OffsetFetch, 8, 8, &[List(&[Text, INDEXES]), Skip(1)]),
    (OffsetFetch, 9, 9, &[List(&[Text, Text, Skip(4), INDEXES]), Skip(1)]),
    (FindCoordinator, 0, 0, &[Text]),
    (FindCoordinator, 1, 3, &[Text, Skip(1)]),
    (FindCoordinator, 4, 6, &[Skip(1), TEXTS]),
    (JoinGroup, 0, 0, &[Text, Skip(4), Text, Text, NAMED_BLOBS]),
    (JoinGroup, 1, 4, &[Text, Skip(8), Text, Text, NAMED_BLOBS]),
    (JoinGroup, 5, 7, &[Text, Skip(8), Text, Text, Text, NAMED_BLOBS]),
    (JoinGroup, 8, 9, &[Text, Skip(8), Text, Text, Text, NAMED_BLOBS, Text]),
    (Heartbeat, 0, 2, &[Text, Skip(4), Text]),
    (Heartbeat, 3, 4, &[Text, Skip(4), Text, Text]),
    (LeaveGroup, 0, 2, &[Text, Text]),
    (LeaveGroup, 3, 4, &[Text, List(&[Text, Text])]),
    (LeaveGroup, 5, 5, &[Text, List(&[Text, Text, Text])]),
    (SyncGroup, 0, 2, &[Text, Skip(4), Text, NAMED_BLOBS]),
    (SyncGroup, 3, 4, &[Text, Skip(4), Text, Text, NAMED_BLOBS]),
    (SyncGroup, 5, 5, &[Text, Skip(4), Text, Text, Text, Text, NAMED_BLOBS]),
    (DescribeGroups, 0, 2, &[TEXTS]),
    (DescribeGroups, 3, 6, &[TEXTS, Skip(1)]),
    (ListGroups, 0, 3, &[]),
    (ListGroups, 4, 4, &[TEXTS]),
    (ListGroups, 5, 5, &[TEXTS, TEXTS]),
    (ApiVersions, 0, 2, &[]),
    (ApiVersions, 3, 4, &[Text, Text]),
    (CreateTopics, 2, 7, &[
        List(&[Text, Skip(6), List(&[Skip(4), NUMBERS]), List(&[Text, Text])]),
        Skip(5),
    ]),
    (DeleteTopics, 1, 5, &[TEXTS, Skip(4)]),
    (DeleteTopics, 6, 6, &[List(&[Text, Skip(16)]), Skip(4)]),
    (InitProducerId, 0, 2, &[Text, Skip(4)]),
    (InitProducerId, 3, 5, &[Text, Skip(14)]),
    (AddPartitionsToTxn, 0, 3, &[Text, Skip(10), INDEXES]),
    (AddPartitionsToTxn, 4, 5, &[List(&[Text, Skip(11), INDEXES])]),
    (AddOffsetsToTxn, 0, 4, &[Text, Skip(10), Text]),
    (EndTxn, 0, 5, &[Text, Skip(11)]),
    (WriteTxnMarkers, 1, 1, &[List(&[Skip(11), INDEXES, Skip(4)])]),
    (TxnOffsetCommit, 0, 1, &[Text, Text, Skip(10), List(&[Text, List(&[Skip(12), Text])])]),
    (TxnOffsetCommit, 2, 2, &[Text, Text, Skip(10), List(&[Text, List(&[Skip(16), Text])])]),
    (TxnOffsetCommit, 3, 5, &[Text, Text, Skip(14), Text, Text, List(&[Text, List(&[Skip(16), Text])])]),
    (DescribeConfigs, 1, 2, &[List(&[Skip(1), Text, TEXTS]), Skip(1)]),
    (DescribeConfigs, 3, 4, &[List(&[Skip(1), Text, TEXTS]), Skip(2)]),
    (DeleteGroups, 0, 2, &[TEXTS]),
    (DescribeCluster, 0, 0, &[Skip(1)]),
    (DescribeCluster, 1, 1, &[Skip(2)]),
    (DescribeCluster, 2, 2, &[Skip(3)]),
    (DescribeProducers, 0, 0, &[INDEXES]),
    (DescribeTransactions, 0, 0, &[TEXTS]),
    (ListTransactions, 0, 0, &[TEXTS, Values(&Skip(8))]),
    (ListTransactions, 1, 1, &[TEXTS, Values(&Skip(8)), Skip(8)]),
    (DeleteRecords, 0, 2, &[List(&[Text, List(&[Skip(12)])]), Skip(4)]),
    (CreatePartitions, 0, 3, &[List(&[Text, Skip(4), List(&[NUMBERS])]), Skip(5)]),
    (IncrementalAlterConfigs, 0, 1, &[List(&[Skip(1), Text, List(&[Text, Skip(1), Text])]), Skip(1)]),
    (AlterConfigs, 0, 2, &[List(&[Skip(1), Text, List(&[Text, Text])]), Skip(1)]),
    (OffsetDelete, 0, 0, &[Text, List(&[Text, List(&[Skip(4)])])]),
    (OffsetForLeaderEpoch, 2, 2, &[List(&[Text, List(&[Skip(12)])])]),
    (OffsetForLeaderEpoch, 3, 4, &[Skip(4), List(&[Text, List(&[Skip(12)])])]),
    (DescribeLogDirs, 1, 4, &[INDEXES]),
];

/// What a member of a group of consumers says about itself, without its version.
const SUBSCRIPTION: &[Part] = &[TEXTS, Blob];
/// What it is assigned.
const ASSIGNMENT: &[Part] = &[INDEXES, Blob];

/// Checks that what another member says about itself does not claim more than it holds.
pub(crate) fn check_subscription(bytes: &[u8]) -> Result<(), String> {
    Walk::over(bytes, false).parts(SUBSCRIPTION)
}

/// Checks that an assignment does not claim more than it holds.
pub(crate) fn check_assignment(bytes: &[u8]) -> Result<(), String> {
    Walk::over(bytes, false).parts(ASSIGNMENT)
}

/// Checks that a request does not claim more than it holds, nor hold too much. Returns how many elements it has.
pub(super) fn check(api: Api, version: i16, request: &[u8]) -> Result<usize, String> {
    let row = SKELETONS
        .iter()
        .find(|(known, first, last, _)| *known == api.key && (*first..=*last).contains(&version));
    let Some((_, _, _, parts)) = row else {
        return Err(format!("{:?} version {version} has no skeleton", api.key));
    };
    let is_flexible = version >= api.flexible;
    // The header: the client's id is a string of the old kind in all versions.
    let mut walk = Walk::over(request, false);
    walk.skip(8)?;
    walk.part(&Text)?;
    walk.is_flexible = is_flexible;
    walk.tags()?;
    walk.structure(parts)?;
    Ok(walk.elements)
}

struct Walk<'a> {
    rest: &'a [u8],
    is_flexible: bool,
    elements: usize,
}

impl<'a> Walk<'a> {
    fn over(rest: &'a [u8], is_flexible: bool) -> Self {
        Walk {
            rest,
            is_flexible,
            elements: 0,
        }
    }

    fn structure(&mut self, parts: &[Part]) -> Result<(), String> {
        self.parts(parts)?;
        self.tags()
    }

    fn parts(&mut self, parts: &[Part]) -> Result<(), String> {
        parts.iter().try_for_each(|part| self.part(part))
    }

    fn part(&mut self, part: &Part) -> Result<(), String> {
        match part {
            Skip(count) => self.skip(*count),
            Text => {
                let bytes = match self.is_flexible {
                    true => self.claim()?,
                    false => i16::from_be_bytes(self.take()?).max(0) as usize,
                };
                self.skip(bytes)
            }
            Blob => {
                let bytes = self.claim()?;
                self.skip(bytes)
            }
            List(element) => {
                for _ in 0..self.elements()? {
                    self.structure(element)?;
                }
                Ok(())
            }
            Values(value) => {
                for _ in 0..self.elements()? {
                    self.part(value)?;
                }
                Ok(())
            }
        }
    }

    /// The length of an array.
    fn elements(&mut self) -> Result<usize, String> {
        let claim = self.claim()?;
        if claim > self.rest.len() {
            return Err(format!("{claim} elements in {} bytes", self.rest.len()));
        }
        self.count(claim)?;
        Ok(claim)
    }

    fn count(&mut self, elements: usize) -> Result<(), String> {
        self.elements += elements;
        match self.elements <= ELEMENTS_MAX {
            true => Ok(()),
            false => Err(format!(
                "{} elements, at most {ELEMENTS_MAX} are taken",
                self.elements
            )),
        }
    }

    /// Tagged fields that nobody knows are kept one by one; what is inside of one that is known may be small, too.
    fn tags(&mut self) -> Result<(), String> {
        if !self.is_flexible {
            return Ok(());
        }
        for _ in 0..self.varint()? {
            self.varint()?;
            let bytes = self.varint()?;
            self.count(1 + bytes / 2)?;
            self.skip(bytes)?;
        }
        Ok(())
    }

    /// A length of bytes or of an array; none is 0.
    fn claim(&mut self) -> Result<usize, String> {
        match self.is_flexible {
            // It is written as one more than it is, and 0 is none.
            true => Ok(self.varint()?.saturating_sub(1)),
            false => Ok(i32::from_be_bytes(self.take()?).max(0) as usize),
        }
    }

    fn varint(&mut self) -> Result<usize, String> {
        let mut number = 0;
        for place in 0..5 {
            let [byte] = self.take()?;
            number |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(number)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or("cut off")?;
        self.rest = rest;
        Ok(*taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), String> {
        let there = self.rest.len();
        let rest = self.rest.get(count..);
        self.rest = rest.ok_or_else(|| format!("{count} bytes claimed, {there} are left"))?;
        Ok(())
    }
}

/// A request along its skeleton, with whatever comes to mind in it: what a decoder makes of it is how the skeletons
/// are checked.
#[cfg(test)]
pub(super) fn sample(api: Api, version: i16, seed: u64) -> Vec<u8> {
    let row = SKELETONS
        .iter()
        .find(|(known, first, last, _)| *known == api.key && (*first..=*last).contains(&version));
    let (_, _, _, parts) = row.expect("each has a skeleton");
    let mut sample = tests::Sample {
        bytes: Vec::new(),
        is_flexible: false,
        seed,
    };
    sample.bytes.extend((api.key as i16).to_be_bytes());
    sample.bytes.extend(version.to_be_bytes());
    sample.bytes.extend([0, 0, 0, 7]);
    sample.part(&Text);
    sample.is_flexible = version >= api.flexible;
    sample.tags();
    sample.structure(parts);
    sample.bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{api_of, APIS};

    pub(super) struct Sample {
        pub bytes: Vec<u8>,
        pub is_flexible: bool,
        pub seed: u64,
    }

    impl Sample {
        fn draw(&mut self, below: u64) -> u64 {
            self.seed = xxhash_rust::xxh3::xxh3_64(&self.seed.to_le_bytes());
            self.seed % below
        }

        pub fn structure(&mut self, parts: &[Part]) {
            for part in parts {
                self.part(part);
            }
            self.tags();
        }

        pub fn part(&mut self, part: &Part) {
            let count = self.draw(4) as usize;
            match part {
                Skip(count) => {
                    for _ in 0..*count {
                        let byte = self.draw(256) as u8;
                        self.bytes.push(byte);
                    }
                }
                Text if !self.is_flexible => {
                    self.bytes.extend((count as i16).to_be_bytes());
                    self.bytes.extend(vec![b'a'; count]);
                }
                Text | Blob => {
                    self.claim(count);
                    self.bytes.extend(vec![b'a'; count]);
                }
                List(element) => {
                    self.claim(count);
                    for _ in 0..count {
                        self.structure(element);
                    }
                }
                Values(value) => {
                    self.claim(count);
                    for _ in 0..count {
                        self.part(value);
                    }
                }
            }
        }

        fn claim(&mut self, count: usize) {
            match self.is_flexible {
                true => self.bytes.push(count as u8 + 1),
                false => self.bytes.extend((count as i32).to_be_bytes()),
            }
        }

        /// One of three structures has a field that nobody knows.
        pub fn tags(&mut self) {
            match (self.is_flexible, self.draw(3)) {
                (false, _) => {}
                (true, 0) => self.bytes.extend([1, 100, 2, 1, 2]),
                (true, _) => self.bytes.push(0),
            }
        }
    }

    #[test]
    fn every_version_that_is_served_has_one_skeleton() {
        for api in APIS {
            for version in api.version_min..=api.version_max {
                let rows = SKELETONS.iter().filter(|(known, first, last, _)| {
                    *known == api.key && (*first..=*last).contains(&version)
                });
                assert_eq!(rows.count(), 1, "{:?} {version}", api.key);
            }
        }
    }

    fn check_of(key: ApiKey, version: i16, message: &[u8]) -> Result<usize, String> {
        let api = api_of(key as i16).expect("it is served");
        let mut request = vec![0; 8];
        request.extend([0xff, 0xff]);
        if version >= api.flexible {
            request.push(0);
        }
        request.extend(message);
        check(api, version, &request)
    }

    #[test]
    fn a_list_of_billions_is_refused() {
        let lie = [0x7f, 0xff, 0xff, 0xff, 0, 1];
        assert!(check_of(Metadata, 1, &lie).is_err());
        assert_eq!(check_of(Metadata, 1, &[0, 0, 0, 1, 0, 1, b'a']), Ok(1));
        assert_eq!(check_of(Metadata, 1, &[0xff, 0xff, 0xff, 0xff]), Ok(0));
        let lie = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
        assert!(check_of(Metadata, 9, &lie).is_err());
    }

    /// They are all there, a byte each, and would be of 350 once they are decoded.
    #[test]
    fn a_list_of_millions_is_refused() {
        let mut many = vec![0x81, 0x80, 0x80, 0x01];
        many.resize(many.len() + (2 << 20) + 4, 1);
        let error = check_of(DescribeGroups, 5, &many).unwrap_err();
        assert!(error.contains("50000"), "{error}");
        // And so are as many fields that nobody knows.
        let mut tags = vec![0, 0, 0x80, 0x80, 0x80, 0x01];
        tags.resize(tags.len() + (4 << 20), 0);
        assert!(check_of(DescribeGroups, 5, &tags).is_err());
    }
}
