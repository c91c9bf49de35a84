//! A command's arguments, taken one by one. None but those that the command knows can be in it.

use serde_json::{Map, Value};

use super::QmpError;

/// See the module.
#[derive(Debug)]
pub(super) struct Args(Map<String, Value>);

/// For a command that knows its arguments better itself.
pub(super) const ANY: &[&str] = &["*"];

impl Args {
    /// The arguments of a command that takes `known`.
    pub(super) fn new(arguments: Map<String, Value>, known: &[&str]) -> Result<Self, QmpError> {
        if known == ANY {
            return Ok(Args(arguments));
        }
        match arguments.keys().find(|name| !known.contains(&name.as_str())) {
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
        let value = self.take(name, "string", |value| value.as_str().map(str::to_owned))?;
        Self::needed(name, value)
    }

    /// A boolean that must be there.
    pub(super) fn boolean(&mut self, name: &str) -> Result<bool, QmpError> {
        let value = self.take(name, "boolean", Value::as_bool)?;
        Self::needed(name, value)
    }

    /// A number that may be there.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<i64>, QmpError> {
        self.take(name, "integer", Value::as_i64)
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
