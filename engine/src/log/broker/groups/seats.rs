//! The groups of one coordinator as they are now, in memory, with whoever waits for them.
//!
//! A group has a seat while it has members, while a commit is on its way into its log, or while its log says something
//! of it. What is only asked leaves nothing behind: anybody may ask, under any name.

use crate::log::groups::{Group, Join, Phase, Speaker, Sync};
use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::Notify;

/// What a group takes besides its name and its members.
const SEAT_BYTES: usize = 300;
/// What a member may say of itself, and a leader of all: it goes into one record of the log…
const MEMBER_BYTES_MAX: usize = 1 << 20;
/// What most say; those who say more leave half of the room to them.
const MEMBER_BYTES_SMALL: usize = 64 << 10;
/// …and what all groups of one coordinator that have members may take.
const MEMBERS_BYTES_MAX: usize = 16 << 20;

/// All seats of a coordinator.
pub struct Seats {
    groups: Mutex<BTreeMap<String, Seat>>,
    changed: Notify,
}

/// A group, and the commits within transactions that are on their way into its log.
#[derive(Default)]
pub struct Seat {
    /// The group.
    pub group: Group,
    /// How many such commits there are.
    pub staging: usize,
}

impl Seat {
    /// Whether nothing would be lost without it, if its log does not know the group.
    fn is_idle(&self) -> bool {
        self.group.phase() == Phase::Empty && self.staging == 0
    }
}

impl Seats {
    /// Seats of the groups that a log knows.
    pub fn new(known: impl Iterator<Item = (String, Group)>) -> Self {
        let seats = known.map(|(name, group)| (name, Seat { group, staging: 0 }));
        Seats {
            groups: Mutex::new(seats.collect()),
            changed: Notify::new(),
        }
    }

