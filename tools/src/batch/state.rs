//! Keeps what has become of the members of a batch, in a folder of the state directory, so that the batch goes on after
//! a crash.
//!
//! The folder is named after the path of the batch file. It holds `state`, one JSON record a line, and for a copy that is
//! under way the receipt that the engine makes of its journal at the end:
//!
//! ```text
//! {"record":"batch","schema":1,"digest":...,"file":...}    which batch: BLAKE3 of the file's content
//! {"record":"member","member":"root","state":"succeeded",...}
//! {"record":"end","state":"succeeded","ended_ms":...}      all members have ended
//! ```
//!
//! What always holds:
//! - One process at a time uses the folder: it holds a lock on it.
//! - A record of a member is durable before its receipt is removed. A copy whose record was lost in a crash is known to
//!   have succeeded by its receipt.
//! - A last line without its end was being written when the process died; it is as if it were not there.

use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::journal::{JournalReader, JournalState};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::ResumePolicy;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Version of the records.
const SCHEMA: u32 = 1;

/// How a member, or a batch, has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EndState {
    Succeeded,
    Failed,
    Cancelled,
    /// A dependency was not met: the member never started.
    Skipped,
}

impl EndState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }

    /// Returns what the member did or what happened to it.
    pub(crate) fn as_verb(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "was cancelled",
            Self::Skipped => "was skipped",
        }
    }
}

/// What has become of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MemberEnd {
    pub(crate) state: EndState,
    /// Bytes that it was to move.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// What went wrong, as `CODE: message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    #[serde(default)]
    pub(crate) ended_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
enum Record {
    Batch(Header),
    Member {
        member: String,
        #[serde(flatten)]
        end: MemberEnd,
    },
    /// All members but clean-up are being cancelled.
    Cancel {},
    End {
        state: EndState,
        ended_ms: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Header {
    schema: u32,
    digest: String,
    file: String,
    started_ms: u64,
    /// Boot of the host in which the run began, or went on last.
    #[serde(default)]
    boot_id: String,
    /// Members whose copies refuse a checkpoint: it was there before this batch.
    #[serde(default)]
    foreign: BTreeSet<String>,
    /// Checkpoints that are not to be resumed, by member: when their copies first started, in ns since 1970.
    #[serde(default)]
    discarded: BTreeMap<String, i64>,
}

/// End of a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchEnd {
    pub(crate) state: EndState,
    pub(crate) ended_ms: u64,
}

/// State of the batch that a folder was used for last.
#[derive(Debug)]
pub(crate) struct EarlierRun {
    /// BLAKE3 of the batch file's content.
    pub(crate) digest: String,
    pub(crate) members: BTreeMap<String, MemberEnd>,
    pub(crate) end: Option<BatchEnd>,
    /// Whether all members but clean-up were being cancelled.
    pub(crate) is_cancelled: bool,
    pub(crate) boot_id: String,
    pub(crate) foreign: BTreeSet<String>,
    pub(crate) discarded: BTreeMap<String, i64>,
}

/// What a run takes over.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Members that have ended.
    pub(crate) members: BTreeMap<String, MemberEnd>,
    /// Members whose copies refuse a checkpoint.
    pub(crate) foreign: BTreeSet<String>,
    /// Checkpoints that are not resumed, by member: when their copies first started, in ns since 1970.
    pub(crate) discarded: BTreeMap<String, i64>,
}

/// Locked folder of a batch.
#[derive(Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    _lock: File,
}

/// Open state of the batch that runs.
#[derive(Debug)]
pub(crate) struct BatchState {
    folder: StateFolder,
    file: File,
    /// What copies do with checkpoints that are not discarded.
    resume_policy: ResumePolicy,
    foreign: BTreeSet<String>,
    discarded: BTreeMap<String, i64>,
}

/// Returns the folder of a batch file.
pub(crate) fn folder_of(state_dir: &Path, batch_file: &Path) -> PathBuf {
    let name = blockhaul_engine::journal::default_checkpoint_path(&state_dir.join("batches"), &batch_file.into());
    name.with_extension("batch")
}

