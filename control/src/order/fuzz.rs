//! Reads foreign bytes as keys, orders and signatures, for the fuzz targets.

use super::content::Order;
use super::keys::{KeySet, parse_public_key};
use super::signature::verified;
use super::signing::SigningKey;
use crate::model::{SignedOrder, TaskId};

/// Reads any bytes as files of keys.
pub fn fuzz_keys(data: &[u8]) {
    let _ = parse_public_key(data);
    let _ = SigningKey::parse(data);
}

/// Reads any bytes as an order and its signature, as of a message and as of a record.
///
/// # Panics
/// If it passes for a signed order: no key is in force.
pub fn fuzz_order(data: &[u8]) {
    let (signature, text) = data.split_at(data.len().min(64));
    if let Ok(Some(signed)) = SignedOrder::from_wire(text.to_vec(), signature) {
        assert!(verified(&signed, &KeySet::default(), "c", 0).is_err(), "an order of no key was taken");
    }
    if let Ok(text) = std::str::from_utf8(text)
        && let Ok(order) = Order::parse(text)
        && let Ok(id) = TaskId::new("nightly.20260131T220000Z")
    {
        let _ = order.work(&id, None);
    }
    if let Ok(signed) = serde_json::from_slice::<SignedOrder>(data) {
        assert!(verified(&signed, &KeySet::default(), "c", 0).is_err(), "an order of no key was taken");
    }
}
