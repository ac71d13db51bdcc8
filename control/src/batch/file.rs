//! Reads a batch file: TOML, or JSON of the same shape.
//!
//! Unknown keys are refused, so that a misspelt option never silently keeps its default. `[defaults]` holds for every
//! copy that does not say otherwise; its `limit` and `node` also for comparisons, and its `node` and `timeout` for
//! hooks; its `require`, `prefer` and `windows` for every
//! member.

use super::{
    Batch, HOLD_MEMBERS_MAX, HookRun, MEMBERS_MAX, Member, MemberDependency, OnFailure, PARALLEL_MAX, Place, Work,
};
use crate::model::dependency::{check_dependencies, parse_dependency};
use crate::model::fence_method::default_fence;
use crate::model::{
    CopyTask, FenceMethod, Labels, NodeId, PlacementRules, TaskId, TaskSpec, TaskVolume, UnknownFields, VerifyTask,
    Windows,
};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::spec::{DigestKind, Reflink, Sparse};
use blockhaul_engine::units::{parse_duration, parse_rate};
use blockhaul_hooks::{HOOK_TIMEOUT, HookArgument, HookName};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawBatch {
    parallel: Option<usize>,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    hold: bool,
    #[serde(default)]
    defaults: RawDefaults,
    #[serde(default)]
    copy: Vec<RawCopy>,
    #[serde(default)]
    verify: Vec<RawVerify>,
    #[serde(default)]
    run: Vec<RawRun>,
}

/// Options that hold for every member that does not say otherwise.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawDefaults {
    node: Option<String>,
    limit: Option<String>,
    verify: Option<bool>,
    overwrite: Option<bool>,
    sparse: Option<String>,
    reflink: Option<String>,
    digest: Option<String>,
    fence: Option<String>,
    source_stable: Option<bool>,
    timeout: Option<String>,
    #[serde(default)]
    require: Labels,
    #[serde(default)]
    prefer: Labels,
    #[serde(default)]
    windows: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawCopy {
    id: Option<String>,
    #[serde(default)]
    after: Vec<String>,
    from: String,
    to: String,
    node: Option<String>,
    limit: Option<String>,
    verify: Option<bool>,
    overwrite: Option<bool>,
    sparse: Option<String>,
    reflink: Option<String>,
    digest: Option<String>,
    fence: Option<String>,
    source_stable: Option<bool>,
    dest_id: Option<String>,
    require: Option<Labels>,
    prefer: Option<Labels>,
    apart_from: Option<String>,
    windows: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawVerify {
    id: Option<String>,
    #[serde(default)]
    after: Vec<String>,
    from: Option<String>,
    receipt: Option<String>,
    to: String,
    node: Option<String>,
    limit: Option<String>,
    require: Option<Labels>,
    prefer: Option<Labels>,
    apart_from: Option<String>,
    windows: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawRun {
    id: Option<String>,
    #[serde(default)]
    after: Vec<String>,
    hook: String,
    node: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, String>,
    #[serde(default)]
    input: String,
    timeout: Option<String>,
    require: Option<Labels>,
    prefer: Option<Labels>,
    apart_from: Option<String>,
    windows: Option<Vec<String>>,
}

/// A member whose dependencies are still names.
struct Named {
    id: TaskId,
    after: Vec<String>,
    work: Work,
    placement: PlacementRules,
    windows: Vec<String>,
}

/// Parses and checks a batch file. `identify` returns a text that is the same for two names of one volume, as far as it
/// can be known: [`TaskVolume::key`] compares names.
///
/// # Errors
/// `EBadRequest` and what else is wrong with it: malformed text with its line, unknown keys, ids that are not unique,
/// dependencies on unknown members, circles, two members that write one volume, and what is wrong with one member.
pub fn parse(text: &str, place: &Place, identify: &dyn Fn(&TaskVolume) -> String) -> Result<Batch> {
    let raw: RawBatch = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| malformed(&error.to_string()))?
    } else {
        toml::from_str(text).map_err(|error| malformed(&one_line(&error, text)))?
    };
    let RawBatch { parallel, on_failure, hold, defaults, copy, verify, run } = raw;
    if let Some(parallel) = parallel
        && !(1..=PARALLEL_MAX).contains(&parallel)
    {
        return Err(Error::bad_request(format!("parallel is {parallel}: use 1 to {PARALLEL_MAX}")));
    }
    let count = copy.len() + verify.len() + run.len();
    if !(1..=MEMBERS_MAX).contains(&count) {
        return Err(Error::bad_request(format!("the batch has {count} members: use 1 to {MEMBERS_MAX}")));
    }
    if hold && count > HOLD_MEMBERS_MAX {
        let message = format!("the batch has {count} members: one with hold = true has at most {HOLD_MEMBERS_MAX}");
        return Err(Error::bad_request(message));
    }
    let mut named = Vec::with_capacity(count);
    for (index, mut raw) in copy.into_iter().enumerate() {
        let (id, after) = (member_id(raw.id.take(), "copy", index)?, std::mem::take(&mut raw.after));
        let rules = (raw.require.take(), raw.prefer.take(), raw.apart_from.take());
        let placement = defaults.placement(rules).map_err(|error| of_member(&id, error))?;
        let windows = defaults.windows(raw.windows.take()).map_err(|error| of_member(&id, error))?;
        let work = raw.task(&defaults, place).map(Work::Task).map_err(|error| of_member(&id, error))?;
        named.push(Named { id, after, work, placement, windows });
    }
    for (index, mut raw) in verify.into_iter().enumerate() {
        let (id, after) = (member_id(raw.id.take(), "verify", index)?, std::mem::take(&mut raw.after));
        let rules = (raw.require.take(), raw.prefer.take(), raw.apart_from.take());
        let placement = defaults.placement(rules).map_err(|error| of_member(&id, error))?;
        let windows = defaults.windows(raw.windows.take()).map_err(|error| of_member(&id, error))?;
        let work = raw.task(&defaults).map(Work::Task).map_err(|error| of_member(&id, error))?;
        named.push(Named { id, after, work, placement, windows });
    }
    for (index, mut raw) in run.into_iter().enumerate() {
        let (id, after) = (member_id(raw.id.take(), "run", index)?, std::mem::take(&mut raw.after));
        let rules = (raw.require.take(), raw.prefer.take(), raw.apart_from.take());
        let placement = defaults.placement(rules).map_err(|error| of_member(&id, error))?;
        let windows = defaults.windows(raw.windows.take()).map_err(|error| of_member(&id, error))?;
        let work = raw.hook_run(&defaults).map(Work::Run).map_err(|error| of_member(&id, error))?;
        named.push(Named { id, after, work, placement, windows });
    }
    let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
    let patterns: Vec<Work> = named.iter().map(|member| member.work.clone()).collect();
    let batch = Batch { digest, parallel, on_failure, hold, members: linked(named, place)? }.ordered(identify)?;
    if !matches!(place, Place::Schedule(_)) {
        return Ok(batch);
    }
    let members = batch.members.into_iter().zip(patterns).map(|(member, work)| Member { work, ..member }).collect();
    Ok(Batch { members, ..batch })
}