impl StateFolder {
    /// Creates the folder if it is missing, and locks it.
    ///
    /// # Errors
    /// `EBusy` if another process runs this batch; what the system says.
    pub(crate) fn lock(path: PathBuf) -> Result<Self> {
        let failed = |error: &std::io::Error, what| io_error(error, what, &path);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| failed(&error, "create"))?;
        let lock = File::open(&path).map_err(|error| failed(&error, "open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another process runs this batch: it has locked {}", path.shown());
                Err(Error::new(Code::Busy, Side::Caller, Operation::Start, message).advise("wait for its end"))
            }
            Err(TryLockError::Error(error)) => Err(failed(&error, "lock")),
        }
    }

    /// Reads what the last run has left; `None` if there was none.
    ///
    /// # Errors
    /// `ECheckpointCorrupt` if the file cannot be understood.
    pub(crate) fn earlier_run(&self) -> Result<Option<EarlierRun>> {
        let path = self.path.join("state");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&error, "read", &path)),
        };
        let corrupt = |why: &str| {
            let message = format!("the state of the batch in {} cannot be understood: {why}", path.shown());
            Error::new(Code::CheckpointCorrupt, Side::Caller, Operation::Journal, message)
                .advise("run all of the batch anew with --restart")
        };
        let complete = text.iter().rposition(|&byte| byte == b'\n').map_or(&[][..], |end| &text[..end]);
        let mut records = complete.split(|&byte| byte == b'\n').map(serde_json::from_slice::<Record>);
        let header = match records.next() {
            Some(Ok(Record::Batch(header))) if header.schema == SCHEMA => header,
            Some(Ok(Record::Batch(header))) => return Err(corrupt(&format!("schema {}", header.schema))),
            Some(Ok(_)) | None => return Err(corrupt("it does not begin with a batch")),
            Some(Err(error)) => return Err(corrupt(&error.to_string())),
        };
        let Header { digest, boot_id, foreign, discarded, .. } = header;
        let members = BTreeMap::new();
        let mut run = EarlierRun { digest, members, end: None, is_cancelled: false, boot_id, foreign, discarded };
        for record in records {
            match record.map_err(|error| corrupt(&error.to_string()))? {
                Record::Member { member, end } => _ = run.members.insert(member, end),
                Record::Cancel {} => run.is_cancelled = true,
                Record::End { state, ended_ms } => run.end = Some(BatchEnd { state, ended_ms }),
                Record::Batch(_) => return Err(corrupt("it holds two batches")),
            }
        }
        Ok(Some(run))
    }

    /// Begins a run. Checkpoints that are not `kept` apart are taken as `resume_policy` says.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn begin(
        self,
        digest: &str,
        batch_file: &Path,
        kept: &Kept,
        resume_policy: ResumePolicy,
    ) -> Result<BatchState> {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "receipt") {
                remove(&entry.path());
            }
        }
        let header = Header {
            schema: SCHEMA,
            digest: digest.to_owned(),
            file: batch_file.shown().to_string(),
            started_ms: now_ms(),
            boot_id: boot_id(),
            foreign: kept.foreign.clone(),
            discarded: kept.discarded.clone(),
        };
        let mut text = line(&Record::Batch(header));
        for (member, end) in &kept.members {
            text.extend(line(&Record::Member { member: member.clone(), end: end.clone() }));
        }
        let (new, path) = (self.path.join("state.new"), self.path.join("state"));
        let written = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()?;
            Ok(file)
        };
        let file = written().map_err(|error| io_error(&error, "write", &path))?;
        let (foreign, discarded) = (kept.foreign.clone(), kept.discarded.clone());
        Ok(BatchState { folder: self, file, resume_policy, foreign, discarded })
    }

    /// Goes on with the run that was interrupted.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn resume(self, earlier: &EarlierRun) -> Result<BatchState> {
        let path = self.path.join("state");
        let opened = || {
            let file = OpenOptions::new().read(true).append(true).open(&path)?;
            // A line that was cut off by a crash is removed, so that the next one does not continue it.
            let text = std::fs::read(&path)?;
            let complete = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            file.set_len(complete as u64)?;
            Ok(file)
        };
        let file = opened().map_err(|error| io_error(&error, "open", &path))?;
        let (foreign, discarded) = (earlier.foreign.clone(), earlier.discarded.clone());
        Ok(BatchState { folder: self, file, resume_policy: ResumePolicy::Resume, foreign, discarded })
    }

    /// Returns the members that have a finished receipt: their copies succeeded, and the process died before it
    /// recorded that.
    pub(crate) fn has_finished(&self, member: &str) -> bool {
        let receipt = JournalReader::open(&receipt(&self.path, member));
        receipt.is_ok_and(|receipt| receipt.state() == JournalState::Finished)
    }
}

impl BatchState {
    /// Returns where the engine keeps the finished journal of a copy until its end is recorded.
    pub(crate) fn receipt(&self, member: &str) -> PathBuf {
        receipt(&self.folder.path, member)
    }

    /// Returns the folder for running hooks.
    pub(crate) fn hooks_folder(&self) -> PathBuf {
        self.folder.path.join("hooks")
    }

