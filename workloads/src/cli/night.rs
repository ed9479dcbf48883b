//! What a campaign leaves behind: failing plans, and for a night also a JUnit file and the summary.

use super::{cannot_write, BadInput};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use sim::{Campaign, Failure};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a campaign leaves what it found.
pub(super) struct Night {
    failures: PathBuf,
    out: Option<PathBuf>,
}

impl Night {
    /// Checks that the folder can be written to. Without one, failing plans go to `failures/`.
    pub fn new(out: Option<&Path>) -> Result<Night, BadInput> {
        let Some(out) = out else {
            return Ok(Night {
                failures: "failures".into(),
                out: None,
            });
        };
        let failures = out.join("failures");
        fs::create_dir_all(&failures).map_err(|error| cannot_write(&failures, &error))?;
        let probe = out.join("summary.json");
        fs::write(&probe, "").map_err(|error| cannot_write(&probe, &error))?;
        Ok(Night {
            failures,
            out: Some(out.to_owned()),
        })
    }

    /// Saves what was found, and notes in each failure where its plan is.
    pub fn save(&self, campaign: &mut Campaign) -> Result<(), BadInput> {
        for failure in &mut campaign.failures {
            let name = format!(
                "{}-{}-{}.plan",
                failure.plan.workload, failure.seed, failure.anomaly.kind
            );
            let path = self.failures.join(name);
            fs::create_dir_all(&self.failures).map_err(|error| cannot_write(&path, &error))?;
            let text = story(failure, campaign.commit.as_deref()) + &failure.plan.to_text();
            fs::write(&path, text).map_err(|error| cannot_write(&path, &error))?;
            failure.saved = Some(path);
        }
        let Some(out) = &self.out else {
            return Ok(());
        };
        let summary = out.join("summary.json");
        let text = serde_json::to_string_pretty(campaign).map_err(BadInput::new)?;
        fs::write(&summary, text + "\n").map_err(|error| cannot_write(&summary, &error))?;
        let junit = out.join("junit.xml");
        let text = junit_of(campaign).to_string().map_err(BadInput::new)?;
        fs::write(&junit, text).map_err(|error| cannot_write(&junit, &error))
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
    if !failure.reproduced {
        lines.push("NOT REPRODUCED in a fresh process: a determinism leak".into());
    }
    lines.extend(failure.anomaly.why.iter().cloned());
    lines.iter().map(|line| format!("# {line}\n")).collect()
}

/// One test case for the campaign, and one for each failure.
fn junit_of(campaign: &Campaign) -> Report {
    let mut suite = TestSuite::new(format!("fuzz {}", campaign.workload));
    let name = format!("{} seeds", campaign.seeds_run);
    let mut whole = TestCase::new(name, TestCaseStatus::success());
    whole.set_time(Duration::from_secs_f64(campaign.wall_seconds));
    suite.add_test_case(whole);
    for failure in &campaign.failures {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_type(failure.anomaly.kind.name());
        status.set_message(failure.anomaly.what.clone());
        let saved = failure
            .saved
            .as_ref()
            .map(|path| path.display().to_string());
        status.set_description(format!(
            "{}\n{}\ncargo sim replay {}",
            failure.anomaly.why.join("\n"),
            failure.plan.to_text(),
            saved.unwrap_or_default()
        ));
        suite.add_test_case(TestCase::new(format!("seed {}", failure.seed), status));
    }
    let mut report = Report::new("seedbed");
    report.add_test_suite(suite);
    report
}
