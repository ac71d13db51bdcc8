//! Turns OpenMetrics into the older text format of Prometheus, which other readers and `promtool` expect. Pure.

use std::collections::BTreeSet;

/// Returns the same metrics: counters are named with their `_total` in the comments, too, and there are neither units nor an
/// end mark.
pub(super) fn classic(open_metrics: &str) -> String {
    let counter = |line: &'_ str| Some(line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.to_owned());
    let counters: BTreeSet<String> = open_metrics.lines().filter_map(counter).collect();
    let mut classic = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        let (mark, what, name, rest) = (words.next(), words.next(), words.next(), words.next());
        match (mark, what, name, rest) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                classic.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_one_name_and_all_else_stays() {
        let text = "# HELP a_seconds Time of a.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total 1.5\n\
                    # HELP b It is b.\n# TYPE b gauge\nb{c=\"# TYPE x counter\"} 2\n# EOF\n";
        let expected = "# HELP a_seconds_total Time of a.\n# TYPE a_seconds_total counter\na_seconds_total 1.5\n\
                        # HELP b It is b.\n# TYPE b gauge\nb{c=\"# TYPE x counter\"} 2\n";
        assert_eq!(classic(text), expected);
    }
}
