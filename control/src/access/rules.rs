//! Parses the file of `--roles`: which names are nodes, and which role each client has.
//!
//! ```toml
//! nodes = ["n1.storage", "n2.storage"]
//! admin = ["root.example"]
//! operate = ["ops.example"]
//! submit = ["ci.example"]
//! view = ["dashboard.example"]
//! ```
//! What always holds: no name is both a node and a client; a name with several roles has the highest; names are compared
//! as those of hosts are, without regard to case. There are no patterns: what is not listed has no right.

use super::caller::NAME_BYTES_MAX;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Longest file of roles: guards against naming a wrong one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Role of a client. Each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientRole {
    /// Sees tasks, schedules, settings and nodes.
    View,
    /// Submits tasks and schedules, and changes, stops and removes them, whoever has submitted them.
    Submit,
    /// Drains, fences and includes nodes, and changes the settings of the center.
    Operate,
    /// Does everything, also what later versions add.
    Admin,
}

impl ClientRole {
    /// Returns its name in the file.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Submit => "submit",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// The file as it is written. The lists of roles may also stand in a table `[roles]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRules {
    nodes: Vec<String>,
    view: Vec<String>,
    submit: Vec<String>,
    operate: Vec<String>,
    admin: Vec<String>,
    roles: RawRoles,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRoles {
    view: Vec<String>,
    submit: Vec<String>,
    operate: Vec<String>,
    admin: Vec<String>,
}

/// Who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccessRules {
    /// Names of nodes, in lower case.
    nodes: BTreeSet<String>,
    /// Roles by the name of the client, in lower case.
    roles: BTreeMap<String, ClientRole>,
}

impl AccessRules {
    /// Reads the file.
    ///
    /// # Errors
    /// `ENotFound`, `EPermission` or another code of the system; `EBadRequest` as [`AccessRules::parse`].
    pub(super) fn read(file: &Path) -> Result<Self> {
        let what = || format!("read the roles {}", file.shown());
        let failed = |error: std::io::Error| Error::io(Side::Caller, Operation::Parse, &error, what());
        if std::fs::metadata(file).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(Error::bad_request(format!("{}: larger than {FILE_BYTES_MAX} bytes", what())));
        }
        let bytes = std::fs::read(file).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::bad_request(format!("{}: not UTF-8 text", what())))?;
        Self::parse(&text).map_err(|error| Error { message: format!("{}: {}", what(), error.message), ..error })
    }

    /// Parses the text of the file.
    ///
    /// # Errors
    /// `EBadRequest`: no TOML of this kind, a name that no certificate can have, a name that is both a node and a client,
    /// or nobody at all, as in a file that is being written.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let raw: RawRules =
            toml::from_str(text).map_err(|error| Error::bad_request(error.to_string().trim_end().to_owned()))?;
        let RawRules { nodes, view, submit, operate, admin, roles } = raw;
        let RawRoles { view: more_view, submit: more_submit, operate: more_operate, admin: more_admin } = roles;
        let mut rules = Self::default();
        for name in nodes {
            rules.nodes.insert(checked("nodes", &name)?);
        }
        for (role, names) in [
            (ClientRole::View, [view, more_view]),
            (ClientRole::Submit, [submit, more_submit]),
            (ClientRole::Operate, [operate, more_operate]),
            (ClientRole::Admin, [admin, more_admin]),
        ] {
            for name in names.into_iter().flatten() {
                // From the lowest to the highest: the last one counts.
                rules.roles.insert(checked(role.as_str(), &name)?, role);
            }
        }
        if let Some(name) = rules.nodes.iter().find(|name| rules.roles.contains_key(*name)) {
            let role = rules.roles[name].as_str();
            let message = format!("'{}' is in 'nodes' and in '{role}'", name.shown());
            return Err(Error::bad_request(message).advise("give nodes and clients certificates with different names"));
        }
        if rules.nodes.is_empty() && rules.roles.is_empty() {
            return Err(Error::bad_request("it names nobody, so that nobody could do anything"));
        }
        Ok(rules)
    }

    /// Tells whether this is the name of a node.
    pub(super) fn is_node(&self, name: &str) -> bool {
        self.nodes.contains(&name.to_ascii_lowercase())
    }

    /// Returns the role of this client; `None`: it has none.
    pub(super) fn role(&self, name: &str) -> Option<ClientRole> {
        self.roles.get(&name.to_ascii_lowercase()).copied()
    }

    /// Returns the number of nodes and of clients.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.nodes.len(), self.roles.len())
    }
}

