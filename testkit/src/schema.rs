//! Checks JSON lines of `blockhaul` against their published schemas, `docs/schema/EVENT.json`.
//!
//! The schemas allow fields that they do not describe, so that readers of today accept the lines of later versions. The
//! tests do not: each field that is printed is described. So objects whose fields are described are closed here.

use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Returns the folder of the schemas.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema")
}

/// Returns all schemas by the names of their events.
pub fn all() -> BTreeMap<String, Value> {
    let entries = std::fs::read_dir(folder()).expect("the schemas are part of the repository");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("it was listed");
        let schema = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.file_stem().expect("it has a name").to_string_lossy().into_owned(), schema)
    };
    entries.map(|entry| read(entry.expect("the folder can be read").path())).collect()
}

/// Checks a line.
///
/// # Panics
/// If it is not as described, or has a field that is not described.
pub fn assert_described(line: &Value) {
    static VALIDATORS: OnceLock<BTreeMap<String, Validator>> = OnceLock::new();
    let validators = VALIDATORS.get_or_init(|| {
        let closed = |(event, mut schema): (String, Value)| {
            close(&mut schema);
            let validator = jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{event}.json: {error}"));
            (event, validator)
        };
        all().into_iter().map(closed).collect()
    });
    let event = line["event"].as_str().unwrap_or_else(|| panic!("a line without the name of its event: {line}"));
    let validator = validators.get(event);
    let validator = validator.unwrap_or_else(|| panic!("describe the event in docs/schema/{event}.json: {line}"));
    let errors = validator.iter_errors(line).map(|error| format!("\n  {}: {error}", error.instance_path()));
    let errors: String = errors.collect();
    assert!(errors.is_empty(), "this line is not as docs/schema/{event}.json describes it:{errors}\n{line}");
}

/// Closes each object whose fields are described. A condition, which has no type, stays as it is.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(keys) => {
            keys.values_mut().for_each(close);
            let is_object = keys.get("type").is_some_and(|kind| kind == "object");
            if is_object && keys.contains_key("properties") && !keys.contains_key("additionalProperties") {
                keys.insert(String::from("additionalProperties"), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
