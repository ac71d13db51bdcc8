//! Parses which measures to run, and how often.

/// Options from the command line, or of one short trial when run as a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Trials of each distribution. Default 100.
    pub(crate) trials: usize,
    /// Cells (three nodes and three servers each) that share the trials of a loss, at once. Default 1.
    pub(crate) cells: usize,
    /// Tasks in the queue. Default 50,000.
    pub(crate) tasks: usize,
    /// Simulated runners that take them. Default 200.
    pub(crate) runners: usize,
    /// Whether missed bounds are failures.
    pub(crate) is_soak: bool,
    names: Vec<String>,
}

impl Options {
    /// One short trial of this measurement, for a test.
    pub(crate) fn shortest(name: &str) -> Self {
        Self { trials: 1, cells: 1, tasks: 50, runners: 2, is_soak: false, names: vec![name.to_owned()] }
    }

    /// Parses the arguments.
    ///
    /// # Errors
    /// A message about the invalid argument.
    pub(crate) fn parse(args: Vec<String>, known: &[&str]) -> Result<Self, String> {
        let mut args = args.into_iter();
        let mut options = Self { trials: 100, cells: 1, tasks: 50_000, runners: 200, is_soak: true, names: Vec::new() };
        while let Some(word) = args.next() {
            let target = match word.as_str() {
                "--trials" => &mut options.trials,
                "--cells" => &mut options.cells,
                "--tasks" => &mut options.tasks,
                "--runners" => &mut options.runners,
                name if known.contains(&name) => {
                    options.names.push(word);
                    continue;
                }
                _ => return Err(format!("soak measures {}, or fleet first of all, not '{word}'", known.join(", "))),
            };
            let number = args.next().and_then(|text| text.parse().ok()).filter(|&number| number > 0);
            *target = number.ok_or_else(|| format!("{word} takes a number above zero"))?;
        }
        Ok(options)
    }

    /// Tells whether a measurement was requested.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// Returns the range of trials of each cell, distributed evenly.
    pub(crate) fn shares(&self) -> Vec<std::ops::Range<usize>> {
        let cells = self.cells.min(self.trials);
        (0..cells).map(|cell| cell * self.trials / cells..(cell + 1) * self.trials / cells).collect()
    }
}