    /// All of them, for as long as nobody else needs them.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Seat>> {
        self.groups.lock().expect("groups")
    }

    /// Changes a group that is there, and wakes whoever waits for it. One that is not there answers as an empty one does,
    /// and is still not there afterwards.
    pub fn change<R>(&self, group: &str, change: impl FnOnce(&mut Group) -> R) -> R {
        let done = match self.lock().get_mut(group) {
            None => return change(&mut Group::default()),
            Some(seat) => change(&mut seat.group),
        };
        self.changed.notify_waiters();
        done
    }

    /// A member joins a group, which gets a seat if that succeeds.
    pub fn join(&self, group: &str, join: Join, now: u64) -> Result<(), ResponseError> {
        {
            let mut groups = self.lock();
            let bytes = join.bytes();
            // It is replaced by what it says now.
            let before = groups.get(group);
            let before = before.map_or(0, |seat| seat.group.bytes_of(&join.member));
            check_room(&groups, bytes, before)?;
            match groups.get_mut(group) {
                Some(seat) => seat.group.join(join, now)?,
                None => {
                    let mut seat = Seat::default();
                    seat.group.join(join, now)?;
                    groups.insert(group.to_owned(), seat);
                }
            }
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// A member asks for its assignment; the leader brings everybody's.
    pub fn sync(
        &self,
        group: &str,
        who: Speaker<'_>,
        given: Vec<(String, Bytes)>,
        now: u64,
    ) -> Result<Sync, ResponseError> {
        let synced = {
            let mut groups = self.lock();
            let bytes: usize = given.iter().map(|(_, own)| own.len()).sum();
            if bytes > 0 {
                check_room(&groups, bytes, 0)?;
            }
            match groups.get_mut(group) {
                None => Group::default().sync(who, given, now),
                Some(seat) => seat.group.sync(who, given, now),
            }
        };
        self.changed.notify_waiters();
        synced
    }

    /// Waits until a group has an answer; one that is not there answers as an empty one does.
    pub async fn wait<R>(&self, group: &str, answer: impl Fn(&Group) -> Option<R>) -> R {
        loop {
            let changed = self.changed.notified();
            let answered = match self.lock().get(group) {
                None => answer(&Group::default()),
                Some(seat) => answer(&seat.group),
            };
            if let Some(answer) = answered {
                return answer;
            }
            changed.await;
        }
    }

    /// Leaves out members that fell silent. Returns the groups that this has changed, with their generations.
    pub fn expire(&self, now: u64) -> Vec<(String, i32)> {
        let mut changed = Vec::new();
        for (name, seat) in self.lock().iter_mut() {
            if seat.group.expire(now) {
                changed.push((name.clone(), seat.group.generation()));
            }
        }
        if !changed.is_empty() {
            self.changed.notify_waiters();
        }
        changed
    }

    /// A commit within a transaction is on its way into the log from here on, if `who` may commit.
    pub fn stage(&self, group: &str, who: Speaker<'_>) -> Result<(), ResponseError> {
        let mut groups = self.lock();
        match groups.get_mut(group) {
            Some(seat) => {
                seat.group.check_transactional(who)?;
                seat.staging += 1;
            }
            None => {
                let mut seat = Seat::default();
                seat.group.check_transactional(who)?;
                seat.staging = 1;
                groups.insert(group.to_owned(), seat);
            }
        }
        Ok(())
    }

    /// Such a commit is in the log, or will never be.
    pub fn unstage(&self, group: &str) {
        let mut groups = self.lock();
        let seat = groups.get_mut(group).expect("it has been staged");
        seat.staging -= 1;
    }

    /// The log says something of the group.
    pub fn keep(&self, group: &str) {
        let mut groups = self.lock();
        if !groups.contains_key(group) {
            groups.insert(group.to_owned(), Seat::default());
        }
    }

    /// Takes the seats of idle groups that the log does not know.
    pub fn clear(&self, is_known: impl Fn(&str) -> bool) {
        (self.lock()).retain(|name, seat| !seat.is_idle() || is_known(name));
    }
}

/// Whether there is room for so much more of what members say, where `before` of it takes the place of what is there.
/// It is kept as long as they are.
fn check_room(
    groups: &BTreeMap<String, Seat>,
    bytes: usize,
    before: usize,
) -> Result<(), ResponseError> {
    let peopled = groups.iter();
    let peopled = peopled.filter(|(_, seat)| seat.group.phase() != Phase::Empty);
    let held = peopled.map(|(name, seat)| SEAT_BYTES + name.len() + seat.group.bytes());
    let held = held.sum::<usize>();
    assert!(before <= held, "{before} of {held} bytes");
    let room = match bytes <= MEMBER_BYTES_SMALL {
        true => MEMBERS_BYTES_MAX,
        false => MEMBERS_BYTES_MAX / 2,
    };
    match bytes <= MEMBER_BYTES_MAX && held - before + bytes <= room {
        true => Ok(()),
        false => Err(ResponseError::GroupMaxSizeReached),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(member: &str, said: usize) -> Join {
        Join {
            member: member.into(),
            instance: None,
            client: "c".into(),
            session_ms: 1000,
            rebalance_ms: 2000,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), vec![0; said].into())],
        }
    }

    fn empty() -> Seats {
        Seats::new(std::iter::empty())
    }

    #[test]
    fn what_is_only_asked_leaves_nothing_behind() {
        let seats = empty();
        let who = Speaker {
            generation: 1,
            member: "a",
            instance: None,
        };
        let unknown = Err(ResponseError::UnknownMemberId);
        assert_eq!(seats.change("g", |group| group.heartbeat(who, 0)), unknown);
        assert_eq!(
            seats.change("g", |group| group.leave("a", None, 0)),
            unknown
        );
        let synced = seats.sync("g", who, vec![("a".into(), Bytes::new())], 0);
        assert_eq!(synced, Err(ResponseError::UnknownMemberId));
        let mut wrong = join("a", 1);
        wrong.protocols.clear();
        let wrong = seats.join("g", wrong, 0);
        assert_eq!(wrong, Err(ResponseError::InconsistentGroupProtocol));
        assert!(seats.lock().is_empty());
    }

    #[test]
    fn a_group_that_nobody_knows_any_more_is_gone() {
        let seats = empty();
        for group in ["gone", "known"] {
            seats.join(group, join("a", 1), 0).unwrap();
        }
        let nobody = Speaker {
            generation: -1,
            member: "",
            instance: None,
        };
        seats.stage("staged", nobody).unwrap();
        let somebody = Speaker {
            generation: 7,
            ..nobody
        };
        assert!(seats.stage("refused", somebody).is_err());
        seats.clear(|_| false);
        assert_eq!(
            seats.lock().len(),
            3,
            "they have members, or a commit to come"
        );
        assert_eq!(seats.expire(5000).len(), 2);
        seats.clear(|name| name == "known");
        assert!(seats.lock().keys().eq(["known", "staged"]));
        seats.unstage("staged");
        seats.clear(|_| false);
        assert!(seats.lock().is_empty());
    }

    /// Whatever it is that is said, in however many groups.
    #[test]
    fn what_members_say_is_bounded() {
        let long = || "n".repeat(60 << 10);
        let spoken: [fn(&mut Join, String); 5] = [
            |join, long| join.member = long,
            |join, long| join.instance = Some(long),
            |join, long| join.client = long,
            |join, long| join.protocol_type = long,
            |join, long| join.protocols[0].0 = long,
        ];
        for say in spoken {
            let seats = empty();
            let joined = |number: usize| {
                let mut join = join("a", 1);
                say(&mut join, long());
                seats.join(&number.to_string(), join, 0)
            };
            let room = MEMBERS_BYTES_MAX / (60 << 10);
            let refused = (0..room + 1).find(|number| joined(*number).is_err());
            let refused = refused.expect("there is no more room");
            // The group may keep it once more, as that of its leader or of all.
            assert!(refused > room / 2 - 10, "{refused} of {room}");
        }
        let seats = empty();
        let named = |number: usize| {
            let name = format!("{number}-{}", long());
            seats.join(&name, join("a", 1), 0)
        };
        assert!((0..300).any(|number| named(number).is_err()), "names count");
    }

    #[test]
    fn a_member_that_joins_again_takes_the_place_of_itself() {
        let seats = empty();
        let large = 1 << 20;
        assert!(seats.join("g", join("a", large), 0).is_err());
        let large = large - 1000;
        for round in 0..20 {
            seats.join("g", join("a", large), round).unwrap();
        }
    }
}
