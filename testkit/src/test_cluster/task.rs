//! Parses a task as `blockhaul get --json` prints it.

use serde_json::Value;

/// A task at one moment.
#[derive(Clone, Debug)]
pub struct Task(pub Value);

impl Task {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    pub fn state(&self) -> &str {
        self.text("state")
    }

    pub fn reason(&self) -> &str {
        self.text("reason")
    }

    /// Returns the node of its current or last holder; empty if there was none.
    pub fn node(&self) -> &str {
        self.text("node")
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state(), "SUCCEEDED" | "FAILED" | "CANCELLED" | "SKIPPED")
    }

    /// Returns the code of its last failure; empty if there was none.
    pub fn error(&self) -> &str {
        self.0["error"]["code"].as_str().unwrap_or_default()
    }

    /// Returns the outcomes of its attempts, oldest first; an empty string for a running one.
    pub fn outcomes(&self) -> Vec<String> {
        let attempts = self.0["attempts"].as_array().cloned().unwrap_or_default();
        attempts.iter().map(|attempt| attempt["outcome"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Returns the nodes of its attempts, oldest first.
    pub fn runners(&self) -> Vec<String> {
        let attempts = self.0["attempts"].as_array().cloned().unwrap_or_default();
        attempts.iter().map(|attempt| attempt["runner"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Returns the bytes that were durable when its last attempt began, by its report.
    pub fn resumed(&self) -> u64 {
        self.0["report"]["bytes"]["resumed"].as_u64().unwrap_or_default()
    }

    /// A number of its progress.
    pub fn progress(&self, field: &str) -> u64 {
        self.0["progress"][field].as_u64().unwrap_or_default()
    }
}
