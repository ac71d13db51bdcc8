//! Signs orders, on the client's side.
//!
//! A key signs only what its owner has said. What a center says of an earlier task is signed again only as far as the same key
//! has signed it before: else whoever leads could have anything signed by having it tried again.

use super::content::{Order, OrderGroup, OrderTrigger};
use super::keys::key_name;
use super::signature::{check_signature, signed_bytes};
use super::{VALIDITY_MAX, refused};
use crate::model::{NodeId, ORDER_BYTES_MAX, SignedOrder, TaskId, TaskSpec, Trigger, parse_dependency};
use crate::wire;
use blockhaul_engine::error::{Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Longest file of a private key.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Private key of a client.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    name: String,
}

/// For which center, and until when, something is signed.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Identity of the center.
    pub center: String,
    /// When it is signed, in milliseconds since 1970.
    pub now_ms: u64,
    /// How long it holds.
    pub validity: Duration,
}

impl Terms {
    /// Checks how long a signature is to hold.
    ///
    /// # Errors
    /// `EBadRequest`: not at all, or for more than [`VALIDITY_MAX`].
    pub fn check_validity(validity: Duration) -> Result<()> {
        if validity.is_zero() || validity > VALIDITY_MAX {
            return Err(Error::bad_request("--not-after: an order holds for some time, and for 7d at most"));
        }
        Ok(())
    }

    fn not_after_ms(&self) -> u64 {
        self.now_ms.saturating_add(u64::try_from(self.validity.as_millis()).unwrap_or(u64::MAX))
    }
}

impl SigningKey {
    /// Reads a private key: PKCS #8 in PEM.
    ///
    /// # Errors
    /// `EBadRequest` if the file holds something else; errors of reading it.
    pub fn read(path: &Path) -> Result<Self> {
        let failed =
            |error: &std::io::Error| Error::io(Side::Caller, Operation::Parse, error, format!("read {}", path.shown()));
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
        read.map_err(|error| failed(&error))?;
        Self::parse(&text).ok_or_else(|| {
            Error::bad_request(format!("{} holds no private key of Ed25519 (PKCS #8 in PEM)", path.shown()))
                .advise("make one by 'openssl genpkey -algorithm ed25519 -out KEY'")
        })
    }

