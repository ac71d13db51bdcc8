//! Prints results as plain text for a terminal.
//!
//! Each scenario is a table of its targets. The ratio of a line says how many times as good our copy is as its target.
//! Warnings follow below. Text of other programs is shown without control characters.

use crate::format::{self, Unit, percent, plain, significant};
use crate::relative::Costs;
use crate::results::{Goal, Kind, Metric, Outcome, Program, Results, ScenarioResult, TargetResult, Warning};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use std::io::{self, Write};

/// Alignment of a column.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Prints the results, scenario by scenario.
///
/// # Errors
/// As `out` says.
pub(crate) fn print(results: &Results, out: &mut impl Write) -> io::Result<()> {
    print_head(results, out)?;
    for scenario in &results.scenarios {
        print_scenario(scenario, out)?;
    }
    print_goals(results, out)?;
    if !results.warnings.is_empty() {
        writeln!(out, "\nWhole run:")?;
    }
    print_warnings(&results.warnings, out)
}

/// Prints warnings, one line each.
///
/// # Errors
/// As `out` says.
pub(crate) fn print_warnings(warnings: &[Warning], out: &mut impl Write) -> io::Result<()> {
    warnings.iter().try_for_each(|warning| print_warning("", warning, out))
}

/// Formats rows under headings, with columns two spaces apart and no trailing spaces.
pub(crate) fn grid(heads: &[(&str, Align)], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(heads.iter().map(|(head, _)| *head)).add_rows(rows);
    for (column, (_, side)) in table.column_iter_mut().zip(heads) {
        column.set_padding((0, 2));
        column.set_cell_alignment(match side {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    table.trim_fmt()
}

fn print_head(results: &Results, out: &mut impl Write) -> io::Result<()> {
    let (build, host, run) = (&results.build, &results.host, &results.run);
    let commit = build.commit.as_deref().unwrap_or("no commit");
    writeln!(out, "copy-bench {} ({}, {}), {}", build.version, plain(commit), build.profile, run.started_at)?;
    let memory = format::bytes(host.memory_bytes);
    writeln!(out, "{}, {} x {}, {memory}", plain(&host.kernel), host.cpus, plain(&host.cpu))?;
    writeln!(out, "{} on {}", plain(&host.filesystem), plain(&host.device))?;
    let rivals: Vec<String> = results.programs.iter().map(named).collect();
    if !rivals.is_empty() {
        writeln!(out, "against {}", rivals.join("; "))?;
    }
    let stopped = if run.complete { "" } else { ", interrupted" };
    writeln!(out, "{} in {}{stopped}", counted(run.trials, "trial"), format::seconds(run.seconds))
}

fn named(program: &Program) -> String {
    match &program.version {
        Some(version) if version.contains(&program.name) => plain(version).into_owned(),
        Some(version) => format!("{} {}", program.name, plain(version)),
        None => format!("{} (missing)", program.name),
    }
}

fn print_scenario(scenario: &ScenarioResult, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{}: {}", scenario.name, scenario.about)?;
    let largest = scenario.targets.iter().filter(|target| target.kind != Kind::Null).filter_map(|t| t.summary);
    let unit = scenario.metric.unit(largest.map(|summary| summary.median).fold(0.0, f64::max));
    let speed = format!("{}, {}", scenario.metric.name(), unit.name);
    let heads = [
        ("", Align::Left),
        (&*speed, Align::Right),
        ("spread", Align::Right),
        ("ours is", Align::Right),
        ("CPU s/GiB", Align::Right),
        ("peak RSS", Align::Right),
        ("system calls", Align::Right),
    ];
    let rows = scenario.targets.iter().filter(|target| target.ran()).map(|target| cells(scenario, target, unit));
    writeln!(out, "{}", grid(&heads, rows))?;
    print_latency(scenario, out)?;
    scenario.targets.iter().try_for_each(|target| print_absence(target, out))?;
    scenario.targets.iter().try_for_each(|target| print_other_metrics(target, out))?;
    scenario.grouped_warnings().iter().try_for_each(|said| print_warning(&said.targets, &said.warning, out))
}

fn cells(scenario: &ScenarioResult, target: &TargetResult, unit: &Unit) -> Vec<String> {
    let costs = Costs::of(target, scenario);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        format!("  {}", plain(&target.name)),
        or_dash(target.summary.map(|summary| unit.number(summary.median))),
        or_dash(target.summary.map(|summary| percent(summary.relative_spread()))),
        or_dash(scenario.relative_to(target).map(|relative| relative.ratio.to_string())),
        or_dash(costs.cpu_seconds_per_gib.map(significant)),
        or_dash(costs.peak_rss_bytes.map(|bytes| Metric::Bytes.show(bytes))),
        or_dash(costs.system_calls.map(|calls| format!("{calls:.0}"))),
    ]
}

/// Prints a table of latencies, if a target has any.
fn print_latency(scenario: &ScenarioResult, out: &mut impl Write) -> io::Result<()> {
    let us = |quantity: f64| Metric::Microseconds.show(quantity);
    let rows = scenario.targets.iter().flat_map(|target| {
        target.latency.iter().map(move |(operation, latency)| {
            let quantities = [latency.p50, latency.p90, latency.p99, latency.max].map(us);
            let name = format!("  {}, {}", plain(&target.name), plain(operation));
            [name].into_iter().chain(quantities).chain([latency.count.to_string()]).collect::<Vec<_>>()
        })
    });
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let numbers = ["p50", "p90", "p99", "max", "count"].map(|head| (head, Align::Right));
    let heads: Vec<(&str, Align)> = [("  latency of", Align::Left)].into_iter().chain(numbers).collect();
    writeln!(out, "{}", grid(&heads, rows))
}

fn print_absence(target: &TargetResult, out: &mut impl Write) -> io::Result<()> {
    let name = plain(&target.name);
    match &target.outcome {
        Outcome::Ran => Ok(()),
        Outcome::Missing(why) => writeln!(out, "  {name} is missing: {}", plain(why)),
        Outcome::Failed(why) => writeln!(out, "  {name} FAILED: {}", plain(why)),
        Outcome::WrongBytes(why) => writeln!(out, "  {name} wrote WRONG BYTES: {}", plain(why)),
    }
}

/// Prints the other metrics of a target on one line.
fn print_other_metrics(target: &TargetResult, out: &mut impl Write) -> io::Result<()> {
    if target.other_metrics.is_empty() || !target.ran() {
        return Ok(());
    }
    let other_metrics =
        target.other_metrics.iter().map(|(name, value)| format!("{} {}", plain(name), format::named(name, *value)));
    writeln!(out, "  {}: {}", plain(&target.name), other_metrics.collect::<Vec<_>>().join(", "))
}

fn print_warning(targets: &str, warning: &Warning, out: &mut impl Write) -> io::Result<()> {
    let targets = if targets.is_empty() { String::new() } else { format!("{}: ", plain(targets)) };
    writeln!(out, "  ! {targets}{} ({}): {}", plain(&warning.what), warning.kind, plain(&warning.advice))
}

fn print_goals(results: &Results, out: &mut impl Write) -> io::Result<()> {
    let mut goals = results.scenarios.iter().flat_map(|scenario| &scenario.goals).peekable();
    if goals.peek().is_some() {
        writeln!(out, "\nGoals:")?;
    }
    goals.try_for_each(|goal| writeln!(out, "  {}", goal_line(goal)))
}

/// Formats a goal as `MISSED   dense-direct/fio: at least 0.95 of fio's rate: 0.94`.
fn goal_line(goal: &Goal) -> String {
    let mark = match goal.met {
        Some(true) => "met     ",
        Some(false) => "MISSED  ",
        None => "unknown ",
    };
    let found = goal.measured.map_or("not measured".to_owned(), significant);
    format!("{mark} {}: {}: {found}", goal.name, plain(&goal.about))
}

fn counted(count: u32, noun: &str) -> String {
    if count == 1 { format!("1 {noun} of each") } else { format!("{count} {noun}s of each") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;

    fn text(results: &Results) -> String {
        let mut text = Vec::new();
        print(results, &mut text).expect("memory takes everything");
        String::from_utf8(text).expect("it is text")
    }

    #[test]
    fn every_target_has_its_line_with_a_ratio() {
        let text = text(&sample_results::results(1));
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(line("  qemu-img ").contains("1.03") && line("  qemu-img ").contains("x ("), "{text}");
        assert!(!line("  blockhaul ").contains("x ("), "{text}");
        assert!(line("  ddrescue").contains("missing: not installed: apt install gddrescue"), "{text}");
        assert!(line("  engine, read").contains("ms"), "{text}");
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }

    #[test]
    fn warnings_and_goals_are_printed() {
        let text = text(&sample_results::results(1));
        for expected in [
            "  ! cp: spread of 11 % of the median (noisy): stop other work",
            "  ! dd copies one block at a time (different-flags)",
            "  ! the machine is virtual",
            "met      dense-direct/qemu-img",
            "MISSED   dense-direct/fio: at least 0.95 of fio's rate: 0.94",
            "unknown  dense-direct/ddrescue",
            "ddrescue (missing)",
            "  blockhaul: worker_system_calls 4096",
        ] {
            assert!(text.contains(expected), "'{expected}' is not in\n{text}");
        }
    }

    #[test]
    fn wrong_bytes_are_named_and_cannot_control_the_terminal() {
        let text = text(&sample_results::results(1));
        assert!(text.contains("qemu-img wrote WRONG BYTES: byte 4096 differs"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn an_empty_run_is_printed() {
        let mut run = sample_results::results(1);
        run.scenarios.clear();
        run.warnings.clear();
        run.run.complete = false;
        assert!(text(&run).ends_with("interrupted\n"));
    }
}
