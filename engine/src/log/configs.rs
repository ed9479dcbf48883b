//! Pure: what a topic can be configured with, and what follows from it.
//!
//! A configuration is kept, or refused by its name: nothing is dropped in silence. Those with one legal value are
//! what this log does anyway, for clients that ask for it.

use crate::wire::frame::FRAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// What the values of a configuration are, as Kafka numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigKind {
    /// `true` or `false`.
    Boolean = 1,
    /// One of some words.
    Text = 2,
    /// A number of 32 bits.
    Int = 3,
    /// A number of 64 bits.
    Long = 5,
    /// Words between commas.
    List = 7,
}

/// A configuration that a topic can have.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    /// Its name.
    pub name: &'static str,
    /// What its values are.
    pub kind: ConfigKind,
    legal: Legal,
}

#[derive(Clone, Copy, Debug)]
enum Legal {
    Range(i64, i64),
    Words(&'static [&'static str]),
}

const LOG_APPEND_TIME: &str = "LogAppendTime";
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const TIMESTAMP_TYPE: &str = "message.timestamp.type";
const RETENTION_BYTES: &str = "retention.bytes";
const RETENTION_MS: &str = "retention.ms";
const SEGMENT_BYTES: &str = "segment.bytes";

/// All configurations that a topic can have.
pub const KEYS: [ConfigKey; 15] = {
    use ConfigKind::*;
    use Legal::*;
    const fn key(name: &'static str, kind: ConfigKind, legal: Legal) -> ConfigKey {
        ConfigKey { name, kind, legal }
    }
    [
        key("cleanup.policy", List, Words(&["delete"])),
        key("compression.type", Text, Words(&["producer"])),
        // Whatever is acknowledged was flushed: sooner than anybody can ask for.
        key("flush.messages", Long, Range(1, i64::MAX)),
        key("flush.ms", Long, Range(0, i64::MAX)),
        key(MAX_MESSAGE_BYTES, Int, Range(0, FRAME_BYTES_MAX as i64)),
        // Kafka's defaults, by which batches are checked.
        key(
            "message.timestamp.after.max.ms",
            Long,
            Range(3_600_000, 3_600_000),
        ),
        key(
            "message.timestamp.before.max.ms",
            Long,
            Range(i64::MAX, i64::MAX),
        ),
        key(
            TIMESTAMP_TYPE,
            Text,
            Words(&["CreateTime", LOG_APPEND_TIME]),
        ),
        key("min.insync.replicas", Int, Range(1, 1)),
        key("preallocate", Boolean, Words(&["false"])),
        key("remote.storage.enable", Boolean, Words(&["false"])),
        key(RETENTION_BYTES, Long, Range(-1, i64::MAX)),
        key(RETENTION_MS, Long, Range(-1, i64::MAX)),
        // Kafka's least, since version 4 (KIP-1030).
        key(SEGMENT_BYTES, Int, Range(1 << 20, i32::MAX as i64)),
        key("unclean.leader.election.enable", Boolean, Words(&["false"])),
    ]
};

impl ConfigKey {
    fn of(name: &str) -> Result<ConfigKey, String> {
        let known = KEYS.into_iter().find(|key| key.name == name);
        known.ok_or_else(|| {
            let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
            format!(
                "{name} is not kept by this broker; {} are",
                names.join(", ")
            )
        })
    }

    /// The value as it is kept; the message names the configuration.
    fn check(&self, value: &str) -> Result<String, String> {
        let name = self.name;
        match self.legal {
            Legal::Range(min, max) => match value.trim().parse::<i64>() {
                Ok(number) if (min..=max).contains(&number) => Ok(number.to_string()),
                _ if min == max => Err(format!("{name} is {value}; this broker keeps {min} alone")),
                _ => Err(format!("{name} is {value}; {min} to {max} would be right")),
            },
            Legal::Words(words) => {
                let value = value.trim();
                match words.contains(&value) {
                    true => Ok(value.to_owned()),
                    false => Err(format!(
                        "{name} is {value}; this broker keeps {} alone",
                        words.join(" or ")
                    )),
                }
            }
        }
    }
}

