//! Lists the calls of clients, with the role that each needs and what it does: the one table of both.
//!
//! A call that is added to the protocol does not compile before `rpc::guarded_center` names its method, and a method does
//! not compile before it has a line here.

use super::rules::ClientRole;
use strum::IntoStaticStr;

/// Call of the service `Center`, by its name in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub(crate) enum Method {
    Submit,
    Check,
    Get,
    List,
    Watch,
    Events,
    WatchAll,
    Logs,
    /// `Logs` of a hook, whose output may hold secrets.
    #[strum(serialize = "Logs")]
    HookLogs,
    Seal,
    Cancel,
    Pause,
    Resume,
    Remove,
    Set,
    SetLimit,
    MoveTask,
    GetSettings,
    SetSettings,
    AddSchedule,
    GetSchedule,
    ListSchedules,
    PauseSchedule,
    ResumeSchedule,
    RunSchedule,
    RemoveSchedule,
    Runners,
    Include,
    Drain,
    Fence,
    Status,
}

/// What a call does, as far as the audit log is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Impact {
    /// It changes nothing, and is not audited.
    Read,
    /// It is refused while the audit log cannot be written.
    Change,
    /// It is audited, and carried out even while the audit log cannot be written: to stop must always be possible.
    Stop,
}

impl Method {
    /// Returns the least role that may make the call, and what the call does.
    pub(crate) fn demand(self) -> (ClientRole, Impact) {
        match self {
            Self::Get
            | Self::List
            | Self::Watch
            | Self::Events
            | Self::WatchAll
            | Self::Logs
            | Self::GetSettings
            | Self::GetSchedule
            | Self::ListSchedules
            | Self::Runners
            | Self::Status => (ClientRole::View, Impact::Read),
            Self::Check => (ClientRole::Submit, Impact::Read),
            Self::Cancel => (ClientRole::Submit, Impact::Stop),
            Self::Submit
            | Self::Seal
            | Self::Pause
            | Self::Resume
            | Self::Remove
            | Self::Set
            | Self::SetLimit
            | Self::MoveTask
            | Self::AddSchedule
            | Self::PauseSchedule
            | Self::ResumeSchedule
            | Self::RunSchedule
            | Self::RemoveSchedule => (ClientRole::Submit, Impact::Change),
            Self::HookLogs => (ClientRole::Operate, Impact::Read),
            Self::SetSettings | Self::Include | Self::Drain | Self::Fence => (ClientRole::Operate, Impact::Change),
        }
    }

    /// Returns the name of the call in the protocol.
    pub(crate) fn name(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use prost::Message;
    use std::collections::BTreeSet;
    use strum::VariantArray;

    /// As much of a description of a protocol as is needed here.
    #[derive(Clone, PartialEq, Message)]
    struct Files {
        #[prost(message, repeated, tag = "1")]
        files: Vec<File>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct File {
        #[prost(message, repeated, tag = "6")]
        services: Vec<Service>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Service {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        methods: Vec<Named>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }

    #[test]
    fn the_methods_are_those_of_the_protocol() {
        let files = Files::decode(wire::DESCRIPTORS).unwrap();
        let services = files.files.iter().flat_map(|file| &file.services);
        let center = services.filter(|service| service.name == "Center").flat_map(|service| &service.methods);
        let described: BTreeSet<&str> = center.map(|method| method.name.as_str()).collect();
        let listed: BTreeSet<&str> = Method::VARIANTS.iter().map(|method| method.name()).collect();
        assert_eq!(listed, described);
    }

    #[test]
    fn the_lowest_role_only_reads() {
        for method in Method::VARIANTS {
            let (role, impact) = method.demand();
            assert!(role != ClientRole::View || impact == Impact::Read, "{method:?}");
        }
    }

    #[test]
    fn who_submits_cannot_operate() {
        for method in [Method::Drain, Method::Fence, Method::Include, Method::SetSettings] {
            assert_eq!(method.demand(), (ClientRole::Operate, Impact::Change), "{method:?}");
        }
        let stopping: Vec<_> = Method::VARIANTS.iter().filter(|method| method.demand().1 == Impact::Stop).collect();
        assert_eq!(stopping, [&Method::Cancel]);
    }
}
