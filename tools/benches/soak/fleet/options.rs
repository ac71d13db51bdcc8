//! Parses what `soak fleet` measures, and how much of it.

/// Parts of the run, in their order.
pub(crate) const PARTS: [&str; 9] =
    ["rest", "schedules", "memory", "instants", "ensemble", "leader", "assignments", "restart", "takeover"];
/// Most runners: those that share an address with all clients must fit the leader's share of connections for one peer.
const RUNNERS_MAX: usize = 1_000;

/// Options of `soak fleet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FleetOptions {
    /// Runners without an engine, besides the three nodes. Default 1,000.
    pub(crate) runners: usize,
    /// Tasks that are live at once. Default 50,000.
    pub(crate) tasks: usize,
    /// Schedules that stay while everything else is measured; their cost is measured with ten times as many. Default
    /// 1,000.
    pub(crate) schedules: usize,
    /// Trials of a takeover; half as many losses of ZooKeeper's leader, and five times as many instants. Default 100.
    pub(crate) trials: usize,
    /// Trials of a takeover with all tasks live. Default 5.
    pub(crate) full_trials: usize,
    /// Whether missed bounds are failures.
    pub(crate) is_soak: bool,
    parts: Vec<String>,
}

impl FleetOptions {
    /// Parses the arguments after `fleet`.
    ///
    /// # Errors
    /// A message about the invalid argument.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            runners: RUNNERS_MAX,
            tasks: 50_000,
            schedules: 1_000,
            trials: 100,
            full_trials: 5,
            is_soak: true,
            parts: Vec::new(),
        };
        let mut args = args.iter();
        while let Some(word) = args.next() {
            let target = match word.as_str() {
                "--runners" => &mut options.runners,
                "--tasks" => &mut options.tasks,
                "--schedules" => &mut options.schedules,
                "--trials" => &mut options.trials,
                "--full-trials" => &mut options.full_trials,
                "--only" => {
                    options.parts = parts(args.next())?;
                    continue;
                }
                _ => {
                    return Err(format!(
                        "soak fleet takes --runners, --tasks, --schedules, --trials, --full-trials \
                                         and --only, not '{word}'"
                    ));
                }
            };
            let number = args.next().and_then(|text| text.parse().ok()).filter(|&number| number > 0);
            *target = number.ok_or_else(|| format!("{word} takes a number above zero"))?;
        }
        options.check()
    }

    /// One small run of what takes no session's timeout, for a test.
    pub(crate) fn smallest() -> Self {
        let parts = ["rest", "instants", "assignments"].map(str::to_owned).to_vec();
        Self { runners: 4, tasks: 60, schedules: 10, trials: 1, full_trials: 1, is_soak: false, parts }
    }

    fn check(self) -> Result<Self, String> {
        if self.runners > RUNNERS_MAX {
            return Err(format!(
                "--runners is at most {RUNNERS_MAX}: a leader takes 1,024 connections from one address"
            ));
        }
        // Half of the tasks hold slots, of which every runner has at least one.
        if self.tasks < 2 * self.runners {
            return Err(format!("--tasks is at least twice the number of runners: {}", 2 * self.runners));
        }
        Ok(self)
    }

    /// Tells whether a part was requested.
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn parts(list: Option<&String>) -> Result<Vec<String>, String> {
    let all: Vec<String> = list.map_or("", String::as_str).split(',').map(str::to_owned).collect();
    match all.iter().find(|part| !PARTS.contains(&part.as_str())) {
        Some(unknown) => Err(format!("--only takes some of {}, not '{unknown}'", PARTS.join(","))),
        None => Ok(all),
    }
}
