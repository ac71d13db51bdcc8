//! Remembers the last transitions of a task: what it became, when, why, on which node, and who asked for it.
//!
//! A transition is a change of the state, or of the desired state. What always holds: a record has at most [`KEPT`] of
//! them, the oldest first, and they take at most [`BYTES_MAX`] as JSON. No decision depends on them.

use super::{DesiredState, NodeId, TaskState, UnknownFields};
use serde::{Deserialize, Serialize};

/// Most transitions of a record: some attempts of a task, or all that one of few attempts has had.
pub(super) const KEPT: usize = 8;
/// Most bytes of all transitions of a record, as JSON: an eighth of what a record may have.
pub(super) const BYTES_MAX: usize = 1 << 10;
/// Most characters of a reason here. The last reason is also in the record, as a whole.
const REASON_CHARS_MAX: usize = 120;
/// Characters that a reason keeps where there is not enough room.
const REASON_CHARS_MIN: usize = 30;
/// Most characters of a client's name.
const NAME_CHARS_MAX: usize = 64;

/// The last transitions of a task, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Transitions(Vec<Transition>);

/// Transition of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// When, in milliseconds since 1970, by the clock of the process that has written it.
    #[serde(rename = "at")]
    pub at_ms: u64,
    /// State from then on.
    pub state: TaskState,
    /// State that was wanted from then on: the stronger one of what its client and its group wanted.
    #[serde(rename = "wish", default, skip_serializing_if = "DesiredState::is_run")]
    pub desired_state: DesiredState,
    /// Reason as text; empty if there was nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Node that had the task, before or from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Actor::is_dispatcher")]
    pub by: Actor,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Who asked for a transition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Actor {
    /// The leader, by itself or for a schedule or a group.
    #[default]
    Dispatcher,
    /// The node that had the task.
    Node,
    /// A client, with its name if that is known.
    Client(Option<String>),
    /// Somebody that only a later version knows.
    Unknown(String),
}

impl Actor {
    /// Returns the word for it: `dispatcher`, `node`, `client`, or that of a later version.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Dispatcher => "dispatcher",
            Self::Node => "node",
            Self::Client(_) => "client",
            Self::Unknown(word) => word,
        }
    }

    /// Returns the name of the client, if it is one and its name is known.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        match self {
            Self::Client(name) => name.as_deref(),
            Self::Dispatcher | Self::Node | Self::Unknown(_) => None,
        }
    }

    fn is_dispatcher(&self) -> bool {
        *self == Self::Dispatcher
    }
}

impl From<String> for Actor {
    fn from(word: String) -> Self {
        match word.as_str() {
            "dispatcher" => Self::Dispatcher,
            "node" => Self::Node,
            "client" => Self::Client(None),
            _ => match word.strip_prefix("client:") {
                Some(name) => Self::Client(Some(name.to_owned())),
                None => Self::Unknown(word),
            },
        }
    }
}

impl From<Actor> for String {
    fn from(actor: Actor) -> Self {
        match actor {
            Actor::Client(Some(name)) => format!("client:{name}"),
            other => other.word().to_owned(),
        }
    }
}

impl Transitions {
    /// Returns those of a task that is about to be stored: its creation.
    #[must_use]
    pub(crate) fn created(now_ms: u64, by: Actor) -> Self {
        let mut all = Self::default();
        all.push(Transition {
            at_ms: now_ms,
            state: TaskState::Pending,
            desired_state: DesiredState::Run,
            reason: String::new(),
            node: None,
            by,
            unknown: UnknownFields::default(),
        });
        all
    }

    /// Returns them, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Transition> {
        self.0.iter()
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the newest one. Where there is not enough room, the older ones lose the end of their reasons, and then go.
    pub(super) fn push(&mut self, transition: Transition) {
        let Transition { reason, by, .. } = &transition;
        let reason = cut(reason, REASON_CHARS_MAX);
        let by = match by {
            Actor::Client(Some(name)) => Actor::Client(Some(cut(name, NAME_CHARS_MAX))),
            other => other.clone(),
        };
        self.0.push(Transition { reason, by, ..transition });
        self.drop_oldest_of(KEPT);
        for at in 0..self.0.len() {
            if self.bytes() <= BYTES_MAX {
                return;
            }
            self.0[at].shorten();
        }
        while self.bytes() > BYTES_MAX && self.drop_oldest_of(1) {}
    }

