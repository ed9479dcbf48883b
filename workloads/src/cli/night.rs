//! What a campaign leaves behind, written as it comes: failing plans, each failing seed, and for a night also
//! a JUnit file and the summary. Whatever ends the process, what it had found by then is there.

use super::{cannot_write, write_whole, BadInput};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use sim::{
    explore::{Again, Conclusion, Ended, FailedSeed, Leak, News},
    report, Campaign, Failure,
};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// How many failing seeds have a test case of their own.
const CASES_MAX: usize = 1000;

/// The command that repeats a failure.
pub(super) type Repeat = dyn Fn(&Failure) -> String + Send + Sync;

/// Where a campaign leaves what it found.
pub(super) struct Night {
    failures: PathBuf,
    out: Option<PathBuf>,
    json: Option<PathBuf>,
    commit: Option<String>,
    again: Arc<Repeat>,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// The file of failing seeds, one a line.
    seeds: Option<File>,
    /// The first of them.
    failed: Vec<FailedSeed>,
    /// What could not be written, first of all.
    wrong: Option<BadInput>,
}

impl Night {
    /// Checks that the folder can be written to, and that no other campaign has left anything there. Without
    /// one, failing plans go to `failures/`. `json` is another place for the summary.
    pub fn new(
        out: Option<&Path>,
        json: Option<&Path>,
        commit: Option<String>,
        again: Arc<Repeat>,
    ) -> Result<Night, BadInput> {
        let mut night = Night {
            failures: "failures".into(),
            out: None,
            json: json.map(Path::to_owned),
            commit,
            again,
            written: Mutex::default(),
        };
        let Some(out) = out else {
            return Ok(night);
        };
        for name in ["summary.json", "junit.xml", "failures.jsonl", "failures"] {
            if out.join(name).exists() {
                return Err(BadInput::new(format!(
                    "--out {}: {name} of an earlier campaign is there, and two campaigns are not mixed; \
                     name another folder, or move this one away",
                    out.display()
                )));
            }
        }
        night.failures = out.join("failures");
        fs::create_dir_all(&night.failures)
            .map_err(|error| cannot_write(&night.failures, &error))?;
        let seeds = out.join("failures.jsonl");
        let file = File::create(&seeds).map_err(|error| cannot_write(&seeds, &error))?;
        night.written.get_mut().expect("written").seeds = Some(file);
        night.out = Some(out.to_owned());
        Ok(night)
    }

    /// Writes down what has become known.
    pub fn note(&self, campaign: &Campaign, news: &mut News<'_>) {
        let done = match news {
            News::Failed(seed) => self.failed(seed),
            News::Failure(failure) => self.failure(failure),
            News::Leak(leak) => self.leak(leak),
            News::Moment => self.save(campaign),
        };
        if let Err(wrong) = done {
            self.written
                .lock()
                .expect("written")
                .wrong
                .get_or_insert(wrong);
        }
    }

    /// The campaign has ended.
    pub fn end(&self, campaign: &mut Campaign) -> Result<(), BadInput> {
        campaign.commit = self.commit.clone();
        self.save(campaign)?;
        match self.written.lock().expect("written").wrong.take() {
            Some(wrong) => Err(wrong),
            None => Ok(()),
        }
    }

    fn failed(&self, seed: &FailedSeed) -> Result<(), BadInput> {
        let mut written = self.written.lock().expect("written");
        if written.failed.len() < CASES_MAX {
            written.failed.push(seed.clone());
        }
        if let Some(file) = &mut written.seeds {
            let line = serde_json::to_string(seed).map_err(BadInput::new)? + "\n";
            let path = self.failures.with_extension("jsonl");
            file.write_all(line.as_bytes())
                .map_err(|error| cannot_write(&path, &error))?;
        }
        Ok(())
    }

    fn failure(&self, failure: &mut Failure) -> Result<(), BadInput> {
        let name = format!(
            "{}-{}-{}.plan",
            failure.plan.workload, failure.seed, failure.anomaly.kind
        );
        let text = story(failure, self.commit.as_deref()) + &failure.plan.to_text();
        failure.saved = Some(self.put(&name, &text)?);
        Ok(())
    }

    fn leak(&self, leak: &mut Leak) -> Result<(), BadInput> {
        let base = format!("{}-{}-leak", leak.plan.workload, leak.seed);
        self.put(&format!("{base}.plan"), &leak.plan.to_text())?;
        if let Some([first, second]) = leak.traces.take() {
            leak.saved = Some([
                self.put(&format!("{base}.first.trace"), &first)?,
                self.put(&format!("{base}.second.trace"), &second)?,
            ]);
        }
        Ok(())
    }

    fn put(&self, name: &str, text: &str) -> Result<PathBuf, BadInput> {
        let path = self.failures.join(name);
        fs::create_dir_all(&self.failures).map_err(|error| cannot_write(&path, &error))?;
        write_whole(&path, text)?;
        Ok(path)
    }

