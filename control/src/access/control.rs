//! Holds the rules of `--roles` that are in force, and decides by them who may make a call.
//!
//! What always holds: the file is read when it is asked for (SIGHUP) and not before, so that one that is being edited has
//! no effect; a file that is of no use replaces nothing; every call is judged by the rules in force at that moment,
//! whenever its connection was made.

use super::caller::Caller;
use super::method::Method;
use super::rules::{AccessRules, ClientRole};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Time after which a refused call between nodes is logged again: nodes call each other all the time.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Rules about who may do what. Clones share them.
#[derive(Clone)]
pub struct AccessControl(Arc<Inner>);

struct Inner {
    path: PathBuf,
    rules: watch::Sender<Arc<AccessRules>>,
    /// Wakes the loop to read the file again now.
    asked: Notify,
    /// When a refused call between nodes was logged last.
    said: Mutex<Option<Instant>>,
}

impl AccessControl {
    /// Reads the file.
    ///
    /// # Errors
    /// `EBadRequest` naming what is wrong in it; `ENotFound` or `EPermission` if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let rules = watch::Sender::new(Arc::new(AccessRules::read(path)?));
        let inner = Inner { path: path.to_owned(), rules, asked: Notify::new(), said: Mutex::default() };
        Ok(Self(Arc::new(inner)))
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Reads the file now, and logs the result.
    pub(crate) fn read_again(&self) {
        self.0.asked.notify_one();
    }

    /// Reads the file again whenever that is asked for, for as long as it is polled. `own` returns the name of this node's
    /// certificate, where other nodes have to know it.
    pub(crate) async fn keep(&self, own: impl Fn() -> Option<String>) {
        // At first nobody has asked, unless that was before anybody listened.
        let mut is_asked = false;
        loop {
            self.replace(self.find().await, is_asked);
            self.check_own(own());
            self.0.asked.notified().await;
            is_asked = true;
        }
    }

    async fn find(&self) -> Result<AccessRules> {
        let path = self.0.path.clone();
        let read = tokio::task::spawn_blocking(move || AccessRules::read(&path)).await;
        read.unwrap_or_else(|error| Err(Error::internal(Operation::Parse, error.to_string())))
    }

    fn replace(&self, found: Result<AccessRules>, is_asked: bool) {
        match found {
            Ok(rules) => {
                let (nodes, clients) = rules.counts();
                if is_asked || *self.rules() != rules {
                    tracing::info!(nodes, clients, "roles reloaded");
                }
                self.0.rules.send_replace(Arc::new(rules));
            }
            Err(error) if is_asked => tracing::error!(%error, "cannot reload roles: keeping the old ones"),
            Err(_) => (),
        }
    }

    /// Warns if other nodes would refuse the calls of this one.
    fn check_own(&self, own: Option<String>) {
        if let Some(own) = own.filter(|own| !self.rules().is_node(own)) {
            tracing::warn!(
                "the certificate of this node names '{}', which is not in 'nodes' of {}: nodes with that file refuse its calls",
                own.shown(),
                self.0.path.shown()
            );
        }
    }

    fn rules(&self) -> Arc<AccessRules> {
        Arc::clone(&self.0.rules.borrow())
    }

    /// Decides whether a client may make this call; returns its role.
    ///
    /// # Errors
    /// `EPermission`, saying who it is, which role it has, and which one is needed.
    pub(crate) fn authorize(&self, caller: &Caller, method: Method) -> Result<ClientRole> {
        let rules = self.rules();
        let (needed, _) = method.demand();
        let role = caller.name.as_deref().and_then(|name| rules.role(name));
        if let Some(role) = role.filter(|role| *role >= needed) {
            return Ok(role);
        }
        let needs = format!("{} needs the role {}", method.name(), needed.as_str());
        let message = match (caller.name.as_deref(), role) {
            (None, _) => format!("this client's certificate has no name, and {needs}"),
            (Some(name), _) if rules.is_node(name) => {
                format!("'{}' is a node, not a client, and {needs}", name.shown())
            }
            (Some(name), None) => format!("client '{}' has no role, and {needs}", name.shown()),
            (Some(name), Some(role)) => {
                format!("client '{}' has the role {}, and {needs}", name.shown(), role.as_str())
            }
        };
        tracing::info!(from = ?caller.address, "call refused: {message}");
        Err(refused(message).advise("roles are given in the file of --roles of each taskd"))
    }

