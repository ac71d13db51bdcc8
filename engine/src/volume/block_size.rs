//! Chooses the block that both volumes of a job can take.
//!
//! Files and devices take any block. A server names the least and the most bytes of one request. A block is one
//! request, so that it takes effect as a whole or not at all.

use super::{Locator, Volume};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::limits::{BLOCK_BYTES_CHANGES, BLOCK_BYTES_MIN, BLOCK_BYTES_SMALL, SLOTS_FOR_SERVERS};
use crate::spec::BlockSize;

/// Both volumes of a job, the source first.
type Pair<'a> = [&'a dyn Volume; 2];

/// The block that is chosen for a job without a wish if one of its volumes is an export, before servers have been
/// asked; else `None`. An engine that is started for such a job does best with slots of that size: it has more of them.
#[must_use]
pub fn usual_block(volumes: &[&Locator], changes: bool) -> Option<BlockSize> {
    let is_export = |locator: &&Locator| matches!(locator, Locator::Nbd(_));
    let bytes = if changes { BLOCK_BYTES_CHANGES } else { BLOCK_BYTES_SMALL };
    volumes.iter().any(is_export).then(|| BlockSize::new(bytes.into()).expect("a constant in range"))
}

/// The depth that an engine is best started with for a job one of whose volumes is an export, else `None`.
#[must_use]
pub fn usual_depth(volumes: &[&Locator]) -> Option<usize> {
    volumes.iter().any(|locator| matches!(locator, Locator::Nbd(_))).then_some(SLOTS_FOR_SERVERS)
}

/// The block of a job that has a `wish` or none: at least what servers take (`EBadRequest` for a smaller wish), and cut
/// to what they take. `None` if neither volume is an export and there is no wish: then the route decides.
///
/// # Errors
/// `EBadRequest`, and `EUnsupported` where no block is right for both volumes.
pub(crate) fn choose_block(wish: Option<BlockSize>, changes: bool, pair: Pair<'_>) -> Result<Option<u32>> {
    let Some(bounds) = Bounds::of(pair) else { return Ok(wish.map(BlockSize::bytes)) };
    if let Some(wish) = wish.filter(|wish| wish.bytes() < bounds.least) {
        let message = format!("blocks of {} bytes are less than the {} takes", wish.bytes(), bounds.least_of(pair));
        return Err(Error::bad_request(message).advise(format_args!("name --block-size {} or more", bounds.least)));
    }
    let usual = if changes { BLOCK_BYTES_CHANGES } else { BLOCK_BYTES_SMALL };
    let block = wish.map_or(usual, BlockSize::bytes).max(bounds.least).min(bounds.most);
    refuse_block(block, pair).map(|()| Some(block))
}

/// Refuses a block that a server does not take: one that a journal was begun with, or that no wish can heal.
///
/// # Errors
/// `EUnsupported`, naming the server's bounds.
pub(crate) fn refuse_block(block: u32, pair: Pair<'_>) -> Result<()> {
    let Some(Bounds { least, most }) = Bounds::of(pair) else { return Ok(()) };
    if (least.max(BLOCK_BYTES_MIN)..=most).contains(&block) {
        return Ok(());
    }
    let names: Vec<_> =
        pair.iter().filter(|volume| volume.export().is_some()).map(|volume| volume.name().to_string()).collect();
    let message = format!(
        "a request to {} may have {least} to {most} bytes, which leaves no room for blocks of {block}",
        names.join(" and to ")
    );
    let error = Error::new(Code::Unsupported, Side::Caller, Operation::Start, message);
    Err(error.advise("a copy that was begun with other blocks can only be started over with --restart"))
}

/// Block sizes that every server of a job takes: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    least: u32,
    most: u32,
}

impl Bounds {
    /// `None` without a server.
    fn of(pair: Pair<'_>) -> Option<Self> {
        let each = pair.into_iter().filter_map(|volume| volume.export()).map(|export| {
            let facts = export.facts();
            Self { least: facts.min_block_bytes, most: 1 << facts.max_payload_bytes.max(1).ilog2() }
        });
        each.reduce(|one, two| Self { least: one.least.max(two.least), most: one.most.min(two.most) })
    }

    /// `minimum of nbd://host/export`
    fn least_of(self, pair: Pair<'_>) -> String {
        let is_it =
            |volume: &&dyn Volume| volume.export().is_some_and(|export| export.facts().min_block_bytes == self.least);
        let name = pair.into_iter().find(is_it).map_or_else(String::new, |volume| volume.name().to_string());
        format!("{} that {name}", self.least)
    }
}
