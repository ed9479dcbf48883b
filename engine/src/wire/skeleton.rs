//! The skeletons of requests in versions from before KIP-482.
//!
//! In those, arrays claim their length in four bytes, like any other number, and the generated decoders reserve
//! room for what is claimed. So a request is walked over first, along the skeleton of its version: an array that
//! claims more elements than there are bytes left is refused. The layouts are Kafka's (its message definitions).

use kafka_protocol::messages::ApiKey::{self, *};
use Part::*;

/// A part of a message, as far as its length goes.
enum Part {
    /// So many bytes.
    Skip(usize),
    /// A string, with a length of two bytes; -1 is none.
    Text,
    /// Bytes, with a length of four bytes; -1 is none.
    Blob,
    /// Elements, with their number in four bytes; -1 is none.
    List(&'static [Part]),
}

type Row = (ApiKey, i16, i16, &'static [Part]);

const INDEXES: Part = List(&[Text, List(&[Skip(4)])]);
const NAMED_BLOBS: Part = List(&[Text, Blob]);

/// Request, first and last version, skeleton.
const SKELETONS: &[Row] = &[
    (
        Produce,
        3,
        8,
        &[Text, Skip(6), List(&[Text, List(&[Skip(4), Blob])])],
    ),
    (Fetch, 4, 4, &[Skip(17), List(&[Text, List(&[Skip(16)])])]),
    (Fetch, 5, 6, &[Skip(17), List(&[Text, List(&[Skip(24)])])]),
    (
        Fetch,
        7,
        8,
        &[Skip(25), List(&[Text, List(&[Skip(24)])]), INDEXES],
    ),
    (
        Fetch,
        9,
        10,
        &[Skip(25), List(&[Text, List(&[Skip(28)])]), INDEXES],
    ),
    (
        Fetch,
        11,
        11,
        &[Skip(25), List(&[Text, List(&[Skip(28)])]), INDEXES, Text],
    ),
    (
        ListOffsets,
        1,
        1,
        &[Skip(4), List(&[Text, List(&[Skip(12)])])],
    ),
    (
        ListOffsets,
        2,
        3,
        &[Skip(5), List(&[Text, List(&[Skip(12)])])],
    ),
    (
        ListOffsets,
        4,
        5,
        &[Skip(5), List(&[Text, List(&[Skip(16)])])],
    ),
    (Metadata, 1, 3, &[List(&[Text])]),
    (Metadata, 4, 7, &[List(&[Text]), Skip(1)]),
    (Metadata, 8, 8, &[List(&[Text]), Skip(3)]),
    (
        OffsetCommit,
        2,
        4,
        &[
            Text,
            Skip(4),
            Text,
            Skip(8),
            List(&[Text, List(&[Skip(12), Text])]),
        ],
    ),
    (
        OffsetCommit,
        5,
        5,
        &[Text, Skip(4), Text, List(&[Text, List(&[Skip(12), Text])])],
    ),
    (
        OffsetCommit,
        6,
        6,
        &[Text, Skip(4), Text, List(&[Text, List(&[Skip(16), Text])])],
    ),
    (
        OffsetCommit,
        7,
        7,
        &[
            Text,
            Skip(4),
            Text,
            Text,
            List(&[Text, List(&[Skip(16), Text])]),
        ],
    ),
    (OffsetFetch, 1, 5, &[Text, INDEXES]),
    (FindCoordinator, 0, 0, &[Text]),
    (FindCoordinator, 1, 2, &[Text, Skip(1)]),
    (JoinGroup, 0, 0, &[Text, Skip(4), Text, Text, NAMED_BLOBS]),
    (JoinGroup, 1, 4, &[Text, Skip(8), Text, Text, NAMED_BLOBS]),
    (
        JoinGroup,
        5,
        5,
        &[Text, Skip(8), Text, Text, Text, NAMED_BLOBS],
    ),
    (Heartbeat, 0, 2, &[Text, Skip(4), Text]),
    (Heartbeat, 3, 3, &[Text, Skip(4), Text, Text]),
    (LeaveGroup, 0, 2, &[Text, Text]),
    (LeaveGroup, 3, 3, &[Text, List(&[Text, Text])]),
    (SyncGroup, 0, 2, &[Text, Skip(4), Text, NAMED_BLOBS]),
    (SyncGroup, 3, 3, &[Text, Skip(4), Text, Text, NAMED_BLOBS]),
    (DescribeGroups, 0, 2, &[List(&[Text])]),
    (DescribeGroups, 3, 4, &[List(&[Text]), Skip(1)]),
    (ListGroups, 0, 2, &[]),
    (ApiVersions, 0, 2, &[]),
    (
        CreateTopics,
        2,
        4,
        &[
            List(&[
                Text,
                Skip(6),
                List(&[Skip(4), List(&[Skip(4)])]),
                List(&[Text, Text]),
            ]),
            Skip(5),
        ],
    ),
    (DeleteTopics, 1, 3, &[List(&[Text]), Skip(4)]),
    (
        DeleteRecords,
        0,
        1,
        &[List(&[Text, List(&[Skip(12)])]), Skip(4)],
    ),
    (InitProducerId, 0, 1, &[Text, Skip(4)]),
    (
        OffsetForLeaderEpoch,
        2,
        2,
        &[List(&[Text, List(&[Skip(12)])])],
    ),
    (
        OffsetForLeaderEpoch,
        3,
        3,
        &[Skip(4), List(&[Text, List(&[Skip(12)])])],
    ),
    (AddPartitionsToTxn, 0, 2, &[Text, Skip(10), INDEXES]),
    (AddOffsetsToTxn, 0, 2, &[Text, Skip(10), Text]),
    (EndTxn, 0, 2, &[Text, Skip(11)]),
    (
        TxnOffsetCommit,
        0,
        1,
        &[Text, Text, Skip(10), List(&[Text, List(&[Skip(12), Text])])],
    ),
    (
        TxnOffsetCommit,
        2,
        2,
        &[Text, Text, Skip(10), List(&[Text, List(&[Skip(16), Text])])],
    ),
    (
        DescribeConfigs,
        1,
        2,
        &[List(&[Skip(1), Text, List(&[Text])]), Skip(1)],
    ),
    (
        DescribeConfigs,
        3,
        3,
        &[List(&[Skip(1), Text, List(&[Text])]), Skip(2)],
    ),
    (
        AlterConfigs,
        0,
        1,
        &[List(&[Skip(1), Text, List(&[Text, Text])]), Skip(1)],
    ),
    (
        CreatePartitions,
        0,
        1,
        &[List(&[Text, Skip(4), List(&[List(&[Skip(4)])])]), Skip(5)],
    ),
    (DescribeLogDirs, 1, 1, &[INDEXES]),
    (OffsetDelete, 0, 0, &[Text, INDEXES]),
    (DeleteGroups, 0, 1, &[List(&[Text])]),
    (
        IncrementalAlterConfigs,
        0,
        0,
        &[
            List(&[Skip(1), Text, List(&[Text, Skip(1), Text])]),
            Skip(1),
        ],
    ),
];

/// What a member of a group of consumers says about itself, without its version.
const SUBSCRIPTION: &[Part] = &[List(&[Text]), Blob];
/// What it is assigned.
const ASSIGNMENT: &[Part] = &[INDEXES, Blob];

/// Checks that what another member says about itself does not claim more than it holds.
pub(crate) fn check_subscription(bytes: &[u8]) -> Result<(), String> {
    walk(SUBSCRIPTION, bytes).map(drop)
}

/// Checks that an assignment does not claim more than it holds.
pub(crate) fn check_assignment(bytes: &[u8]) -> Result<(), String> {
    walk(ASSIGNMENT, bytes).map(drop)
}

/// Checks that a message does not claim more than it holds.
pub(super) fn check(key: ApiKey, version: i16, message: &[u8]) -> Result<(), String> {
    let row = SKELETONS
        .iter()
        .find(|(known, first, last, _)| *known == key && (*first..=*last).contains(&version));
    let Some((_, _, _, parts)) = row else {
        return Err(format!("{key:?} version {version} has no skeleton"));
    };
    walk(parts, message).map(drop)
}

fn walk<'a>(parts: &[Part], mut rest: &'a [u8]) -> Result<&'a [u8], String> {
    for part in parts {
        rest = match part {
            Skip(count) => skip(rest, *count)?,
            Text => {
                let (claim, rest) = rest.split_first_chunk().ok_or("cut off")?;
                skip(rest, i16::from_be_bytes(*claim).max(0) as usize)?
            }
            Blob => {
                let (claim, rest) = rest.split_first_chunk().ok_or("cut off")?;
                skip(rest, i32::from_be_bytes(*claim).max(0) as usize)?
            }
            List(element) => {
                let (claim, mut rest) = rest.split_first_chunk().ok_or("cut off")?;
                let claim = i32::from_be_bytes(*claim).max(0) as usize;
                if claim > rest.len() {
                    return Err(format!("{claim} elements in {} bytes", rest.len()));
                }
                for _ in 0..claim {
                    rest = walk(element, rest)?;
                }
                rest
            }
        };
    }
    Ok(rest)
}

fn skip(bytes: &[u8], count: usize) -> Result<&[u8], String> {
    let left = bytes.get(count..);
    left.ok_or_else(|| format!("{count} bytes claimed, {} are left", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::APIS;

    #[test]
    fn every_old_version_that_is_served_has_one_skeleton() {
        for api in APIS {
            for version in api.version_min..api.flexible.min(api.version_max + 1) {
                let rows = SKELETONS.iter().filter(|(known, first, last, _)| {
                    *known == api.key && (*first..=*last).contains(&version)
                });
                assert_eq!(rows.count(), 1, "{:?} {version}", api.key);
            }
        }
    }

    #[test]
    fn a_list_of_billions_is_refused() {
        let lie = [0x7f, 0xff, 0xff, 0xff, 0, 1];
        assert!(check(Metadata, 1, &lie).is_err());
        assert!(check(Metadata, 1, &[0, 0, 0, 1, 0, 1, b'a']).is_ok());
        assert!(check(Metadata, 1, &[0xff, 0xff, 0xff, 0xff]).is_ok());
    }
}
