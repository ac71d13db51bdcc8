//! Prints a comparison as plain text for a terminal.

use super::{Comparison, Row, Verdict};
use crate::format::plain;
use crate::table::{Align, grid, print_warnings};
use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};

impl Comparison {
    /// Prints a line for each of our targets, and the number of each verdict.
    ///
    /// # Errors
    /// As `out` says.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        print_warnings(&self.warnings, out)?;
        let heads = [
            ("scenario", Align::Left),
            ("target", Align::Left),
            ("old", Align::Right),
            ("new", Align::Right),
            ("new is (99 % sure)", Align::Right),
            ("rivals", Align::Right),
            ("verdict", Align::Left),
        ];
        writeln!(out, "{}", grid(&heads, self.rows.iter().map(cells)))?;
        let mut verdicts: Vec<Verdict> = self.rows.iter().map(|row| row.verdict).collect();
        verdicts.sort_unstable();
        let sums = verdicts.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0]));
        let sums: Vec<String> = sums.collect();
        writeln!(out, "\n{}", if sums.is_empty() { "nothing to compare".to_owned() } else { sums.join(", ") })
    }
}

fn cells(row: &Row) -> Vec<String> {
    let shown = |quantity: Option<f64>| quantity.map_or("-".to_owned(), |quantity| row.metric.show(quantity));
    let why = row.why.as_ref().map_or(String::new(), |why| format!(": {}", plain(why)));
    vec![
        plain(&row.scenario).into_owned(),
        plain(&row.target).into_owned(),
        shown(row.old),
        shown(row.new),
        row.ratio.map_or("-".to_owned(), |ratio| ratio.to_string()),
        row.rivals.map_or("-".to_owned(), |rivals| format!("{rivals:.2}x")),
        format!("{}{why}", row.verdict),
    ]
}

impl Display for Verdict {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Regression => "REGRESSION",
            Self::CannotBeCompared => "cannot be compared",
            Self::NoDifferenceSeen => "no difference seen",
            Self::Improvement => "improvement",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results::{results, scale};

    #[test]
    fn verdicts_are_printed_with_their_numbers_and_counted() {
        let mut new = results(2);
        scale(&mut new, "dense-direct", "blockhaul", 0.8);
        new.scenarios[1].volume_bytes += 1;
        let mut text = Vec::new();
        Comparison::of(&results(1), &new).print(&mut text).expect("memory takes everything");
        let text = String::from_utf8(text).expect("it is text");
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("dense-direct  blockhaul").contains("GiB/s"), "{text}");
        assert!(line("dense-direct  blockhaul").ends_with("REGRESSION"), "{text}");
        assert!(line("sparse").ends_with("cannot be compared: the volume's size differs between the runs"), "{text}");
        assert!(text.ends_with("1 REGRESSION, 1 cannot be compared, 10 no difference seen\n"), "{text}");
    }

    #[test]
    fn two_empty_runs_have_nothing_to_compare() {
        let mut run = results(1);
        run.scenarios.clear();
        let comparison = Comparison::of(&run, &run);
        let mut text = Vec::new();
        comparison.print(&mut text).expect("memory takes everything");
        assert!(String::from_utf8_lossy(&text).contains("nothing to compare"));
        assert_eq!(comparison.verdict(), Verdict::CannotBeCompared);
    }
}
