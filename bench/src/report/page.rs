//! Renders the page: the summary first, then every scenario, then host and method.

use super::warning::warning;
use super::{palette, ratios, scenario};
use crate::format;
use crate::format::significant;
use crate::results::{Goal, Results, ScenarioResult, Sense};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Layout of the page; colours of charts come from the palette.
const STYLE: &str = include_str!("style.css");

/// Renders the whole page.
pub(crate) fn render(results: &Results) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "copy-bench, " (results.run.started_at) }
                style { (PreEscaped(palette::css())) (PreEscaped(STYLE)) }
            }
            body {
                (head(results))
                main {
                    @for about_all in &results.warnings { (warning("", about_all)) }
                    (cards(results))
                    @if let Some(chart) = ratios::of_run(results) { section { (chart) } }
                    (goals(results))
                    (contents(&results.scenarios))
                    @for (at, each) in results.scenarios.iter().enumerate() { (scenario::section(at, each)) }
                    (host_section(results))
                    (method_section())
                }
            }
        }
    };
    // HTML allows no control characters; text of other programs may contain some.
    page.into_string().replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}

fn head(results: &Results) -> Markup {
    let (build, run) = (&results.build, &results.run);
    html! {
        header {
            h1 { "copy-bench" }
            p {
                "blockhaul " (build.version)
                @if let Some(commit) = &build.commit { " at " code { (commit) } }
                " (" (build.profile) "), " (run.started_at)
            }
            p { code { (run.command.join(" ")) } }
            @if !run.complete { p.warning { strong { "incomplete" } " The run was interrupted." } }
        }
    }
}

/// Renders the run in four numbers.
fn cards(results: &Results) -> Markup {
    let relative_results: Vec<_> = results.scenarios.iter().filter_map(ScenarioResult::closest_rival).collect();
    let ahead = relative_results.iter().filter(|relative| relative.ratio.low > 1.0).count();
    let goals: Vec<&Goal> = results.scenarios.iter().flat_map(|scenario| &scenario.goals).collect();
    let met = goals.iter().filter(|goal| goal.met == Some(true)).count();
    let targets = results.scenarios.iter().flat_map(|scenario| &scenario.targets);
    let (ran, all) = targets.fold((0, 0), |(ran, all), target| (ran + usize::from(target.ran()), all + 1));
    let warnings = results.warnings.len()
        + results.scenarios.iter().map(|scenario| scenario.grouped_warnings().len()).sum::<usize>();
    let card = |number: String, meaning: &str| html! { div.card { div.number { (number) } div.note { (meaning) } } };
    html! {
        div.cards {
            (card(format!("{ahead} of {}", relative_results.len()), "scenarios in which ours beats every rival"))
            @if !goals.is_empty() { (card(format!("{met} of {}", goals.len()), "goals met")) }
            (card(format!("{ran} of {all}"), "targets ran to the end with the right bytes"))
            (card(warnings.to_string(), "warnings"))
        }
    }
}

fn goals(results: &Results) -> Markup {
    let goals: Vec<&Goal> = results.scenarios.iter().flat_map(|scenario| &scenario.goals).collect();
    html! {
        @if !goals.is_empty() {
            section {
                h2 { "Goals" }
                div.chart { table {
                    thead { tr { th { "goal" } th { "" } th.number { "found" } th.number { "bound" } th { "" } } }
                    tbody { @for goal in goals { (goal_row(goal)) } }
                } }
            }
        }
    }
}

fn goal_row(goal: &Goal) -> Markup {
    let (mark, class) = match goal.met {
        Some(true) => ("met", "good"),
        Some(false) => ("missed", "bad"),
        None => ("not measured", "note"),
    };
    let sense = match goal.sense {
        Sense::AtLeast => "≥",
        Sense::AtMost => "≤",
    };
    html! {
        tr {
            td { code { (goal.name) } }
            td.text { (goal.about) }
            td.number { (goal.measured.map_or("–".to_owned(), significant)) }
            td.number { (sense) " " (significant(goal.bound)) }
            td class=(class) { (mark) }
        }
    }
}

fn contents(scenarios: &[ScenarioResult]) -> Markup {
    html! {
        nav {
            @for (at, scenario) in scenarios.iter().enumerate() { a href={ "#s" (at) } { (scenario.name) } }
            a href="#place" { "host and method" }
        }
    }
}