    /// Decides whether a caller may speak as a node.
    ///
    /// # Errors
    /// `EPermission`, saying who it is.
    pub(crate) fn authorize_node(&self, caller: &Caller) -> Result<()> {
        let name = caller.name.as_deref();
        if caller.is_self || name.is_some_and(|name| self.rules().is_node(name)) {
            return Ok(());
        }
        let who = name.map_or_else(|| String::from("a caller without a name"), |name| format!("'{}'", name.shown()));
        let message = format!("{who} is not in 'nodes' of {}, and must not speak as a node", self.0.path.shown());
        let (mut said, now) = (self.0.said.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN) {
            *said = Some(now);
            tracing::warn!(from = ?caller.address, "call between nodes refused: {message}");
        }
        Err(refused(message))
    }
}

fn refused(message: String) -> Error {
    Error::new(Code::Permission, Side::Caller, Operation::Start, message)
}

impl fmt::Debug for AccessControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AccessControl").field(&self.0.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const RULES: &str = "nodes = ['n1']\nview = ['v']\nsubmit = ['s']\noperate = ['o']\nadmin = ['a']\n";

    fn control(rules: &str) -> (TempDir, AccessControl) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roles.toml");
        std::fs::write(&path, rules).unwrap();
        let control = AccessControl::read(&path).unwrap();
        (folder, control)
    }

    fn caller(name: &str) -> Caller {
        Caller { name: Some(name.into()), ..Caller::default() }
    }

    #[test]
    fn a_role_includes_the_lower_ones() {
        let (_folder, control) = control(RULES);
        let may = |name: &str| {
            [Method::Get, Method::Submit, Method::Cancel, Method::Drain, Method::SetSettings]
                .map(|method| control.authorize(&caller(name), method).is_ok())
        };
        assert_eq!(may("v"), [true, false, false, false, false]);
        assert_eq!(may("s"), [true, true, true, false, false]);
        assert_eq!(may("o"), [true; 5]);
        assert_eq!(may("a"), [true; 5]);
        for nobody in ["n1", "x", ""] {
            assert_eq!(may(nobody), [false; 5], "{nobody}");
        }
    }

    #[test]
    fn a_refusal_says_who_has_what_and_needs_what() {
        let (_folder, control) = control(RULES);
        let refusal = |caller: &Caller, method| {
            let error = control.authorize(caller, method).unwrap_err();
            assert_eq!(error.code, Code::Permission);
            error.message
        };
        let why = refusal(&caller("s"), Method::Drain);
        assert!(why.starts_with("client 's' has the role submit, and Drain needs the role operate"), "{why}");
        let why = refusal(&caller("x\u{1b}\n"), Method::Get);
        assert!(why.starts_with(r"client 'x\x1b\n' has no role, and Get needs the role view"), "{why}");
        assert!(refusal(&caller("n1"), Method::Get).contains("'n1' is a node"));
        assert!(refusal(&Caller::default(), Method::Get).contains("has no name"));
    }

    #[test]
    fn nodes_alone_speak_as_nodes_and_this_process_to_itself() {
        let (_folder, control) = control(RULES);
        control.authorize_node(&caller("N1")).unwrap();
        for other in [caller("a"), caller("n2"), Caller::default()] {
            assert_eq!(control.authorize_node(&other).unwrap_err().code, Code::Permission, "{other:?}");
        }
        control.authorize_node(&Caller { is_self: true, ..caller("n2") }).unwrap();
    }

    #[tokio::test]
    async fn the_file_is_read_again_when_asked_and_what_is_of_no_use_replaces_nothing() {
        let (folder, control) = control(RULES);
        let path = folder.path().join("roles.toml");
        let mut seen = control.0.rules.subscribe();
        let story = async {
            seen.changed().await.unwrap();
            std::fs::write(&path, "submit = ['v']").unwrap();
            control.read_again();
            seen.changed().await.unwrap();
            assert!(control.authorize(&caller("v"), Method::Submit).is_ok());
            assert!(control.authorize(&caller("s"), Method::Get).is_err(), "it has been taken away");
            for bad in ["", "submit = [", "nodes = ['v']\nview = ['v']"] {
                std::fs::write(&path, bad).unwrap();
                control.replace(control.find().await, true);
                assert!(control.authorize(&caller("v"), Method::Submit).is_ok(), "{bad}");
            }
            assert!(!seen.has_changed().unwrap());
            std::fs::write(&path, "view = ['s']").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(control.authorize(&caller("s"), Method::Get).is_err(), "nobody has asked");
            control.read_again();
            seen.changed().await.unwrap();
            assert!(control.authorize(&caller("s"), Method::Get).is_ok());
        };
        tokio::select! {
            () = control.keep(|| None) => unreachable!("it never ends"),
            () = story => (),
        }
    }
}
