//! Names the addressee of every call between nodes in the metadata of its request, and refuses calls for another
//! addressee.
//!
//! | key | value |
//! | --- | --- |
//! | `blockhaul-center` | the center of the caller |
//! | `blockhaul-node` | the node that is called |
//! | `blockhaul-incarnation` | the incarnation of that node |
//!
//! What always holds: a call for another addressee is refused before any service sees it. A missing key is not checked:
//! callers of an earlier version send none.

use super::error::RpcError;
use crate::peers::{Addressee, LocalIdentity};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Request, Status};

const CENTER: &str = "blockhaul-center";
const NODE: &str = "blockhaul-node";
const INCARNATION: &str = "blockhaul-incarnation";

/// Names the addressee of a request.
pub(super) fn name(metadata: &mut MetadataMap, addressee: &Addressee) {
    let Addressee { center, node, incarnation } = addressee;
    for (key, value) in [(CENTER, center), (NODE, node), (INCARNATION, incarnation)] {
        // Names are plain text: anything else matches no process.
        let Some(value) = value else { continue };
        metadata.insert(key, AsciiMetadataValue::try_from(value).unwrap_or(AsciiMetadataValue::from_static("-")));
    }
}

/// Refuses a request for another process.
pub(super) fn guard(
    identity: LocalIdentity,
) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync {
    move |request| {
        let said = |key| {
            let value = request.metadata().get(key)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let addressee = Addressee { center: said(CENTER), node: said(NODE), incarnation: said(INCARNATION) };
        identity.check(&addressee).map_err(RpcError::from)?;
        Ok(request)
    }
}
