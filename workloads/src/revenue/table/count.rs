//! Pure: how many rows of an output are there, and whether a job's claim is kept by so many.

use engine::{
    guarantee::Guarantee,
    record::Record,
    sink::{idempotent::VERSION, topic::PANE},
};
use std::collections::{BTreeMap, BTreeSet};

/// The rows of an output. Each is known by its key and its pane: a job that is restored writes the same one again.
#[derive(Debug, Default)]
pub(super) struct Count {
    /// How many there are.
    pub rows: u64,
    /// How many of them are not others again.
    pub different: u64,
}

impl Count {
    /// So many, none of them twice.
    pub fn each_once(rows: u64) -> Count {
        Count {
            rows,
            different: rows,
        }
    }

    /// Whether the claim is kept if so many rows were prepared. What is there twice stands for nothing that is missing.
    pub fn keeps(&self, claimed: Guarantee, prepared: u64) -> bool {
        assert!(self.different <= self.rows);
        match claimed {
            Guarantee::ExactlyOnce => self.rows == prepared,
            Guarantee::AtLeastOnce => self.different >= prepared,
            Guarantee::AtMostOnce => self.rows <= prepared,
        }
    }
}

/// Counts the rows of a topic. In a table, what was written again is what was there.
pub(super) struct Counting {
    is_table: bool,
    seen: BTreeSet<(Vec<u8>, u64, u64)>,
    newest: BTreeMap<Vec<u8>, (u64, u64)>,
    rows: u64,
}

impl Counting {
    pub fn new(is_table: bool) -> Counting {
        Counting {
            is_table,
            seen: BTreeSet::new(),
            newest: BTreeMap::new(),
            rows: 0,
        }
    }

    /// Counts a row; whether it is the newest of its key so far.
    pub fn count(&mut self, record: &Record) -> bool {
        let number = |name: &str| {
            let header = record.headers.iter().find(|(known, _)| known == name);
            let text = header.and_then(|(_, value)| std::str::from_utf8(value).ok());
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let key = record.key.as_deref().unwrap_or_default().to_vec();
        let version = (number(VERSION), number(PANE));
        let is_new = self.seen.insert((key.clone(), version.0, version.1));
        if self.is_table && !is_new {
            return false;
        }
        self.rows += 1;
        assert!(self.seen.len() as u64 <= self.rows, "each was counted");
        if !self.is_table {
            return true;
        }
        let newest = self.newest.entry(key).or_insert(version);
        let is_newest = *newest <= version;
        *newest = version.max(*newest);
        is_newest
    }

    /// What was counted.
    pub fn end(self) -> Count {
        Count {
            rows: self.rows,
            different: self.seen.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use engine::ids::Offset;

    fn count(is_table: bool, rows: &[(&'static str, &'static str)]) -> Count {
        let mut counting = Counting::new(is_table);
        for (key, pane) in rows {
            let record = Record {
                offset: Offset(0),
                key: Some(Bytes::from_static(key.as_bytes())),
                value: None,
                headers: vec![(PANE.to_owned(), Bytes::from_static(pane.as_bytes()))],
                timestamp_ms: 0,
            };
            counting.count(&record);
        }
        counting.end()
    }

    #[test]
    fn what_is_there_twice_stands_for_nothing_that_is_missing() {
        let twice = count(false, &[("a", "0"), ("a", "0"), ("b", "0")]);
        assert_eq!((twice.rows, twice.different), (3, 2));
        assert!(!twice.keeps(Guarantee::AtLeastOnce, 3), "one is missing");
        assert!(twice.keeps(Guarantee::AtLeastOnce, 2));
        assert!(!twice.keeps(Guarantee::ExactlyOnce, 2));
        assert!(!twice.keeps(Guarantee::AtMostOnce, 2));
        let panes = count(false, &[("a", "0"), ("a", "1"), ("b", "0")]);
        assert!(
            panes.keeps(Guarantee::AtLeastOnce, 3),
            "no two are the same"
        );
        assert!(panes.keeps(Guarantee::AtMostOnce, 4), "one may be missing");
        let table = count(true, &[("a", "0"), ("a", "0"), ("b", "0")]);
        assert!(table.keeps(Guarantee::ExactlyOnce, 2));
    }
}
