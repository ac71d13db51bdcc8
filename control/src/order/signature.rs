//! Checks the signature of an order, the center that it is for, and the time until which it holds. Pure.

use super::content::Order;
use super::keys::KeySet;
use super::{VALIDITY_MAX, refused};
use crate::model::SignedOrder;
use crate::timestamp::Timestamp;
use blockhaul_engine::error::Result;
use ring::signature::{ED25519, UnparsedPublicKey};
use std::time::Duration;

/// Precedes the text under each signature: a signature for something else is none for an order.
pub(super) const DOMAIN: &[u8] = b"blockhaul order 1\0";
/// How far the clock of a client may be ahead of this node's when it signs for as long as possible.
const AHEAD_MAX: Duration = Duration::from_secs(300);

/// Returns the bytes that are signed.
pub(super) fn signed_bytes(text: &str) -> Vec<u8> {
    [DOMAIN, text.as_bytes()].concat()
}

/// Returns what a client of this center has signed with one of these keys, if it holds now.
///
/// # Errors
/// `EPermission`: it is malformed, of another key or another center, or has expired.
pub(super) fn verified(signed: &SignedOrder, keys: &KeySet, center: &str, now_ms: u64) -> Result<Order> {
    let order = Order::parse(&signed.text)?;
    let key = keys.get(&order.key).ok_or_else(|| {
        let id: String = order.key.chars().take(40).collect();
        refused(format!("key {} is not in the folder of --order-keys", id.escape_debug()))
    })?;
    check_signature(signed, key)?;
    if order.center != center {
        let other: String = order.center.chars().take(40).collect();
        return Err(refused(format!("it was signed for center {}, and this is {center}", other.escape_debug())));
    }
    check_time(order.not_after_ms, now_ms)?;
    Ok(order)
}

/// Checks the signature of a text under a public key.
///
/// # Errors
/// `EPermission`.
pub(super) fn check_signature(signed: &SignedOrder, key: &[u8]) -> Result<()> {
    let signature = signed.signature_bytes().ok_or_else(|| refused("its signature is malformed"))?;
    let is_genuine = UnparsedPublicKey::new(&ED25519, key).verify(&signed_bytes(&signed.text), &signature);
    is_genuine.map_err(|_| refused("its signature is not that of this text"))
}

fn check_time(not_after_ms: u64, now_ms: u64) -> Result<()> {
    if now_ms > not_after_ms {
        return Err(refused(format!("it has expired at {}", Timestamp(not_after_ms))).advise("sign it anew"));
    }
    let longest = u64::try_from((VALIDITY_MAX + AHEAD_MAX).as_millis()).unwrap_or(u64::MAX);
    if not_after_ms - now_ms > longest {
        return Err(refused("it would hold for more than seven days").advise("compare the clocks, or sign it anew"));
    }
    Ok(())
}
