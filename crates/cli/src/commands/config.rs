//! `config show`: every option with its value, its default and its origin.

use serde_json::{Map, Value, json};
use store_model::settings::ShownOption;
use store_model::settings::options::Effect;

use super::Session;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Prints the options in order of name; `names` chooses some, by any of their names.
pub(super) fn show(
    session: &Session,
    names: &[String],
    json: bool,
    output: &mut Output,
) -> Result<()> {
    let configuration = session.with_typed(session.configuration_files()?, &[])?;
    let options: Vec<ShownOption> = configuration.show().collect();
    if let Some(unknown) = names
        .iter()
        .find(|name| !options.iter().any(|shown| is_named(shown, name)))
    {
        return Err(Failure::message(format!("there is no option '{unknown}'")));
    }
    let chosen = options
        .into_iter()
        .filter(|shown| names.is_empty() || names.iter().any(|name| is_named(shown, name)));
    if json {
        let object: Map<String, Value> = chosen
            .map(|shown| (shown.option.name.to_owned(), to_json(&shown)))
            .collect();
        return output.json(&Value::Object(object));
    }
    for shown in chosen {
        output.line(to_line(&shown))?;
    }
    Ok(())
}

fn is_named(shown: &ShownOption, name: &str) -> bool {
    shown.option.name == name || shown.option.aliases.contains(&name)
}

/// A line that `nix.conf` could hold; what follows the mark is a comment there.
fn to_line(shown: &ShownOption) -> String {
    let ShownOption {
        option,
        value,
        default,
        origin,
        ..
    } = shown;
    let note = match option.effect {
        Effect::Implemented(_) if value == default => format!("{origin}"),
        Effect::Implemented(_) => format!("{origin}; default: {default}"),
        Effect::WithoutEffect(reason) => format!("{origin}; without effect: {reason}"),
        Effect::Refused { reason, .. } => format!("{origin}; not supported: {reason}"),
    };
    let value = if value.is_empty() {
        ""
    } else {
        &format!(" {value}")
    };
    format!("{} ={value}  # {note}", option.name)
}

fn to_json(shown: &ShownOption) -> Value {
    let (effect, reason) = match shown.option.effect {
        Effect::Implemented(_) => ("implemented", None),
        Effect::WithoutEffect(reason) => ("without-effect", Some(reason)),
        Effect::Refused { reason, .. } => ("not-supported", Some(reason)),
    };
    let mut value = json!({
        "value": shown.json,
        "default": shown.default,
        "origin": shown.origin.to_string(),
        "aliases": shown.option.aliases,
        "effect": effect,
    });
    if let Some(reason) = reason {
        value["reason"] = json!(reason);
    }
    value
}