    /// Returns what a copy does with the checkpoint that it finds.
    pub(crate) fn resume_policy(&self, member: &str, checkpoint: &Path) -> ResumePolicy {
        let started_ns = || JournalReader::open(checkpoint).ok().map(|journal| journal.header().started_ns);
        match self.discarded.get(member) {
            _ if self.foreign.contains(member) => ResumePolicy::Refuse,
            Some(&discarded) if started_ns() == Some(discarded) => ResumePolicy::Restart,
            Some(_) | None => self.resume_policy,
        }
    }

    /// Records the ends of members.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn members_ended(&mut self, ends: &[(String, MemberEnd)]) -> Result<()> {
        let record = |(member, end): &(String, MemberEnd)| Record::Member { member: member.clone(), end: end.clone() };
        self.append(ends.iter().map(record))?;
        ends.iter().for_each(|(member, _)| remove(&self.receipt(member)));
        Ok(())
    }

    /// Records that all members but clean-up are being cancelled.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn cancelled(&mut self) -> Result<()> {
        self.append([Record::Cancel {}])
    }

    /// Records the end of the batch.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn ended(&mut self, state: EndState) -> Result<()> {
        self.append([Record::End { state, ended_ms: now_ms() }])
    }

    fn append(&mut self, records: impl IntoIterator<Item = Record>) -> Result<()> {
        let lines: Vec<u8> = records.into_iter().flat_map(|record| line(&record)).collect();
        let written = self.file.write_all(&lines).and_then(|()| self.file.sync_data());
        written.map_err(|error| io_error(&error, "write", &self.folder.path.join("state")))
    }
}

/// Returns what tells one boot of the host from another.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Returns the time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn receipt(folder: &Path, member: &str) -> PathBuf {
    folder.join(format!("{member}.receipt"))
}

/// Removes a file that is no longer needed. One that stays does no harm: the next run removes it.
fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::debug!(path = %path.shown(), %error, "cannot remove a receipt");
    }
}

fn line(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("records have no keys but strings");
    line.push(b'\n');
    line
}

fn io_error(error: &std::io::Error, what: &str, path: &Path) -> Error {
    let error =
        Error::io(Side::Caller, Operation::Journal, error, format!("{what} the state of the batch {}", path.shown()));
    let is_full = matches!(error.code, Code::NoSpace);
    error.advise(if is_full {
        "free some space, then run the same command again"
    } else {
        "make it writable, then run the same command again, or use another state directory (--state-dir)"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(state: EndState) -> MemberEnd {
        MemberEnd { state, bytes: 7, error: None, code: None, ended_ms: 1 }
    }

    #[test]
    fn a_run_goes_on_with_what_was_recorded() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("b");
        let mut state = StateFolder::lock(path.clone())
            .unwrap()
            .begin("d", Path::new("/f"), &Kept::default(), ResumePolicy::Refuse)
            .unwrap();
        state.members_ended(&[("a".to_owned(), end(EndState::Succeeded))]).unwrap();
        assert_eq!(StateFolder::lock(path.clone()).unwrap_err().code, Code::Busy);
        drop(state);
        // The process died while it wrote.
        let mut file = OpenOptions::new().append(true).open(path.join("state")).unwrap();
        file.write_all(b"{\"record\":\"mem").unwrap();
        let folder = StateFolder::lock(path.clone()).unwrap();
        let earlier = folder.earlier_run().unwrap().unwrap();
        assert_eq!((earlier.members.len(), earlier.end), (1, None));
        let mut state = folder.resume(&earlier).unwrap();
        state.members_ended(&[("b".to_owned(), end(EndState::Failed))]).unwrap();
        state.ended(EndState::Failed).unwrap();
        drop(state);
        let earlier = StateFolder::lock(path).unwrap().earlier_run().unwrap().unwrap();
        assert_eq!(earlier.members["b"], end(EndState::Failed));
        assert_eq!(earlier.end.unwrap().state, EndState::Failed);
    }

    #[test]
    fn a_file_that_is_no_state_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = StateFolder::lock(scratch.path().to_owned()).unwrap();
        assert!(folder.earlier_run().unwrap().is_none());
        for text in [
            "",
            "x\n",
            "{\"record\":\"end\",\"state\":\"failed\",\"ended_ms\":1}\n",
            "{\"record\":\"batch\",\"schema\":2,\"digest\":\"\",\"file\":\"\",\"started_ms\":0}\n",
        ] {
            std::fs::write(scratch.path().join("state"), text).unwrap();
            let error = folder.earlier_run().unwrap_err();
            assert_eq!(error.code, Code::CheckpointCorrupt, "{text}");
            assert!(error.to_string().contains("--restart"), "{error}");
        }
    }
}
