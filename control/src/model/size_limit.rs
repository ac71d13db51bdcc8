//! Shrinks a task's record to the size limit of a node in the store, by dropping what can be dropped.

use super::{OpId, Record, TaskRecord};
use crate::coord::NODE_BYTES_MAX;

/// Room that is left for what a later write may add without asking: a holder, an attempt, a wish.
const SPARE_BYTES: usize = 512;

impl TaskRecord {
    /// The record as it is to be written: named by this write, and small enough.
    #[must_use]
    pub fn sealed(self) -> Self {
        Self { op: OpId::fresh(), ..self }.fitted()
    }

    /// The record, with as much as a node has room for: first the report goes, then ranges of the map (the shortest
    /// first), then the text of the error, then the reason. What a decision depends on always stays.
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
