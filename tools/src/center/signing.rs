//! Signs what a command submits, for centers with `--order-keys`.

use super::args::RawSigning;
use super::{CenterSession, call};
use blockhaul_control::clock::{Clock, HostClock};
use blockhaul_control::order::{SigningKey, Terms};
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::time::Duration;

/// Validity of a signature: long enough for a night's queue, short enough for a key that has to be taken away.
const VALIDITY_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// Key of `--sign`, read before anything is sent.
#[derive(Debug)]
pub(super) struct Signing {
    key: SigningKey,
    validity: Duration,
}

/// Key, and what it signs for.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) key: SigningKey,
    pub(super) terms: Terms,
}

impl Signing {
    /// Reads the key, if there is to be a signature.
    ///
    /// # Errors
    /// `EBadRequest` if the file is no key, or the signature would hold for too long; errors of reading it.
    pub(super) fn resolve(raw: &RawSigning) -> Result<Option<Self>> {
        let RawSigning { sign: Some(path), not_after } = raw else { return Ok(None) };
        let validity = not_after.unwrap_or(VALIDITY_DEFAULT);
        Terms::check_validity(validity)?;
        Ok(Some(Self { key: SigningKey::read(path)?, validity }))
    }
}

impl CenterSession {
    /// Returns who signs for this center from now on; `None` without `--sign`.
    ///
    /// # Errors
    /// As the call that asks the center for its identity.
    pub(super) fn signer(&mut self, signing: Option<Signing>) -> Result<Option<Signer>> {
        let Some(Signing { key, validity }) = signing else { return Ok(None) };
        let wire::CenterStatus { center, .. } = call!(self, status, wire::StatusRequest {})?;
        if center.is_empty() {
            let message = "the center has no identity yet: retry";
            return Err(Error::new(Code::Unreachable, Side::Coordination, Operation::Start, message));
        }
        Ok(Some(Signer { key, terms: Terms { center, now_ms: HostClock.unix_ms(), validity } }))
    }
}

impl Signer {
    /// Signs the request for a task.
    ///
    /// # Errors
    /// `EBadRequest` if it is no valid task, or too long to be signed.
    pub(super) fn sign(&self, request: &mut wire::SubmitRequest) -> Result<()> {
        self.key.sign_task(request, &self.terms)
    }

    /// Returns a task as the same key has signed it before.
    ///
    /// # Errors
    /// `EPermission` if it has not.
    pub(super) fn as_signed(&self, task: wire::Task) -> Result<wire::Task> {
        self.key.as_signed(task, &self.terms.center)
    }
}