/// Checks a name of the list `list`, and returns it in lower case.
fn checked(list: &str, name: &str) -> Result<String> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it has more than 253 bytes"
    } else if name.chars().any(char::is_control) {
        "it has control characters"
    } else if name.contains('*') {
        "there are no patterns: list each name"
    } else {
        return Ok(name.to_ascii_lowercase());
    };
    let shown: String = name.chars().take(80).collect();
    Err(Error::bad_request(format!("'{}' in '{list}' is not the name of a certificate: {why}", shown.shown())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::error::Code;

    const FILE: &str = r#"
        nodes = ["n1.storage", "N2.storage"]
        admin = ["root.example"]
        operate = ["ops.example"]
        submit = ["ci.example", "Jane Doe"]
        view = ["dashboard.example", "ci.example"]
    "#;

    fn refusal(text: &str) -> String {
        let error = AccessRules::parse(text).expect_err("it makes no sense");
        assert_eq!(error.code, Code::BadRequest, "{error}");
        error.message
    }

    #[test]
    fn a_name_is_a_node_or_has_its_highest_role() {
        let rules = AccessRules::parse(FILE).unwrap();
        for (name, role) in [
            ("root.example", Some(ClientRole::Admin)),
            ("Ops.Example", Some(ClientRole::Operate)),
            ("ci.example", Some(ClientRole::Submit)),
            ("jane doe", Some(ClientRole::Submit)),
            ("dashboard.example", Some(ClientRole::View)),
            ("n1.storage", None),
            ("example", None),
            ("", None),
        ] {
            assert_eq!(rules.role(name), role, "{name}");
        }
        assert!(rules.is_node("n1.storage") && rules.is_node("n2.STORAGE"));
        assert!(!rules.is_node("ci.example") && !rules.is_node("n1"));
        assert_eq!(rules.counts(), (2, 5));
    }

    #[test]
    fn roles_may_stand_in_a_table() {
        let table = "nodes = ['n1']\n[roles]\nadmin = ['root']\nview = ['v']\n";
        assert_eq!(AccessRules::parse(table), AccessRules::parse("nodes=['n1']\nadmin=['root']\nview=['v']"));
    }

    #[test]
    fn roles_are_ordered() {
        let all = [ClientRole::View, ClientRole::Submit, ClientRole::Operate, ClientRole::Admin];
        assert!(all.is_sorted() && all.map(ClientRole::as_str) == ["view", "submit", "operate", "admin"]);
    }

    #[test]
    fn a_name_in_both_lists_is_refused() {
        let why = refusal("nodes = ['a', 'Both']\nsubmit = ['bOTH']");
        assert!(why.contains("'both' is in 'nodes' and in 'submit'"), "{why}");
        refusal("nodes = ['a']\n[roles]\nview = ['a']");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_says_where() {
        assert!(refusal("").contains("nobody"));
        assert!(refusal("nodes = []\n[roles]\n").contains("nobody"));
        assert!(refusal("views = ['a']").contains("views"));
        assert!(refusal("view = 'a'").contains("view"));
        assert!(refusal("view = ['a'").contains("line 1"));
        assert!(refusal("view = ['*']").contains("patterns"));
        assert!(refusal("view = ['']").contains("empty"));
        assert!(refusal("admin = [\"a\\u001b[2J\"]").contains(r"a\x1b[2J"));
        assert!(refusal(&format!("view = ['{}']", "x".repeat(254))).contains("253"));
        // A list after the table belongs to the table.
        assert!(refusal("[roles]\nview = ['a']\nnodes = ['b']").contains("nodes"));
    }
}