    /// Says who has asked for the newest one.
    pub(crate) fn attribute(&mut self, by: Actor) {
        if let Some(newest) = self.0.pop() {
            self.push(Transition { by, ..newest });
        }
    }

    /// Shortens all reasons.
    pub(super) fn shorten(&mut self) {
        self.0.iter_mut().for_each(Transition::shorten);
    }

    /// Drops the oldest one if there are more than `kept`; tells whether there were.
    pub(super) fn drop_oldest_of(&mut self, kept: usize) -> bool {
        let is_surplus = self.0.len() > kept;
        if is_surplus {
            self.0.remove(0);
        }
        is_surplus
    }

    fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX, |json| json.len())
    }
}

impl Transition {
    fn shorten(&mut self) {
        self.reason = cut(&self.reason, REASON_CHARS_MIN);
    }
}

/// Returns the first characters of a text, with a mark if there were more.
fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(chars_max - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transition(at_ms: u64, reason: &str) -> Transition {
        Transition {
            at_ms,
            state: TaskState::Pending,
            desired_state: DesiredState::Run,
            reason: reason.to_owned(),
            node: Some(NodeId::new("n".repeat(64)).unwrap()),
            by: Actor::Client(Some("c".repeat(300))),
            unknown: UnknownFields::default(),
        }
    }

    #[test]
    fn the_last_eight_are_kept() {
        let mut all = Transitions::created(0, Actor::Client(None));
        (1..20).for_each(|at_ms| all.push(Transition { by: Actor::Dispatcher, node: None, ..transition(at_ms, "") }));
        assert_eq!(all.iter().map(|kept| kept.at_ms).collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_the_texts_are_the_bound_of_bytes_holds_and_the_newest_stays() {
        for text in ["x", "\u{1}", "ß", "🙂", "\""] {
            let mut all = Transitions::default();
            for at_ms in 0..20 {
                let by = Actor::Client(Some(text.repeat(500)));
                all.push(Transition { by, ..transition(u64::MAX - at_ms, &text.repeat(5_000)) });
                assert!(all.bytes() <= BYTES_MAX, "{text:?}: {} bytes", all.bytes());
                let last = all.iter().next_back().unwrap();
                assert_eq!(last.at_ms, u64::MAX - at_ms, "{text:?}");
                assert!(last.reason.starts_with(text), "{text:?}");
            }
        }
    }

    #[test]
    fn older_reasons_are_cut_before_anything_goes() {
        let mut all = Transitions::default();
        let plain = |at_ms| Transition { by: Actor::Node, node: None, ..transition(at_ms, &"why ".repeat(30)) };
        (0..8).for_each(|at_ms| all.push(plain(at_ms)));
        let reasons: Vec<_> = all.iter().map(|kept| kept.reason.chars().count()).collect();
        assert_eq!((reasons.len(), reasons[0], reasons[7]), (8, REASON_CHARS_MIN, REASON_CHARS_MAX), "{reasons:?}");
    }

    #[test]
    fn who_asked_survives_the_store() {
        let somebody = [
            Actor::Dispatcher,
            Actor::Node,
            Actor::Client(None),
            Actor::Client(Some(String::from("ops.example.org"))),
            Actor::Unknown(String::from("auditor")),
        ];
        for by in somebody {
            let json = serde_json::to_string(&Transition { by: by.clone(), ..transition(1, "") }).unwrap();
            let read: Transition = serde_json::from_str(&json).unwrap();
            assert_eq!(read.by, by, "{json}");
        }
    }

    #[test]
    fn what_has_its_default_takes_no_room() {
        let plain = Transition { by: Actor::Dispatcher, node: None, ..transition(7, "") };
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"at":7,"state":"PENDING"}"#);
    }
}
