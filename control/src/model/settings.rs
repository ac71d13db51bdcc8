//! Defines the settings of a center: one record that operators change, and that the leader acts on at once.
//!
//! | setting | value | default | what |
//! | --- | --- | --- | --- |
//! | `bandwidth` | rates by [windows](super::window), or `none` | `none` | what the copies of a node share; nodes follow it within 30 s |
//! | `lost-grace` | duration, 0 s to 7 days | `0s` | a task whose runner is lost waits so long for its node before another node gets it |
//! | `max-drained` | 0 to 10,000, or `none` | `none` | most nodes that may be drained at once |
//! | `notify` | name of a hook, or `none` | `none` | runs for each task that ends as FAILED from now on |
//! | `placement` | `spread`, `fill` | `spread` | a task goes to the node with the fewest bytes to go, or to the fullest one |
//! | `slots` | 1 to 10,000, or `none` | `none` | most tasks that a node has at once, if its own slots are more |
//! | `slots.copy`, `slots.run`, `slots.verify` | 1 to 10,000, or `none` | `none` | most tasks of this kind that a node has at once |

use super::{KindName, OpId, RateSchedule, Record, UnknownFields};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::units::parse_duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use strum::{EnumString, IntoStaticStr, VariantArray};

/// Longest `lost-grace`.
const LOST_GRACE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Longest `bandwidth`.
const BANDWIDTH_BYTES_MAX: usize = 1024;
/// Most slots and drained nodes.
const COUNT_MAX: u32 = 10_000;

/// Settings of a center.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Rates that the copies of a node share, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<String>,
    /// Time for which a task of a lost runner waits for its node, in milliseconds.
    pub lost_grace_ms: u64,
    /// Most nodes that may be drained at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_drained: Option<u32>,
    /// Hook that runs for each task that has failed, and since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// Order in which nodes get tasks.
    pub placement: Placement,
    /// Most tasks of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Most copies of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_copy: Option<u32>,
    /// Most hooks that a node runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_run: Option<u32>,
    /// Most comparisons of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_verify: Option<u32>,
    /// Operation id of the last write.
    pub op: OpId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Hook that runs for each task that has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// Name of the hook.
    pub hook: String,
    /// When it was set, in milliseconds since 1970: tasks that had failed before are not told.
    pub since_ms: u64,
}

/// Order in which nodes get tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Placement {
    /// The node with the fewest bytes to go, then the one with the most free slots.
    #[default]
    Spread,
    /// The node with the fewest free slots.
    Fill,
}

/// Name of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum SettingName {
    /// `bandwidth`.
    Bandwidth,
    /// `lost-grace`.
    LostGrace,
    /// `max-drained`.
    MaxDrained,
    /// `notify`.
    Notify,
    /// `placement`.
    Placement,
    /// `slots`.
    Slots,
    /// `slots.copy`.
    #[strum(serialize = "slots.copy")]
    SlotsCopy,
    /// `slots.run`.
    #[strum(serialize = "slots.run")]
    SlotsRun,
    /// `slots.verify`.
    #[strum(serialize = "slots.verify")]
    SlotsVerify,
}

impl Record for Settings {}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bandwidth: None,
            lost_grace_ms: 0,
            max_drained: None,
            notify: None,
            placement: Placement::default(),
            slots: None,
            slots_copy: None,
            slots_run: None,
            slots_verify: None,
            op: OpId(String::new()),
            unknown: UnknownFields::default(),
        }
    }
}

