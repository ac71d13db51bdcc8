//! Draws the members of a group and what they wait for: each in a column after all of those. Pure.

use super::format;
use crate::rpc::task_view::TaskView;
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Most members that are drawn: more cannot be read.
const DRAWN_MAX: usize = 60;
/// Distances and sizes of boxes.
const WIDTH: usize = 190;
const HEIGHT: usize = 34;
const GAP_X: usize = 50;
const GAP_Y: usize = 14;
/// Longest name in a box, in characters.
const NAME_CHARS_MAX: usize = 24;

/// Draws the group; marks the member whose page it is on.
pub(super) fn graph(members: &[TaskView], here: &str) -> Markup {
    if members.is_empty() || members.len() > DRAWN_MAX {
        return html! {};
    }
    let places = places(members);
    let columns = places.values().map(|(column, _)| column + 1).max().unwrap_or_default();
    let rows = places.values().map(|(_, row)| row + 1).max().unwrap_or_default();
    let (wide, high) = (columns * (WIDTH + GAP_X), rows * (HEIGHT + GAP_Y) + GAP_Y);
    html! {
        div.graph tabindex="0" {
            svg width=(wide) height=(high) viewBox={ "0 0 " (wide) " " (high) } role="img" aria-label="What waits for what" {
                @for task in members {
                    @for on in &task.after {
                        @if let (Some(from), Some(to)) = (places.get(&*on.task), places.get(&*task.id)) {
                            @let (from, to) = (corner(*from), corner(*to));
                            line x1=(from.0 + WIDTH) y1=(from.1 + HEIGHT / 2) x2=(to.0) y2=(to.1 + HEIGHT / 2) {}
                        }
                    }
                }
                @for task in members {
                    @let (x, y) = corner(places[&*task.id]);
                    a href={ "/tasks/" (task.id) } {
                        rect class=(task.state.to_ascii_lowercase()) x=(x) y=(y) width=(WIDTH) height=(HEIGHT) rx="4" {}
                        text x=(x + 8) y=(y + 14) { @if task.id == here { "\u{25b8} " } (name(&task.id)) }
                        text x=(x + 8) y=(y + 28) { (format::text(&task.state)) " " (task.kind) }
                    }
                }
            }
        }
    }
}

fn corner((column, row): (usize, usize)) -> (usize, usize) {
    (column * (WIDTH + GAP_X), row * (HEIGHT + GAP_Y) + GAP_Y)
}

/// Returns the end of a name, which tells members of one group apart.
fn name(id: &str) -> String {
    let text = format::text(id);
    let chars = text.chars().count();
    if chars <= NAME_CHARS_MAX {
        return text;
    }
    format!("\u{2026}{}", text.chars().skip(chars - NAME_CHARS_MAX).collect::<String>())
}

/// Returns the column and the row of each member.
fn places(members: &[TaskView]) -> BTreeMap<&str, (usize, usize)> {
    let mut columns: BTreeMap<&str, usize> = members.iter().map(|task| (&*task.id, 0)).collect();
    // The longest chain has as many members as there are.
    for _ in members {
        let mut has_moved = false;
        for task in members {
            let before = task.after.iter().filter_map(|on| columns.get(&*on.task)).max().map_or(0, |column| column + 1);
            let column = columns.entry(&task.id).or_default();
            has_moved |= *column < before;
            *column = before.max(*column).min(members.len());
        }
        if !has_moved {
            break;
        }
    }
    let mut rows = BTreeMap::<usize, usize>::new();
    let mut place = |column: usize| {
        let row = rows.entry(column).or_default();
        *row += 1;
        (column, *row - 1)
    };
    members.iter().map(|task| (&*task.id, place(columns[&*task.id]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire;

    fn member(id: &str, after: &[&str]) -> TaskView {
        let after = after.iter().map(|task| wire::Dependency { task: (*task).to_owned(), condition: "success".into() });
        TaskView::from(wire::Task {
            id: id.to_owned(),
            state: String::from("PENDING"),
            after: after.collect(),
            ..wire::Task::default()
        })
    }

    #[test]
    fn a_member_is_right_of_all_that_it_waits_for() {
        let members = [
            member("thaw", &["a", "b"]),
            member("b", &["a", "freeze"]),
            member("a", &["freeze"]),
            member("freeze", &[]),
        ];
        let places = places(&members);
        assert_eq!([places["freeze"], places["a"], places["b"], places["thaw"]], [(0, 0), (1, 0), (2, 0), (3, 0)]);
        let drawn = graph(&members, "a").into_string();
        assert_eq!((drawn.matches("<rect").count(), drawn.matches("<line").count()), (4, 5), "{drawn}");
    }

    #[test]
    fn members_side_by_side_have_rows_of_their_own_and_no_circle_hangs() {
        let places_of = |members: &[TaskView]| places(members).into_values().collect::<Vec<_>>();
        assert_eq!(places_of(&[member("a", &[]), member("b", &["elsewhere"])]), [(0, 0), (0, 1)]);
        assert_eq!(places(&[member("a", &["b"]), member("b", &["a"])]).len(), 2);
        let many: Vec<_> = (0..=DRAWN_MAX).map(|number| member(&format!("m{number}"), &[])).collect();
        assert!(graph(&many, "m1").into_string().is_empty());
    }
}
