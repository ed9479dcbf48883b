//! Damage at rest to what a job keeps in objects, drawn: whatever is damaged between two runs of a job, it is refused by name,
//! repaired, or harmless. None is silent, none ends in a panic or in endless silence.

use crate::{
    damage::{damage, Damage, Image, Way, WAYS},
    small_job::{feed, SmallJob},
    stage::{addresses, play},
};
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
type Outcomes = Arc<Mutex<BTreeMap<(String, Way, &'static str), u64>>>;

#[test]
fn what_is_damaged_between_two_runs_is_refused_by_name_repaired_or_harmless() {
    let outcomes = Outcomes::default();
    let told = outcomes.clone();
    play(1, move |host| damaged(host, told.clone()));
    let outcomes = outcomes.lock().unwrap();
    let count = |of: &dyn Fn(&(String, Way, &str)) -> bool| -> u64 {
        let all = outcomes.iter().filter(|(key, _)| of(key));
        all.map(|(_, count)| count).sum()
    };
    println!("{outcomes:#?}");
    assert_eq!(count(&|_| true), 40 * JOBS);
    for way in WAYS {
        assert!(count(&|(_, known, _)| *known == way) > 5, "{way:?}");
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
        let (kind, way, damage) = damage_one(&host, &job, &mut draws).await;
        let of = format!("{}, {}", damage.what, job.config.sink.name());
        let outcome = match job.run_to_the_end().await {
            Ok(table) => {
                assert_eq!(table, expected, "{of}: nobody has noticed");
                "whole"
            }
            Err(why) => {
                // Of the newest entries nobody knows that they were there, until their rows are counted.
                let is_counted = (&*kind, way) == ("manifest", Way::Delete)
                    && why.contains("are there, ")
                    && why.contains("the manifests of the job say");
                let is_named = why.contains(&damage.path);
                assert!(is_named || is_counted, "{of}: {why}");
                "refused"
            }
        };
        let mut outcomes = outcomes.lock().unwrap();
        *outcomes.entry((kind, way, outcome)).or_default() += 1;
    }
}

/// Damages one of its objects: of which kind, in which way, and what was done.
async fn damage_one(host: &Host, job: &SmallJob, draws: &mut Draws) -> (String, Way, Damage) {
    let folder = Path::from(format!("jobs/{}", job.config.name));
    let listed: Vec<_> = host
        .objects
        .list(Some(&folder))
        .try_collect()
        .await
        .unwrap();
    let mut kinds = BTreeMap::<String, Vec<String>>::new();
    let mut image = Image::new();
    for path in listed.into_iter().map(|object| object.location) {
        let bytes = host
            .objects
            .get(&path)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        let path = path.to_string();
        let kind = match path.ends_with(".rows") {
            true => "rows",
            false => path.split('/').nth(2).unwrap(),
        };
        kinds.entry(kind.to_owned()).or_default().push(path.clone());
        image.insert(path, bytes.to_vec());
    }
    let all: Vec<String> = image.keys().cloned().collect();
    loop {
        let kind = draws.of(&kinds.keys().cloned().collect::<Vec<_>>());
        let path = draws.of(&kinds[&kind]);
        let way = draws.of(&WAYS);
        let others: Vec<String> = match draws.below(2) {
            0 => all.clone(),
            _ => kinds[&kind].clone(),
        };
        let others: Vec<String> = others.into_iter().filter(|other| *other != path).collect();
        let seed = draws.below(usize::MAX) as u64;
        let Some(damage) = damage(&mut image, &path, way, &others, seed) else {
            continue;
        };
        let changed = Path::from(damage.path.clone());
        match image.remove(&damage.path) {
            Some(bytes) => drop(host.objects.put(&changed, bytes.into()).await.unwrap()),
            None => host.objects.delete(&changed).await.unwrap(),
        }
        return (kind, way, damage);
    }
}
