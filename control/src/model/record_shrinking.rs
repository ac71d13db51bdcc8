//! Shrinks a task's record to the size limit of a node in the store, by dropping what can be dropped.

use super::{OpId, Record, TaskRecord};
use crate::coord::NODE_BYTES_MAX;

/// Bytes reserved for what a later write may add: a holder, an attempt, a desired state.
const SPARE_BYTES: usize = 512;

impl TaskRecord {
    /// Returns the record as it is to be written: with a fresh operation id, and small enough.
    #[must_use]
    pub fn sealed(self) -> Self {
        Self { op: OpId::fresh(), ..self }.fitted()
    }

    /// Shrinks the record to the size of a node: first the report is dropped, then ranges of the map (the shortest
    /// first), then the text of the error, then the reason. Fields that decisions depend on always stay.
    fn fitted(mut self) -> Self {
        let is_fit = |record: &Self| record.encode().len() <= NODE_BYTES_MAX - SPARE_BYTES;
        if is_fit(&self) {
            return self;
        }
        self.report = None;
        while !is_fit(&self) && !self.map.is_empty() {
            self.map = self.map.halved();
        }
        if !is_fit(&self)
            && let Some(error) = &mut self.error
        {
            error.message = error.message.chars().take(100).collect();
        }
        if !is_fit(&self) {
            self.reason = self.reason.chars().take(100).collect();
        }
        self
    }
}
