//! A command's arguments, taken one by one. None but those that the command knows can be in it.

use serde_json::{Map, Value};

use super::QmpError;

/// One argument of a command as its table has it: `name: type`, or `name?: type` if it may be missing. Types are those of `schema`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Argument<'a> {
    pub(super) name: &'a str,
    pub(super) optional: bool,
    pub(super) kind: &'a str,
}

impl<'a> Argument<'a> {
    /// Reads what the table has.
    pub(super) fn parse(text: &'a str) -> Self {
        let (name, kind) = text.split_once(':').unwrap_or((text, "any"));
        let required = name.strip_suffix('?');
        Argument { name: required.unwrap_or(name), optional: required.is_some(), kind: kind.trim() }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Args(Map<String, Value>);

/// For a command that knows its arguments better itself.
pub(super) const ANY: &str = "*";

impl Args {
    /// The arguments of a command that takes `known`.
    pub(super) fn new(arguments: Map<String, Value>, known: &[&str]) -> Result<Self, QmpError> {
        let is_known = |name: &str| known.iter().any(|known| Argument::parse(known).name == name);
        match arguments.keys().find(|name| !known.contains(&ANY) && !is_known(name)) {
            Some(name) => Err(QmpError::generic(format!("Parameter '{name}' is unexpected"))),
            None => Ok(Args(arguments)),
        }
    }

    fn take<T>(
        &mut self,
        name: &str,
        kind: &str,
        get: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, QmpError> {
        let Some(value) = self.0.shift_remove(name) else { return Ok(None) };
        let wrong = || QmpError::generic(format!("Invalid parameter type for '{name}', expected: {kind}"));
        get(&value).ok_or_else(wrong).map(Some)
    }

    fn needed<T>(name: &str, value: Option<T>) -> Result<T, QmpError> {
        value.ok_or_else(|| QmpError::generic(format!("Parameter '{name}' is missing")))
    }

    /// A string that must be there.
    pub(super) fn string(&mut self, name: &str) -> Result<String, QmpError> {
        let value = self.string_or_none(name)?;
        Self::needed(name, value)
    }

    /// A string that may be there.
    pub(super) fn string_or_none(&mut self, name: &str) -> Result<Option<String>, QmpError> {
        self.take(name, "string", |value| value.as_str().map(str::to_owned))
    }

    /// A boolean that must be there.
    pub(super) fn boolean(&mut self, name: &str) -> Result<bool, QmpError> {
        let value = self.take(name, "boolean", Value::as_bool)?;
        Self::needed(name, value)
    }

    /// A number that must be there.
    pub(super) fn number(&mut self, name: &str) -> Result<i64, QmpError> {
        let value = self.integer(name)?;
        Self::needed(name, value)
    }

    /// A number that may be there.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, QmpError> {
        self.take(name, "integer", Value::as_i64)
    }

    /// Anything at all that must be there.
    pub(super) fn any(&mut self, name: &str) -> Result<Value, QmpError> {
        let value = self.0.shift_remove(name);
        Self::needed(name, value)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.0)
    }

    /// Names that may be there.
    pub(super) fn strings(&mut self, name: &str) -> Result<Vec<String>, QmpError> {
        let get = |value: &Value| {
            let items = value.as_array()?.iter();
            items.map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        Ok(self.take(name, "array", get)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_mark_is_for_arguments_that_may_be_missing() {
        let argument = |name, optional, kind| Argument { name, optional, kind };
        assert_eq!(Argument::parse("cpu-index?: int"), argument("cpu-index", true, "int"));
        assert_eq!(Argument::parse("keys: [KeyValue]"), argument("keys", false, "[KeyValue]"));
    }
}
