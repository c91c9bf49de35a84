//! The syntax of QEMU's option values (QemuOpts): `value,key=value,flag,noflag`, with a comma inside of a value doubled. Parts are
//! taken out one by one by whoever knows them, and the last of equal keys counts. Which keys there are is not known here.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::nearest::did_you_mean;

/// Why a command line is refused: one line that names the argument and what would work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An option's value in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opts {
    /// The option with its dash, for messages.
    option: String,
    /// Its value as it was written, for messages.
    text: String,
    parts: Vec<Part>,
    /// Every key that was asked for.
    known: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    key: String,
    /// `None` for a flag.
    value: Option<String>,
}

impl Opts {
    /// Takes `text` apart. If the first part has no `=`, it is the value of `implied`.
    pub fn parse(option: &str, text: &str, implied: Option<&str>) -> Result<Opts, Refusal> {
        let mut opts =
            Opts { option: option.to_owned(), text: text.to_owned(), parts: Vec::new(), known: Vec::new() };
        if text.starts_with('{') {
            return Err(opts.refuse("values in JSON are not understood; write key=value,..."));
        }
        opts.parts = parts(text, implied);
        Ok(opts)
    }

    /// Keys with their values, as a file of `-readconfig` has them.
    pub fn from_pairs(option: &str, pairs: Vec<(String, String)>) -> Opts {
        let text = join(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let parts = pairs.into_iter().map(|(key, value)| Part { key, value: Some(value) }).collect();
        Opts { option: option.to_owned(), text, parts, known: Vec::new() }
    }

    /// Adds what a further occurrence of the same option says.
    pub fn merge(&mut self, later: Opts) {
        if !self.text.is_empty() && !later.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(&later.text);
        self.parts.extend(later.parts);
    }

    /// A refusal of this option.
    pub fn refuse(&self, why: impl Display) -> Refusal {
        match self.text.as_str() {
            "" => Refusal(format!("{}: {why}", self.option)),
            text => Refusal(format!("{} {text}: {why}", self.option)),
        }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The option as it was written, for messages.
    pub fn source(&self) -> String {
        format!("{} {}", self.option, self.text)
    }

    /// Whether anybody asks what there is: `help` or `?`, as a value without a key or as a flag.
    pub fn asks_for_help(&self) -> bool {
        let is_help = |text: &str| text == "help" || text == "?";
        is_help(&self.text) || self.parts.iter().any(|part| part.value.is_none() && is_help(&part.key))
    }

    /// The value of `key`, the last one if it is there several times.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, Refusal> {
        match self.take(key).pop() {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(self.refuse(format_args!("'{key}' needs a value: {key}=..."))),
        }
    }

    /// The value of `key`, which has to be there and not empty.
    pub fn needed(&mut self, key: &'static str) -> Result<String, Refusal> {
        let value = self.text(key)?.filter(|value| !value.is_empty());
        value.ok_or_else(|| self.refuse(format_args!("{key}=... is missing")))
    }

    /// Every value of `key`, in order.
    pub fn list(&mut self, key: &'static str) -> Result<Vec<String>, Refusal> {
        let values: Option<Vec<String>> = self.take(key).into_iter().collect();
        values.ok_or_else(|| self.refuse(format_args!("'{key}' needs a value: {key}=...")))
    }

    /// The value of `key`, parsed.
    pub fn value<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error| self.refuse(format_args!("{key}={text}: {error}")))
    }

    /// A number.
    pub fn number(&mut self, key: &'static str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        number(&text).map(Some).ok_or_else(|| self.refuse(format_args!("{key}={text}: that is no number")))
    }

    /// A size in bytes; a number without a suffix counts `unit` bytes.
    pub fn size(&mut self, key: &'static str, unit: u64) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        size(&text, unit).map(Some).ok_or_else(|| {
            self.refuse(format_args!(
                "{key}={text}: that is no size; write a number with k, M, G or T behind it, as in 512M"
            ))
        })
    }

    /// A boolean: `key`, `nokey`, `key=on|off|yes|no|true|false|y|n`.
    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, Refusal> {
        self.known.push(key);
        let mut last = None;
        for part in std::mem::take(&mut self.parts) {
            match &part.value {
                Some(value) if part.key == key => match boolean(value) {
                    Some(on) => last = Some(on),
                    None => return Err(self.refuse(format_args!("{key}={value}: it can be on or off"))),
                },
                None if part.key == key => last = Some(true),
                None if part.key.strip_prefix("no") == Some(key) => last = Some(false),
                _ => self.parts.push(part),
            }
        }
        Ok(last)
    }

    /// A key that may only have one of `values`, and whose value makes no difference then.
    pub fn only(&mut self, key: &'static str, values: &[&str]) -> Result<(), Refusal> {
        for value in self.take(key) {
            // A flag is `on`, as in QEMU.
            let value = value.unwrap_or_else(|| "on".to_owned());
            if !values.contains(&value.as_str()) {
                let values = values.join(", ");
                return Err(self.refuse(format_args!("{key}={value} is not supported; it can be {values}")));
            }
            log::debug!("{}: {key}={value} makes no difference here", self.option);
        }
        Ok(())
    }

    /// Keys whose values make no difference here, whatever they are.
    pub fn without_effect(&mut self, keys: &[&'static str]) {
        for key in keys {
            for value in self.take(key) {
                log::debug!("{}: {key}={} makes no difference here", self.option, value.unwrap_or_default());
            }
            // As a flag that is off.
            self.parts.retain(|part| part.value.is_some() || part.key.strip_prefix("no") != Some(key));
        }
    }

    /// Keys that QEMU has and that are refused, with the reason.
    pub fn unsupported(&mut self, keys: &[&'static str], why: &str) -> Result<(), Refusal> {
        match keys.iter().find(|key| self.parts.iter().any(|part| part.key == **key)) {
            Some(key) => Err(self.refuse(format_args!("'{key}' is not supported: {why}"))),
            None => Ok(()),
        }
    }

    /// Complains about what nobody asked for.
    pub fn finish(self) -> Result<(), Refusal> {
        match self.parts.first() {
            Some(part) => {
                let hint = did_you_mean(&part.key, self.known.iter().copied());
                Err(self.refuse(format_args!("there is no property '{}'{hint}", part.key)))
            }
            None => Ok(()),
        }
    }

    /// What is left, for somebody else's parser: keys and values, a flag being on, and a flag of those in `flags` with `no` in front off.
    pub fn rest(&mut self, flags: &[&str]) -> Vec<(String, String)> {
        let parts = std::mem::take(&mut self.parts).into_iter();
        let pair = |part: Part| match part.value {
            Some(value) => (part.key, value),
            None => match part.key.strip_prefix("no").filter(|key| flags.contains(key)) {
                Some(key) => (key.to_owned(), "off".to_owned()),
                None => (part.key, "on".to_owned()),
            },
        };
        parts.map(pair).collect()
    }

    fn take(&mut self, key: &'static str) -> Vec<Option<String>> {
        self.known.push(key);
        let (taken, rest) = std::mem::take(&mut self.parts).into_iter().partition(|part| part.key == key);
        self.parts = rest;
        let taken: Vec<Part> = taken;
        taken.into_iter().map(|part| part.value).collect()
    }
}

/// Writes keys and values as they are parsed.
pub fn join<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let parts: Vec<String> =
        pairs.into_iter().map(|(key, value)| format!("{key}={}", value.replace(',', ",,"))).collect();
    parts.join(",")
}

