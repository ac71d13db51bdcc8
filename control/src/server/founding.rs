//! Makes a center where there is none: its identity and its folders, before any role sees a session.
//!
//! Several nodes may do so at once; what one has made, the others find. A center of another schema is left alone: then no
//! session is handed out, and the log says why.

use crate::coord::{Center, CoordError, Life, Op, Refusal, Session};
use crate::layout::{CLAIMS, FOLDERS, META, TASKS, shards};
use crate::record::{Meta, Record};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

/// Of the records that this program reads and writes.
const SCHEMA: u32 = 1;

/// Opens sessions with a center that is complete.
#[derive(Debug)]
pub(super) struct Founded {
    service: Arc<dyn Center>,
    name: Arc<OnceLock<String>>,
}

impl Founded {
    /// Over this service; `name` becomes the center's, once that is known.
    pub(super) fn new(service: Arc<dyn Center>, name: Arc<OnceLock<String>>) -> Self {
        Self { service, name }
    }
}

#[async_trait]
impl Center for Founded {
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
        let session = self.service.open().await?;
        match found(&*session).await {
            Ok(meta) if meta.schema == SCHEMA => {
                self.name.get_or_init(|| meta.center);
                Ok(session)
            }
            Ok(meta) => {
                tracing::error!(
                    schema = meta.schema,
                    "the center is of another schema than {SCHEMA}: update this taskd"
                );
                session.close().await;
                Err(CoordError::NotConnected)
            }
            Err(error) => {
                tracing::warn!(%error, "the center's folders cannot be made or read");
                session.close().await;
                Err(error)
            }
        }
    }
}

/// Makes what is missing.
async fn found(session: &dyn Session) -> Result<Meta, CoordError> {
    let meta = meta(session).await?;
    if meta.schema != SCHEMA {
        return Ok(meta);
    }
    for folder in FOLDERS {
        if session.get(folder).await?.is_none() {
            create(session, vec![folder.to_owned()]).await?;
        }
    }
    for folder in [CLAIMS, TASKS] {
        let there: BTreeSet<String> = session.children(folder).await?.into_iter().collect();
        let missing: Vec<_> = shards().filter(|shard| !there.contains(shard)).collect();
        if !missing.is_empty() {
            create(session, missing.iter().map(|shard| format!("{folder}/{shard}")).collect()).await?;
        }
    }
    Ok(meta)
}

async fn meta(session: &dyn Session) -> Result<Meta, CoordError> {
    loop {
        if let Some(node) = session.get(META).await? {
            return Ok(Meta::decode(&node.data).unwrap_or_else(|error| {
                tracing::error!(%error, "{META} cannot be decoded");
                Meta { schema: 0, center: String::new() }
            }));
        }
        let meta = Meta { schema: SCHEMA, center: uuid::Uuid::new_v4().simple().to_string() };
        let op = Op::Create { path: META.to_owned(), data: meta.encode(), life: Life::Persistent };
        match session.multi(vec![op]).await {
            Ok(_) => tracing::info!(center = meta.center, "a new center"),
            Err(CoordError::Refused { why: Refusal::NodeExists, .. }) => session.sync().await?,
            Err(error) => return Err(error),
        }
    }
}

/// Makes folders; where another node has made one of them in between, one by one.
async fn create(session: &dyn Session, paths: Vec<String>) -> Result<(), CoordError> {
    let op = |path: &String| Op::Create { path: path.clone(), data: Vec::new(), life: Life::Persistent };
    match session.multi(paths.iter().map(op).collect()).await {
        Err(CoordError::Refused { why: Refusal::NodeExists, .. }) => (),
        result => return result.map(drop),
    }
    for path in &paths {
        match session.multi(vec![op(path)]).await {
            Ok(_) | Err(CoordError::Refused { why: Refusal::NodeExists, .. }) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::embedded::Embedded;

    #[tokio::test]
    async fn a_center_is_made_once_and_completed_when_it_was_cut_short() {
        let scratch = tempfile::tempdir().unwrap();
        let service: Arc<dyn Center> = Arc::new(Embedded::open(&scratch.path().join("store")).unwrap());
        let open = async |name: &Arc<OnceLock<String>>| {
            Founded::new(Arc::clone(&service), Arc::clone(name)).open().await.unwrap()
        };
        let (first, second) = (Arc::default(), Arc::default());
        let session = open(&first).await;
        assert_eq!(session.children(TASKS).await.unwrap().len(), 256);
        let gone = format!("{CLAIMS}/7f");
        session.multi(vec![Op::Delete { path: gone.clone(), version: 0 }]).await.unwrap();
        let again = open(&second).await;
        assert!(again.get(&gone).await.unwrap().is_some());
        assert_eq!(first.get(), second.get());
    }

    #[tokio::test]
    async fn a_center_of_another_schema_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let service: Arc<dyn Center> = Arc::new(Embedded::open(&scratch.path().join("store")).unwrap());
        let session = service.open().await.unwrap();
        for (version, data) in [(0, Meta { schema: 2, center: String::from("c") }.encode()), (1, b"?".to_vec())] {
            let path = META.to_owned();
            let op = match version {
                0 => Op::Create { path, data, life: Life::Persistent },
                _ => Op::Set { path, data, version: 0 },
            };
            session.multi(vec![op]).await.unwrap();
            let founded = Founded::new(Arc::clone(&service), Arc::default());
            assert!(matches!(founded.open().await, Err(CoordError::NotConnected)));
            assert!(session.get(TASKS).await.unwrap().is_none());
        }
    }
}