    fn save(&self, campaign: &Campaign) -> Result<(), BadInput> {
        if self.out.is_none() && self.json.is_none() {
            return Ok(());
        }
        let campaign = Campaign {
            commit: self.commit.clone(),
            ..campaign.clone()
        };
        let text = serde_json::to_string_pretty(&campaign).map_err(BadInput::new)? + "\n";
        if let Some(json) = &self.json {
            write_whole(json, &text)?;
        }
        if let Some(out) = &self.out {
            write_whole(&out.join("summary.json"), &text)?;
            let failed = self.written.lock().expect("written").failed.clone();
            let junit = junit_of(&campaign, &failed, &*self.again).to_string();
            write_whole(&out.join("junit.xml"), &junit.map_err(BadInput::new)?)?;
        }
        Ok(())
    }
}

/// What stands on top of a failing plan.
fn story(failure: &Failure, commit: Option<&str>) -> String {
    let mut lines = vec![
        format!("{}: {}", failure.anomaly.kind, failure.anomaly.what),
        format!(
            "found by seed {} at commit {}",
            failure.seed,
            commit.unwrap_or("unknown")
        ),
        format!("digest {}", failure.digest),
    ];
    match &failure.again {
        Again::Same => {}
        Again::Other { instead, .. } => lines.push(format!(
            "NOT DETERMINISTIC: a fresh process showed {} with digest {}",
            instead.verdict, instead.digest
        )),
        Again::Unconfirmed(why) => lines.push(format!("could not be confirmed: {why}")),
    }
    lines.extend(failure.anomaly.why.iter().cloned());
    lines.iter().map(|line| format!("# {line}\n")).collect()
}

/// One test case for all seeds that passed, one for each that did not, one for each leak, and one for what
/// has ended a campaign before its time.
fn junit_of(campaign: &Campaign, failed: &[FailedSeed], again: &Repeat) -> Report {
    let mut suite = TestSuite::new(format!("fuzz {}", campaign.workload));
    suite.add_test_case(passed(campaign));
    let mut add = |name: String, kind, of: &str, message: &str, text: String| {
        let mut status = TestCaseStatus::non_success(kind);
        status.set_type(of);
        status.set_message(message);
        status.set_description(text);
        suite.add_test_case(TestCase::new(name, status));
    };
    for seed in failed {
        let cause = campaign
            .failures
            .iter()
            .find(|failure| failure.seeds.contains(&seed.seed));
        let text = match cause {
            Some(failure) if failure.seed == seed.seed => examined(failure, again),
            Some(failure) => format!("the same as seed {}", failure.seed),
            None => "its cause was not looked for".into(),
        };
        add(
            format!("seed {}", seed.seed),
            NonSuccessKind::Failure,
            seed.verdict.name(),
            &seed.what,
            text,
        );
    }
    let more = campaign.failed.saturating_sub(failed.len() as u64);
    if more > 0 {
        let text = "failures.jsonl has each of them".into();
        let name = format!("{more} more seeds");
        add(
            name,
            NonSuccessKind::Failure,
            "failed",
            "failed as well",
            text,
        );
    }
    for leak in &campaign.leaks {
        let name = format!("seed {}, run twice", leak.seed);
        let message = "two runs of one plan differ";
        add(
            name,
            NonSuccessKind::Error,
            "not-deterministic",
            message,
            report::leak(leak),
        );
    }
    if let Some(why) = cut_short(&campaign.ended) {
        add(
            "the campaign".into(),
            NonSuccessKind::Error,
            "ended",
            &why,
            String::new(),
        );
    }
    let mut report = Report::new("seedbed");
    report.add_test_suite(suite);
    report
}

/// The test case of all seeds that passed: an error if they say nothing.
fn passed(campaign: &Campaign) -> TestCase {
    let count = |name| campaign.verdicts.get(name).copied().unwrap_or(0);
    let (passed, vacuous) = (count("clean") + count("detected"), count("vacuous"));
    let status = match campaign.conclusion() {
        Conclusion::Vacuous => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_type("vacuous");
            status.set_message(format!(
                "{vacuous} seeds committed or compared nothing: too little was run to say anything"
            ));
            status
        }
        _ => TestCaseStatus::success(),
    };
    let name = match vacuous {
        0 => format!("{passed} of {} seeds passed", campaign.seeds_run),
        _ => format!(
            "{passed} of {} seeds passed, {vacuous} said nothing",
            campaign.seeds_run
        ),
    };
    let mut case = TestCase::new(name, status);
    case.set_time(Duration::from_secs_f64(campaign.wall_seconds));
    case
}

/// A cause, for whoever reads it in the morning.
fn examined(failure: &Failure, again: &Repeat) -> String {
    format!(
        "{}\n{}",
        report::failure(failure, &again(failure)),
        failure.plan.to_text()
    )
}

/// What has ended a campaign before its time.
pub(super) fn cut_short(ended: &Ended) -> Option<String> {
    match ended {
        Ended::Done | Ended::Enough => None,
        Ended::NotYet => Some("it goes on, or was killed".into()),
        Ended::Signal(signal) => Some(format!("ended by signal {signal}")),
        Ended::Unable(why) => Some(format!("no worker process can be started: {why}")),
    }
}
