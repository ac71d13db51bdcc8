//! Holds the public keys of `--order-keys`: which clients' orders a center runs.
//!
//! Each file of the folder whose name ends with `.pub` or `.pem` holds one Ed25519 key, as `openssl pkey -pubout` writes it. Other
//! files do not count, so that renaming one takes its key away. A key is named by the first 16 hexadecimal digits of the
//! BLAKE3 of its 32 bytes: that name is in each order.
//!
//! What always holds: the folder is read when it is asked for (SIGHUP) and not before; a folder of which one file is of no use
//! replaces nothing; a key that is gone counts for no attempt that starts afterwards.

use crate::model::hexadecimal;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Length of a public key, in bytes.
const KEY_BYTES: usize = 32;
/// DER of an Ed25519 public key before its bytes (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Longest file: a key has about 113 bytes, and may have some words beside it.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// Most keys: more are a mistaken folder.
const KEYS_MAX: usize = 1000;
/// Digits of a key's name.
const NAME_DIGITS: usize = 16;

/// Public keys, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet(BTreeMap<String, [u8; KEY_BYTES]>);

/// Keys that are in force. Clones share them.
#[derive(Clone)]
pub struct OrderKeys(Arc<Inner>);

struct Inner {
    path: PathBuf,
    keys: watch::Sender<Arc<KeySet>>,
    /// Wakes the loop to read the folder again now.
    asked: Notify,
}

impl OrderKeys {
    /// Reads the folder.
    ///
    /// # Errors
    /// `EBadRequest` naming the file that holds no key; `ENotFound` or `EPermission` if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let keys = KeySet::read(path)?;
        keys.log("order keys read", path);
        let keys = watch::Sender::new(Arc::new(keys));
        Ok(Self(Arc::new(Inner { path: path.to_owned(), keys, asked: Notify::new() })))
    }

    /// Returns keys that are in no folder.
    #[cfg(test)]
    pub(crate) fn of(keys: &[[u8; KEY_BYTES]]) -> Self {
        let keys = watch::Sender::new(Arc::new(KeySet::of(keys)));
        Self(Arc::new(Inner { path: PathBuf::from("/nowhere"), keys, asked: Notify::new() }))
    }

    /// Takes other keys, as from a changed folder.
    #[cfg(test)]
    pub(crate) fn change(&self, keys: &[[u8; KEY_BYTES]]) {
        self.0.keys.send_replace(Arc::new(KeySet::of(keys)));
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the keys in force.
    pub(super) fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.0.keys.borrow())
    }

    /// Reads the folder now, and logs the result.
    pub(crate) fn read_again(&self) {
        self.0.asked.notify_one();
    }

    /// Reads the folder again whenever that is asked for, for as long as it is polled.
    pub(crate) async fn keep(&self) {
        loop {
            self.0.asked.notified().await;
            let path = self.0.path.clone();
            let read = tokio::task::spawn_blocking(move || KeySet::read(&path)).await;
            self.replace(read.unwrap_or_else(|error| Err(Error::internal(Operation::Parse, error.to_string()))));
        }
    }

    fn replace(&self, found: Result<KeySet>) {
        match found {
            Ok(keys) => {
                keys.log("order keys reloaded", &self.0.path);
                self.0.keys.send_replace(Arc::new(keys));
            }
            Err(error) => tracing::error!(%error, "cannot reload order keys: keeping the old ones"),
        }
    }
}

impl fmt::Debug for OrderKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OrderKeys").field(&self.0.path).finish()
    }
}

impl KeySet {
    fn read(folder: &Path) -> Result<Self> {
        let failed = |error: &std::io::Error, what: &Path| {
            let error = Error::io(Side::Caller, Operation::Parse, error, format!("read {}", what.shown()));
            error.advise("--order-keys names a folder of public keys")
        };
        let mut keys = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(|error| failed(&error, folder))? {
            let path = entry.map_err(|error| failed(&error, folder))?.path();
            if !path.extension().is_some_and(|ending| ending == "pub" || ending == "pem") {
                continue;
            }
            let stat = std::fs::metadata(&path).map_err(|error| failed(&error, &path))?;
            if !stat.is_file() || stat.len() > FILE_BYTES_MAX {
                return Err(Error::bad_request(format!("{} is no file with a public key", path.shown())));
            }
            let text = std::fs::read(&path).map_err(|error| failed(&error, &path))?;
            let key = parse_public_key(&text)
                .map_err(|why| Error::bad_request(format!("{}: {why}", path.shown())).advise(HOW_TO_MAKE))?;
            keys.insert(key_name(&key), key);
            if keys.len() > KEYS_MAX {
                let message = format!("{} holds more than {KEYS_MAX} keys", folder.shown());
                return Err(Error::new(Code::BadRequest, Side::Caller, Operation::Parse, message));
            }
        }
        Ok(Self(keys))
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8; KEY_BYTES]> {
        self.0.get(name)
    }

