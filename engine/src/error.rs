//! Defines the one error type of the engine.
//!
//! An error answers five questions: what kind ([`Code`]), which side ([`Side`]), which operation and range
//! ([`Operation`], offset, length), may the caller try again, and may it have taken effect anyway ([`Effect`]). It is
//! built where errno, offset and side are known and is passed on unchanged.

use crate::exhausted::Exhausted;
use nix::errno::Errno;
use serde::Serialize;
use std::fmt;

/// Names a closed set of values and their spelling in reports in one place.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$item_doc])* $item,)+ }

        impl $name {
            /// Every value, in the order of the declaration.
            pub const ALL: &[Self] = &[$(Self::$item,)+];

            /// The spelling used in reports and messages.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$item => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use named;

named! {
    /// Kind of error: the stable names that scripts and the task center act on.
    Code {
        /// The runner gave the task back; it can go on elsewhere or later.
        RunnerInterrupt => "ERunnerInterrupt",
        /// The user cancelled.
        Cancelled => "ECancelled",
        /// The right to write the destination was lost.
        LeaseLost => "ELeaseLost",
        /// A deadline passed.
        Timeout => "ETimeout",
        /// The device or file system failed an operation.
        Io => "EIo",
        /// The destination is full.
        NoSpace => "ENoSpace",
        /// The destination cannot be written.
        ReadOnly => "EReadOnly",
        /// The destination is smaller than the source.
        SizeMismatch => "ESizeMismatch",
        /// Source and destination are, or overlap on, the same volume.
        SameVolume => "ESameVolume",
        /// Another process uses the volume.
        Busy => "EBusy",
        /// The destination holds data, or an unfinished journal exists.
        Exists => "EExists",
        /// The volume does not exist.
        NotFound => "ENotFound",
        /// The rights are missing.
        Permission => "EPermission",
        /// The source changed while it was copied, or since the checkpoint.
        SourceChanged => "ESourceChanged",
        /// The destination does not hold what was written.
        VerifyMismatch => "EVerifyMismatch",
        /// A checkpoint or receipt is damaged.
        CheckpointCorrupt => "ECheckpointCorrupt",
        /// A checkpoint or receipt belongs to another volume or version.
        CheckpointMismatch => "ECheckpointMismatch",
        /// The peer does not answer.
        Unreachable => "EUnreachable",
        /// The peer broke the protocol.
        Protocol => "EProtocol",
        /// This host or volume cannot do what was asked.
        Unsupported => "EUnsupported",
        /// The request makes no sense.
        BadRequest => "EBadRequest",
        /// The writer was fenced off.
        Fenced => "EFenced",
        /// Another node leads.
        NotLeader => "ENotLeader",
        /// A limit on queued work was reached.
        Overloaded => "EOverloaded",
        /// A task that it depends on did not end as it has to.
        Dependency => "EDependency",
        /// A hook ended with an error.
        Hook => "EHook",
        /// A defect in blockhaul.
        Internal => "EInternal",
    }
}

named! {
    /// Party of a copy that the error concerns.
    Side {
        /// The volume that is read.
        Source => "source",
        /// The volume that is written.
        Destination => "destination",
        /// Blockhaul itself: threads, rings, memory, journal.
        Engine => "engine",
        /// The coordination service.
        Coordination => "coordination",
        /// The caller.
        Caller => "caller",
    }
}

named! {
    /// Operation that failed.
    Operation {
        /// Reading the request itself.
        Parse => "parse",
        /// Opening or creating a volume or file.
        Open => "open",
        /// Taking the destination's lock.
        Lock => "lock",
        /// Asking for size, identity or times.
        Stat => "stat",
        /// Setting a file's size.
        Resize => "resize",
        /// Reserving space.
        Allocate => "allocate",
        /// Finding data and holes.
        Map => "map",
        /// Reading data.
        Read => "read",
        /// Writing data.
        Write => "write",
        /// Writing zeros or punching holes.
        Zero => "zero",
        /// Sharing extents (reflink).
        Clone => "clone",
        /// Making data durable.
        Flush => "flush",
        /// Reading or writing the checkpoint or receipt.
        Journal => "journal",
        /// Comparing digests.
        Verify => "verify",
        /// Setting up threads, rings or memory.
        Start => "start",
        /// Ending a job.
        Stop => "stop",
    }
}

named! {
    /// What is wrong with a request, where the code says too little.
    Detail {
        /// The cron expression cannot be parsed, or names no day.
        InvalidCron => "InvalidCron",
        /// There is no time zone of that name.
        InvalidTimeZone => "InvalidTimeZone",
        /// The interval is no number of whole seconds, or none.
        InvalidInterval => "InvalidInterval",
        /// The interval is longer than allowed.
        IntervalTooLarge => "IntervalTooLarge",
        /// The time is none at which something can happen.
        InvalidTime => "InvalidTime",
        /// The time has passed.
        Expired => "Expired",
    }
}

/// Whether an operation that failed may have changed something all the same. Decides whether a retry is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing was changed.
    NotApplied,
    /// Some or all of it may have been done, or may still be.
    Unknown,
}

