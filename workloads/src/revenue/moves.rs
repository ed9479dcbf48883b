//! The job's state machines, as its events show them: which moves are legal, and how often each has happened. A move
//! that is not in the table breaks a claim.

use sim::Said;
use std::{collections::BTreeMap, fmt};

/// A thing that has a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// An attempt of the job, by its number.
    Attempt,
    /// A checkpoint, by its id.
    Checkpoint,
    /// What a sink has prepared, by checkpoint and task.
    Output,
}

use Machine::{Attempt, Checkpoint, Output};

/// A legal move: whose, from where, what happens, to where. `-` is where everything begins.
type Move = (Machine, &'static str, &'static str, &'static str);

/// All legal moves. What an attempt says that was replaced, and does not know it yet, is *late*.
pub const MOVES: [Move; 45] = [
    (Attempt, "-", "begins anew", "fresh"),
    (Attempt, "-", "restores", "restoring"),
    (Attempt, "-", "begins late", "replaced"),
    (Attempt, "fresh", "recovers", "recovered"),
    (Attempt, "restoring", "recovers", "recovered"),
    (Attempt, "restoring", "cannot recover", "over"),
    (Attempt, "recovered", "deploys", "deployed"),
    (Attempt, "recovered", "cannot begin", "over"),
    (Attempt, "recovered", "is fenced", "over"),
    (Attempt, "deployed", "loses a task", "over"),
    (Attempt, "deployed", "loses a worker", "over"),
    (Attempt, "deployed", "loses the store", "over"),
    (Attempt, "deployed", "times out", "over"),
    (Attempt, "deployed", "is fenced", "over"),
    (Attempt, "deployed", "stops", "over"),
    (Attempt, "deployed", "finishes", "over"),
    (Attempt, "fresh", "is replaced", "replaced"),
    (Attempt, "restoring", "is replaced", "replaced"),
    (Attempt, "recovered", "is replaced", "replaced"),
    (Attempt, "deployed", "is replaced", "replaced"),
    (Attempt, "replaced", "recovers", "replaced"),
    (Attempt, "replaced", "deploys", "replaced"),
    (Attempt, "replaced", "gives up", "over"),
    (Checkpoint, "-", "begins", "collecting"),
    (Checkpoint, "-", "begins late", "abandoned"),
    (Checkpoint, "collecting", "completes", "complete"),
    (Checkpoint, "collecting", "is restored", "restored"),
    (Checkpoint, "collecting", "is abandoned", "abandoned"),
    (Checkpoint, "complete", "commits", "committed"),
    (Checkpoint, "complete", "is restored", "restored"),
    (Checkpoint, "committed", "is restored", "restored"),
    (Checkpoint, "committed", "stops the job", "savepoint"),
    (Checkpoint, "committed", "finishes the job", "end"),
    (Checkpoint, "savepoint", "is restored", "restored"),
    (Checkpoint, "restored", "is restored", "restored"),
    (Checkpoint, "restored", "completes late", "restored"),
    (Checkpoint, "restored", "commits late", "restored"),
    (Output, "-", "is prepared", "prepared"),
    (Output, "-", "is prepared late", "dropped"),
    (Output, "prepared", "is committed", "committed"),
    (Output, "prepared", "is recovered", "recovered"),
    (Output, "prepared", "is dropped", "dropped"),
    (Output, "committed", "is recovered", "recovered"),
    (Output, "recovered", "is recovered", "recovered"),
    (Output, "recovered", "is committed late", "recovered"),
];

/// A move as people read it.
fn name((machine, from, what, to): Move) -> String {
    format!("{machine}: {from} > {what} > {to}")
}

/// The names of all moves.
pub fn names() -> Vec<String> {
    MOVES.into_iter().map(name).collect()
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Attempt => "attempt",
            Checkpoint => "checkpoint",
            Output => "output",
        })
    }
}

/// Where everything is, and how often each move has happened.
#[derive(Debug, Default)]
pub struct Moves {
    attempts: BTreeMap<i64, &'static str>,
    checkpoints: BTreeMap<i64, &'static str>,
    /// By checkpoint and task.
    outputs: BTreeMap<(i64, String), &'static str>,
    /// The newest attempt.
    newest: i64,
    counts: BTreeMap<Move, u64>,
    illegal: Vec<String>,
}