    fn log(&self, what: &str, folder: &Path) {
        let names = self.0.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
        if self.0.is_empty() {
            tracing::warn!("{what}: {} holds no key, so no task runs", folder.shown());
        } else {
            tracing::info!(keys = self.0.len(), names, "{what}");
        }
    }

    #[cfg(test)]
    pub(super) fn of(keys: &[[u8; KEY_BYTES]]) -> Self {
        Self(keys.iter().map(|key| (key_name(key), *key)).collect())
    }
}

/// What makes a file that can be read here.
const HOW_TO_MAKE: &str =
    "make one by 'openssl pkey -in KEY -pubout -out NAME.pub', of a key by 'openssl genpkey -algorithm ed25519'";

/// Parses one Ed25519 public key in PEM.
pub(super) fn parse_public_key(text: &[u8]) -> std::result::Result<[u8; KEY_BYTES], &'static str> {
    let is_private = text.windows(PRIVATE.len()).any(|part| part == PRIVATE);
    if is_private {
        return Err("it holds a private key, which belongs to who signs, and nowhere else");
    }
    let found: std::result::Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(text).collect();
    let found = found.map_err(|_| "it is no valid PEM")?;
    let [only] = &found[..] else { return Err("it holds no PUBLIC KEY in PEM, or several") };
    let key = only.as_ref().strip_prefix(&SPKI_PREFIX).ok_or("it holds a key of another kind than Ed25519")?;
    key.try_into().map_err(|_| "its key has another length than one of Ed25519")
}

/// Marks a private key in PEM.
const PRIVATE: &[u8] = b"PRIVATE KEY-----";

/// Returns the name of a key.
pub(super) fn key_name(key: &[u8]) -> String {
    let name = hexadecimal(blake3::hash(key).as_bytes());
    name[..NAME_DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                          -----END PUBLIC KEY-----\n";

    #[test]
    fn a_folder_holds_keys_and_may_hold_what_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(KeySet::read(folder.path()).unwrap(), KeySet::default());
        write("anna.pub", PUBLIC);
        write("anna-again.pem", &format!("The key of Anna\n{PUBLIC}"));
        write("bob.pub.revoked", "nothing");
        write("README", "nothing");
        let keys = KeySet::read(folder.path()).unwrap();
        assert_eq!(keys.0.len(), 1);
        let (name, key) = keys.0.first_key_value().unwrap();
        assert_eq!(key[..4], [0xd7, 0x5a, 0x98, 0x01], "the first test of RFC 8032");
        assert!(name.len() == 16 && keys.get(name).is_some());
        write("bob.pub", "nothing");
        let error = KeySet::read(folder.path()).unwrap_err();
        assert!(error.code == Code::BadRequest && error.message.contains("bob.pub"), "{error}");
        let error = KeySet::read(&folder.path().join("none")).unwrap_err();
        assert_eq!(error.code, Code::NotFound);
    }

    #[test]
    fn what_is_no_public_key_is_named() {
        let twice = format!("{PUBLIC}{PUBLIC}");
        let rsa = "-----BEGIN PUBLIC KEY-----\nMDwwDQYJKoZIhvcNAQEBBQADKwAwKAIhAL0=\n-----END PUBLIC KEY-----\n";
        let short = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11o=\n-----END PUBLIC KEY-----\n";
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n";
        for (text, why) in [
            ("", "no PUBLIC KEY"),
            (twice.as_str(), "several"),
            (rsa, "another kind"),
            (short, "another length"),
            (private, "private key"),
            ("-----BEGIN PUBLIC KEY-----\nx", "PEM"),
        ] {
            let refusal = parse_public_key(text.as_bytes()).unwrap_err();
            assert!(refusal.contains(why), "{text}: {refusal}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_read_again_when_asked_and_one_of_no_use_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("anna.pub");
        std::fs::write(&file, PUBLIC).unwrap();
        let keys = OrderKeys::read(folder.path()).unwrap();
        let mut seen = keys.0.keys.subscribe();
        let story = async {
            std::fs::write(&file, "half").unwrap();
            keys.replace(KeySet::read(folder.path()));
            assert_eq!(keys.keys().0.len(), 1, "one file is of no use");
            std::fs::remove_file(&file).unwrap();
            assert_eq!(keys.keys().0.len(), 1, "nobody has asked");
            keys.read_again();
            seen.changed().await.unwrap();
            assert_eq!(keys.keys().0.len(), 0, "the last key is gone");
        };
        tokio::select! {
            () = keys.keep() => unreachable!("it never ends"),
            () = story => (),
        }
    }

    proptest! {
        /// Whatever a file holds, reading it ends with a key or a refusal.
        #[test]
        fn any_bytes_are_a_key_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..113_usize) {
            let _ = parse_public_key(&bytes);
            let mut text = PUBLIC.as_bytes().to_vec();
            if let (Some(byte), Some(other)) = (text.get_mut(at), bytes.first()) {
                *byte = *other;
            }
            let _ = parse_public_key(&text);
        }
    }
}
