//! Parts of NetworkPolicies and ClusterNetworkPolicies: selectors and names of ports, and the reading of values.

use serde_json::{Map, Value};

use super::field::{Checked, Wrong, port_number, refuse};
use crate::model::{LabelCondition, Requirement, Selector};

/// Maximum length of a port's name (IANA service name).
const PORT_NAME_MAX: usize = 15;

/// Validates the number of a port.
pub(super) fn number(field: &str, value: &Value) -> Checked<u16> {
    match value.as_i64() {
        Some(number) => port_number(|| field.to_owned(), number),
        None => refuse(field, format!("{value} is not a port number")),
    }
}

/// Validates the name of a port (pkg/util/validation, IsValidPortName).
pub(super) fn port_name(field: &str, name: &str) -> Checked<Box<str>> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let valid =
        name.len() <= PORT_NAME_MAX && name.chars().all(allowed) && name.chars().any(|c| c.is_ascii_lowercase());
    if valid { Ok(name.into()) } else { refuse(field, format!("`{name}` is not the name of a port")) }
}

/// What can be understood of a selector, and what can't.
pub(super) struct Understood {
    pub(super) selector: Selector,
    pub(super) wrong: Vec<Wrong>,
}

/// A selector that must be understood as a whole.
pub(super) fn understood(field: &str, value: Option<&Value>) -> Checked<Selector> {
    let Understood { selector, wrong } = selector(field, value);
    wrong.into_iter().next().map_or(Ok(selector), Err)
}

pub(super) fn selector(field: &str, value: Option<&Value>) -> Understood {
    let (mut requirements, mut wrong) = (Vec::new(), Vec::new());
    let mut take = |requirement: Checked<Requirement>| match requirement {
        Ok(requirement) => requirements.push(requirement),
        Err(problem) => wrong.push(problem),
    };
    let empty = Value::Object(Map::new());
    match map(field, value.filter(|value| !value.is_null()).unwrap_or(&empty)) {
        Err(problem) => take(Err(problem)),
        Ok(parts) => {
            for (part, value) in parts.iter().filter(|(_, value)| !value.is_null()) {
                let at = format!("{field}.{part}");
                match (part.as_str(), value) {
                    ("matchLabels", Value::Object(labels)) => labels.iter().for_each(|(key, value)| {
                        let value = text(&format!("{at}.{key}"), Some(value));
                        let condition = value.map(|value| LabelCondition::In(vec![value.into()]));
                        take(condition.map(|condition| Requirement { key: key.as_str().into(), condition }));
                    }),
                    ("matchExpressions", Value::Array(list)) => {
                        let each = list.iter().enumerate();
                        each.for_each(|(i, one)| take(requirement(&format!("{at}[{i}]"), one)));
                    }
                    ("matchLabels", _) => take(refuse(at, "is not a map of labels")),
                    ("matchExpressions", _) => take(refuse(at, "is not a list")),
                    _ => take(unknown(field, part)),
                }
            }
        }
    }
    requirements.sort_unstable();
    requirements.dedup();
    Understood { selector: Selector(requirements), wrong }
}

fn requirement(field: &str, value: &Value) -> Checked<Requirement> {
    let expression = object(field, value, &["key", "operator", "values"])?;
    let key = text(&format!("{field}.key"), expression.get("key"))?;
    let operator = text(&format!("{field}.operator"), expression.get("operator"))?;
    let at = format!("{field}.values");
    let values = elements(&at, expression.get("values"))?;
    let values = values.iter().enumerate().map(|(i, value)| text(&format!("{at}[{i}]"), Some(value)).map(Into::into));
    let mut values: Vec<Box<str>> = values.collect::<Checked<_>>()?;
    values.sort_unstable();
    let condition = match (operator, values.is_empty()) {
        ("In", false) => LabelCondition::In(values),
        ("NotIn", false) => LabelCondition::NotIn(values),
        ("Exists", true) => LabelCondition::Exists,
        ("DoesNotExist", true) => LabelCondition::DoesNotExist,
        ("In" | "NotIn", true) => return refuse(at, "is empty"),
        ("Exists" | "DoesNotExist", false) => return refuse(at, format!("must be empty with {operator}")),
        _ => {
            let reason = format!("`{operator}` is not one of In, NotIn, Exists, DoesNotExist");
            return refuse(format!("{field}.operator"), reason);
        }
    };
    Ok(Requirement { key: key.into(), condition })
}

/// An object with no other than these fields.
pub(super) fn object<'a>(field: &str, value: &'a Value, known: &[&str]) -> Checked<&'a Map<String, Value>> {
    let object = map(field, value)?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(other) => unknown(field, other),
        None => Ok(object),
    }
}

fn map<'a>(field: &str, value: &'a Value) -> Checked<&'a Map<String, Value>> {
    value.as_object().map_or_else(|| refuse(field, "is not an object"), Ok)
}

pub(super) fn unknown<T>(field: &str, name: &str) -> Checked<T> {
    refuse(format!("{field}.{name}"), "is unknown to podnet")
}

/// The elements of a list; a missing one is empty.
pub(super) fn elements<'a>(field: &str, value: Option<&'a Value>) -> Checked<&'a [Value]> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => refuse(field, "is not a list"),
    }
}

pub(super) fn text<'a>(field: &str, value: Option<&'a Value>) -> Checked<&'a str> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(other) => refuse(field, format!("{other} is not a string")),
        None => refuse(field, "is missing"),
    }
}