fn parts(text: &str, implied: Option<&str>) -> Vec<Part> {
    let (mut parts, mut rest, mut first) = (Vec::new(), text, implied);
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        let part = match (behind.strip_prefix('='), first.take()) {
            (Some(value), _) => {
                let (value, after) = value_of(value);
                rest = after;
                Part { key: key.to_owned(), value: Some(value) }
            }
            (None, Some(implied)) => {
                let (value, after) = value_of(rest);
                rest = after;
                let key = if value.is_empty() { "" } else { implied };
                Part { key: key.to_owned(), value: Some(value) }
            }
            (None, None) => {
                rest = behind.strip_prefix(',').unwrap_or(behind);
                Part { key: key.to_owned(), value: None }
            }
        };
        // Between two commas, or behind the last one.
        if !part.key.is_empty() || part.value.as_ref().is_some_and(|value| !value.is_empty()) {
            parts.push(part);
        }
    }
    parts
}

/// The value at the beginning of `text`, two commas being one, and what is behind the comma that ends it.
fn value_of(text: &str) -> (String, &str) {
    let (mut value, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(',') {
        value.push_str(before);
        match after.strip_prefix(',') {
            Some(behind) => {
                value.push(',');
                rest = behind;
            }
            None => return (value, after),
        }
    }
    value.push_str(rest);
    (value, "")
}

/// What QEMU takes for a boolean.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A number, decimal or with `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

/// A size: a number, perhaps with a fraction, and a suffix b, k, M, G, T, P or E; without one it counts `unit` bytes.
pub fn size(text: &str, unit: u64) -> Option<u64> {
    if text.starts_with("0x") || text.starts_with("0X") {
        return number(text)?.checked_mul(unit);
    }
    let (digits, unit) = match text.chars().next_back()?.to_ascii_uppercase() {
        last if last.is_ascii_digit() => (text, unit),
        'B' => (&text[..text.len() - 1], 1),
        last => {
            let power = u32::try_from("KMGTPE".find(last)?).ok()? + 1;
            (&text[..text.len() - 1], 1_u64 << (10 * power))
        }
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Nine digits of a fraction are more than any size has.
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part =
        u128::from(if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()? }) * u128::from(unit);
    let part = u64::try_from(part / u128::from(scale)).ok()?;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn opts(text: &str) -> Opts {
        Opts::parse("-drive", text, Some("type")).unwrap()
    }

    #[test]
    fn the_first_part_may_have_an_implied_key() {
        assert_eq!(opts("virt,accel=tcg").text("type"), Ok(Some("virt".to_owned())));
        assert_eq!(opts("type=virt").text("type"), Ok(Some("virt".to_owned())));
    }

    #[test]
    fn a_doubled_comma_is_part_of_a_value() {
        let mut opts = opts("a,,b,file=/x,,y,,,,z,id=d");
        assert_eq!(opts.text("type"), Ok(Some("a,b".to_owned())));
        assert_eq!(opts.text("file"), Ok(Some("/x,y,,z".to_owned())));
        assert_eq!(opts.text("id"), Ok(Some("d".to_owned())));
    }

    #[test]
    fn empty_parts_are_no_parts() {
        for text in ["user,id=a,", "user,id=a,restrict,,", ",id=a", "user,restrict,,id=a"] {
            let mut opts = opts(text);
            assert_eq!(opts.text("id"), Ok(Some("a".to_owned())), "{text}");
            opts.without_effect(&["type", "restrict"]);
            assert_eq!(opts.finish(), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_switch_is_written_in_many_ways() {
        for (text, on) in [
            ("x,ro", true),
            ("x,ro=on", true),
            ("x,ro=yes", true),
            ("x,ro=true", true),
            ("x,noro", false),
            ("x,ro=off", false),
            ("x,ro=no", false),
            ("x,ro=false", false),
        ] {
            assert_eq!(opts(text).switch("ro"), Ok(Some(on)), "{text}");
        }
        assert_eq!(opts("x").switch("ro"), Ok(None));
    }

    #[test]
    fn a_switch_with_another_value_is_refused_with_argument_and_value() {
        let refusal = opts("x,ro=maybe").switch("ro").unwrap_err().to_string();
        assert_eq!(refusal, "-drive x,ro=maybe: ro=maybe: it can be on or off");
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        assert_eq!(opts("x,m=1,m=2").text("m"), Ok(Some("2".to_owned())));
        assert_eq!(opts("x,ro=on,noro").switch("ro"), Ok(Some(false)));
    }

    #[test]
    fn a_list_keeps_every_value_in_order() {
        assert_eq!(opts("x,f=1,g=3,f=2").list("f"), Ok(vec!["1".to_owned(), "2".to_owned()]));
    }

    #[test]
    fn merged_options_are_one_whose_last_values_count() {
        let mut first = opts("virt,accel=tcg,its=off");
        first.merge(opts("accel=hvf:tcg"));
        assert_eq!(first.text("accel"), Ok(Some("hvf:tcg".to_owned())));
        assert_eq!(first.text("type"), Ok(Some("virt".to_owned())));
        assert_eq!(first.source(), "-drive virt,accel=tcg,its=off,accel=hvf:tcg");
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let mut opts = opts("x,seriall=1");
        opts.without_effect(&["type", "serial", "bootindex"]);
        let refusal = opts.finish().unwrap_err().to_string();
        assert!(refusal.contains("'seriall'") && refusal.ends_with("did you mean 'serial'?"), "{refusal}");
    }

    #[test]
    fn a_key_without_its_value_is_refused() {
        assert!(opts("x,id").text("id").unwrap_err().to_string().contains("id=..."));
        assert!(opts("x,id=").needed("id").unwrap_err().to_string().contains("id=... is missing"));
    }

    #[test]
    fn json_is_refused() {
        assert!(Opts::parse("-device", r#"{"driver":"x"}"#, None).unwrap_err().to_string().contains("JSON"));
    }

    #[test]
    fn sizes_have_qemus_suffixes_in_either_case() {
        for (text, bytes) in [
            ("1024", 1 << 30),
            ("1G", 1 << 30),
            ("1.5g", 3 << 29),
            ("512k", 512 << 10),
            ("4096B", 4096),
            ("2T", 2 << 40),
            ("0x400", 1 << 30),
            ("0", 0),
        ] {
            assert_eq!(size(text, 1 << 20), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_none() {
        for text in [
            "",
            "G",
            "1X",
            "-1",
            "1 G",
            "1..5G",
            ".5G",
            "99999999999999999999",
            "16777216T",
            "1é",
            "0x",
            "0x+1",
        ] {
            assert_eq!(size(text, 1), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_joined_is_parsed_again(pairs in prop::collection::vec(("[a-z][a-z0-9.-]{0,9}", ".{0,20}"), 0..6)) {
            let text = join(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            let mut parsed = Opts::parse("-x", &text, Some("implied")).unwrap();
            prop_assert_eq!(parsed.rest(&[]), pairs);
        }

        #[test]
        fn any_text_can_be_parsed_and_refused(text in ".{0,60}") {
            if let Ok(mut opts) = Opts::parse("-x", &text, Some("first")) {
                let _ = (opts.switch("a"), opts.text("first"), opts.size("b", 1), opts.clone().finish());
            }
        }

        #[test]
        fn a_size_is_the_number_times_its_suffix(number in 0_u64..1 << 20, power in 0_u32..4) {
            let suffix = ["b", "k", "M", "G"][power as usize];
            prop_assert_eq!(size(&format!("{number}{suffix}"), 7), Some(number << (10 * power)));
        }
    }
}
