//! Damage at rest to what a job keeps in objects, drawn: whatever is damaged between two runs of a job, it is refused by name,
//! repaired, or harmless. None is silent, none ends in a panic or in endless silence.

use crate::{
    small_job::{feed, SmallJob},
    stage::{addresses, play},
};
use bytes::Bytes;
use engine::{host::Host, log::cluster::Cluster, sink::SinkKind, state::stable_hash};
use futures::TryStreamExt;
use object_store::{path::Path, ObjectStoreExt};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Jobs that are damaged in each of the forty worlds.
const JOBS: u64 = 7;
const SINKS: [SinkKind; 3] = [
    SinkKind::Objects,
    SinkKind::Idempotent,
    SinkKind::Transactional,
];

#[derive(Clone, Copy, Debug)]
enum Damage {
    Bit,
    Cut,
    Zero,
    Duplicate,
    Misdirect,
    Delete,
    Garbage,
}

const DAMAGES: [Damage; 7] = [
    Damage::Bit,
    Damage::Cut,
    Damage::Zero,
    Damage::Duplicate,
    Damage::Misdirect,
    Damage::Delete,
    Damage::Garbage,
];

struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = stable_hash(&self.0);
        (self.0 % bound as u64) as usize
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// How often each damage to each kind of object has ended how.
type Outcomes = Arc<Mutex<BTreeMap<(String, String, &'static str), u64>>>;

#[test]
fn what_is_damaged_between_two_runs_is_refused_by_name_repaired_or_harmless() {
    let outcomes = Outcomes::default();
    let told = outcomes.clone();
    play(1, move |host| damaged(host, told.clone()));
    let outcomes = outcomes.lock().unwrap();
    let count = |of: &dyn Fn(&(String, String, &str)) -> bool| -> u64 {
        let all = outcomes.iter().filter(|(key, _)| of(key));
        all.map(|(_, count)| count).sum()
    };
    println!("{outcomes:#?}");
    assert_eq!(count(&|_| true), 40 * JOBS);
    for damage in DAMAGES {
        let name = format!("{damage:?}");
        assert!(count(&|(_, known, _)| *known == name) > 10, "{name}");
    }
    for kind in ["identity", "manifest", "state", "output", "rows"] {
        assert!(count(&|(known, _, _)| known == kind) > 5, "{kind}");
    }
    for outcome in ["refused", "whole"] {
        assert!(count(&|(_, _, known)| *known == outcome) > 30, "{outcome}");
    }
}

async fn damaged(host: Host, outcomes: Outcomes) {
    let mut draws = Draws(host.entropy.draw() as u64);
    let cluster = Cluster::new(host.clone(), addresses(1));
    feed(&cluster).await;
    let undamaged = SmallJob::new(&host, 99, SinkKind::Objects);
    let expected = undamaged
        .run_to_the_end()
        .await
        .expect("nothing is damaged");
    assert!(
        expected.rows.len() > 3 && expected.dead_letters == 2,
        "{expected:?}"
    );
    for number in 0..JOBS {
        let job = SmallJob::new(&host, number, draws.of(&SINKS));
        job.begin(&cluster, draws.below(2) == 0).await;
        let (kind, path, damage) = damage(&host, &job, &mut draws).await;
        let of = format!("{damage:?} of {path}, {}", job.config.sink.name());
        let outcome = match job.run_to_the_end().await {
            Ok(table) => {
                assert_eq!(table, expected, "{of}: nobody has noticed");
                "whole"
            }
            Err(why) => {
                let is_named = why.contains(&format!("{}/", job.config.name));
                assert!(
                    is_named || why.contains("are there, and the manifests"),
                    "{of}: {why}"
                );
                "refused"
            }
        };
        let mut outcomes = outcomes.lock().unwrap();
        *outcomes
            .entry((kind, format!("{damage:?}"), outcome))
            .or_default() += 1;
    }
}

/// Damages one of its objects: of which kind, which, and how.
async fn damage(host: &Host, job: &SmallJob, draws: &mut Draws) -> (String, Path, Damage) {
    let folder = Path::from(format!("jobs/{}", job.config.name));
    let listed: Vec<_> = host
        .objects
        .list(Some(&folder))
        .try_collect()
        .await
        .unwrap();
    let mut kinds = BTreeMap::<String, Vec<Path>>::new();
    for path in listed.into_iter().map(|object| object.location) {
        let kind = match path.as_ref().ends_with(".rows") {
            true => "rows",
            false => path.as_ref().split('/').nth(2).unwrap(),
        };
        kinds.entry(kind.to_owned()).or_default().push(path);
    }
    let kind = draws.of(&kinds.keys().cloned().collect::<Vec<_>>());
    let all: Vec<Path> = kinds.values().flatten().cloned().collect();
    let path = draws.of(&kinds[&kind]);
    let damage = draws.of(&DAMAGES);
    let bytes = read(host, &path).await;
    let at = draws.below(bytes.len());
    let mut damaged = bytes.clone();
    match damage {
        Damage::Bit => damaged[at] ^= 1 << draws.below(8),
        Damage::Cut => damaged.truncate(at),
        Damage::Zero => {
            let to = at + 1 + draws.below(bytes.len() - at);
            damaged[at..to].fill(0);
        }
        Damage::Duplicate => damaged.extend(bytes),
        Damage::Misdirect => {
            let others: Vec<Path> = all.into_iter().filter(|other| *other != path).collect();
            damaged = read(host, &draws.of(&others)).await;
        }
        Damage::Delete => {
            host.objects.delete(&path).await.unwrap();
            return (kind, path, damage);
        }
        Damage::Garbage => {
            damaged = (0..draws.below(300))
                .map(|_| draws.below(256) as u8)
                .collect();
        }
    }
    let damaged = Bytes::from(damaged);
    host.objects.put(&path, damaged.into()).await.unwrap();
    (kind, path, damage)
}

async fn read(host: &Host, path: &Path) -> Vec<u8> {
    let found = host.objects.get(path).await.unwrap();
    found.bytes().await.unwrap().to_vec()
}