/// Resolves the names of dependencies and checks each member.
fn linked(named: Vec<Named>, place: &Place) -> Result<Vec<Member>> {
    let mut indices = HashMap::new();
    for (index, Named { id, .. }) in named.iter().enumerate() {
        if indices.insert(id.to_string(), index).is_some() {
            return Err(Error::bad_request(format!("two members have the id {id}")));
        }
    }
    let link = |Named { id, after, mut work, placement, windows }: Named| {
        let checked = match &mut work {
            Work::Task(spec) => {
                if let Place::Local(node) = place {
                    spec.kind_mut().imply_node(node);
                }
                match place {
                    Place::Schedule(at) => spec.at(*at).map(|resolved| *spec = resolved),
                    Place::Local(_) | Place::Center => spec.kind().validate(),
                }
            }
            Work::Run(_) => Ok(()),
        };
        let after = checked.and_then(|()| dependencies(&after, &indices)).map_err(|error| of_member(&id, error))?;
        Ok(Member { id, after, work, placement, windows })
    };
    named.into_iter().map(link).collect()
}

fn dependencies(after: &[String], indices: &HashMap<String, usize>) -> Result<Vec<MemberDependency>> {
    check_dependencies(after)?;
    let one = |text: &String| {
        let (id, condition) = parse_dependency(text)?;
        let unknown = || Error::bad_request(format!("it waits for '{}', which is no member", id.escape_debug()));
        Ok(MemberDependency { on: *indices.get(id).ok_or_else(unknown)?, condition, reads_destination: false })
    };
    after.iter().map(one).collect()
}

