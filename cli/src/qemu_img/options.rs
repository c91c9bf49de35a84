//! `-o`: `key=value` with commas between them, a comma in a value doubled.

use hvrun_vmm::disk::ImageFormat;

use super::fail::{Fail, Result};
use super::size;

/// The options of a new image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk.
    pub size: Option<u64>,
    /// The backing file.
    pub backing_file: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Bytes of a cluster.
    pub cluster_size: Option<u64>,
    /// `0.10` or `1.1`, as written.
    pub compat: Option<String>,
    /// `preallocation=metadata`.
    pub preallocate: bool,
    /// Refcounts may be written late.
    pub lazy_refcounts: bool,
}

/// The options of a raw image, and of a qcow2 image, for `-o help`.
const RAW: &[(&str, &str)] = &[
    ("nocow=<bool (on/off)>", "Turn off copy-on-write; only off is supported"),
    ("preallocation=<str>", "Preallocation mode (allowed values: off)"),
    ("size=<size>", "Virtual disk size"),
];
const QCOW2: &[(&str, &str)] = &[
    ("backing_file=<str>", "File name of a base image"),
    ("backing_fmt=<str>", "Image format of the base image (raw, qcow2)"),
    ("cluster_size=<size>", "qcow2 cluster size"),
    ("compat=<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    ("compression_type=<str>", "Compression method; only zlib is supported"),
    ("extended_l2=<bool (on/off)>", "Extended L2 tables; only off is supported"),
    ("lazy_refcounts=<bool (on/off)>", "Postpone refcount updates"),
    ("preallocation=<str>", "Preallocation mode (allowed values: off, metadata)"),
    ("refcount_bits=<num>", "Width of a reference count entry in bits; only 16 is supported"),
    ("size=<size>", "Virtual disk size"),
];

/// Whether one of these texts asks for help instead.
pub fn wants_help<'a>(mut texts: impl Iterator<Item = &'a str>) -> bool {
    texts.any(|text| split(text).iter().any(|part| part == "help" || part == "?"))
}

/// The options that there are.
pub fn help(format: ImageFormat) -> String {
    let table = if format == ImageFormat::Raw { RAW } else { QCOW2 };
    table.iter().fold("Supported options:\n".to_owned(), |text, (option, what)| {
        format!("{text}  {option:<22} - {what}\n")
    })
}

/// Reads all `-o` of a command line; what is said later counts. `path` is for messages.
pub fn parse<'a>(
    texts: impl Iterator<Item = &'a str>,
    format: ImageFormat,
    path: &str,
) -> Result<CreateOptions> {
    let mut options = CreateOptions::default();
    for part in texts.flat_map(split).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
        options.take(key, value, format, path)?;
    }
    Ok(options)
}

/// Cuts at commas; two commas are one of the text.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ',' if rest.next_if_eq(&',').is_none() => parts.push(String::new()),
            c => {
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    parts
}

impl CreateOptions {
    fn take(&mut self, key: &str, value: &str, format: ImageFormat, path: &str) -> Result<()> {
        let table = if format == ImageFormat::Raw { RAW } else { QCOW2 };
        if !table.iter().any(|(option, _)| option.split_once('=').is_some_and(|(name, _)| name == key)) {
            let known: Vec<&str> = table.iter().filter_map(|(option, _)| option.split('=').next()).collect();
            return Err(Fail::new(format!(
                "{path}: Invalid parameter '{key}'; a {format} image has {}",
                known.join(", ")
            )));
        }
        let refuse = |what: &str| Err(Fail::new(format!("{path}: {key}={value} is not supported: {what}")));
        match key {
            "size" => self.size = Some(size::parse(value).map_err(size::SizeError::image_size)?),
            "backing_file" => self.backing_file = Some(value.to_owned()),
            "backing_fmt" => self.backing_format = Some(value.to_owned()),
            "cluster_size" => {
                let size = size::parse(value).ok().filter(|size| size.is_power_of_two());
                let size = size.filter(|size| (512..=2 << 20).contains(size));
                let wrong = "Cluster size must be a power of two between 512 and 2048k";
                self.cluster_size = Some(size.ok_or_else(|| Fail::new(format!("{path}: {wrong}")))?);
            }
            "compat" => match value {
                "0.10" | "v2" | "1.1" | "v3" => self.compat = Some(value.to_owned()),
                _ => {
                    return Err(Fail::new(format!(
                        "{path}: Invalid parameter '{value}': compat is 0.10 or 1.1"
                    )));
                }
            },
            "preallocation" => match (value, format) {
                ("off", _) => self.preallocate = false,
                ("metadata", ImageFormat::Qcow2) => self.preallocate = true,
                (_, ImageFormat::Raw) => return refuse("it can be off"),
                _ => return refuse("it can be off or metadata"),
            },
            "lazy_refcounts" => self.lazy_refcounts = switch(key, value, path)?,
            "extended_l2" | "nocow" if switch(key, value, path)? => return refuse("it can be off"),
            "compression_type" if value != "zlib" => return refuse("it can be zlib"),
            "refcount_bits" if value != "16" => return refuse("it can be 16"),
            _ => {}
        }
        Ok(())
    }
}