/// What becomes of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// It gets this value.
    Set(String),
    /// It gets its default.
    Delete,
    /// A list gets these words.
    Append(String),
    /// A list loses these words.
    Subtract(String),
}

/// What a topic was configured with; each value was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configs(BTreeMap<String, String>);

impl Configs {
    /// After these changes, one by one. An error names the configuration that cannot be kept, and why.
    pub fn changed<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a str, ConfigChange)>,
    ) -> Result<Configs, String> {
        let mut next = self.clone();
        for (name, change) in changes {
            let key = ConfigKey::of(name)?;
            let value = match change {
                ConfigChange::Set(value) => value,
                ConfigChange::Delete => {
                    next.0.remove(name);
                    continue;
                }
                ConfigChange::Append(_) | ConfigChange::Subtract(_)
                    if key.kind != ConfigKind::List =>
                {
                    return Err(format!(
                        "{name} is no list, to which one appends or from which one subtracts"
                    ));
                }
                ConfigChange::Append(words) => {
                    let mut all = next.list(name);
                    for word in words.split(',').map(str::trim) {
                        if !all.iter().any(|known| known == word) {
                            all.push(word.to_owned());
                        }
                    }
                    all.join(",")
                }
                ConfigChange::Subtract(words) => {
                    let mut all = next.list(name);
                    all.retain(|known| !words.split(',').any(|word| word.trim() == known));
                    all.join(",")
                }
            };
            next.0.insert(name.to_owned(), key.check(&value)?);
        }
        let is_legal = |(name, value): (&String, &String)| {
            let key = ConfigKey::of(name);
            key.is_ok_and(|key| key.check(value).as_ref() == Ok(value))
        };
        assert!(
            next.0.iter().all(is_legal),
            "{next:?} is kept, and read again"
        );
        Ok(next)
    }

    fn list(&self, name: &str) -> Vec<String> {
        // The one list has one legal value.
        let words = self.0.get(name).map_or("delete", String::as_str);
        words.split(',').map(str::to_owned).collect()
    }

    /// The value that was set; nothing if it is the default.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All that was set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter();
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn number(&self, name: &str) -> Option<i64> {
        // It was checked when it was set.
        self.get(name).and_then(|value| value.parse().ok())
    }
}

/// What holds for the partitions of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective {
    /// A segment that is at least this large is followed by a new one.
    pub segment_bytes: u64,
    /// A batch is not larger, in bytes.
    pub message_bytes_max: usize,
    /// Records get the time at which they come, and not the one that their producer gives.
    pub log_append_time: bool,
    /// A partition that is larger loses its oldest segments; nothing: none does.
    pub retention_bytes: Option<u64>,
    /// A segment all of whose records are older goes; nothing: none does.
    pub retention: Option<Duration>,
}

impl Default for Effective {
    /// Kafka's defaults.
    fn default() -> Self {
        Effective {
            segment_bytes: 1 << 30,
            message_bytes_max: (1 << 20) + 12,
            log_append_time: false,
            retention_bytes: None,
            retention: Some(Duration::from_secs(7 * 24 * 3600)),
        }
    }
}

impl Effective {
    /// With what a topic was configured, where `self` holds otherwise.
    pub fn with(self, configs: &Configs) -> Effective {
        let number = |name| configs.number(name);
        Effective {
            segment_bytes: number(SEGMENT_BYTES).map_or(self.segment_bytes, |bytes| bytes as u64),
            message_bytes_max: number(MAX_MESSAGE_BYTES)
                .map_or(self.message_bytes_max, |bytes| bytes as usize),
            log_append_time: configs
                .get(TIMESTAMP_TYPE)
                .map_or(self.log_append_time, |kind| kind == LOG_APPEND_TIME),
            retention_bytes: number(RETENTION_BYTES)
                .map_or(self.retention_bytes, |bytes| u64::try_from(bytes).ok()),
            retention: number(RETENTION_MS).map_or(self.retention, |ms| {
                u64::try_from(ms).ok().map(Duration::from_millis)
            }),
        }
    }