/// A result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: its kind, its place, and what the caller can do about it.
///
/// Serialises as the `error` object of a report: `code side operation offset length errno retryable message`, and `detail`
/// where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error {
    /// Kind of error.
    pub code: Code,
    /// Party that the error concerns.
    pub side: Side,
    /// Operation that failed.
    pub operation: Operation,
    /// First byte concerned, where there is one.
    pub offset: Option<u64>,
    /// Bytes concerned, where there are any.
    pub length: Option<u64>,
    /// The operating system's number, where it gave one.
    pub errno: Option<i32>,
    /// Whether the same request may succeed later without a change by the user.
    pub retryable: bool,
    /// Whether it may have taken effect anyway.
    #[serde(skip)]
    pub effect: Effect,
    /// A sentence for people: what failed and what to do.
    pub message: String,
    /// What is wrong, for scripts, where the code says too little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

impl Error {
    /// An error without range or errno, not retryable, with no effect.
    pub fn new(code: Code, side: Side, operation: Operation, message: impl Into<String>) -> Self {
        Self {
            code,
            side,
            operation,
            offset: None,
            length: None,
            errno: None,
            retryable: matches!(
                code,
                Code::Busy
                    | Code::Timeout
                    | Code::Unreachable
                    | Code::Overloaded
                    | Code::RunnerInterrupt
                    | Code::LeaseLost
            ),
            effect: Effect::NotApplied,
            message: message.into(),
            detail: None,
        }
    }

    /// An error of the operating system. The code follows from the errno; `what` is a verb phrase with the object,
    /// such as "open /dev/sdb". A limit that is behind it is named.
    pub fn os(side: Side, operation: Operation, errno: Errno, what: impl fmt::Display) -> Self {
        let starts = operation == Operation::Start;
        let exhausted = if starts { Exhausted::behind_start(errno) } else { Exhausted::behind(errno) };
        if let Some(exhausted) = exhausted {
            let message = format!("{what}: {}; {}", errno.desc(), exhausted.describe());
            let retryable = exhausted != Exhausted::FileSize;
            let error = Self::new(Code::Overloaded, side, operation, message);
            return Self { errno: Some(errno as i32), retryable, ..error };
        }
        let code = match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO | Errno::ENODEV | Errno::ELOOP => Code::NotFound,
            Errno::EACCES | Errno::EPERM => Code::Permission,
            Errno::EROFS => Code::ReadOnly,
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Code::NoSpace,
            Errno::EBUSY | Errno::ETXTBSY => Code::Busy,
            Errno::EEXIST => Code::Exists,
            Errno::EISDIR => Code::BadRequest,
            Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENAMETOOLONG => Code::Unsupported,
            _ => Code::Io,
        };
        Self { errno: Some(errno as i32), ..Self::new(code, side, operation, format!("{what}: {}", errno.desc())) }
    }

    /// As [`Error::os`], for errors of the standard library.
    pub fn io(side: Side, operation: Operation, error: &std::io::Error, what: impl fmt::Display) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::os(side, operation, Errno::from_raw(number), what),
            None => Self::new(Code::Io, side, operation, format!("{what}: {error}")),
        }
    }

    /// A request that makes no sense; nothing was touched.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, Side::Caller, Operation::Parse, message)
    }

    /// A defect in blockhaul that was noticed before it did harm.
    pub fn internal(operation: Operation, message: impl Into<String>) -> Self {
        Self::new(Code::Internal, Side::Engine, operation, message)
    }

    /// Adds the bytes concerned.
    #[must_use]
    pub fn at(mut self, offset: u64, length: u64) -> Self {
        (self.offset, self.length) = (Some(offset), Some(length));
        self
    }

    /// Replaces the code where the context is more specific than the errno.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Adds what is wrong.
    #[must_use]
    pub fn with_detail(mut self, detail: Detail) -> Self {
        self.detail = Some(detail);
        self
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn advise(mut self, advice: impl fmt::Display) -> Self {
        self.message = format!("{}; {advice}", self.message);
        self
    }

    /// Marks an operation that may have been carried out in part.
    #[must_use]
    pub fn maybe_applied(mut self) -> Self {
        self.effect = Effect::Unknown;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let (Some(offset), Some(length)) = (self.offset, self.length) {
            write!(f, " (at byte {offset}, {length} bytes)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_name() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(names.iter().all(|name| name.starts_with('E')));
    }

    #[test]
    fn an_invalid_name_is_no_error_of_the_device() {
        for (errno, code) in [
            (Errno::ELOOP, Code::NotFound),
            (Errno::ENAMETOOLONG, Code::Unsupported),
            (Errno::EISDIR, Code::BadRequest),
            (Errno::EEXIST, Code::Exists),
        ] {
            assert_eq!(Error::os(Side::Source, Operation::Open, errno, "open x").code, code, "{errno}");
        }
    }

    #[test]
    fn a_report_shows_code_side_operation_range_and_errno() {
        let error = Error::os(Side::Destination, Operation::Write, Errno::EIO, "write /dev/sdb").at(4096, 512);
        assert_eq!(
            serde_json::to_value(&error).unwrap(),
            serde_json::json!({"code": "EIo", "side": "destination", "operation": "write", "offset": 4096, "length": 512,
                "errno": 5, "retryable": false, "message": "write /dev/sdb: I/O error"})
        );
    }
}
