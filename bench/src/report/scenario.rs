//! Renders one scenario: its question, numbers, charts and warnings.

use super::warning::warning;
use super::{lines, ratios};
use crate::format::{self, percent, significant};
use crate::relative::Costs;
use crate::results::{Kind, Metric, Outcome, ScenarioResult, TargetResult};
use maud::{Markup, html};

/// Renders the section of the scenario at this index.
pub(super) fn section(at: usize, scenario: &ScenarioResult) -> Markup {
    let single = [ratios::of_scenario(scenario), lines::scaling(scenario), lines::window(scenario)];
    let charts = single.into_iter().flatten().chain(lines::timelines(scenario)).chain(lines::latencies(scenario));
    html! {
        section id={ "s" (at) } {
            h2 { (scenario.name) }
            p { (scenario.about) }
            p.note { (parameters(scenario)) }
            (numbers(scenario))
            @for said in scenario.grouped_warnings() { (warning(&said.targets, &said.warning)) }
            (other_metrics(scenario))
            (latencies(scenario))
            @for chart in charts { (chart) }
            (commands(scenario))
        }
    }
}

fn parameters(scenario: &ScenarioResult) -> String {
    let sizes = [("volume", scenario.volume_bytes), ("data", scenario.data_bytes)];
    let sizes = sizes.iter().map(|(name, bytes)| format!("{name} {}", format::bytes(*bytes)));
    let others = scenario.parameters.iter().map(|(name, value)| format!("{name} {value}"));
    sizes.chain(others).collect::<Vec<_>>().join(" · ")
}

fn numbers(scenario: &ScenarioResult) -> Markup {
    html! {
        div.chart { table {
            thead { tr {
                th { "target" } th { "" }
                th.number { (scenario.metric.name()) } th.number { "spread" } th.number { "ours is" }
                th.number { "CPU s/GiB" } th.number { "peak RSS" } th.number { "system calls" }
            } }
            tbody { @for target in &scenario.targets { (row(scenario, target)) } }
        } }
    }
}

fn row(scenario: &ScenarioResult, target: &TargetResult) -> Markup {
    let costs = Costs::of(target, scenario);
    let summary = target.summary.filter(|_| target.ran());
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    html! {
        tr.ours[matches!(target.kind, Kind::Engine | Kind::Command)] {
            td { (target.name) }
            td.note { (kind(target.kind)) }
            @if let Some(why) = absence(target) {
                td.bad.text colspan="6" { (why) }
            } @else {
                td.number { (or_dash(summary.map(|summary| scenario.metric.show(summary.median)))) }
                td.number { (or_dash(summary.map(|summary| percent(summary.relative_spread())))) }
                td.number { (or_dash(scenario.relative_to(target).map(|relative| relative.ratio.to_string()))) }
                td.number { (or_dash(costs.cpu_seconds_per_gib.map(significant))) }
                td.number { (or_dash(costs.peak_rss_bytes.map(|bytes| Metric::Bytes.show(bytes)))) }
                td.number { (or_dash(costs.system_calls.map(|calls| format!("{calls:.0}")))) }
            }
        }
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Engine => "in process",
        Kind::Command => "ours",
        Kind::Rival => "rival",
        Kind::Limit => "limit",
        Kind::Null => "harness",
    }
}

fn absence(target: &TargetResult) -> Option<String> {
    match &target.outcome {
        Outcome::Ran => None,
        Outcome::Missing(why) => Some(format!("missing: {why}")),
        Outcome::Failed(why) => Some(format!("failed: {why}")),
        Outcome::WrongBytes(why) => Some(format!("wrong bytes: {why}")),
    }
}

/// Renders the other metrics of all targets.
fn other_metrics(scenario: &ScenarioResult) -> Markup {
    let seen = || scenario.targets.iter().filter(|target| target.ran() && !target.other_metrics.is_empty());
    html! {
        @if seen().next().is_some() {
            div.chart { table.facts {
                thead { tr { th { "also seen of" } th { "" } } }
                tbody { @for target in seen() { tr {
                    td { (target.name) }
                    td.text {
                        @for (name, value) in &target.other_metrics {
                            span.figure { (name) " " b { (format::named(name, *value)) } }
                        }
                    }
                } } }
            } }
        }
    }
}

fn latencies(scenario: &ScenarioResult) -> Markup {
    let us = |quantity: f64| Metric::Microseconds.show(quantity);
    html! {
        @if scenario.targets.iter().any(|target| !target.latency.is_empty()) {
            div.chart { table {
                thead { tr {
                    th { "latency of" }
                    @for head in ["p50", "p90", "p99", "max", "count"] { th.number { (head) } }
                    th { "all of it" }
                } }
                tbody { @for target in &scenario.targets { @for (operation, latency) in &target.latency {
                    tr {
                        td { (target.name) ", " (operation) }
                        @for quantity in [latency.p50, latency.p90, latency.p99, latency.max] {
                            td.number { (us(quantity)) }
                        }
                        td.number { (latency.count) }
                        td.note { (latency.file.as_deref().unwrap_or("–")) }
                    }
                } } }
            } }
        }
    }
}

fn commands(scenario: &ScenarioResult) -> Markup {
    html! {
        details {
            summary { "Commands" }
            div.chart { table.facts { tbody {
                @for target in &scenario.targets { tr { td { (target.name) } td.text { code { (target.command) } } } }
            } } }
        }
    }
}