    /// The value of a configuration, as a client is told.
    pub fn describe(&self, key: &ConfigKey) -> String {
        let mut text = String::new();
        let written = match (key.name, key.legal) {
            (SEGMENT_BYTES, _) => write!(text, "{}", self.segment_bytes),
            (MAX_MESSAGE_BYTES, _) => write!(text, "{}", self.message_bytes_max),
            (RETENTION_BYTES, _) => match self.retention_bytes {
                Some(bytes) => write!(text, "{bytes}"),
                None => write!(text, "-1"),
            },
            (RETENTION_MS, _) => match self.retention {
                Some(age) => write!(text, "{}", age.as_millis()),
                None => write!(text, "-1"),
            },
            (TIMESTAMP_TYPE, _) if self.log_append_time => write!(text, "{LOG_APPEND_TIME}"),
            (_, Legal::Range(min, _)) => write!(text, "{min}"),
            (_, Legal::Words(words)) => write!(text, "{}", words[0]),
        };
        written.expect("into memory");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<Configs, String> {
        Configs::default().changed([(name, ConfigChange::Set(value.to_owned()))])
    }

    const DEFAULTS: Effective = Effective {
        segment_bytes: 4096,
        message_bytes_max: 1 << 20,
        log_append_time: false,
        retention_bytes: None,
        retention: Some(Duration::from_secs(7)),
    };

    #[test]
    fn what_is_kept_holds_and_is_described_as_it_was_asked_for() {
        let asked = [
            ("retention.ms", "-1"),
            ("retention.bytes", "77"),
            ("segment.bytes", "2097152"),
            ("max.message.bytes", "100"),
            ("message.timestamp.type", "LogAppendTime"),
            ("cleanup.policy", "delete"),
            ("min.insync.replicas", "1"),
        ];
        let changes = asked.map(|(name, value)| (name, ConfigChange::Set(value.to_owned())));
        let configs = Configs::default().changed(changes).unwrap();
        let effective = DEFAULTS.with(&configs);
        assert_eq!(
            effective,
            Effective {
                segment_bytes: 2 << 20,
                message_bytes_max: 100,
                log_append_time: true,
                retention_bytes: Some(77),
                retention: None,
            }
        );
        for (name, value) in asked {
            let key = ConfigKey::of(name).unwrap();
            assert_eq!(effective.describe(&key), value, "{name}");
            assert_eq!(configs.get(name), Some(value), "{name}");
        }
        let again = configs.changed([("retention.ms", ConfigChange::Delete)]);
        assert_eq!(DEFAULTS.with(&again.unwrap()).retention, DEFAULTS.retention);
    }

    #[test]
    fn what_is_not_kept_is_refused_by_its_name() {
        for (name, value) in [
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "compact,delete"),
            ("compression.type", "zstd"),
            ("min.insync.replicas", "2"),
            ("retention.ms", "-2"),
            ("retention.ms", "a week"),
            ("segment.bytes", "1"),
            ("max.message.bytes", "99999999999"),
            ("message.timestamp.type", "Whenever"),
            ("segment.ms", "1000"),
            ("no.such.config", "1"),
        ] {
            let refused = set(name, value).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        }
    }

    #[test]
    fn lists_alone_are_appended_to() {
        let append = |name, words: &str| {
            Configs::default().changed([(name, ConfigChange::Append(words.to_owned()))])
        };
        assert!(append("cleanup.policy", "delete").is_ok());
        assert!(append("cleanup.policy", "compact").is_err());
        assert!(append("retention.ms", "5").is_err());
        let nothing = [("cleanup.policy", ConfigChange::Subtract("delete".into()))];
        assert!(Configs::default().changed(nothing).is_err());
    }
}
