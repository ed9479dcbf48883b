//! The producer ids that a broker gives out: from blocks, each reserved durably before the first of it is used.

use super::Broker;
use crate::{
    host::Disk,
    ids::ProducerId,
    log::{small_file, LogError},
};
use std::{ops::Range, sync::Arc};

/// The first number that is not reserved.
pub(super) const PRODUCER_IDS_FILE: &str = "producer-ids";
const IDS_PER_BLOCK: i64 = 1000;
/// Ids of different brokers differ in their upper bits: the lower ones are a number of this one's.
const BROKER_SHIFT: u32 = 40;
/// No broker gets there by giving out ids. A greater number in a log was made up by a client.
const NUMBER_MAX: i64 = 1 << (BROKER_SHIFT - 1);

/// Which producer ids were given out.
pub(super) struct ProducerIds {
    next: i64,
    reserved: i64,
}

impl ProducerIds {
    /// Reads which were given out; notes durably that none was, if the broker is new.
    pub async fn open(disk: &dyn Disk) -> Result<ProducerIds, LogError> {
        let reserved = match small_file::read(disk, PRODUCER_IDS_FILE).await? {
            Some(reserved) => reserved,
            None => {
                small_file::write(disk, PRODUCER_IDS_FILE, &0i64).await?;
                0
            }
        };
        let next = reserved;
        Ok(ProducerIds { next, reserved })
    }

    /// The next number.
    async fn next(&mut self, disk: &dyn Disk) -> Result<i64, LogError> {
        if self.next >= self.reserved {
            // After an error the block may have been reserved; it is then reserved again.
            let reserved = self.next + IDS_PER_BLOCK;
            small_file::write(disk, PRODUCER_IDS_FILE, &reserved).await?;
            self.reserved = reserved;
        }
        let number = self.next;
        self.next += 1;
        Ok(number)
    }
}

impl Broker {
    /// A producer id that nobody has. Waits until all partitions were opened: none of them holds it.
    pub(super) async fn next_producer_id(self: Arc<Self>) -> Result<i64, LogError> {
        self.opened.wait_for(|opened| *opened).await;
        let mut ids = self.producer_ids.lock().await;
        let number = ids.next(&*self.host.disk).await?;
        Ok(i64::from(self.config.id.0) << BROKER_SHIFT | number)
    }

    /// The ids that this broker may have given out. What else a log holds, other brokers have given out, or a client has
    /// made up: however great it is, it says nothing about these.
    pub(super) fn own_producer_ids(&self) -> Range<ProducerId> {
        let first = i64::from(self.config.id.0) << BROKER_SHIFT;
        ProducerId(first)..ProducerId(first + NUMBER_MAX)
    }

    /// Gives out none of the own ids that a log holds, whatever the file says: the greatest of them is `held`.
    pub(super) async fn pass_producer_id(&self, held: Option<ProducerId>) {
        let own = self.own_producer_ids();
        let Some(held) = held else { return };
        assert!(own.contains(&held), "{held} is none of {own:?}");
        let number = held.0 - own.start.0;
        let mut ids = self.producer_ids.lock().await;
        if number >= ids.next {
            tracing::warn!(
                name: "broker.producer-ids-passed",
                held = held.0,
                "the logs hold a producer id that `{PRODUCER_IDS_FILE}` does not know; those after it are given out"
            );
            ids.next = number + 1;
        }
    }
}
