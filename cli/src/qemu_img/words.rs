//! The words of a command line as getopt_long takes them apart: `-f raw`, `-fraw`, `-pc`, `--output=json`, `--output json`, options
//! behind other words, and `--`, behind which all is as it is.

use super::fail::{Fail, Result};

/// An option.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// Its letter; a space if it has none.
    pub short: char,
    /// Its long name; empty if it has none.
    pub long: &'static str,
    /// What its value is called; none if it takes none.
    pub value: Option<&'static str>,
    /// What it does, for the help; empty if it is taken and without effect.
    pub help: &'static str,
}

/// A command line in parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Options by their letter, or long name if they have none, with their values.
    options: Vec<(String, String)>,
    /// Everything else.
    pub rest: Vec<String>,
}

impl Opt {
    fn key(&self) -> String {
        if self.short == ' ' { self.long.to_owned() } else { self.short.to_string() }
    }
}

impl Words {
    /// Takes `words` apart, with the options that there are.
    pub fn parse(words: &[String], known: &[Opt]) -> Result<Self> {
        let mut parsed = Words::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.rest.extend(words.by_ref().cloned());
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
                let option = known.iter().find(|option| option.long == name && !name.is_empty());
                let option = option.ok_or_else(|| Fail::usage(format!("unrecognized option '{word}'")))?;
                let value = match (option.value, value) {
                    (Some(_), Some(value)) => value.to_owned(),
                    (Some(_), None) => words.next().cloned().ok_or_else(|| missing(word))?,
                    (None, Some(_)) => {
                        return Err(Fail::usage(format!("option '--{name}' doesn't allow an argument")));
                    }
                    (None, None) => String::new(),
                };
                parsed.options.push((option.key(), value));
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| is_letters(letters)) {
                parsed.letters(letters, known, &mut words)?;
            } else {
                parsed.rest.push(word.clone());
            }
        }
        Ok(parsed)
    }

    fn letters(
        &mut self,
        letters: &str,
        known: &[Opt],
        words: &mut std::slice::Iter<'_, String>,
    ) -> Result<()> {
        for (at, letter) in letters.char_indices() {
            let option = known.iter().find(|option| option.short == letter && letter != ' ');
            let option = option.ok_or_else(|| Fail::usage(format!("unrecognized option '-{letter}'")))?;
            if option.value.is_none() {
                self.options.push((option.key(), String::new()));
                continue;
            }
            let inline = &letters[at + letter.len_utf8()..];
            let value = match inline {
                "" => words.next().cloned().ok_or_else(|| missing(&format!("-{letter}")))?,
                inline => inline.to_owned(),
            };
            self.options.push((option.key(), value));
            return Ok(());
        }
        Ok(())
    }

    /// Whether an option is there.
    pub fn has(&self, key: &str) -> bool {
        self.options.iter().any(|option| option.0 == key)
    }

    /// The last value of an option.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.options.iter().rfind(|option| option.0 == key).map(|option| option.1.as_str())
    }

    /// All values of an option.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |option| option.0 == key).map(|option| option.1.as_str())
    }

    /// The one word that is no option.
    pub fn only(&self) -> Result<&str> {
        match &self.rest[..] {
            [one] => Ok(one),
            _ => Err(Fail::usage("Expecting one image file name")),
        }
    }

    /// Whether `--output` asks for JSON.
    pub fn wants_json(&self) -> Result<bool> {
        match self.value("output") {
            None | Some("human") => Ok(false),
            Some("json") => Ok(true),
            Some(_) => Err(Fail::new("--output must be used with human or json as argument.")),
        }
    }
}

/// Whether options follow a dash, and not a number, as in `resize FILE -1G`.
fn is_letters(text: &str) -> bool {
    text.starts_with(|c: char| !c.is_ascii_digit())
}

fn missing(option: &str) -> Fail {
    Fail::usage(format!("missing argument for option '{option}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Opt; 3] = [
        Opt { short: 'f', long: "format", value: Some("FMT"), help: "" },
        Opt { short: 'p', long: "", value: None, help: "" },
        Opt { short: ' ', long: "output", value: Some("FORM"), help: "" },
    ];

    fn parse(text: &str) -> Result<Words> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        Words::parse(&words, &KNOWN)
    }

    #[test]
    fn all_ways_to_give_a_value_are_one() {
        for text in ["-f raw", "-fraw", "-pfraw", "--format raw", "--format=raw"] {
            assert_eq!(parse(text).unwrap().value("f"), Some("raw"), "{text}");
        }
    }

    #[test]
    fn options_may_stand_behind_names() {
        let words = parse("a -p b --output=json").unwrap();
        assert_eq!((words.rest, words.options.len()), (vec!["a".to_owned(), "b".to_owned()], 2));
    }

    #[test]
    fn behind_two_dashes_all_are_names() {
        assert_eq!(parse("a -- -p").unwrap().rest, ["a", "-p"]);
    }

    #[test]
    fn a_negative_number_is_no_option() {
        assert_eq!(parse("a -1G").unwrap().rest, ["a", "-1G"]);
    }

    #[test]
    fn unknown_and_incomplete_options_are_refused() {
        for (text, message) in [
            ("-x", "unrecognized option '-x'"),
            ("--foo=1", "unrecognized option '--foo=1'"),
            ("--", ""),
            ("-f", "missing argument for option '-f'"),
        ] {
            assert_eq!(parse(text).err().as_ref().map_or("", Fail::message), message);
        }
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(parse("-f raw -f qcow2").unwrap().value("f"), Some("qcow2"));
    }
}