fn switch(key: &str, value: &str, path: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Fail::new(format!("{path}: Parameter '{key}' expects 'on' or 'off', not '{value}'"))),
    }
}

/// The format that `name` is. `wrong` says what to tell about another one.
pub fn format(name: &str, wrong: impl FnOnce(String) -> Fail) -> Result<ImageFormat> {
    match name {
        "raw" | "file" | "host_device" => Ok(ImageFormat::Raw),
        "qcow2" => Ok(ImageFormat::Qcow2),
        other => Err(wrong(format!("'{other}' (raw and qcow2 are supported)"))),
    }
}

/// The format that `-f` says a file has.
pub fn source_format(name: Option<&str>, path: &str) -> Result<Option<ImageFormat>> {
    let wrong = |name| Fail::new(format!("Could not open '{path}': Unknown driver {name}"));
    name.map(|name| format(name, wrong)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(text: &str) -> Result<CreateOptions> {
        parse([text].into_iter(), ImageFormat::Qcow2, "a")
    }

    #[test]
    fn two_commas_are_one_in_a_value() {
        let options = qcow2("backing_file=a,,b,backing_fmt=raw").unwrap();
        assert_eq!(options.backing_file.as_deref(), Some("a,b"));
        assert_eq!(options.backing_format.as_deref(), Some("raw"));
    }

    #[test]
    fn later_options_win() {
        let texts = ["size=1M,cluster_size=4k", "size=2M"];
        let options = parse(texts.into_iter(), ImageFormat::Qcow2, "a").unwrap();
        assert_eq!((options.size, options.cluster_size), (Some(2 << 20), Some(4096)));
    }

    #[test]
    fn unknown_options_are_answered_with_those_there_are() {
        let error = qcow2("foo=1").unwrap_err();
        assert!(error.message().starts_with("a: Invalid parameter 'foo'; a qcow2 image has backing_file"));
        assert!(parse(["cluster_size=4k"].into_iter(), ImageFormat::Raw, "a").is_err());
    }

    #[test]
    fn what_is_not_supported_is_refused_with_what_is() {
        for text in
            ["preallocation=full", "compression_type=zstd", "extended_l2=on", "refcount_bits=1", "compat=2"]
        {
            assert!(qcow2(text).unwrap_err().message().starts_with("a: "), "{text}");
        }
        assert!(qcow2("preallocation=off,compression_type=zlib,extended_l2=off,refcount_bits=16").is_ok());
    }

    #[test]
    fn a_cluster_is_a_power_of_two() {
        assert!(qcow2("cluster_size=3k").is_err() && qcow2("cluster_size=256").is_err());
        assert_eq!(qcow2("cluster_size=2M").unwrap().cluster_size, Some(2 << 20));
    }

    #[test]
    fn an_option_without_a_value_is_on() {
        assert!(qcow2("lazy_refcounts").unwrap().lazy_refcounts);
    }
}