impl Moves {
    /// How often each move has happened.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter();
        counts.map(|(of, count)| (name(*of), *count)).collect()
    }

    /// Takes in what a process says; the moves that are not legal, in words.
    pub fn hear(&mut self, said: &Said<'_>) -> Vec<String> {
        let num = |key| said.num(key).unwrap_or(-1);
        let (attempt, checkpoint) = (num("attempt"), num("checkpoint"));
        let output = || (checkpoint, said.text("task").unwrap_or("?").to_owned());
        match said.name {
            "job.attempt-begun" => self.begin(attempt, said.num("restores")),
            "job.recovered" => self.attempt(attempt, "recovers"),
            "job.deployed" => self.attempt(attempt, "deploys"),
            "job.attempt-ended" => {
                let because = said.text("because").unwrap_or("?");
                match (self.attempts.get(&attempt), because) {
                    (Some(&"replaced"), _) => self.attempt(attempt, "gives up"),
                    (Some(&"restoring"), "loses the store" | "cannot recover") => {
                        self.attempt(attempt, "cannot recover");
                    }
                    (Some(&"recovered"), "loses the store" | "loses the log") => {
                        self.attempt(attempt, "cannot begin");
                    }
                    _ => self.attempt(attempt, because),
                }
            }
            // Whoever goes on from there may say so first.
            "job.stopped" if self.attempts.get(&attempt) == Some(&"replaced") => {
                self.attempt(attempt, "gives up");
            }
            "job.stopped" => {
                self.attempt(attempt, "stops");
                self.checkpoint(checkpoint, "stops the job");
            }
            "job.finished" => {
                self.attempt(attempt, "finishes");
                self.checkpoint(checkpoint, "finishes the job");
            }
            "checkpoint.begun" => match checkpoint <= self.newest {
                true => self.checkpoint(checkpoint, "begins late"),
                false => self.checkpoint(checkpoint, "begins"),
            },
            "checkpoint.complete" => match self.checkpoints.get(&checkpoint) {
                Some(&"restored") => self.checkpoint(checkpoint, "completes late"),
                _ => self.checkpoint(checkpoint, "completes"),
            },
            "checkpoint.committed" => match self.checkpoints.get(&checkpoint) {
                Some(&"restored") => self.checkpoint(checkpoint, "commits late"),
                _ => self.checkpoint(checkpoint, "commits"),
            },
            "sink.prepared" if num("handle") == 1 || said.text("handle") == Some("true") => {
                match self.checkpoints.get(&checkpoint) {
                    Some(&"abandoned") => self.output(output(), "is prepared late"),
                    _ => self.output(output(), "is prepared"),
                }
            }
            "sink.committed" => match self.outputs.get(&output()) {
                // There was nothing to commit.
                None => {}
                Some(&"recovered") => self.output(output(), "is committed late"),
                Some(_) => self.output(output(), "is committed"),
            },
            // A sink that has nothing to hold on to has nothing to recover.
            "sink.recovered" if self.outputs.contains_key(&output()) => {
                self.output(output(), "is recovered");
            }
            _ => {}
        }
        std::mem::take(&mut self.illegal)
    }

    /// An attempt begins: those before it are replaced, and what they have not completed never will be.
    fn begin(&mut self, attempt: i64, restores: Option<i64>) {
        if attempt < self.newest {
            return self.attempt(attempt, "begins late");
        }
        self.newest = attempt;
        let open = self.attempts.iter();
        let open = open.filter(|(_, state)| !["over", "replaced"].contains(state));
        for earlier in open.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.attempt(earlier, "is replaced");
        }
        match restores {
            None => self.attempt(attempt, "begins anew"),
            Some(_) => self.attempt(attempt, "restores"),
        }
        let known: Vec<(i64, &str)> = self.checkpoints.iter().map(|(id, at)| (*id, *at)).collect();
        for (checkpoint, state) in known {
            if Some(checkpoint) == restores {
                self.checkpoint(checkpoint, "is restored");
            } else if state == "collecting" {
                self.checkpoint(checkpoint, "is abandoned");
                let range = (checkpoint, String::new())..(checkpoint + 1, String::new());
                let outputs = self.outputs.range(range).map(|(at, _)| at.clone());
                for output in outputs.collect::<Vec<_>>() {
                    self.output(output, "is dropped");
                }
            } else if state != "abandoned" && Some(checkpoint) > restores {
                self.checkpoint(checkpoint, "is passed over");
            }
        }
    }

    fn attempt(&mut self, attempt: i64, what: &str) {
        let from = self.attempts.get(&attempt).copied();
        if let Some(to) = self.go(Attempt, from, what, || attempt.to_string()) {
            self.attempts.insert(attempt, to);
        }
    }

    fn checkpoint(&mut self, checkpoint: i64, what: &str) {
        let from = self.checkpoints.get(&checkpoint).copied();
        if let Some(to) = self.go(Checkpoint, from, what, || checkpoint.to_string()) {
            self.checkpoints.insert(checkpoint, to);
        }
    }

    fn output(&mut self, output: (i64, String), what: &str) {
        let from = self.outputs.get(&output).copied();
        let who = || format!("{} of {}", output.0, output.1);
        if let Some(to) = self.go(Output, from, what, who) {
            self.outputs.insert(output, to);
        }
    }

    fn go(
        &mut self,
        machine: Machine,
        from: Option<&'static str>,
        what: &str,
        who: impl Fn() -> String,
    ) -> Option<&'static str> {
        let from = from.unwrap_or("-");
        let legal = MOVES
            .into_iter()
            .find(|of| (of.0, of.1, of.2) == (machine, from, what));
        match legal {
            Some(of) => {
                *self.counts.entry(of).or_default() += 1;
                Some(of.3)
            }
            None => {
                let text = format!("{machine} {} is {from}, and {what}: no legal move", who());
                self.illegal.push(text);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_complete_is_not_passed_over() {
        let mut moves = Moves::default();
        moves.begin(0, None);
        moves.checkpoint(1, "begins");
        moves.checkpoint(1, "completes");
        moves.begin(2, None);
        assert_eq!(
            moves.illegal,
            ["checkpoint 1 is complete, and is passed over: no legal move"]
        );
        moves.illegal.clear();
        moves.begin(3, Some(1));
        assert!(moves.illegal.is_empty());
        assert_eq!(
            moves.counts()["checkpoint: complete > is restored > restored"],
            1
        );
    }
}
