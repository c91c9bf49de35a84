//! Files of `-readconfig`: groups of `key = "value"` lines under `[device "id"]`. Reads a file; knows no device.

use super::command::Given;
use super::nearest::did_you_mean;
use super::opts::{Opts, Refusal};
use super::table::{self, Id, Treatment};

/// Groups and the options that they stand for.
const GROUPS: [(&str, &str); 20] = [
    ("machine", "machine"),
    ("accel", "accel"),
    ("smp-opts", "smp"),
    ("memory", "m"),
    ("drive", "drive"),
    ("device", "device"),
    ("fsdev", "fsdev"),
    ("virtfs", "virtfs"),
    ("netdev", "netdev"),
    ("net", "net"),
    ("nic", "nic"),
    ("chardev", "chardev"),
    ("mon", "mon"),
    ("object", "object"),
    ("global", "global"),
    ("name", "name"),
    ("boot-opts", "boot"),
    ("rtc", "rtc"),
    ("action", "action"),
    ("numa", "numa"),
];

/// Largest file that is read.
const MAX_SIZE: u64 = 1 << 20;

/// A group as it is being read.
struct Group {
    name: &'static str,
    pairs: Vec<(String, String)>,
}

/// Reads the options in the file at `path`.
pub fn read(path: &str) -> Result<Vec<Given>, Refusal> {
    let failed =
        |error: &dyn std::fmt::Display| Refusal(format!("-readconfig {path}: cannot be read: {error}"));
    let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > MAX_SIZE {
        return Err(failed(&format_args!("{size} bytes are too many for a configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    parse(path, &text)
}

fn parse(path: &str, text: &str) -> Result<Vec<Given>, Refusal> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let wrong = |why: &str| Refusal(format!("-readconfig {path}: line {number}: {why}"));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            groups.push(group(header).map_err(|why| wrong(&why))?);
            continue;
        }
        let pair = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let pair = pair.and_then(|(key, value)| Some((key, value.strip_prefix('"')?.strip_suffix('"')?)));
        let (key, value) = pair.ok_or_else(|| wrong("it has to be [group \"id\"] or key = \"value\""))?;
        let group = groups.last_mut().ok_or_else(|| wrong("a [group] has to come first"))?;
        group.pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(groups.into_iter().filter_map(given).collect())
}

/// A group by what is within its brackets.
fn group(header: &str) -> Result<Group, String> {
    let (name, id) = header.split_once(' ').unwrap_or((header, ""));
    let known = GROUPS.iter().find(|(group, _)| *group == name);
    let Some((_, option)) = known else {
        let hint = did_you_mean(name, GROUPS.iter().map(|(group, _)| *group));
        return Err(format!("there is no group [{name}]{hint}"));
    };
    let id = id.trim();
    let pairs = match id.strip_prefix('"').and_then(|id| id.strip_suffix('"')) {
        Some(id) => vec![("id".to_owned(), id.to_owned())],
        None if id.is_empty() => Vec::new(),
        None => return Err(format!("{id} has to be in quotation marks")),
    };
    Ok(Group { name: option, pairs })
}

fn given(group: Group) -> Option<Given> {
    let spec = table::find(group.name)?;
    let id: Id = match spec.treatment {
        Treatment::Honoured(id) => id,
        _ => return None,
    };
    Some(Given::from_file(spec, id, Opts::from_pairs(&format!("-{}", spec.name), group.pairs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_an_option_with_its_id() {
        let text = "# a comment\n[drive \"root\"]\n  file = \"/a,b.qcow2\"\n if=\"none\"\n\n[machine]\ntype = \"virt\"\n";
        let given = parse("x", text).unwrap();
        assert_eq!(given.iter().map(|given| given.id).collect::<Vec<_>>(), [Id::Drive, Id::Machine]);
        let mut opts = given[0].opts().unwrap();
        assert_eq!(opts.text("id"), Ok(Some("root".to_owned())));
        assert_eq!(opts.text("file"), Ok(Some("/a,b.qcow2".to_owned())));
    }

    #[test]
    fn every_group_is_an_option_that_is_honoured() {
        let honoured =
            |option| matches!(table::find(option).map(|spec| spec.treatment), Some(Treatment::Honoured(_)));
        assert_eq!(GROUPS.iter().find(|(_, option)| !honoured(option)), None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, why) in [
            ("[drvie]", "line 1: there is no group [drvie]; did you mean 'drive'?"),
            ("\nfile = \"x\"", "line 2: a [group] has to come first"),
            ("[drive]\nfile = x", "line 2: it has to be"),
            ("[drive]\nfile", "line 2: it has to be"),
            ("[drive id]", "has to be in quotation marks"),
        ] {
            let refusal = parse("f.cfg", text).unwrap_err().to_string();
            assert!(refusal.contains("f.cfg") && refusal.contains(why), "{refusal}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        assert!(read("/nonexistent/x.cfg").unwrap_err().to_string().contains("/nonexistent/x.cfg"));
    }
}