    /// Parses a private key in PEM.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).ok()?;
        // OpenSSL leaves the public key out.
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok().map(Self::of)
    }

    pub(super) fn of(pair: Ed25519KeyPair) -> Self {
        let name = key_name(pair.public_key().as_ref());
        Self { pair, name }
    }

    #[cfg(test)]
    pub(crate) fn from_seed(seed: [u8; 32]) -> Self {
        Self::of(Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed has 32 bytes"))
    }

    #[cfg(test)]
    pub(crate) fn public(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("a public key has 32 bytes")
    }

    /// Returns the name of the key, as orders refer to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Signs an order.
    ///
    /// # Errors
    /// `EBadRequest` if it is too long.
    pub(crate) fn sign(&self, order: &Order) -> Result<SignedOrder> {
        let text = serde_json::to_string(order).map_err(|error| Error::bad_request(error.to_string()))?;
        if text.len() > ORDER_BYTES_MAX {
            let message =
                format!("{} takes {} bytes to sign, at most {ORDER_BYTES_MAX} are possible", order.id, text.len());
            return Err(
                Error::bad_request(message).advise("put the input of a hook into a file, or wait for fewer tasks")
            );
        }
        let signature = crate::model::hexadecimal(self.pair.sign(&signed_bytes(&text)).as_ref());
        Ok(SignedOrder { text, signature })
    }

    fn order(&self, id: &str, spec: Option<wire::Spec>, terms: &Terms) -> Result<Order> {
        let mut spec = TaskSpec::try_from(spec)?;
        // The limit is changed while a task runs, by who need not sign that.
        spec.kind_mut().set_limit(None);
        Ok(Order {
            center: terms.center.clone(),
            id: id.to_owned(),
            spec,
            after: Vec::new(),
            group: None,
            trigger: None,
            key: self.name.clone(),
            not_after_ms: terms.not_after_ms(),
        })
    }

    /// Signs the request for a task, which has an id.
    ///
    /// # Errors
    /// `EBadRequest`: it is no valid task, or too long to be signed.
    pub fn sign_task(&self, request: &mut wire::SubmitRequest, terms: &Terms) -> Result<()> {
        let dependency = |dependency: &wire::Dependency| {
            let wire::Dependency { task, condition } = dependency;
            let text = if condition.is_empty() { task.clone() } else { format!("{task}:{condition}") };
            let (task, condition) = parse_dependency(&text)?;
            Ok((TaskId::new(task)?, condition.as_str().to_owned()))
        };
        let group = |group: &wire::Membership| {
            Ok::<_, Error>(OrderGroup { id: TaskId::new(group.group.as_str())?, clean_up: group.clean_up })
        };
        let order = Order {
            after: request.after.iter().map(dependency).collect::<Result<_>>()?,
            group: request.group.as_ref().map(group).transpose()?,
            ..self.order(&request.id, request.spec.clone(), terms)?
        };
        (request.signed_order, request.order_signature) = self.sign(&order)?.to_wire();
        Ok(())
    }

    /// Signs the request for a schedule: its template and its trigger.
    ///
    /// # Errors
    /// `EBadRequest`: it is no valid schedule, too long to be signed, or its interval counts from no given time.
    pub fn sign_schedule(&self, request: &mut wire::AddScheduleRequest, terms: &Terms) -> Result<()> {
        let when = Trigger::try_from(request.trigger.clone())?;
        if matches!(when, Trigger::Every { from_ms: None, .. }) {
            return Err(Error::bad_request("an interval that is signed counts from a time that is signed: add --from"));
        }
        let zone = if request.zone.is_empty() { String::from("UTC") } else { request.zone.clone() };
        let task = request.task.as_mut().ok_or_else(|| Error::bad_request("a schedule needs a task"))?;
        let trigger = Some(OrderTrigger { when, zone, from_ms: terms.now_ms });
        let order = Order { trigger, ..self.order(&request.name, task.spec.clone(), terms)? };
        (task.signed_order, task.order_signature) = self.sign(&order)?.to_wire();
        Ok(())
    }

    /// Signs one task of a schedule, to be made now, from the template that this key has signed.
    ///
    /// # Errors
    /// `EPermission` if it has not.
    pub fn sign_run(&self, schedule: &wire::Schedule, terms: &Terms) -> Result<wire::RunScheduleRequest> {
        let task = schedule.task.clone().unwrap_or_default();
        let earlier = self.own(task.signed_order, &task.order_signature, &terms.center)?;
        let trigger = earlier.trigger.as_ref().filter(|_| earlier.id == schedule.name);
        let trigger = trigger.ok_or_else(|| refused(format!("it is not that of schedule {}", schedule.name)))?;
        let at_ms = terms.now_ms - terms.now_ms % 1000;
        let when = OrderTrigger { when: Trigger::At(at_ms), zone: trigger.zone.clone(), from_ms: at_ms };
        let order = Order { trigger: Some(when), not_after_ms: terms.not_after_ms(), ..earlier.clone() };
        let (signed_order, order_signature) = self.sign(&order)?.to_wire();
        Ok(wire::RunScheduleRequest {
            name: schedule.name.clone(),
            refire_from_ms: None,
            signed_order,
            order_signature,
        })
    }

    /// Returns a task as this key has signed it, to be tried again: its work, its group and what it waits for are taken from
    /// what was signed, and only its limit from what the center says.
    ///
    /// # Errors
    /// `EPermission` if this key has not signed it for that center.
    pub fn as_signed(&self, task: wire::Task, center: &str) -> Result<wire::Task> {
        let id = TaskId::new(task.id.as_str())?;
        let order = self.own(task.signed_order.clone(), &task.order_signature, center)?;
        let (mut spec, _) = order.work(&id, self.here(&task).as_ref())?;
        let told = TaskSpec::try_from(task.spec.clone())?;
        if !spec.is_same_work(&told) {
            return Err(refused(format!("the center says of {id} what its client has not signed")));
        }
        spec.kind_mut().set_limit(told.kind().limit());
        let group = order.group.map(|group| wire::Membership { group: group.id.to_string(), clean_up: group.clean_up });
        let after = order.after.into_iter().map(|(task, condition)| wire::Dependency { task: task.into(), condition });
        Ok(wire::Task { spec: Some(wire::Spec::from(&spec)), group, after: after.collect(), ..task })
    }

    /// Returns the node that a center with only one node has put in.
    fn here(&self, task: &wire::Task) -> Option<NodeId> {
        TaskSpec::try_from(task.spec.clone()).ok()?.node().ok()?
    }

    /// Returns an order that this key has signed for a center earlier.
    fn own(&self, order: Vec<u8>, signature: &[u8], center: &str) -> Result<Order> {
        let again = "only what the same key has signed is signed again: submit it anew";
        let signed = SignedOrder::from_wire(order, signature)?;
        let signed = signed.ok_or_else(|| refused("it is not signed").advise(again))?;
        check_signature(&signed, self.pair.public_key().as_ref()).map_err(|error| error.advise(again))?;
        let order = Order::parse(&signed.text)?;
        if order.center != center {
            return Err(refused("it was signed for another center").advise(again));
        }
        Ok(order)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.name).finish()
    }
}
