//! Which workload, and what the command line changes in its plans.

use super::{BadInput, Known, PlanArguments};
use crate::revenue::settings::Settings;
use sim::{Plan, Shape, What, Workload};
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// The workload called `name`.
pub(super) fn workload(known: &Known, name: &str) -> Result<Arc<dyn Workload>, BadInput> {
    let Known(all) = known;
    let found = all.iter().find(|workload| workload.name() == name);
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|workload| workload.name()).collect();
        let names = names.join(", ");
        BadInput::new(format!("`{name}` is not a workload; these are: {names}"))
    })
}

/// What the command line changes in every plan.
#[derive(Clone)]
pub(super) struct Adjust {
    workload: String,
    arguments: PlanArguments,
    shape: Shape,
    kinds: Option<BTreeSet<String>>,
    input: Option<String>,
}

impl Adjust {
    /// Reads the arguments; checks all that does not depend on a seed.
    pub fn new(workload: &dyn Workload, arguments: &PlanArguments) -> Result<Adjust, BadInput> {
        let input = match &arguments.input {
            None => None,
            Some(path) => {
                // A plan that is saved finds the file from anywhere.
                let found = path.canonicalize();
                let found =
                    found.map_err(|error| BadInput::new(format!("{}: {error}", path.display())))?;
                Some(found.display().to_string())
            }
        };
        let adjust = Adjust {
            workload: workload.name().to_owned(),
            kinds: kinds(&arguments.faults)?,
            shape: workload.shape(),
            input,
            arguments: arguments.clone(),
        };
        if workload.name() != "revenue" && adjust.changes_settings() {
            return Err(BadInput::new(format!(
                "workload {} knows no --guarantee, --sink, --unchecked, --records and --input",
                workload.name()
            )));
        }
        let mut asked = adjust.kinds.iter().flatten().map(String::as_str);
        let detects = &adjust.shape.detects;
        if let Some(kind) =
            asked.find(|kind| What::DAMAGE.contains(kind) && !detects.contains(kind))
        {
            return Err(BadInput::new(format!(
                "--faults: workload {} does not say what becomes of {kind}",
                workload.name()
            )));
        }
        // What a plan of any seed would be refused for is refused before the first one is run.
        let plan = adjust.draw(workload, 0);
        sim::run::check_plan(workload, &plan).map_err(BadInput::new)?;
        Ok(adjust)
    }

    /// The plan of a seed, as the command line wants it.
    pub fn draw(&self, workload: &dyn Workload, seed: u64) -> Plan {
        let mut plan = sim::run::draw(workload, sim::Seed(seed));
        self.apply(&mut plan);
        plan
    }

    /// Changes a plan as the command line wants it.
    pub fn apply(&self, plan: &mut Plan) {
        if let Some(kinds) = &self.kinds {
            plan.faults
                .retain(|fault| kinds.contains(fault.what.kind()));
            // By itself it is in a few seeds only; who asks for it by name wants it in each.
            let mut damage = self.shape.detects.clone();
            damage.retain(|kind| kinds.contains(*kind));
            plan.damage(&self.shape, &damage);
        }
        if !self.changes_settings() {
            return;
        }
        let mut settings = Settings::of(&plan.params).expect("it was just drawn");
        let job = &self.arguments.job;
        let guarantee = job.guarantee.unwrap_or(settings.guarantee);
        let sink = job.sink.unwrap_or(settings.sink);
        settings = settings.with(guarantee, sink);
        settings.unchecked |= job.unchecked;
        settings.records = self.arguments.records.unwrap_or(settings.records);
        settings.input = self.input.clone().or(settings.input);
        plan.params = settings.to_params();
    }

    fn changes_settings(&self) -> bool {
        let job = &self.arguments.job;
        job.guarantee.is_some()
            || job.sink.is_some()
            || job.unchecked
            || self.arguments.records.is_some()
            || self.input.is_some()
    }

    /// The command that runs a seed.
    pub fn replay_of(&self, seed: impl std::fmt::Display) -> String {
        let of = match &*self.workload {
            "revenue" => String::new(),
            name => format!(" --workload {name}"),
        };
        format!("cargo sim replay {seed}{of}{}", self.to_arguments())
    }

    /// The arguments that make the same plan of the same seed.
    pub fn to_arguments(&self) -> String {
        let job = &self.arguments.job;
        let mut text = String::new();
        let mut add = |argument: String| text += &format!(" {argument}");
        job.guarantee
            .iter()
            .for_each(|guarantee| add(format!("--guarantee {guarantee}")));
        job.sink
            .iter()
            .for_each(|sink| add(format!("--sink {}", sink.name())));
        job.unchecked.then(|| add("--unchecked".into()));
        self.arguments
            .records
            .iter()
            .for_each(|records| add(format!("--records {records}")));
        self.input
            .iter()
            .for_each(|input| add(format!("--input {input}")));
        self.kinds
            .iter()
            .for_each(|_| add(format!("--faults {}", self.arguments.faults)));
        text
    }
}

/// Reads `--faults`; nothing means all.
fn kinds(text: &str) -> Result<Option<BTreeSet<String>>, BadInput> {
    match text {
        "all" => return Ok(None),
        "none" => return Ok(Some(BTreeSet::new())),
        _ => {}
    }
    let mut kinds = BTreeSet::new();
    for kind in text.split(',') {
        if !What::kinds().any(|known| known == kind) {
            let known = What::kinds().collect::<Vec<_>>().join(", ");
            let text = format!("--faults: `{kind}` is not a kind of fault; these are: {known}");
            return Err(BadInput::new(text));
        }
        kinds.insert(kind.to_owned());
    }
    Ok(Some(kinds))
}

/// Reads a plan file, and checks that its workload can run it.
pub(super) fn read_plan(known: &Known, path: &Path) -> Result<(Arc<dyn Workload>, Plan), BadInput> {
    let wrong = |what: String| BadInput::new(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let plan = Plan::parse(&text).map_err(|error| wrong(error.to_string()))?;
    let workload = workload(known, &plan.workload).map_err(|error| wrong(error.to_string()))?;
    sim::run::check_plan(&*workload, &plan).map_err(|error| wrong(error.to_string()))?;
    Ok((workload, plan))
}
