//! Completes names that a task center knows: of tasks, nodes and schedules.
//!
//! The center is the one that the command line names so far, else that of the environment. It is asked on a thread of
//! its own, and has [`WAIT_MAX`]: a center that is slow, away or refuses leaves the line as it is, without a word.

use crate::center::args::RawCenter;
use blockhaul_control::clock::HostClock;
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::tls::Tls;
use blockhaul_control::rpc::wire;
use clap::Parser;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use std::ffi::{OsStr, OsString};
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::runtime::Builder;

/// Longest wait for a center: people type meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Flags that say which center is called, and how; all have a value.
const FLAGS: [&str; 4] = ["--center", "--tls-cert", "--tls-key", "--tls-ca"];

/// Characters at which bash splits words that are one for everybody else.
const SPLITTERS: [&str; 2] = [":", "="];

/// What is completed.
#[derive(Clone, Copy, Debug)]
enum Names {
    Tasks,
    Groups,
    Nodes,
    Schedules,
}

/// Completes IDs of tasks.
pub(crate) fn tasks() -> ArgValueCompleter {
    completer(Names::Tasks)
}

/// Completes IDs of groups.
pub(crate) fn groups() -> ArgValueCompleter {
    completer(Names::Groups)
}

/// Completes names of nodes.
pub(crate) fn nodes() -> ArgValueCompleter {
    completer(Names::Nodes)
}

/// Completes names of schedules.
pub(crate) fn schedules() -> ArgValueCompleter {
    completer(Names::Schedules)
}

fn completer(names: Names) -> ArgValueCompleter {
    ArgValueCompleter::new(move |word: &OsStr| {
        let Some(prefix) = word.to_str().map(str::to_owned) else { return Vec::new() };
        let line: Vec<OsString> = std::env::args_os().collect();
        in_time(WAIT_MAX, move || ask(names, &prefix, &line)).unwrap_or_default()
    })
}

/// Returns what `ask` returns; `None` if that takes longer. The thread that asks ends with the process.
fn in_time<T: Send + 'static>(wait_max: Duration, ask: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    let (send, found) = channel();
    // Nobody listens any more after the time. Without a thread there is no answer.
    std::thread::Builder::new().spawn(move || send.send(ask())).ok()?;
    found.recv_timeout(wait_max).ok()?
}

/// Asks the center; `None` if anything fails.
fn ask(names: Names, prefix: &str, line: &[OsString]) -> Option<Vec<CompletionCandidate>> {
    let RawCenter { center, tls, json: _, log: _ } = center_of(line)?;
    let runtime = Builder::new_current_thread().enable_all().build().ok()?;
    let addresses = center.into_iter().filter(|address| !address.is_empty()).collect();
    let mut client = CenterClient::new(addresses, Channels::new(Tls::read(&tls, &HostClock).ok()?)).ok()?;
    runtime.block_on(async {
        let found: Vec<(String, String)> = match names {
            Names::Tasks | Names::Groups => {
                // Names are listed in order: the page after the prefix begins with those that have it.
                let request = wire::ListRequest { after: prefix.to_owned(), ..wire::ListRequest::default() };
                let tasks = client.list(request).await.ok()?.tasks;
                let is_named = |task: &wire::Task| !matches!(names, Names::Groups) || task.members.is_some();
                tasks.into_iter().filter(is_named).map(|task| (task.id, task.state)).collect()
            }
            Names::Nodes => {
                let nodes = client.runners(wire::RunnersRequest::default()).await.ok()?.runners;
                nodes.into_iter().map(|node| (node.node, node.address)).collect()
            }
            Names::Schedules => {
                let request = wire::ListSchedulesRequest { after: prefix.to_owned() };
                let schedules = client.list_schedules(request).await.ok()?.schedules;
                schedules.into_iter().map(|schedule| (schedule.name, schedule.state)).collect()
            }
        };
        Some(candidates(prefix, found))
    })
}

/// Returns the names with this prefix, each with a word about it. The names come from a server and go to a shell: those
/// that hold anything but the characters of names are left out.
fn candidates(prefix: &str, found: Vec<(String, String)>) -> Vec<CompletionCandidate> {
    let is_plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte));
    let found = found.into_iter().filter(|(name, _)| name.starts_with(prefix) && is_plain(name));
    let about = |text: String| text.chars().all(|char| char.is_ascii_graphic()).then(|| text.into());
    found.map(|(name, text)| CompletionCandidate::new(name).help(about(text))).collect()
}

/// Returns the center that a line names, which is not complete yet: all that is no flag of the center is left out.
fn center_of(line: &[OsString]) -> Option<RawCenter> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        center: RawCenter,
    }
    let words = joined(line.iter().map(|word| word.to_str().unwrap_or_default().to_owned()));
    let mut flags = vec![String::from("blockhaul")];
    for (at, word) in words.iter().enumerate() {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        if !FLAGS.contains(&name) {
            continue;
        }
        if name.len() < word.len() {
            flags.push(word.clone());
        } else if let Some(value) = words.get(at + 1) {
            flags.push(format!("{word}={value}"));
        }
    }
    Line::try_parse_from(flags).ok().map(|line| line.center)
}

/// Joins what bash has split: `a`, `:`, `1` is `a:1`.
fn joined(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut is_open = false;
    for word in words {
        let splits = SPLITTERS.contains(&word.as_str());
        match all.last_mut() {
            Some(last) if splits || is_open => last.push_str(&word),
            _ => all.push(word),
        }
        is_open = splits;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn center(words: &[&str]) -> (Vec<String>, bool) {
        let line: Vec<OsString> = words.iter().map(OsString::from).collect();
        let found = center_of(&line).unwrap_or_else(|| panic!("{words:?}"));
        (found.center, found.tls.tls_ca.is_some())
    }

    #[test]
    fn the_center_is_that_of_the_line_in_the_words_of_any_shell() {
        let expected = (vec![String::from("a:1"), String::from("b:2")], true);
        for words in [
            &["blockhaul", "--", "blockhaul", "get", "--center", "a:1,b:2", "--tls-ca=ca.pem", ""][..],
            &["blockhaul", "get", "--tls-ca", "=", "ca.pem", "--center", "a", ":", "1,b", ":", "2", "x"],
            &["blockhaul", "get", "--no-such-flag", "--center=a:1,b:2", "--tls-ca", "ca.pem"],
        ] {
            assert_eq!(center(words), expected, "{words:?}");
        }
    }

    #[test]
    fn names_that_a_shell_might_run_are_left_out() {
        let found =
            ["t1", "t2", "t$(reboot)", "t;x", "u", "t1~2"].map(|name| (name.to_owned(), String::from("RUNNING")));
        let names: Vec<_> = candidates("t", found.to_vec()).iter().map(|one| one.get_value().to_owned()).collect();
        assert_eq!(names, ["t1", "t2", "t1~2"]);
    }

    #[test]
    fn an_answer_that_is_late_is_none() {
        assert_eq!(in_time(Duration::from_secs(60), || Some(7)), Some(7));
        let (_held, waits) = channel::<u32>();
        assert_eq!(in_time(Duration::from_millis(10), move || waits.recv().ok()), None);
    }
}
