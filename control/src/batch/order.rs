//! Decides the order of members: which wait for each other, which form a circle, and which are clean-up. Pure.

use super::{Member, MemberDependency};
use crate::model::TaskVolume;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::flow::graph::Condition;
use std::collections::HashMap;

/// Maps what members write to the members that do.
type Writers = HashMap<String, usize>;

/// Maps each volume that is written to its member.
///
/// # Errors
/// `EBadRequest` if two members write one volume.
pub(super) fn writers(members: &[Member], identify: &dyn Fn(&TaskVolume) -> String) -> Result<Writers> {
    let mut writers = Writers::new();
    for (index, member) in members.iter().enumerate() {
        let Some(volume) = member.work.destination()? else { continue };
        if let Some(other) = writers.insert(identify(&volume), index) {
            let message = format!("{} and {} write the same volume, {volume}", members[other].id, member.id);
            return Err(Error::bad_request(message));
        }
    }
    Ok(writers)
}

/// Has members wait for the success of the member that writes what they read, unless the file has that one wait for them.
pub(super) fn add_implied(
    members: &mut [Member],
    writers: &Writers,
    identify: &dyn Fn(&TaskVolume) -> String,
) -> Result<()> {
    let mut implied = Vec::new();
    for reader in 0..members.len() {
        let volumes = members[reader].work.sources()?;
        let found = volumes.iter().filter_map(|volume| writers.get(&identify(volume)).copied());
        for writer in found.filter(|&writer| writer != reader) {
            let known = members[reader].after.iter_mut().find(|dependency| dependency.on == writer);
            if let Some(known) = known {
                known.reads_destination = true;
            } else if !waits_for(members, writer, reader) {
                implied.push((reader, writer));
            }
        }
    }
    for (reader, on) in implied {
        members[reader].after.push(MemberDependency { on, condition: Condition::Success, reads_destination: true });
    }
    Ok(())
}

/// Tells whether a member waits for another one, directly or through others.
fn waits_for(members: &[Member], member: usize, other: usize) -> bool {
    let mut is_seen = vec![false; members.len()];
    let mut open = vec![member];
    while let Some(index) = open.pop() {
        for dependency in &members[index].after {
            if dependency.on == other {
                return true;
            }
            if !std::mem::replace(&mut is_seen[dependency.on], true) {
                open.push(dependency.on);
            }
        }
    }
    false
}

/// Returns the members in an order in which each comes after those that it waits for. Members of a circle, and those
/// that wait for them, are missing.
pub(super) fn topological(members: &[Member]) -> Vec<usize> {
    let mut dependents = vec![Vec::new(); members.len()];
    let mut open: Vec<usize> = members.iter().map(|member| member.after.len()).collect();
    for (index, member) in members.iter().enumerate() {
        member.after.iter().for_each(|dependency| dependents[dependency.on].push(index));
    }
    let mut order: Vec<usize> = (0..members.len()).filter(|&index| open[index] == 0).collect();
    let mut next = 0;
    while let Some(&index) = order.get(next) {
        next += 1;
        for &dependent in &dependents[index] {
            open[dependent] -= 1;
            if open[dependent] == 0 {
                order.push(dependent);
            }
        }
    }
    order
}

/// Returns members that wait for each other in a circle.
pub(super) fn circle(members: &[Member]) -> Option<Vec<usize>> {
    let order = topological(members);
    let mut is_ordered = vec![false; members.len()];
    order.iter().for_each(|&index| is_ordered[index] = true);
    let mut path = vec![is_ordered.iter().position(|is_ordered| !is_ordered)?];
    loop {
        // Every member that has no place in the order waits for another one that has none.
        let next = members[*path.last()?].after.iter().map(|dependency| dependency.on).find(|&on| !is_ordered[on])?;
        if let Some(begin) = path.iter().position(|&index| index == next) {
            path.drain(..begin);
            path.push(next);
            return Some(path);
        }
        path.push(next);
    }
}

/// Returns for each member whether it is clean-up. There is no circle.
pub(super) fn clean_up(members: &[Member]) -> Vec<bool> {
    let mut is_clean_up = vec![false; members.len()];
    for index in topological(members) {
        let after = &members[index].after;
        let waits_for_an_end = after.iter().any(|dependency| dependency.condition != Condition::Success);
        let is_after_clean_up = !after.is_empty() && after.iter().all(|dependency| is_clean_up[dependency.on]);
        is_clean_up[index] = waits_for_an_end || is_after_clean_up;
    }
    is_clean_up
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Work;
    use crate::model::{NoopTask, PlacementRules, TaskId, TaskSpec};

    /// Builds members `0`, `1`, ... that wait for the given ones.
    fn members(after: &[&[(usize, Condition)]]) -> Vec<Member> {
        let dependency =
            |&(on, condition): &(usize, Condition)| MemberDependency { on, condition, reads_destination: false };
        let member = |(index, after): (usize, &&[(usize, Condition)])| Member {
            id: TaskId::new(index.to_string()).unwrap(),
            after: after.iter().map(dependency).collect(),
            work: Work::Task(TaskSpec::Noop(NoopTask::new(0, None))),
            placement: PlacementRules::default(),
            windows: Vec::new(),
        };
        after.iter().enumerate().map(member).collect()
    }

    use Condition::{End, Failure, Success};

    #[test]
    fn a_circle_is_named_from_any_member_of_it() {
        let chain = members(&[&[(1, Success)], &[(2, End)], &[]]);
        assert_eq!((circle(&chain), topological(&chain)), (None, vec![2, 1, 0]));
        let circular = members(&[&[(1, Success)], &[(2, Success)], &[(1, End)], &[]]);
        assert_eq!((circle(&circular), topological(&circular)), (Some(vec![1, 2, 1]), vec![3]));
        assert_eq!(circle(&members(&[&[(0, Success)]])), Some(vec![0, 0]));
    }

    #[test]
    fn clean_up_waits_for_an_end_or_for_clean_up_alone() {
        let freeze_copy_thaw_log =
            members(&[&[], &[(0, Success)], &[(0, Success), (1, End)], &[(2, Success)], &[(1, Failure)]]);
        assert_eq!(clean_up(&freeze_copy_thaw_log), [false, false, true, true, true]);
        let mixed = members(&[&[], &[(0, End)], &[(1, Success), (0, Success)]]);
        assert_eq!(clean_up(&mixed), [false, true, false]);
    }

    #[test]
    fn a_long_chain_costs_no_stack() {
        let after: Vec<Vec<_>> =
            (0..10_000).map(|index| if index == 0 { vec![] } else { vec![(index - 1, Success)] }).collect();
        let members = members(&after.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(topological(&members).len(), 10_000);
        assert!(waits_for(&members, 9_999, 0) && !waits_for(&members, 0, 9_999));
    }
}
