//! Stores the nodes of an embedded store durably in a file, whatever their content.
//!
//! ```text
//! table nodes: path -> (version, created, modified, owner's session, data)
//! table meta:  "format" -> 1
//!              "zxid"   -> number of the last transaction
//! ```
//!
//! A transaction of the file holds all nodes that a batch of writes has touched, and the number of the last write.
//! After a crash either all of it is in the file or nothing.

use super::super::{SessionId, Stat, Znode, Zxid};
use blockhaul_engine::shown::Shown;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Version, created, modified, owner, data.
type Record<'a> = (i32, i64, i64, Option<i64>, &'a [u8]);

const NODES: TableDefinition<'_, &str, Record<'_>> = TableDefinition::new("nodes");
const META: TableDefinition<'_, &str, i64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const ZXID: &str = "zxid";
/// Version of the tables above.
const FORMAT_VERSION: i64 = 1;

/// Opens the file at a path, created if it is missing.
type Opener = dyn Fn(&Path) -> Result<Database, redb::Error> + Send;

/// File in which a store keeps its nodes.
pub(super) struct StoreFile {
    path: PathBuf,
    open: Box<Opener>,
}

/// Open file of a store, locked against other processes.
#[derive(Debug)]
pub(super) struct OpenStoreFile {
    database: Database,
}

/// Content of the file.
#[derive(Debug)]
pub(super) struct Content {
    /// Parents before their children.
    pub(super) nodes: Vec<(String, Znode)>,
    pub(super) zxid: Zxid,
}

/// Error of a store's file.
#[derive(Debug, thiserror::Error)]
#[error("open the task center's store {}: {why}", path.shown())]
pub struct StoreFileError {
    /// The file.
    pub path: PathBuf,
    /// Reason as text.
    pub why: String,
}

impl StoreFileError {
    pub(super) fn new(path: &Path, why: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

impl StoreFile {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, open: Box::new(create) }
    }

    /// As [`StoreFile::at`], with another way to open the file.
    #[cfg(test)]
    pub(super) fn with(path: PathBuf, open: Box<Opener>) -> Self {
        Self { path, open }
    }

    pub(super) fn error(&self, why: impl fmt::Display) -> StoreFileError {
        StoreFileError::new(&self.path, why)
    }

    /// Opens the file, created if it is missing, and reads it.
    pub(super) fn open(&self) -> Result<(OpenStoreFile, Content), StoreFileError> {
        let failed = |error: redb::Error| match error {
            redb::Error::DatabaseAlreadyOpen => StoreFileError::new(&self.path, "another process uses it"),
            error => StoreFileError::new(&self.path, error),
        };
        let database = (self.open)(&self.path).map_err(failed)?;
        let file = OpenStoreFile { database };
        let format = file.prepare().map_err(failed)?;
        if format != FORMAT_VERSION {
            return Err(self.error(format!("format {format}, this program knows {FORMAT_VERSION}: upgrade it")));
        }
        let content = file.read().map_err(failed)?;
        // The checksums of the library do not cover the order of transactions.
        if let Some((path, _)) = content.nodes.iter().find(|(_, node)| node.stat.modified > content.zxid) {
            return Err(self.error(format!("{path:?} is newer than the last write")));
        }
        Ok((file, content))
    }
}

impl fmt::Debug for StoreFile {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("StoreFile").field(&self.path).finish()
    }
}

impl fmt::Display for StoreFile {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.path.shown())
    }
}

impl OpenStoreFile {
    /// Makes `changes` durable, `None` for a deleted node, together with the number of the last write.
    pub(super) fn write<'a>(
        &self,
        changes: impl Iterator<Item = (&'a str, Option<&'a Znode>)>,
        zxid: Zxid,
    ) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut nodes = transaction.open_table(NODES)?;
            for (path, node) in changes {
                match node {
                    Some(node) => nodes.insert(path, record(node))?,
                    None => nodes.remove(path)?,
                };
            }
            transaction.open_table(META)?.insert(ZXID, zxid.0)?;
        }
        Ok(transaction.commit()?)
    }

    /// Creates the tables of a new file. Returns the format of the file.
    fn prepare(&self) -> Result<i64, redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            if let Some(format) = meta.get(FORMAT)? {
                return Ok(format.value());
            }
            meta.insert(FORMAT, FORMAT_VERSION)?;
            meta.insert(ZXID, 0)?;
            transaction.open_table(NODES)?;
        }
        transaction.commit()?;
        Ok(FORMAT_VERSION)
    }

    fn read(&self) -> Result<Content, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut nodes = Vec::new();
        for entry in transaction.open_table(NODES)?.iter()? {
            let (path, record) = entry?;
            nodes.push((path.value().to_owned(), node(record.value())));
        }
        let zxid = transaction.open_table(META)?.get(ZXID)?.map_or(0, |zxid| zxid.value());
        Ok(Content { nodes, zxid: Zxid(zxid) })
    }
}

/// Opens a database, created if it is missing, and makes its directory entry durable.
fn create(path: &Path) -> Result<Database, redb::Error> {
    let database = Database::create(path)?;
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(redb::Error::Io)?;
    }
    Ok(database)
}

fn record(node: &Znode) -> Record<'_> {
    let Stat { version, created, modified, owner } = node.stat;
    (version, created.0, modified.0, owner.map(|session| session.0), &node.data)
}

fn node((version, created, modified, owner, data): Record<'_>) -> Znode {
    let stat = Stat { version, created: Zxid(created), modified: Zxid(modified), owner: owner.map(SessionId) };
    Znode { data: data.to_vec(), stat }
}
