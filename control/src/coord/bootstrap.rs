//! Creates the records that a new center needs, its identity and its folders, before any role gets a session.
//!
//! Several nodes may do so at once; each keeps what another one has created. A center of a level that this program does
//! not know, or one that is not the center of the node's state directory, is left unchanged: then
//! [`BootstrappingClient::open`] returns the reason instead of a session.

use crate::coord::paths::{CLAIMS, FOLDERS, META, TASKS, shards};
use crate::coord::{CoordClient, CoordError, CreateMode, Op, Refusal, Session};
use crate::model::level::{LEVEL, LEVEL_MIN};
use crate::model::{Meta, Record};
use crate::peers::CenterId;
use crate::runner::StateDir;
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tells whether this program can work in a center of this level.
fn is_known(level: u32) -> bool {
    (LEVEL_MIN..=LEVEL).contains(&level)
}

/// Opens sessions with a center whose records exist.
#[derive(Debug)]
pub(crate) struct BootstrappingClient {
    service: Arc<dyn CoordClient>,
    center: CenterId,
    state: Arc<StateDir>,
}

impl BootstrappingClient {
    /// Wraps a service. The first session sets `center`, and binds the state directory `state` to that center.
    pub(crate) fn new(service: Arc<dyn CoordClient>, center: CenterId, state: Arc<StateDir>) -> Self {
        Self { service, center, state }
    }

    /// Binds the node to this center, before any of its records is acted on.
    fn join(&self, meta: Meta) -> Result<(), CoordError> {
        if !is_known(meta.schema) {
            let level = meta.schema;
            let why =
                format!("the center has level {level}, and this taskd knows {LEVEL_MIN} to {LEVEL}: upgrade taskd");
            return Err(CoordError::Unusable(why));
        }
        self.state.bind(&meta.center).map_err(|error| CoordError::Unusable(error.message))?;
        // The state directory was emptied while this process ran: its memory is still of the other center.
        let joined = self.center.get_or_init(|| meta.center.clone());
        if *joined != meta.center {
            let why = format!(
                "this process has joined center {joined}, but the coordination service holds center {} now: restart taskd",
                meta.center
            );
            return Err(CoordError::Unusable(why));
        }
        Ok(())
    }
}

#[async_trait]
impl CoordClient for BootstrappingClient {
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
        let session = self.service.open().await?;
        let created = create_center(&*session).await.and_then(|meta| self.join(meta));
        if let Err(error) = created {
            session.close().await;
            return Err(error);
        }
        Ok(session)
    }

    async fn diagnose(&self) -> String {
        self.service.diagnose().await
    }
}

/// Creates the records and folders of the center that are missing.
async fn create_center(session: &dyn Session) -> Result<Meta, CoordError> {
    let meta = read_or_create_meta(session).await?;
    if !is_known(meta.schema) {
        return Ok(meta);
    }
    for folder in FOLDERS {
        if session.get(folder).await?.is_none() {
            create(session, vec![folder.to_owned()]).await?;
        }
    }
    for folder in [CLAIMS, TASKS] {
        let existing: BTreeSet<String> = session.children(folder).await?.into_iter().collect();
        let missing: Vec<_> = shards().filter(|shard| !existing.contains(shard)).collect();
        if !missing.is_empty() {
            create(session, missing.iter().map(|shard| format!("{folder}/{shard}")).collect()).await?;
        }
    }
    Ok(meta)
}

async fn read_or_create_meta(session: &dyn Session) -> Result<Meta, CoordError> {
    loop {
        if let Some(node) = session.get(META).await? {
            return Ok(Meta::decode(&node.data).unwrap_or_else(|error| {
                tracing::error!(%error, "{META} cannot be decoded");
                Meta { schema: 0, center: String::new() }
            }));
        }
        let meta = Meta { schema: LEVEL, center: uuid::Uuid::new_v4().simple().to_string() };
        let op = Op::Create { path: META.to_owned(), data: meta.encode(), mode: CreateMode::Persistent };
        match session.multi(vec![op]).await {
            Ok(_) => tracing::info!(center = meta.center, "created a new center"),
            Err(CoordError::Refused { why: Refusal::NodeExists, .. }) => session.sync().await?,
            Err(error) => return Err(error),
        }
    }
}

