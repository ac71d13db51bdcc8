//! Sends the progress of running copies to the leader. A lost report does no harm, as the next one replaces it.

use super::assignments::AssignmentTable;
use super::leader_notifier::{CALL_MAX, TASKS_PER_CALL};
use crate::model::{Progress, TaskId};
use crate::peers::LeaderClient;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Time between two reports of progress: at most four a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Reports the progress of copies to the dispatcher, for as long as it is polled.
pub(super) async fn send_progress(assignments: &AssignmentTable, leader: &dyn LeaderClient) {
    let mut reported: BTreeMap<TaskId, Progress> = BTreeMap::new();
    let mut held = assignments.count();
    loop {
        let _ = held.wait_for(|&count| count > 0).await;
        let now: BTreeMap<_, _> = assignments
            .all()
            .iter()
            .filter_map(|attempt| Some((attempt.task().clone(), attempt.running()?.progress())))
            .collect();
        let is_new = |(task, progress): &(&TaskId, &Progress)| reported.get(*task) != Some(*progress);
        let updates: Vec<_> = now.iter().filter(is_new).map(|(task, progress)| (task.clone(), *progress)).collect();
        for batch in updates.chunks(TASKS_PER_CALL) {
            let _ = timeout(CALL_MAX, leader.progress(batch)).await;
        }
        reported = now;
        sleep(PROGRESS_EVERY).await;
    }
}
