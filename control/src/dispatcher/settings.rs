//! Reads and changes the settings of the center, and asks for the hook that tells of tasks that have failed.

use super::Dispatcher;
use super::event::Event;
use super::handle::Reply;
use super::now::Now;
use super::write::{RecordChange, Writer};
use crate::coord::{Znode, paths};
use crate::model::state_machine::TaskEvent;
use crate::model::{
    Actor, OpId, Record, RunTask, SettingName, Settings, Submission, TaskId, TaskRecord, TaskSpec, TaskState,
};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::time::Duration;

/// Wait before it is looked whether the task of a hook is stored.
const NOTIFIED_CHECK: Duration = Duration::from_secs(1);
/// Longest message of a failure that a hook gets, in characters.
const MESSAGE_MAX: usize = 1000;

/// Settings as they are stored, and the version of their node; `None`: there is none yet.
pub(crate) type StoredSettings = (Settings, Option<i32>);

impl Dispatcher {
    /// Answers with the settings, after these changes.
    pub(crate) fn change_settings(
        &mut self,
        changes: Vec<(SettingName, String)>,
        if_version: Option<u32>,
        reply: Reply<StoredSettings>,
    ) {
        if changes.is_empty() {
            let _ = reply.send(Ok(self.cluster.settings.clone()));
            return;
        }
        let (writer, now_ms) = (self.writer.clone(), self.clock.unix_ms());
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let result = store_settings(&writer, &changes, if_version, now_ms).await;
            Event::SettingsStored { result, reply }
        });
    }

    /// Applies settings as they were stored, and answers the client.
    pub(crate) fn apply_stored_settings(&mut self, result: Result<StoredSettings>, reply: Reply<StoredSettings>) {
        if let Ok(stored) = &result
            && stored.1 >= self.cluster.settings.1
        {
            tracing::info!(settings = ?stored.0.all(), "settings changed");
            self.cluster.set_settings(stored.clone(), self.clock.boot_time());
        }
        let _ = reply.send(result);
    }

    /// Applies the settings as they were read when the term began. Settings that cannot be decoded count as not set.
    pub(crate) fn load_settings(&mut self, node: &Znode) {
        match Settings::decode(&node.data) {
            Ok(settings) => {
                self.cluster.set_settings((settings, Some(node.stat.version)), self.clock.boot_time());
            }
            Err(error) => self.report_undecodable(paths::SETTINGS.to_owned(), error.to_string()),
        }
    }

    /// Makes the task that runs a hook for a task that has failed; notes that once it is stored.
    pub(crate) fn notify_failure(&mut self, id: &TaskId, now: Now) {
        let Some(entry) = self.cluster.tasks.get(id) else { return };
        let record = entry.record.clone();
        let name = notification_id(&record);
        if self.cluster.tasks.get(&name).is_some() {
            return self.transition(id, vec![TaskEvent::FailureNotified], now);
        }
        self.cluster.make_due(id, now.boot + NOTIFIED_CHECK);
        if let Some(hook) = self.cluster.settings.0.notify.as_ref().map(|notify| notify.hook.clone())
            && !self.submitters.contains_key(&name)
        {
            let (reply, _) = tokio::sync::oneshot::channel();
            self.submit(notification(name, &record, hook), Actor::Dispatcher, reply);
        }
    }
}

/// Tells whether a hook is to be run for a task, and has not been asked for.
pub(crate) fn awaits_notification(settings: &Settings, record: &TaskRecord) -> bool {
    record.state == TaskState::Failed
        && !record.is_notified
        && record.notifies.is_none()
        && settings.notify.as_ref().is_some_and(|notify| record.updated_ms >= notify.since_ms)
}

/// Returns the id of the task that tells of a failure: the same whichever leader makes it.
fn notification_id(record: &TaskRecord) -> TaskId {
    let hash = blake3::hash(format!("{} {}", record.id, record.created_ms).as_bytes()).to_hex();
    TaskId::new(format!("notify-{}", &hash[..16])).expect("letters and digits")
}

/// Returns the task that runs `hook` for a task that has failed.
fn notification(name: TaskId, record: &TaskRecord, hook: String) -> Submission {
    let code = record.error.as_ref().map_or("", |error| error.code.as_str());
    let message = record.error.as_ref().map(|error| error.message.chars().take(MESSAGE_MAX).collect::<String>());
    let spec = TaskSpec::Run(RunTask {
        hook,
        node: None,
        arguments: vec![format!("TASK={}", record.id), format!("CODE={code}")],
        input: message.unwrap_or_default(),
        timeout_ms: RunTask::TIMEOUT_DEFAULT_MS,
        at_most_once: false,
        unknown: crate::model::UnknownFields::default(),
    });
    Submission { notifies: Some(record.id.clone()), ..Submission::new(name, record.priority, 5, spec) }
}

/// Stores changed settings.
async fn store_settings(
    writer: &Writer,
    changes: &[(SettingName, String)],
    if_version: Option<u32>,
    now_ms: u64,
) -> Result<StoredSettings> {
    let op = OpId::fresh();
    let decide = |stored: Option<(&[u8], i32)>| {
        let before = stored.map_or(Ok(Settings::default()), |(data, _)| Settings::decode(data)).map_err(undecodable)?;
        if before.op == op {
            return Ok(RecordChange::Keep(Some(before)));
        }
        check_version(shown_version(stored.map(|(_, version)| version)), if_version)?;
        let mut settings = before.clone();
        for (name, value) in changes {
            settings.set(*name, value, now_ms)?;
        }
        if settings == before {
            return Ok(RecordChange::Keep(Some(before)));
        }
        Ok(RecordChange::Store(Settings { op: op.clone(), ..settings }))
    };
    let stored = writer.change_record(paths::SETTINGS, decide).await?;
    Ok(stored.map_or_else(Default::default, |(settings, version)| (settings, Some(version))))
}

/// Returns the version that clients see: 0 before the first change.
pub(crate) fn shown_version(version: Option<i32>) -> u32 {
    version.map_or(0, |version| u32::try_from(version).unwrap_or_default() + 1)
}

fn check_version(version: u32, wanted: Option<u32>) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != version => {
            let message = format!("the settings have version {version}, not {wanted}");
            Err(Error::new(Code::Exists, Side::Caller, Operation::Parse, message))
        }
        _ => Ok(()),
    }
}

fn undecodable(error: serde_json::Error) -> Error {
    let message = format!("{} cannot be decoded: {error}", paths::SETTINGS);
    Error::new(Code::Unsupported, Side::Coordination, Operation::Read, message)
        .advise("let a taskd of the version that has written it lead")
}
