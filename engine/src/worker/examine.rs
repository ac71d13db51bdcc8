//! Examines blocks that were read: finds their zeros, digests and compares them, and fills the tail of the last one.

use super::part;
use crate::buffer::Block;
use crate::pass::state::{LeafContent, PassState};
use crate::pipeline::examine::{BlockSpan, DataMap, is_zero, leaf_digest};
use crate::pipeline::slot_state::{ReadRole, SlotEvent};
use crate::pipeline::worker_pass::{BlockTask, WorkerPass};

/// Examines a block that was read; returns the next step and its content.
pub(super) fn examine(
    role: ReadRole,
    task: &BlockTask,
    pass: &mut WorkerPass,
    block: &mut Block,
) -> (SlotEvent, LeafContent) {
    let len = part(task.range.len());
    let start = task.range.start();
    // Outside of its hull the leaf is zeros, whatever an earlier block left there.
    block[..part(task.read.start() - start) as usize].fill(0);
    block[part(task.read.end() - start) as usize..len as usize].fill(0);
    let params = &pass.state.params;
    let (align, block_bytes) = (pass.state.destination.align, params.block_bytes);
    let bytes = &block[..len as usize];
    let map = DataMap::examine(bytes, block_bytes);
    let content = match (map.is_zero(), params.digest || role == ReadRole::Reference) {
        (true, _) => LeafContent::Zeros,
        (false, true) => LeafContent::Digest(leaf_digest(bytes)),
        (false, false) => LeafContent::Undigested,
    };
    if role == ReadRole::Reference {
        return (SlotEvent::Expected { need: BlockSpan { start: 0, len }, align }, content);
    }
    fill_tail(block, task, &pass.state);
    (SlotEvent::Mapped { map: pass.writable(task, map, block_bytes), align }, content)
}

/// Extends the last block of an unaligned copy to the destination's alignment, with the bytes that the destination has
/// there.
pub(super) fn fill_tail(block: &mut Block, task: &BlockTask, state: &PassState) {
    let len = part(task.range.len()) as usize;
    let aligned = len.next_multiple_of(state.destination.align as usize);
    if aligned > len {
        let tail = &state.params.tail;
        let kept = tail.len().min(aligned - len);
        block[len..len + kept].copy_from_slice(&tail[..kept]);
        block[len + kept..aligned].fill(0);
    }
}

/// Returns whether a block that was read for a comparison has the expected content.
pub(super) fn is_as_expected(expected: LeafContent, bytes: &[u8]) -> bool {
    match expected {
        LeafContent::Zeros => is_zero(bytes),
        LeafContent::Digest(expected) => leaf_digest(bytes) == expected,
        LeafContent::Undigested => unreachable!("a comparison always knows what it expects"),
    }
}
