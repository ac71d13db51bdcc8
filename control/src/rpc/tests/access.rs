//! Tests who may call what, with real certificates, and what the audit log keeps of it.

use super::mock::{MockDispatcher, Node, center, name, noop, record};
use super::tls::read;
use crate::access::{AccessControl, Method};
use crate::model::{RunTask, Submission, TaskId, TaskRecord, TaskSpec};
use crate::peers::{CallError, LeaderClient, RunnerClient};
use crate::rpc::calls::{GrpcLeaderClient, GrpcRunnerClient};
use crate::rpc::channels::Channels;
use crate::rpc::error::RpcError;
use crate::rpc::tls::Tls;
use crate::rpc::wire::{self, center_client::CenterClient as Stub, runner_client::RunnerClient as RunnerStub};
use blockhaul_engine::error::Code;
use blockhaul_testkit::authority::Authority;
use blockhaul_testkit::{Need, need};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use strum::VariantArray;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

const RULES: &str = "nodes = ['node']
    view = ['viewer']
    submit = ['submitter']
    operate = ['operator']
    admin = ['root']
";

/// A leader with a file of roles, whose certificate is called `node`.
struct Center {
    ours: Authority,
    node: Node,
    tasks: Arc<MockDispatcher>,
    control: AccessControl,
    folder: tempfile::TempDir,
}

impl Center {
    async fn start() -> Self {
        Self::named("node").await
    }

    async fn named(own: &str) -> Self {
        let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let file = folder.path().join("roles.toml");
        fs::write(&file, RULES).unwrap();
        let control = AccessControl::read(&file).unwrap();
        let node = Node::with_access(&read(&ours.certify(own)), &control).await;
        let tasks = Arc::new(MockDispatcher::default());
        node.lead(&tasks);
        let kept = control.clone();
        tokio::spawn(async move { kept.keep(|| None).await });
        Self { ours, node, tasks, control, folder }
    }

    fn tls(&self, name: &str) -> Tls {
        read(&self.ours.certify(name))
    }

    fn channel(&self, tls: Tls) -> Channel {
        Channels::new(Some(tls)).to(&self.node.address()).unwrap()
    }

    /// A client with a certificate of this name.
    fn client(&self, name: &str) -> Stub<Channel> {
        Stub::new(self.channel(self.tls(name)))
    }

    fn audit_file(&self) -> PathBuf {
        self.node.state.path().join("audit.jsonl")
    }

