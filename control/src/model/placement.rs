//! Defines on which nodes a task may run, as far as the nodes' labels and other tasks decide that.
//!
//! | rule | what |
//! | --- | --- |
//! | `require` | labels that its node must have |
//! | `prefer` | labels that its node should have: of the nodes that may run it, one with the most of them does |
//! | `apart_from` | a key: two tasks with one key are never on one node at once |

use blockhaul_engine::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Labels of a node, or wanted of one.
pub type Labels = BTreeMap<String, String>;

/// Longest label in bytes, with its `=`, as of a node.
pub const LABEL_BYTES_MAX: usize = 256;
/// Most labels of one rule.
const LABELS_MAX: usize = 16;
/// Most bytes of the labels of one rule together.
const LABELS_BYTES_MAX: usize = 512;
/// Longest key of tasks that stay apart, in bytes.
const KEY_BYTES_MAX: usize = 64;

/// Rules for the node of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlacementRules {
    /// Labels that its node must have.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub require: Labels,
    /// Labels that its node should have.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub prefer: Labels,
    /// Key of the tasks that never share a node with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart_from: Option<String>,
}

impl PlacementRules {
    /// Tells serde to leave out what is not set.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the rules of a new task.
    ///
    /// # Errors
    /// `EBadRequest` if a label or key is too long or is none, or if there are too many.
    pub(crate) fn check(&self) -> Result<()> {
        for (rule, labels) in [("require", &self.require), ("prefer", &self.prefer)] {
            let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
            if labels.len() > LABELS_MAX || bytes > LABELS_BYTES_MAX {
                return Err(Error::bad_request(format!(
                    "{rule} has at most {LABELS_MAX} labels of {LABELS_BYTES_MAX} bytes together"
                )));
            }
            let is_bad = |key: &str| key.is_empty() || key.contains('=');
            if let Some(key) = labels.keys().find(|key| is_bad(key)) {
                return Err(Error::bad_request(format!("{rule}: '{}' is not a label", key.escape_debug())));
            }
        }
        match &self.apart_from {
            Some(key) if key.is_empty() || key.len() > KEY_BYTES_MAX => {
                Err(Error::bad_request(format!("the key of tasks that stay apart has 1 to {KEY_BYTES_MAX} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Tells whether a node with these labels may run the task.
    #[must_use]
    pub fn allow(&self, labels: &Labels) -> bool {
        self.require.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Returns the number of preferred labels among these.
    #[must_use]
    pub fn preference(&self, labels: &Labels) -> usize {
        self.prefer.iter().filter(|(key, value)| labels.get(*key) == Some(value)).count()
    }
}

/// Parses `KEY=VALUE`.
///
/// # Errors
/// `EBadRequest`.
pub fn parse_label(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && text.len() <= LABEL_BYTES_MAX => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => {
            let text = text.chars().take(LABEL_BYTES_MAX).collect::<String>();
            Err(Error::bad_request(format!(
                "'{}' is not a label: use KEY=VALUE of at most {LABEL_BYTES_MAX} bytes",
                text.escape_debug()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Labels {
        texts.iter().map(|text| parse_label(text).unwrap()).collect()
    }

    #[test]
    fn a_node_needs_each_required_label_and_counts_the_preferred_ones() {
        let rules = PlacementRules {
            require: labels(&["disk=ssd"]),
            prefer: labels(&["rack=a", "row=1"]),
            ..PlacementRules::default()
        };
        assert!(rules.allow(&labels(&["disk=ssd", "rack=b"])) && !rules.allow(&labels(&["disk=hdd", "rack=a"])));
        assert!(!rules.allow(&labels(&[])) && PlacementRules::default().allow(&labels(&[])));
        assert_eq!(rules.preference(&labels(&["rack=a", "row=2"])), 1);
        assert_eq!(rules.preference(&labels(&["rack=a", "row=1", "disk=ssd"])), 2);
    }

    #[test]
    fn labels_and_keys_that_are_none_are_refused() {
        for bad in ["", "=x", "disk", &format!("k={}", "v".repeat(LABEL_BYTES_MAX))] {
            assert!(parse_label(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        let many = |count: usize| (0..count).map(|number| (format!("k{number}"), String::new())).collect::<Labels>();
        let check = |rules: PlacementRules| rules.check().is_ok();
        assert!(check(PlacementRules { require: many(LABELS_MAX), ..PlacementRules::default() }));
        assert!(!check(PlacementRules { prefer: many(LABELS_MAX + 1), ..PlacementRules::default() }));
        let long = Labels::from([("k".to_owned(), "v".repeat(LABELS_BYTES_MAX))]);
        assert!(!check(PlacementRules { require: long, ..PlacementRules::default() }));
        for key in [String::new(), "k".repeat(KEY_BYTES_MAX + 1)] {
            assert!(!check(PlacementRules { apart_from: Some(key), ..PlacementRules::default() }));
        }
    }

    #[test]
    fn a_record_without_rules_has_no_field_of_them() {
        assert_eq!(serde_json::to_string(&PlacementRules::default()).unwrap(), "{}");
    }
}