impl SettingName {
    /// Parses the name of a setting.
    ///
    /// # Errors
    /// `EBadRequest` with the names that there are.
    pub fn parse(text: &str) -> Result<Self> {
        text.parse().map_err(|_| {
            let names: Vec<&'static str> = Self::VARIANTS.iter().map(|&name| name.as_str()).collect();
            let text = text.chars().take(60).collect::<String>();
            Error::bad_request(format!("no setting '{}': use one of {}", text.escape_debug(), names.join(", ")))
        })
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Settings {
    /// Returns each setting with its value as text.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, String)> {
        SettingName::VARIANTS.iter().map(|&name| (name.as_str(), self.get(name))).collect()
    }

    /// Returns the rates that the copies of a node share.
    ///
    /// # Errors
    /// `EBadRequest`: a later version has written what this one does not know.
    pub(crate) fn rates(&self) -> Result<RateSchedule> {
        self.bandwidth.as_deref().map_or_else(|| Ok(RateSchedule::default()), RateSchedule::parse)
    }

    /// Returns the most tasks of a kind that a node has at once; `None`: any number.
    #[must_use]
    pub fn slots_of(&self, kind: KindName) -> Option<u32> {
        match kind {
            KindName::Copy => self.slots_copy,
            KindName::Run => self.slots_run,
            KindName::Verify => self.slots_verify,
            KindName::Noop | KindName::Group => None,
        }
    }

    fn get(&self, name: SettingName) -> String {
        let or_none = |number: Option<u32>| number.map_or_else(|| String::from("none"), |number| number.to_string());
        match name {
            SettingName::Bandwidth => self.bandwidth.clone().unwrap_or_else(|| String::from("none")),
            SettingName::LostGrace => duration_text(self.lost_grace_ms),
            SettingName::MaxDrained => or_none(self.max_drained),
            SettingName::Notify => {
                self.notify.as_ref().map_or_else(|| String::from("none"), |notify| notify.hook.clone())
            }
            SettingName::Placement => <&str>::from(self.placement).to_owned(),
            SettingName::Slots => or_none(self.slots),
            SettingName::SlotsCopy => or_none(self.slots_copy),
            SettingName::SlotsRun => or_none(self.slots_run),
            SettingName::SlotsVerify => or_none(self.slots_verify),
        }
    }

    /// Sets a setting from text.
    ///
    /// # Errors
    /// `EBadRequest` with the values that it may have.
    pub fn set(&mut self, name: SettingName, value: &str, now_ms: u64) -> Result<()> {
        let refused = |wanted: &str| {
            let value = value.chars().take(60).collect::<String>();
            Error::bad_request(format!("{} cannot be '{}': use {wanted}", name.as_str(), value.escape_debug()))
        };
        let count = |least: u32| match value {
            "none" => Ok(None),
            number => number.parse().ok().filter(|number| (least..=COUNT_MAX).contains(number)).map(Some).ok_or(()),
        };
        let slots = || count(1).map_err(|()| refused("1 to 10000, or none"));
        match name {
            SettingName::Bandwidth if value == "none" => self.bandwidth = None,
            SettingName::Bandwidth if value.len() > BANDWIDTH_BYTES_MAX => {
                return Err(refused(&format!("at most {BANDWIDTH_BYTES_MAX} bytes")));
            }
            SettingName::Bandwidth => {
                RateSchedule::parse(value)?;
                self.bandwidth = Some(value.to_owned());
            }
            SettingName::LostGrace => {
                let grace = parse_duration(value).ok().filter(|grace| *grace <= LOST_GRACE_MAX);
                let grace = grace.ok_or_else(|| refused("a duration from 0s to 7d"))?;
                self.lost_grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            }
            SettingName::MaxDrained => self.max_drained = count(0).map_err(|()| refused("0 to 10000, or none"))?,
            SettingName::Notify if value == "none" => self.notify = None,
            SettingName::Notify => {
                blockhaul_hooks::HookName::parse(value).map_err(|_| refused("the name of a hook, or none"))?;
                let is_same = self.notify.as_ref().is_some_and(|notify| notify.hook == value);
                if !is_same {
                    self.notify = Some(Notify { hook: value.to_owned(), since_ms: now_ms });
                }
            }
            SettingName::Placement => self.placement = value.parse().map_err(|_| refused("spread or fill"))?,
            SettingName::Slots => self.slots = slots()?,
            SettingName::SlotsCopy => self.slots_copy = slots()?,
            SettingName::SlotsRun => self.slots_run = slots()?,
            SettingName::SlotsVerify => self.slots_verify = slots()?,
        }
        Ok(())
    }
}

/// Formats a duration with the largest unit that divides it.
pub(crate) fn duration_text(milliseconds: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let unit = units.iter().find(|(_, unit)| milliseconds >= *unit && milliseconds.is_multiple_of(*unit));
    unit.map_or_else(|| String::from("0s"), |(name, unit)| format!("{}{name}", milliseconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_takes_what_it_shows_and_refuses_the_rest() {
        for (name, good, bad) in [
            (
                "bandwidth",
                &["none", "100MiB/s", "mon-fri 08:00-18:00 50MiB/s; none"][..],
                &["", "100MiB", "mon 1MiB/s"][..],
            ),
            ("lost-grace", &["0s", "5m", "7d"], &["", "8d", "-1s", "soon"]),
            ("max-drained", &["none", "0", "10000"], &["", "-1", "10001", "all"]),
            ("notify", &["none", "page-someone"], &["", "../x", "A", "a b"]),
            ("placement", &["spread", "fill"], &["", "random", "Fill"]),
            ("slots", &["none", "1", "10000"], &["", "0", "10001"]),
            ("slots.copy", &["none", "1", "10000"], &["", "0", "10001"]),
            ("slots.run", &["none", "1", "10000"], &["", "0", "10001"]),
            ("slots.verify", &["none", "1", "10000"], &["", "0", "10001"]),
        ] {
            let name = SettingName::parse(name).unwrap();
            let mut settings = Settings::default();
            for value in good {
                settings.set(name, value, 5).unwrap();
                assert_eq!(settings.get(name), *value);
                assert_eq!(Settings::decode(&settings.encode()).unwrap(), settings);
            }
            let before = settings.clone();
            for value in bad {
                assert!(settings.set(name, value, 5).is_err(), "{name:?} {value:?}");
            }
            assert_eq!(settings, before);
        }
        assert!(SettingName::parse("bandwidth2").unwrap_err().message.contains("placement"));
        assert_eq!(Settings::default().all().len(), SettingName::VARIANTS.len());
    }

    #[test]
    fn the_same_hook_again_tells_of_the_same_tasks() {
        let mut settings = Settings::default();
        let since = |settings: &Settings| settings.notify.as_ref().map(|notify| notify.since_ms);
        settings.set(SettingName::Notify, "page", 5).unwrap();
        settings.set(SettingName::Notify, "page", 9).unwrap();
        assert_eq!(since(&settings), Some(5));
        settings.set(SettingName::Notify, "mail", 9).unwrap();
        assert_eq!(since(&settings), Some(9));
    }
}
