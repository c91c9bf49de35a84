//! How a device is written on a command line: `value,key=value,flag`, with a comma inside of a value doubled, as in QEMU.
//! Which keys there are is each device's own affair.

use std::str::FromStr;

/// What is wrong with an option's text. The message quotes it and says what would work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A key that the device does not have.
    #[error("there is no {key:?}; it can be one of {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// What it could have been.
        known: String,
    },
    /// A key that is there twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A key without the value it needs.
    #[error("{key} needs a value: {key}={example}")]
    NoValue {
        /// The key.
        key: String,
        /// How a value looks.
        example: String,
    },
    /// A value that does not fit its key.
    #[error("{key}={value}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What would work.
        reason: String,
    },
    /// The first part, which has no key, is missing.
    #[error("{0} is missing")]
    Missing(String),
}

/// An option's text in parts, which are taken out one by one.
#[derive(Debug)]
pub struct OptionList {
    /// Keys with their values, in order; the first part has the key "" if it has none of its own.
    parts: Vec<(String, Option<String>)>,
    /// Every key that was asked for.
    known: Vec<&'static str>,
}

impl OptionList {
    /// Splits `text` at its commas. The first part is a value without a key, whatever characters it has.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        Self::parse_with_lists(text, &[])
    }

    /// [`OptionList::parse`] for a device that has keys which may be there several times: `lists`.
    pub fn parse_with_lists(text: &str, lists: &[&str]) -> Result<Self, OptionError> {
        let mut parts: Vec<(String, Option<String>)> = Vec::new();
        for (index, part) in split(text).into_iter().enumerate() {
            let (key, value) = match part.split_once('=') {
                _ if index == 0 => (String::new(), Some(part)),
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None if part.is_empty() => continue,
                None => (part, None),
            };
            if !lists.contains(&key.as_str()) && parts.iter().any(|(other, _)| *other == key) {
                return Err(OptionError::Twice(key));
            }
            parts.push((key, value));
        }
        Ok(OptionList { parts, known: Vec::new() })
    }

    /// The first part. `what` names it in the message when it is empty.
    pub fn first(&mut self, what: &str) -> Result<String, OptionError> {
        let value = self.remove("").flatten().filter(|value| !value.is_empty());
        value.ok_or_else(|| OptionError::Missing(what.to_owned()))
    }

    /// The value of `key` as it is written.
    pub fn text(&mut self, key: &'static str, example: &str) -> Result<Option<String>, OptionError> {
        self.known.push(key);
        match self.remove(key) {
            None => Ok(None),
            Some(Some(value)) if !value.is_empty() => Ok(Some(value)),
            Some(_) => Err(OptionError::NoValue { key: key.to_owned(), example: example.to_owned() }),
        }
    }

    /// The value of `key`, parsed.
    pub fn value<T: FromStr<Err: ToString>>(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Result<Option<T>, OptionError> {
        let Some(value) = self.text(key, example)? else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) => Err(OptionError::Value { key: key.to_owned(), value, reason: error.to_string() }),
        }
    }

    /// Every value of `key`, in order; see [`OptionList::parse_with_lists`].
    pub fn list(&mut self, key: &'static str, example: &str) -> Result<Vec<String>, OptionError> {
        let mut values = Vec::new();
        while let Some(value) = self.text(key, example)? {
            self.known.pop();
            values.push(value);
        }
        Ok(values)
    }

    /// A switch: `key`, `key=on`, `key=off`.
    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, OptionError> {
        self.known.push(key);
        match self.remove(key) {
            None => Ok(None),
            Some(None) => Ok(Some(true)),
            Some(Some(value)) => match value.as_str() {
                "on" | "yes" | "true" => Ok(Some(true)),
                "off" | "no" | "false" => Ok(Some(false)),
                _ => {
                    let reason = "it can be on or off".to_owned();
                    Err(OptionError::Value { key: key.to_owned(), value, reason })
                }
            },
        }
    }

    /// Complains about what nobody asked for.
    pub fn finish(self) -> Result<(), OptionError> {
        match self.parts.into_iter().find(|(key, _)| !key.is_empty()) {
            Some((key, _)) => Err(OptionError::UnknownKey { key, known: self.known.join(", ") }),
            None => Ok(()),
        }
    }

    fn remove(&mut self, key: &str) -> Option<Option<String>> {
        let at = self.parts.iter().position(|(other, _)| other == key)?;
        Some(self.parts.remove(at).1)
    }
}

/// Splits at single commas; two commas stand for one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match (c, parts.last_mut()) {
            (',', _) if !doubled => parts.push(String::new()),
            (_, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> OptionList {
        OptionList::parse(text).unwrap()
    }

    #[test]
    fn the_first_part_may_look_like_a_key() {
        assert_eq!(list("a=b.raw,ro").first("a file").unwrap(), "a=b.raw");
    }

    #[test]
    fn a_doubled_comma_is_part_of_the_value() {
        assert_eq!(list("a,,b.raw,ro").first("a file").unwrap(), "a,b.raw");
    }

    #[test]
    fn a_switch_is_on_by_its_name_alone() {
        assert_eq!(list("x,ro").switch("ro"), Ok(Some(true)));
        assert_eq!(list("x,ro=off").switch("ro"), Ok(Some(false)));
        assert_eq!(list("x").switch("ro"), Ok(None));
    }

    #[test]
    fn a_switch_with_another_value_is_refused_with_the_value() {
        assert!(list("x,ro=maybe").switch("ro").unwrap_err().to_string().contains("maybe"));
    }

    #[test]
    fn a_key_without_its_value_is_refused_with_an_example() {
        let error = list("x,serial").text("serial", "root").unwrap_err();
        assert_eq!(error.to_string(), "serial needs a value: serial=root");
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let mut options = list("x,wet=1");
        options.first("a file").unwrap();
        options.switch("ro").unwrap();
        options.text("serial", "root").unwrap();
        let error = options.finish().unwrap_err().to_string();
        assert_eq!(error, "there is no \"wet\"; it can be one of ro, serial");
    }

    #[test]
    fn a_key_twice_is_refused() {
        assert_eq!(OptionList::parse("x,ro,ro").unwrap_err(), OptionError::Twice("ro".into()));
    }

    #[test]
    fn a_key_that_is_a_list_keeps_every_value_in_order() {
        let mut options = OptionList::parse_with_lists("x,f=1,ro,f=2", &["f"]).unwrap();
        assert_eq!(options.list("f", "1"), Ok(vec!["1".to_owned(), "2".to_owned()]));
        assert_eq!(options.known, ["f"]);
    }

    #[test]
    fn an_empty_first_part_is_named() {
        assert_eq!(
            list(",ro").first("the image's path").unwrap_err().to_string(),
            "the image's path is missing"
        );
    }
}
