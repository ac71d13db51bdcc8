//! Keeps what a client has signed beside the record that was made from it.
//!
//! The text is stored as the client has sent it, byte for byte: only these bytes have the signature. Whether they are worth
//! anything is decided by [`order`](crate::order), at each attempt anew.

use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest signed text, in bytes: with its task it has to fit into one record.
pub const ORDER_BYTES_MAX: usize = 2 << 10;
/// Length of a signature, in bytes.
pub(crate) const SIGNATURE_BYTES: usize = 64;

/// Order of a client with its signature.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOrder {
    /// What was signed: JSON.
    pub(crate) text: String,
    /// Signature, in hexadecimal digits.
    pub(crate) signature: String,
}

impl SignedOrder {
    /// Takes an order from a message; `None` if there is none.
    ///
    /// # Errors
    /// `EPermission` if it is too long, is no text, or its signature has another length.
    pub(crate) fn from_wire(order: Vec<u8>, signature: &[u8]) -> Result<Option<Self>> {
        if order.is_empty() && signature.is_empty() {
            return Ok(None);
        }
        if order.len() > ORDER_BYTES_MAX {
            return Err(malformed(format!("it has {} bytes, at most {ORDER_BYTES_MAX} are possible", order.len())));
        }
        if signature.len() != SIGNATURE_BYTES {
            return Err(malformed(format!("its signature has {} bytes, not {SIGNATURE_BYTES}", signature.len())));
        }
        let text = String::from_utf8(order).map_err(|_| malformed(String::from("it is not UTF-8 text")))?;
        Ok(Some(Self { text, signature: hexadecimal(signature) }))
    }

    /// Returns the two fields of a message.
    pub(crate) fn to_wire(&self) -> (Vec<u8>, Vec<u8>) {
        (self.text.clone().into_bytes(), self.signature_bytes().map(Vec::from).unwrap_or_default())
    }

    /// Returns the signature; `None` if the record holds something else, as one that was written by hand may.
    pub(crate) fn signature_bytes(&self) -> Option<[u8; SIGNATURE_BYTES]> {
        let digits = self.signature.as_bytes();
        if digits.len() != 2 * SIGNATURE_BYTES {
            return None;
        }
        let mut bytes = [0; SIGNATURE_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(bytes)
    }
}

/// Shows no more than the length: the text is foreign, and long.
impl fmt::Debug for SignedOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedOrder({} bytes)", self.text.len())
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn malformed(why: String) -> Error {
    Error::new(Code::Permission, Side::Caller, Operation::Parse, format!("the signed order is malformed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_kept_as_it_was_sent() {
        let signature: Vec<u8> = (0..64).map(|byte| byte * 4).collect();
        let order = SignedOrder::from_wire(b"{ \"a\" : 1}".to_vec(), &signature).unwrap().unwrap();
        let stored = serde_json::to_string(&order).unwrap();
        let read: SignedOrder = serde_json::from_str(&stored).unwrap();
        assert_eq!(read.to_wire(), (b"{ \"a\" : 1}".to_vec(), signature));
        assert_eq!(SignedOrder::from_wire(Vec::new(), &[]).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_an_order_is_refused() {
        for (order, signature) in [
            (vec![b' '; ORDER_BYTES_MAX + 1], vec![0; 64]),
            (b"{}".to_vec(), vec![0; 63]),
            (b"{}".to_vec(), Vec::new()),
            (vec![0xff], vec![0; 64]),
            (Vec::new(), vec![0; 65]),
        ] {
            assert_eq!(SignedOrder::from_wire(order, &signature).unwrap_err().code, Code::Permission);
        }
        for bad in ["", "00", &"g".repeat(128), &"é".repeat(64)] {
            let order = SignedOrder { text: String::new(), signature: bad.to_owned() };
            assert_eq!(order.signature_bytes(), None, "{bad}");
        }
    }
}