    fn audited(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.audit_file()).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for so many lines: the last one is not waited for by its call.
    async fn wait_for_audited(&self, count: usize) -> Vec<Value> {
        eventually("lines in the audit log", || self.audited().len() >= count).await;
        self.audited()
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came: {what}");
}

fn code(status: Status) -> Code {
    RpcError::from(status).error.code
}

/// Makes the calls one after the other.
macro_rules! calls {
    ($client:ident, $($method:ident: $name:ident($request:expr),)+) => {
        vec![$((Method::$name, $client.$method($request).await.map(drop).map_err(code))),+]
    };
}

/// Makes every call of the protocol; the answers do not matter, unless they are a refusal.
async fn every_call(mut client: Stub<Channel>) -> Vec<(Method, Result<(), Code>)> {
    let schedule = || wire::ScheduleRequest { name: String::from("s") };
    let node = || String::from("n1");
    calls!(client,
        submit: Submit(noop("t")),
        get: Get(name("t")),
        list: List(wire::ListRequest::default()),
        watch: Watch(name("none")),
        check: Check(noop("t")),
        events: Events(name("t")),
        watch_all: WatchAll(wire::WatchAllRequest::default()),
        logs: Logs(wire::LogsRequest { id: String::from("none"), ..Default::default() }),
        seal: Seal(name("t")),
        pause: Pause(name("t")),
        resume: Resume(name("t")),
        set: Set(wire::SetRequest { id: String::from("t"), priority: Some(1), ..Default::default() }),
        set_limit: SetLimit(wire::SetLimitRequest { id: String::from("t"), limit: Some(1) }),
        move_task: MoveTask(wire::MoveRequest { id: String::from("t"), node: Some(node()) }),
        cancel: Cancel(wire::CancelRequest { id: String::from("t"), all: false }),
        remove: Remove(name("t")),
        get_settings: GetSettings(wire::SettingsRequest {}),
        set_settings: SetSettings(wire::SetSettingsRequest::default()),
        add_schedule: AddSchedule(wire::AddScheduleRequest::default()),
        get_schedule: GetSchedule(schedule()),
        list_schedules: ListSchedules(wire::ListSchedulesRequest::default()),
        pause_schedule: PauseSchedule(schedule()),
        resume_schedule: ResumeSchedule(schedule()),
        run_schedule: RunSchedule(wire::RunScheduleRequest { name: String::from("s"), ..Default::default() }),
        remove_schedule: RemoveSchedule(wire::RemoveScheduleRequest { name: String::from("s"), cancel_live: false }),
        runners: Runners(wire::RunnersRequest::default()),
        include: Include(wire::IncludeRequest { node: node() }),
        drain: Drain(wire::DrainRequest { node: node(), now: false, undo: false, ..Default::default() }),
        fence: Fence(wire::FenceRequest { node: node(), confirm: true }),
        status: Status(wire::StatusRequest {}),
    )
}

#[tokio::test]
async fn each_call_needs_its_role() {
    need!("each_call_needs_its_role", &[Need::Program("openssl")]);
    let center = Center::start().await;
    let allowed = [("viewer", 11), ("submitter", 26), ("operator", 30), ("root", 30), ("stranger", 0), ("node", 0)];
    for (client, allowed) in allowed {
        let answers = every_call(center.client(client)).await;
        let called: BTreeSet<&str> = answers.iter().map(|(method, _)| method.name()).collect();
        let all: BTreeSet<&str> = Method::VARIANTS.iter().map(|method| method.name()).collect();
        assert_eq!(called, all, "all of them are called");
        let refused: Vec<_> = answers.iter().filter(|(_, answer)| *answer == Err(Code::Permission)).collect();
        assert_eq!(answers.len() - refused.len(), allowed, "{client}: {refused:?}");
        for (method, answer) in answers {
            let needed = method.demand().0.as_str();
            let may = match client {
                "viewer" => needed == "view",
                "submitter" => matches!(needed, "view" | "submit"),
                "operator" | "root" => true,
                _ => false,
            };
            assert_eq!(answer != Err(Code::Permission), may, "{client} {method:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_refusal_says_who_needs_what() {
    need!("a_refusal_says_who_needs_what", &[Need::Program("openssl")]);
    let center = Center::start().await;
    let drain = wire::DrainRequest { node: String::from("n1"), now: true, undo: false, ..Default::default() };
    let refused = center.client("submitter").drain(drain).await.unwrap_err();
    let RpcError { error, .. } = RpcError::from(refused);
    assert_eq!(error.code, Code::Permission);
    for word in ["'submitter'", "role submit", "Drain needs the role operate", "--roles"] {
        assert!(error.message.contains(word), "{word}: {error}");
    }
    assert!(center.audited().is_empty(), "what is refused changes nothing");
}

#[tokio::test]
async fn the_log_of_a_hook_takes_the_role_of_an_operator() {
    need!("the_log_of_a_hook_takes_the_role_of_an_operator", &[Need::Program("openssl")]);
    let center = Center::start().await;
    let hook = TaskSpec::Run(RunTask::example("freeze-vm"));
    center.tasks.put(TaskRecord::new(Submission::new(TaskId::new("hook").unwrap(), 0, 5, hook), 0));
    center.tasks.put(record("plain"));
    for (client, task, may) in [("viewer", "plain", true), ("submitter", "hook", false), ("operator", "hook", true)] {
        let request = wire::LogsRequest { id: task.to_owned(), ..Default::default() };
        let answer = center.client(client).logs(request).await.map(drop).map_err(code);
        assert_eq!(answer != Err(Code::Permission), may, "{client} {task}: {answer:?}");
    }
}

#[tokio::test]
async fn the_first_dns_name_counts_before_the_common_name() {
    need!("the_first_dns_name_counts_before_the_common_name", &[Need::Program("openssl")]);
    let center = Center::start().await;
    let identity = center.ours.certify_as("dns", "/CN=root", "DNS:Viewer,DNS:operator");
    let mut client = Stub::new(center.channel(read(&identity)));
    client.list(wire::ListRequest::default()).await.unwrap();
    assert_eq!(code(client.submit(noop("t")).await.unwrap_err()), Code::Permission);
}

#[tokio::test]
async fn nodes_alone_speak_as_nodes() {
    need!("nodes_alone_speak_as_nodes", &[Need::Program("openssl")]);
    let guarded = Center::start().await;
    let task = TaskId::new("t").unwrap();
    let calls = |name: &str| {
        let channels = Channels::new(Some(guarded.tls(name)));
        let (_, leader) = watch::channel(Some(guarded.node.peer()));
        let to_runner = GrpcRunnerClient::new(channels.clone(), center("c"));
        (to_runner, GrpcLeaderClient::new(channels, center("c"), leader))
    };
    let (to_runner, to_leader) = calls("node");
    assert!(to_runner.clock(&guarded.node.peer(), None).await.unwrap() > 0);
    to_leader.changed(std::slice::from_ref(&task)).await.unwrap();
    eventually("a hint", || guarded.tasks.changed.lock().unwrap().len() == 1).await;
    for client in ["root", "stranger"] {
        let (to_runner, to_leader) = calls(client);
        // No answer to those who assign tasks: the rules of that node are to blame, and no task.
        for refused in [
            to_runner.clock(&guarded.node.peer(), Some(0)).await.map(drop),
            to_leader.changed(std::slice::from_ref(&task)).await,
        ] {
            let Err(CallError::NoAnswer(why)) = refused else { panic!("{client}: {refused:?}") };
            assert!(why.contains(&format!("'{client}'")) && why.contains("must not speak as a node"), "{why}");
        }
        let mut stub = RunnerStub::new(guarded.channel(guarded.tls(client)));
        let refused = stub.interrupt(wire::InterruptRequest { leader: 9 }).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
    assert_eq!(guarded.tasks.changed.lock().unwrap().len(), 1);
}

/// As in a standalone node, which has no other nodes to list.
#[tokio::test]
async fn a_process_calls_itself_though_it_is_not_listed() {
    need!("a_process_calls_itself_though_it_is_not_listed", &[Need::Program("openssl")]);
    let guarded = Center::named("alone").await;
    let own = guarded.ours.certify("second");
    let mut stub = RunnerStub::new(guarded.channel(read(&own)));
    assert!(stub.clock(wire::ClockRequest { offset_ms: None }).await.is_err(), "another certificate");
    // The files of the process itself, whose key nobody else has.
    let folder = own.certificate.parent().unwrap();
    let file = |ending: &str| folder.join(format!("alone{ending}"));
    let identity = blockhaul_testkit::authority::Identity {
        certificate: file(".pem"),
        key: file(".key"),
        authority: file("-ca.pem"),
    };
    let mut stub = RunnerStub::new(guarded.channel(read(&identity)));
    stub.clock(wire::ClockRequest { offset_ms: None }).await.unwrap();
    // Another certificate of the same name is another one.
    let namesake = guarded.ours.certify_as("namesake", "/CN=alone", "IP:127.0.0.1");
    let mut stub = RunnerStub::new(guarded.channel(read(&namesake)));
    assert!(stub.clock(wire::ClockRequest { offset_ms: None }).await.is_err());
}

#[tokio::test]
async fn a_follower_refers_to_the_leader_which_decides() {
    need!("a_follower_refers_to_the_leader_which_decides", &[Need::Program("openssl")]);
    let center = Center::start().await;
    center.node.follow(None);
    assert_eq!(code(center.client("stranger").get(name("t")).await.unwrap_err()), Code::NotLeader);
    assert_eq!(code(center.client("root").submit(noop("t")).await.unwrap_err()), Code::NotLeader);
    assert!(!center.audit_file().exists());
}

#[tokio::test]
async fn a_watch_ends_when_its_role_is_taken_away() {
    need!("a_watch_ends_when_its_role_is_taken_away", &[Need::Program("openssl")]);
    let center = Center::start().await;
    center.client("submitter").submit(noop("t")).await.unwrap();
    let mut viewer = center.client("viewer");
    let mut events = viewer.watch(name("t")).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().unwrap().task.is_some());
    fs::write(center.folder.path().join("roles.toml"), RULES.replace("viewer", "other")).unwrap();
    center.control.read_again();
    let refused = loop {
        match events.message().await {
            Ok(Some(_)) => (),
            Ok(None) => panic!("it ends without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(code(refused), Code::Permission);
    assert!(!matches!(events.message().await, Ok(Some(_))), "it is over");
    assert_eq!(code(viewer.get(name("t")).await.unwrap_err()), Code::Permission, "over the same connection");
    center.client("other").get(name("t")).await.unwrap();
}

#[tokio::test]
async fn each_change_has_two_lines_and_a_read_has_none() {
    need!("each_change_has_two_lines_and_a_read_has_none", &[Need::Program("openssl")]);
    let center = Center::start().await;
    let mut client = center.client("operator");
    client.get(name("none")).await.unwrap_err();
    client.list(wire::ListRequest::default()).await.unwrap();
    assert!(!center.audit_file().exists(), "nobody has changed anything");
    let made = client.submit(noop("")).await.unwrap().into_inner();
    client.pause(name("none")).await.unwrap_err();
    client
        .drain(wire::DrainRequest { node: String::from("n1"), now: true, undo: false, ..Default::default() })
        .await
        .unwrap();
    let lines = center.wait_for_audited(6).await;
    assert_eq!(lines.len(), 6, "{lines:?}");
    for (pair, (what, target, outcome)) in lines.chunks(2).zip([
        ("Submit", ("task", made.id.as_str()), "succeeded"),
        ("Pause", ("task", "none"), "ENotFound"),
        ("Drain", ("node", "n1"), "succeeded"),
    ]) {
        for (line, event) in pair.iter().zip(["change-requested", "change-ended"]) {
            let (field, name) = target;
            assert_eq!((&line["schema"], &line["event"], &line["what"]), (&1.into(), &event.into(), &what.into()));
            assert_eq!(
                (&line[field], &line["who"], &line["role"]),
                (&name.into(), &"operator".into(), &"operate".into())
            );
            assert!(line["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
            assert_eq!(line["operation"], pair[0]["operation"]);
        }
        assert_eq!((pair[0].get("outcome"), &pair[1]["outcome"]), (None, &outcome.into()));
    }
    assert_eq!(lines[4]["detail"], "now");
    assert_ne!(lines[0]["operation"], lines[2]["operation"]);
}

#[tokio::test]
async fn while_the_audit_log_cannot_be_written_only_cancel_changes_anything() {
    // Without certificates as well.
    let (node, tasks) = (Node::start().await, Arc::new(MockDispatcher::default()));
    node.lead(&tasks);
    let mut client = Stub::connect(format!("http://{}", node.address())).await.unwrap();
    client.submit(noop("t")).await.unwrap();
    let file = node.state.path().join("audit.jsonl");
    // The last line is not waited for by its call.
    let count = || fs::read_to_string(&file).unwrap_or_default().lines().count();
    eventually("both lines", || count() == 2).await;
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let refused = RpcError::from(client.submit(noop("u")).await.unwrap_err());
    assert_eq!((refused.error.code, refused.is_passing()), (Code::Io, false), "{refused}");
    assert!(refused.error.message.contains("audit log") && refused.error.message.contains("node n1"), "{refused}");
    let drain = wire::DrainRequest { node: String::from("n1"), now: true, undo: false, ..Default::default() };
    assert_eq!(code(client.drain(drain).await.unwrap_err()), Code::Io);
    assert_eq!(code(client.remove(name("t")).await.unwrap_err()), Code::Io);
    assert_eq!(client.get(name("t")).await.unwrap().into_inner().state, "PENDING");
    assert_eq!(tasks.tasks.lock().unwrap().len(), 1, "nothing was made or removed");
    let cancel = wire::CancelRequest { id: String::from("t"), all: false };
    assert_eq!(client.cancel(cancel).await.unwrap().into_inner().state, "CANCELLED");
    fs::remove_dir(&file).unwrap();
    client.submit(noop("u")).await.unwrap();
    let text = fs::read_to_string(&file).unwrap();
    // The line of the cancel's end may have come late, too.
    let line = text.lines().find(|line| line.contains("\"task\":\"u\"")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["who"], &line["role"]), (&Value::Null, &Value::Null));
}