impl RawDefaults {
    /// Returns where a member may run, if the member says this of itself.
    fn placement(&self, own: (Option<Labels>, Option<Labels>, Option<String>)) -> Result<PlacementRules> {
        let (require, prefer, apart_from) = own;
        let rules = PlacementRules {
            require: require.unwrap_or_else(|| self.require.clone()),
            prefer: prefer.unwrap_or_else(|| self.prefer.clone()),
            apart_from,
        };
        rules.check().map(|()| rules)
    }

    fn windows(&self, own: Option<Vec<String>>) -> Result<Vec<String>> {
        let windows = own.unwrap_or_else(|| self.windows.clone());
        Windows::parse(&windows).map(|_| windows)
    }
}

impl RawCopy {
    fn task(self, defaults: &RawDefaults, place: &Place) -> Result<TaskSpec> {
        let Self {
            id: _,
            after: _,
            from,
            to,
            node,
            limit,
            verify,
            overwrite,
            sparse,
            reflink,
            digest,
            fence,
            source_stable,
            dest_id,
            require: _,
            prefer: _,
            apart_from: _,
            windows: _,
        } = self;
        let word = |own: Option<String>, usual: &Option<String>, last: &str| {
            own.or_else(|| usual.clone()).unwrap_or_else(|| last.to_owned())
        };
        let is_local = matches!(place, Place::Local(_));
        let fence = match fence.as_ref().or(defaults.fence.as_ref()).filter(|_| !is_local) {
            Some(fence) => FenceMethod::parse(fence)?,
            None => default_fence(&to),
        };
        Ok(TaskSpec::Copy(CopyTask {
            source: from,
            destination: to,
            node: node_of(node, defaults)?,
            limit: limit_of(limit, defaults)?,
            verify: verify.or(defaults.verify).unwrap_or(false),
            overwrite: overwrite.or(defaults.overwrite).unwrap_or(false),
            sparse: word(sparse, &defaults.sparse, Sparse::Auto.as_str()),
            reflink: word(reflink, &defaults.reflink, Reflink::Auto.as_str()),
            digest: word(digest, &defaults.digest, DigestKind::Xxh3.as_str()),
            fence,
            source_stable: is_local || source_stable.or(defaults.source_stable).unwrap_or(false),
            dest_id: dest_id.filter(|_| !is_local),
            unknown: UnknownFields::default(),
        }))
    }
}

impl RawVerify {
    fn task(self, defaults: &RawDefaults) -> Result<TaskSpec> {
        let Self { from, receipt, to, node, limit, .. } = self;
        Ok(TaskSpec::Verify(VerifyTask {
            reference: from,
            receipt,
            volume: to,
            node: node_of(node, defaults)?,
            limit: limit_of(limit, defaults)?,
            unknown: UnknownFields::default(),
        }))
    }
}

impl RawRun {
    fn hook_run(self, defaults: &RawDefaults) -> Result<HookRun> {
        let Self { hook, node, args, input, timeout, .. } = self;
        let timeout = timeout.or_else(|| defaults.timeout.clone());
        let timeout = timeout.map_or(Ok(HOOK_TIMEOUT), |text| parse_duration(&text).map_err(Error::bad_request))?;
        let arguments = args.into_iter().map(|(name, value)| HookArgument::new(name, value)).collect::<Result<_>>()?;
        let (hook, node) = (HookName::parse(&hook)?, node_of(node, defaults)?);
        Ok(HookRun { hook, node, arguments, input: input.into_bytes(), timeout })
    }
}

fn node_of(own: Option<String>, defaults: &RawDefaults) -> Result<Option<NodeId>> {
    own.or_else(|| defaults.node.clone()).map(NodeId::new).transpose()
}

fn limit_of(own: Option<String>, defaults: &RawDefaults) -> Result<Option<u64>> {
    own.or_else(|| defaults.limit.clone()).map(|text| parse_rate(&text).map_err(Error::bad_request)).transpose()
}

/// Returns the id of a member, by default its kind and number: `copy-1`.
fn member_id(given: Option<String>, kind: &str, index: usize) -> Result<TaskId> {
    given.map_or_else(|| TaskId::new(format!("{kind}-{}", index + 1)), TaskId::new)
}

