//! Describes one run of a hook: for which task, with which arguments and input, and for how long.
//!
//! A [`HookRequest`] is what a caller asks for; a [`HookOrder`] is one that makes sense. The hook's environment is made
//! here, and with it the mark by which processes of the hook are recognised when their parents are gone.

use crate::limits::{
    ARGUMENT_NAME_BYTES_MAX, ARGUMENTS_BYTES_MAX, GRACE_MAX, IDENTIFIER_BYTES_MAX, INPUT_BYTES_MAX, TIMEOUT_MAX,
};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::shown::Shown;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// Time after which a hook is ended, by default.
pub const HOOK_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time from SIGTERM to SIGKILL, by default.
pub const HOOK_GRACE: Duration = Duration::from_secs(10);
/// Time from SIGTERM to SIGKILL when the node stops.
pub const HOOK_GRACE_OF_NODE_STOP: Duration = Duration::from_secs(5);

/// Folders that hooks find programs in. The value is constant: a hook behaves the same however its caller was started.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is asked of a hook, not checked yet.
#[derive(Clone, Debug)]
pub struct HookRequest {
    /// The task, as `BLOCKHAUL_TASK`: printable ASCII without blanks, as `group` and `node` are.
    pub task: String,
    /// The group of the task, as `BLOCKHAUL_GROUP`, where it has one.
    pub group: Option<String>,
    /// The node that runs the hook, as `BLOCKHAUL_NODE`.
    pub node: String,
    /// The attempt, as `BLOCKHAUL_ATTEMPT`. Two runs at the same time differ in task, node, attempt or epoch.
    pub attempt: u64,
    /// The epoch of the claim, as `BLOCKHAUL_EPOCH`.
    pub epoch: u64,
    /// Arguments, as `BLOCKHAUL_ARG_` and the name. 1 KiB in all, counted as `K=V`.
    pub arguments: Vec<HookArgument>,
    /// What the hook reads from its standard input: at most 4 KiB.
    pub input: Vec<u8>,
    /// Time after which the hook is ended. More than 0; the default is an hour.
    pub timeout: Duration,
    /// Time from SIGTERM to SIGKILL at the end of `timeout`. The default is 10 s.
    pub timeout_grace: Duration,
}

impl HookRequest {
    /// Returns a request without group, arguments and input, with the default times.
    #[must_use]
    pub fn new(task: impl Into<String>, node: impl Into<String>, attempt: u64, epoch: u64) -> Self {
        Self {
            task: task.into(),
            group: None,
            node: node.into(),
            attempt,
            epoch,
            arguments: Vec::new(),
            input: Vec::new(),
            timeout: HOOK_TIMEOUT,
            timeout_grace: HOOK_GRACE,
        }
    }
}

/// One argument of a hook: a name `[A-Z][A-Z0-9_]{0,31}` and a value without NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookArgument {
    name: String,
    value: String,
}

impl fmt::Display for HookArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl HookArgument {
    /// Returns the argument that `NAME=VALUE` describes.
    ///
    /// # Errors
    /// `EBadRequest` if it describes none.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(Error::bad_request(format!("argument '{}' of a hook: write NAME=VALUE", text.shown())));
        };
        Self::new(name, value)
    }

    /// Returns the argument of this name and value.
    ///
    /// # Errors
    /// `EBadRequest` if the name or the value cannot be one.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Result<Self> {
        let (name, value) = (name.into(), value.into());
        let is_inner = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        let is_name = name.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase())
            && name.bytes().all(is_inner)
            && name.len() <= ARGUMENT_NAME_BYTES_MAX;
        if !is_name {
            return Err(Error::bad_request(format!(
                "argument '{}' of a hook: use 1 to {ARGUMENT_NAME_BYTES_MAX} of A-Z, 0-9 and '_' for its name, with a letter \
                 first",
                name.shown()
            )));
        }
        if value.contains('\0') {
            return Err(Error::bad_request(format!("argument {name} of a hook: its value must not contain NUL")));
        }
        Ok(Self { name, value })
    }

    fn size_bytes(&self) -> usize {
        self.name.len() + 1 + self.value.len()
    }
}

/// A run of a hook that makes sense.
#[derive(Clone, Debug)]
pub struct HookOrder {
    request: HookRequest,
}

impl TryFrom<HookRequest> for HookOrder {
    type Error = Error;

    /// Checks a request.
    ///
    /// # Errors
    /// `EBadRequest` with what is to be changed.
    fn try_from(request: HookRequest) -> Result<Self> {
        let HookRequest { task, group, node, attempt: _, epoch: _, arguments, input, timeout, timeout_grace } =
            &request;
        check_identifier("task", task)?;
        group.as_ref().map_or(Ok(()), |group| check_identifier("group", group))?;
        check_identifier("node", node)?;
        let mut names = BTreeSet::new();
        if let Some(twice) = arguments.iter().find(|argument| !names.insert(&argument.name)) {
            return Err(Error::bad_request(format!("argument {} of a hook is given twice", twice.name)));
        }
        check_size("arguments", arguments.iter().map(HookArgument::size_bytes).sum(), ARGUMENTS_BYTES_MAX)?;
        check_size("input", input.len(), INPUT_BYTES_MAX)?;
        if timeout.is_zero() || *timeout > TIMEOUT_MAX {
            let days = TIMEOUT_MAX.as_secs() / (24 * 3600);
            return Err(Error::bad_request(format!("timeout of a hook: use more than 0 and at most {days} days")));
        }
        if *timeout_grace > GRACE_MAX {
            return Err(Error::bad_request("grace of a hook: use at most one day"));
        }
        Ok(Self { request })
    }
}

