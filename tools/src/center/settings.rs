//! Shows and changes the settings of a center: `center get` and `center set`.

use super::args::{RawGetSettings, RawSetSettings};
use super::{CenterSession, call, show};
use crate::exit::Exit;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Error, Result};
use std::collections::BTreeMap;

pub(super) fn get(RawGetSettings { key, center }: RawGetSettings) -> Result<Exit> {
    let mut session = CenterSession::open(center)?;
    let wire::Settings { values, version } = call!(session, get_settings, wire::SettingsRequest {})?;
    let mut values: BTreeMap<String, String> = values.into_iter().collect();
    if let Some(key) = key {
        if !values.contains_key(&key) {
            let names: Vec<&str> = values.keys().map(String::as_str).collect();
            let message = format!("no setting '{}': use one of {}", key.escape_debug(), names.join(", "));
            return Err(Error::bad_request(message));
        }
        values.retain(|name, _| *name == key);
    }
    show::settings(&values, version, session.json);
    Ok(Exit::Done)
}

pub(super) fn set(RawSetSettings { settings, if_version, center }: RawSetSettings) -> Result<Exit> {
    let values = settings.iter().map(|setting| parse(setting)).collect::<Result<_>>()?;
    let mut session = CenterSession::open(center)?;
    let request = wire::SetSettingsRequest { values, if_version };
    let wire::Settings { values, version } = call!(session, set_settings, request)?;
    show::settings(&values.into_iter().collect(), version, session.json);
    Ok(Exit::Done)
}

fn parse(setting: &str) -> Result<(String, String)> {
    let Some((name, value)) = setting.split_once('=') else {
        return Err(Error::bad_request(format!("'{}' is no setting: write KEY=VALUE", setting.escape_debug())));
    };
    Ok((name.to_owned(), value.to_owned()))
}