/// Creates folders; one by one if another node has created some in between.
async fn create(session: &dyn Session, paths: Vec<String>) -> Result<(), CoordError> {
    let op = |path: &String| Op::Create { path: path.clone(), data: Vec::new(), mode: CreateMode::Persistent };
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

    /// Creates a store, and the state directory of a node beside it.
    fn scratch_center() -> (tempfile::TempDir, Arc<dyn CoordClient>, Arc<StateDir>) {
        let scratch = tempfile::tempdir().unwrap();
        let service: Arc<dyn CoordClient> = Arc::new(Embedded::open(&scratch.path().join("store")).unwrap());
        let state = Arc::new(StateDir::lock(&scratch.path().join("state")).unwrap());
        (scratch, service, state)
    }

    #[tokio::test]
    async fn a_center_is_created_once_and_missing_folders_are_added() {
        let (_scratch, service, state) = scratch_center();
        let open = async |name: &CenterId| {
            BootstrappingClient::new(Arc::clone(&service), Arc::clone(name), Arc::clone(&state)).open().await.unwrap()
        };
        let (first, second) = (CenterId::default(), CenterId::default());
        let session = open(&first).await;
        assert_eq!(session.children(TASKS).await.unwrap().len(), 256);
        let gone = format!("{CLAIMS}/7f");
        session.multi(vec![Op::Delete { path: gone.clone(), version: 0 }]).await.unwrap();
        let again = open(&second).await;
        assert!(again.get(&gone).await.unwrap().is_some());
        assert_eq!(first.get(), second.get());
    }

    #[tokio::test]
    async fn a_node_refuses_a_center_that_it_does_not_belong_to() {
        let (_first_place, first, state) = scratch_center();
        let (_second_place, second, _) = scratch_center();
        let center = CenterId::default();
        let open = |service: &Arc<dyn CoordClient>, center: &CenterId| {
            let client = BootstrappingClient::new(Arc::clone(service), Arc::clone(center), Arc::clone(&state));
            async move { client.open().await.map(drop) }
        };
        open(&first, &center).await.unwrap();
        for center in [&center, &CenterId::default()] {
            let Err(CoordError::Unusable(why)) = open(&second, center).await else { panic!("it was joined") };
            assert!(why.contains(center.get().map_or("belongs to", |center| center)), "{why}");
        }
        // The state directory forgets its center while the process runs: its memory is still of the first one.
        std::fs::remove_file(state.path().join("center")).unwrap();
        let Err(CoordError::Unusable(why)) = open(&second, &center).await else { panic!("it was joined") };
        assert!(why.contains("restart"), "{why}");
        open(&second, &CenterId::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_center_of_an_earlier_level_is_joined_as_it_is() {
        let (_scratch, service, state) = scratch_center();
        let session = service.open().await.unwrap();
        let meta = Meta { schema: LEVEL_MIN, center: String::from("c") };
        let op = Op::Create { path: META.to_owned(), data: meta.encode(), mode: CreateMode::Persistent };
        session.multi(vec![op]).await.unwrap();
        let client = BootstrappingClient::new(Arc::clone(&service), CenterId::default(), Arc::clone(&state));
        let joined = client.open().await.unwrap();
        assert_eq!(Meta::decode(&joined.get(META).await.unwrap().unwrap().data).unwrap(), meta);
    }

    #[tokio::test]
    async fn a_center_of_a_later_level_is_left_alone() {
        let (_scratch, service, state) = scratch_center();
        let session = service.open().await.unwrap();
        for (version, data) in [(0, Meta { schema: LEVEL + 1, center: String::from("c") }.encode()), (1, b"?".to_vec())]
        {
            let path = META.to_owned();
            let op = match version {
                0 => Op::Create { path, data, mode: CreateMode::Persistent },
                _ => Op::Set { path, data, version: 0 },
            };
            session.multi(vec![op]).await.unwrap();
            let client = BootstrappingClient::new(Arc::clone(&service), CenterId::default(), Arc::clone(&state));
            assert!(matches!(client.open().await, Err(CoordError::Unusable(_))));
            assert!(session.get(TASKS).await.unwrap().is_none());
        }
    }
}