impl HookOrder {
    /// Returns what was asked for.
    #[must_use]
    pub fn request(&self) -> &HookRequest {
        &self.request
    }

    /// Returns the whole environment of the hook, by which it is also recognised.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let mut environment = mark(&self.request.task, &self.request.node, self.request.attempt, self.request.epoch);
        let mut add = |name: String, value: &str| environment.push((name, value.to_owned()));
        add(String::from("PATH"), PATH);
        add(String::from("LANG"), "C.UTF-8");
        if let Some(group) = &self.request.group {
            add(String::from("BLOCKHAUL_GROUP"), group);
        }
        for argument in &self.request.arguments {
            add(format!("BLOCKHAUL_ARG_{}", argument.name), &argument.value);
        }
        environment
    }
}

/// Returns the part of a hook's environment that no other hook has at the same time.
pub(crate) fn mark(task: &str, node: &str, attempt: u64, epoch: u64) -> Vec<(String, String)> {
    [
        ("BLOCKHAUL_TASK", task.to_owned()),
        ("BLOCKHAUL_NODE", node.to_owned()),
        ("BLOCKHAUL_ATTEMPT", attempt.to_string()),
        ("BLOCKHAUL_EPOCH", epoch.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn check_identifier(what: &str, text: &str) -> Result<()> {
    let is_identifier =
        (1..=IDENTIFIER_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_identifier {
        return Ok(());
    }
    Err(Error::bad_request(format!(
        "{what} '{}' of a hook: use 1 to {IDENTIFIER_BYTES_MAX} printable ASCII characters without blanks",
        text.shown()
    )))
}

fn check_size(what: &str, size_bytes: usize, max_bytes: usize) -> Result<()> {
    if size_bytes <= max_bytes {
        return Ok(());
    }
    Err(Error::bad_request(format!("{what} of a hook: {size_bytes} bytes, at most {max_bytes}: put them into a file")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Code;

    fn request() -> HookRequest {
        HookRequest::new("t1", "n1", 2, 7)
    }

    #[test]
    fn arguments_have_shell_names_and_no_nul() {
        let longest = format!("{}=v", "A".repeat(ARGUMENT_NAME_BYTES_MAX));
        for text in ["K=V", "K=", "K1_=a=b\nc", longest.as_str()] {
            assert!(HookArgument::parse(text).is_ok(), "{text}");
        }
        let too_long = format!("A{longest}");
        for text in ["", "K", "=V", "k=v", "1K=v", "_K=v", "K-=v", "K =v", "K=\0", too_long.as_str()] {
            assert_eq!(HookArgument::parse(text).unwrap_err().code, Code::BadRequest, "{text:?}");
        }
    }

    #[test]
    fn the_environment_holds_the_order_and_nothing_else() {
        let arguments = vec![HookArgument::parse("VM=a b").unwrap()];
        let order = HookOrder::try_from(HookRequest { group: Some("g1".into()), arguments, ..request() }).unwrap();
        let environment: Vec<String> =
            order.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "BLOCKHAUL_TASK=t1",
            "BLOCKHAUL_NODE=n1",
            "BLOCKHAUL_ATTEMPT=2",
            "BLOCKHAUL_EPOCH=7",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            "BLOCKHAUL_GROUP=g1",
            "BLOCKHAUL_ARG_VM=a b",
        ];
        assert_eq!(environment, expected);
        assert_eq!(HookOrder::try_from(request()).unwrap().environment().len(), expected.len() - 2);
    }

    #[test]
    fn an_order_is_bounded() {
        let argument = |name: &str, size: usize| HookArgument::new(name, "v".repeat(size - 2)).unwrap();
        let half = ARGUMENTS_BYTES_MAX / 2;
        let accepted = [
            HookRequest { arguments: vec![argument("A", half), argument("B", half)], ..request() },
            HookRequest { input: vec![0; INPUT_BYTES_MAX], ..request() },
            HookRequest { timeout: TIMEOUT_MAX, timeout_grace: Duration::ZERO, ..request() },
            HookRequest { task: "a~2".into(), group: Some("g".repeat(255)), ..request() },
        ];
        for request in accepted {
            assert!(HookOrder::try_from(request.clone()).is_ok(), "{request:?}");
        }
        let refused = [
            HookRequest { arguments: vec![argument("A", half), argument("B", half + 1)], ..request() },
            HookRequest { arguments: vec![argument("A", 2), argument("A", 3)], ..request() },
            HookRequest { input: vec![0; INPUT_BYTES_MAX + 1], ..request() },
            HookRequest { timeout: Duration::ZERO, ..request() },
            HookRequest { timeout: TIMEOUT_MAX + Duration::from_secs(1), ..request() },
            HookRequest { timeout_grace: GRACE_MAX + Duration::from_secs(1), ..request() },
            HookRequest { task: String::new(), ..request() },
            HookRequest { task: "a\nb".into(), ..request() },
            HookRequest { node: "a b".into(), ..request() },
            HookRequest { group: Some("g".repeat(256)), ..request() },
        ];
        for request in refused {
            assert_eq!(HookOrder::try_from(request.clone()).unwrap_err().code, Code::BadRequest, "{request:?}");
        }
    }
}
