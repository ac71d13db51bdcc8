//! Puts the events inside an attempt's span into the log of that attempt.
//!
//! The span of an attempt has the fields `task` and `assigned_ms`. The latter is recorded when the attempt has read its
//! record; until then the lines are kept here. An attempt that never gets so far has no log. The end of the span is the end of
//! the log.

use super::event_text::text_of;
use super::name::LogName;
use super::{QUEUE_BYTES_MAX, Shared};
use crate::model::TaskId;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Field that names an attempt's log, besides its task: only spans of attempts have it.
pub(crate) const ASSIGNED_FIELD: &str = "assigned_ms";

/// Lines that wait for the record of their attempt.
const WAITING_MAX: usize = 16;
const _: () = assert!(WAITING_MAX * super::LINE_BYTES_MAX <= QUEUE_BYTES_MAX);

/// Layer of a subscriber that writes logs of attempts; see the module's head.
#[derive(Debug)]
pub struct AttemptLogLayer(Arc<Shared>);

/// Log of the attempt of a span.
#[derive(Debug)]
struct SpanLog {
    task: TaskId,
    stage: Mutex<Stage>,
    /// Lines that found no room since the last one that did.
    unqueued_lines: AtomicU64,
}

#[derive(Debug)]
enum Stage {
    /// The record was not read yet; these lines wait.
    Unnamed(Vec<Vec<u8>>),
    Named(LogName),
    /// Too many attempts log.
    Refused,
}

impl AttemptLogLayer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    fn add(&self, log: &SpanLog, line: Vec<u8>) {
        match &mut *log.stage() {
            Stage::Unnamed(lines) if lines.len() < WAITING_MAX => lines.push(line),
            Stage::Unnamed(_) => _ = log.unqueued_lines.fetch_add(1, Relaxed),
            Stage::Named(name) => self.send(log, name, line),
            Stage::Refused => {}
        }
    }

    fn name(&self, log: &SpanLog, assigned_ms: u64) {
        let mut stage = log.stage();
        let Stage::Unnamed(lines) = &mut *stage else { return };
        let lines = std::mem::take(lines);
        let name = LogName { assigned_ms, task: log.task.clone() };
        if !self.0.index().begin(&name) {
            *stage = Stage::Refused;
            return;
        }
        lines.into_iter().for_each(|line| self.send(log, &name, line));
        *stage = Stage::Named(name);
    }

    fn send(&self, log: &SpanLog, name: &LogName, line: Vec<u8>) {
        let unqueued_lines = log.unqueued_lines.swap(0, Relaxed);
        if !self.0.send_line(name, line, unqueued_lines) {
            log.unqueued_lines.fetch_add(unqueued_lines + 1, Relaxed);
        }
    }
}

impl SpanLog {
    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fields of a span that name a log.
#[derive(Debug, Default)]
struct NameFields {
    task: Option<TaskId>,
    assigned_ms: Option<u64>,
}

impl Visit for NameFields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "task" {
            self.task = TaskId::new(format!("{value:?}")).ok();
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == ASSIGNED_FIELD {
            self.assigned_ms = Some(value);
        }
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for AttemptLogLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().fields().field(ASSIGNED_FIELD).is_none() {
            return;
        }
        let mut fields = NameFields::default();
        attributes.record(&mut fields);
        if let (Some(task), Some(span)) = (fields.task, context.span(id)) {
            let (stage, unqueued_lines) = (Mutex::new(Stage::Unnamed(Vec::new())), AtomicU64::new(0));
            span.extensions_mut().insert(Arc::new(SpanLog { task, stage, unqueued_lines }));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = NameFields::default();
        values.record(&mut fields);
        let log = context.span(id).and_then(|span| span.extensions().get::<Arc<SpanLog>>().cloned());
        if let (Some(assigned_ms), Some(log)) = (fields.assigned_ms, log) {
            self.name(&log, assigned_ms);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(mut scope) = context.event_scope(event) else { return };
        if let Some(log) = scope.find_map(|span| span.extensions().get::<Arc<SpanLog>>().cloned()) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.add(&log, text_of(event, u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let log = context.span(&id).and_then(|span| span.extensions().get::<Arc<SpanLog>>().cloned());
        if let Some(log) = log
            && let Stage::Named(name) = &*log.stage()
        {
            self.0.send_end(name, log.unqueued_lines.swap(0, Relaxed));
        }
    }
}