fn host_section(results: &Results) -> Markup {
    let (host, run) = (&results.host, &results.run);
    let memory = format::bytes(host.memory_bytes);
    let known = [
        ("kernel", host.kernel.clone()),
        ("processor", format!("{} × {}", host.cpus, host.cpu)),
        ("memory", memory),
        ("file system", host.filesystem.clone()),
        ("device", host.device.clone()),
        ("trials of each target", run.trials.to_string()),
        ("duration", format::seconds(run.seconds)),
        ("seed", run.seed.to_string()),
    ];
    html! {
        section #place {
            h2 { "Host" }
            div.chart { table.facts { tbody {
                @for (name, fact) in &known { (fact_row(name, fact)) }
                @for (name, fact) in &host.facts { (fact_row(name, fact)) }
                @for program in &results.programs {
                    (fact_row(&program.name, program.version.as_deref().unwrap_or("not installed")))
                }
            } } }
        }
    }
}

fn fact_row(name: &str, fact: &str) -> Markup {
    html! { tr { td { (name) } td.text { (fact) } } }
}

fn method_section() -> Markup {
    html! {
        section {
            h2 { "How to read this" }
            ul {
                li { "Trials of all targets are interleaved, so that a slow minute affects all of them alike." }
                li { "Numbers are medians; the spread is the median absolute deviation from them." }
                li {
                    "A ratio says how many times as good ours is. It comes with the interval that holds the truth \
                    with 99 %: if 1 lies in it, no difference was seen."
                }
                li { "Copies are verified after every trial, outside of its time. A target that wrote wrong bytes counts as failed." }
                li { "CPU time includes the kernel's workers, which is an estimate, as others use them too." }
                li { "Raw samples and host facts are in " code { "results.json" } " beside this file." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;
    use roxmltree::Document;

    /// Turns the page into XML: drops the document type and closes void elements.
    fn xml(page: &str) -> String {
        let page = page.strip_prefix("<!DOCTYPE html>").expect("it starts with its type");
        page.split_inclusive('>')
            .map(|part| if part.contains("<meta ") { part.replace('>', "/>") } else { part.to_owned() })
            .collect()
    }

    #[test]
    fn the_page_is_well_formed() {
        let text = xml(&render(&sample_results::results(1)));
        let document = Document::parse(&text).expect("it is XML but for its void elements");
        let drawings: Vec<_> = document.descendants().filter(|node| node.tag_name().name() == "svg").collect();
        assert_eq!(
            drawings.len(),
            12,
            "of the run 1, of ratios 5, of time 1, of latency 3, of the window 1, of scaling 1"
        );
        for drawing in drawings {
            let title =
                drawing.children().find(|node| node.tag_name().name() == "title").and_then(|title| title.text());
            assert!(title.is_some_and(|title| title.len() > 10), "a drawing without a title is silent to some");
        }
        let anchors = |name| document.descendants().filter_map(move |node| node.attribute(name));
        for target in anchors("href") {
            assert!(anchors("id").any(|id| target == format!("#{id}")), "{target} leads nowhere");
        }
    }

    #[test]
    fn the_page_loads_no_other_file() {
        let page = render(&sample_results::results(1)).replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for foreign in ["http:", "https:", "<script", "<link", "@import", "url(", "src="] {
            assert!(!page.contains(foreign), "'{foreign}' asks for something outside of the file");
        }
    }

    #[test]
    fn text_of_other_programs_is_escaped() {
        let mut run = sample_results::results(1);
        let evil = "</style><script>alert(1)</script>";
        run.scenarios[0].name = evil.into();
        run.scenarios[0].targets[2].name = evil.into();
        run.host.facts.insert(evil.into(), evil.into());
        run.warnings[0].what = evil.into();
        run.run.started_at = evil.into();
        let page = render(&run);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)"));
        Document::parse(&xml(&page)).expect("it is XML but for its void elements");
    }

    #[test]
    fn failures_warnings_and_missed_goals_are_on_the_page() {
        let page = render(&sample_results::results(1));
        for expected in
            ["wrong bytes", "not installed: apt install gddrescue", "spread of 11 %", "missed", "not measured"]
        {
            assert!(page.contains(expected), "'{expected}' is not on the page");
        }
    }

    #[test]
    fn both_schemes_are_served() {
        let page = render(&sample_results::results(1));
        assert!(
            page.contains("prefers-color-scheme:dark") && page.contains("svg [fill=\"#2563EB\"]{fill:var(--ours)}")
        );
    }

    #[test]
    fn an_empty_run_is_a_page_too() {
        let mut run = sample_results::results(1);
        run.scenarios.clear();
        run.run.complete = false;
        let page = render(&run);
        Document::parse(&xml(&page)).expect("it is XML but for its void elements");
        assert!(page.contains("was interrupted"));
    }
}