fn of_member(id: &TaskId, error: Error) -> Error {
    let message = format!("member {id}: {}", error.message);
    Error { message, ..error }
}

fn malformed(what: &str) -> Error {
    Error::bad_request(format!("malformed batch file: {what}"))
}

/// Formats an error of the parser with its line, without the lines of the file that it quotes.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
    let at = line.map_or_else(String::new, |line| format!("line {line}: "));
    format!("{at}{}", error.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp::Timestamp;
    use blockhaul_engine::error::Code;
    use blockhaul_engine::flow::graph::Condition;

    fn parse(text: &str, place: &Place) -> Result<Batch> {
        super::parse(text, place, &TaskVolume::key)
    }

    fn here() -> Place {
        Place::Local(NodeId::new("here").unwrap())
    }

    fn refusal(text: &str) -> String {
        let error = parse(text, &here()).unwrap_err();
        assert_eq!(error.code, Code::BadRequest, "{error}");
        error.message
    }

    const TWO: &str = r#"
        parallel = 2
        on-failure = "continue"
        [defaults]
        verify = true
        limit = "1MiB/s"
        [[copy]]
        id = "root"
        from = "/srv/root.raw"
        to = "nbd://b/root"
        [[copy]]
        from = "/srv/data.raw"
        to = "/dst/data.raw"
        verify = false
        limit = "2MiB/s"
        after = ["root:end"]
        [[verify]]
        from = "/srv/data.raw"
        to = "/dst/data.raw"
    "#;

    #[test]
    fn members_take_defaults_and_may_say_otherwise() {
        let batch = parse(TWO, &here()).unwrap();
        assert_eq!((batch.parallel, batch.on_failure), (Some(2), OnFailure::Continue));
        let ids: Vec<_> = batch.members.iter().map(|member| member.id.as_str()).collect();
        assert_eq!(ids, ["root", "copy-2", "verify-1"]);
        let Work::Task(TaskSpec::Copy(root)) = &batch.members[0].work else { unreachable!("it is a copy") };
        assert!(
            root.verify
                && root.limit == Some(1 << 20)
                && root.node.as_ref().is_some_and(|node| node.as_str() == "here")
        );
        let Work::Task(TaskSpec::Copy(data)) = &batch.members[1].work else { unreachable!("it is a copy") };
        assert!(!data.verify && data.limit == Some(2 << 20));
        assert_eq!(
            batch.members[1].after,
            [MemberDependency { on: 0, condition: Condition::End, reads_destination: false }]
        );
        // It compares what a copy writes.
        assert_eq!(
            batch.members[2].after,
            [MemberDependency { on: 1, condition: Condition::Success, reads_destination: true }]
        );
        assert_eq!(batch.clean_up(), [false, true, true]);
    }

    #[test]
    fn members_take_the_labels_of_the_defaults_or_have_their_own() {
        let text = "[defaults]\nrequire={disk='ssd'}\n[[copy]]\nfrom='/a'\nto='/b'\nprefer={rack='1'}\napart-from='k'\n\
                    [[run]]\nhook='x'\nrequire={}\n";
        let batch = parse(text, &here()).unwrap();
        let rules: Vec<_> =
            batch.members.iter().map(|member| serde_json::to_value(&member.placement).unwrap()).collect();
        let copy = serde_json::json!({"require": {"disk": "ssd"}, "prefer": {"rack": "1"}, "apart_from": "k"});
        assert_eq!(rules, [copy, serde_json::json!({})]);
        assert!(refusal("[[copy]]\nfrom='/a'\nto='/b'\napart-from=''").contains("member copy-1: the key"));
    }

    #[test]
    fn json_of_the_same_shape_is_the_same_batch() {
        let json = r#"{"parallel": 2, "on-failure": "continue", "defaults": {"verify": true, "limit": "1MiB/s"},
            "copy": [{"id": "root", "from": "/srv/root.raw", "to": "nbd://b/root"},
                     {"from": "/srv/data.raw", "to": "/dst/data.raw", "verify": false, "limit": "2MiB/s", "after": ["root:end"]}],
            "verify": [{"from": "/srv/data.raw", "to": "/dst/data.raw"}]}"#;
        let toml = parse(TWO, &here()).unwrap();
        assert_eq!(parse(json, &here()).map(|json| Batch { digest: toml.digest.clone(), ..json }).unwrap(), toml);
    }

    #[test]
    fn a_malformed_batch_is_refused_with_the_place() {
        let copy = |more: &str| format!("[[copy]]\nid='a'\nfrom='/a'\nto='/b'\n{more}");
        for (text, part) in [
            (String::new(), "0 members"),
            (String::from("parallel = 0\n") + &copy(""), "parallel is 0"),
            (copy("verfy = true"), "line 5: unknown field `verfy`"),
            (copy("[[copy]]\nid='a'\nfrom='/c'\nto='/d'"), "two members have the id a"),
            (copy("after=['x']"), "member a: it waits for 'x', which is no member"),
            (copy("after=['a']"), "a after a"),
            (copy("[[copy]]\nid='c'\nfrom='/c'\nto='/b'"), "a and c write the same volume"),
            (copy("[[copy]]\nid='c'\nfrom='c'\nto='/d'"), "member c: source: c: expected an absolute path"),
            (copy("[[run]]\nhook='../x'"), "member run-1: "),
            (copy("[[run]]\nhook='x'\nargs={low='1'}"), "member run-1: argument 'low'"),
            (copy("[[run]]\nhook='x'\ntimeout='soon'"), "member run-1: 'soon'"),
            (copy("limit='fast'"), "member a: 'fast' is not a rate"),
            (copy("sparse='x'"), "member a: sparse is 'x'"),
            (format!("{}after=['{}']", copy(""), ["a"; 65].join("','")), "65 dependencies"),
            (String::from("[[copy]]\nid='a'\nto='/b'"), "missing field `from`"),
            (String::from("{\"copy\": 1}"), "malformed batch file"),
        ] {
            let message = refusal(&text);
            assert!(message.contains(part), "{text}\n{message}");
        }
    }

    #[test]
    fn a_reader_waits_for_the_writer_unless_the_writer_waits_for_it() {
        let chain = "[[copy]]\nid='a'\nfrom='/b'\nto='/c'\n[[copy]]\nid='b'\nfrom='/a'\nto='/b'\n";
        let batch = parse(chain, &here()).unwrap();
        assert_eq!(
            batch.members[0].after,
            [MemberDependency { on: 1, condition: Condition::Success, reads_destination: true }]
        );
        let batch = parse(&format!("{chain}after=['a']"), &here()).unwrap();
        assert!(batch.members[0].after.is_empty());
        assert!(refusal("[[copy]]\nfrom='/a'\nto='/b'\n[[copy]]\nfrom='/b'\nto='/a'").contains("wait for each other"));
    }

    #[test]
    fn in_a_schedule_patterns_are_kept_and_checked_as_they_will_be() {
        let place = Place::Schedule(Timestamp(1_795_276_800_000));
        let copy = "node = 'n'\nsource-stable = true\nfrom";
        let text = format!(
            "[[copy]]\nid = 'b'\n{copy} = 'nbd://h/%Y-a%%'\nto = 'nbd://h/%j'\n\
             [[copy]]\nid = 'a'\n{copy} = '/%d'\nto = 'nbd://h/%Y-a%25'\n"
        );
        let members = parse(&text, &place).unwrap().members;
        let Work::Task(TaskSpec::Copy(first)) = &members[0].work else { panic!("it is a copy: {members:?}") };
        assert_eq!((&*first.source, &*first.destination), ("nbd://h/%Y-a%%", "nbd://h/%j"));
        assert_eq!(members[0].after.iter().map(|after| after.on).collect::<Vec<_>>(), [1], "it reads what 'a' writes");
        let wrong = parse(&text.replace("%d", "%x"), &place).unwrap_err().message;
        assert!(wrong.starts_with("member a: '%x'"), "{wrong}");
        assert!(parse(&text, &Place::Center).unwrap_err().message.starts_with("member b: "));
    }

    #[test]
    fn in_a_center_late_writes_matter() {
        let text = "[[copy]]\nid='a'\nfrom='file://n1/a'\nto='nbd://b/x'\n";
        assert!(parse(text, &here()).is_ok());
        assert!(parse(text, &Place::Center).unwrap_err().message.contains("--source-stable"));
        assert!(parse(&format!("{text}source-stable=true"), &Place::Center).is_ok());
        assert!(parse("[[copy]]\nfrom='/a'\nto='/b'", &Place::Center).unwrap_err().message.contains("needs a node"));
    }
}
