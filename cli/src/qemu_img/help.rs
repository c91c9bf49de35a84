//! The commands with their options, and the help that is made of them.

use super::fail::Result;
use super::words::{Opt, Words};
use super::{check, commit, convert, create, info, map, measure, resize, version};

/// A command.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Its words that are no options.
    words: &'static str,
    /// What it does.
    what: &'static str,
    /// Its options.
    pub options: &'static [Opt],
    /// Does it; the exit code.
    pub run: fn(&Words) -> Result<u8>,
}

const fn flag(short: char, long: &'static str, help: &'static str) -> Opt {
    Opt { short, long, value: None, help }
}

const fn value(short: char, long: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt { short, long, value: Some(value), help }
}

const FORMAT: Opt = value('f', "format", "FMT", "the image's format, raw or qcow2; found out if not given");
const OUTPUT: Opt = value(' ', "output", "FORM", "human or json");
const SHARE: Opt = flag('U', "force-share", "open it even if somebody else writes to it");
const QUIET: Opt = flag('q', "quiet", "say nothing but errors");
const PROGRESS: Opt = flag('p', "progress", "show how far it is");
const OPTIONS: Opt = value('o', "options", "KEY=VALUE,...", "options of the new image; 'help' shows them");
const CACHE: Opt =
    value('t', "", "CACHE", "how the target is written: anything but unsafe waits until it is on storage");
/// Taken, and without effect.
const SOURCE_CACHE: Opt = value('T', "", "CACHE", "");

/// All of them.
pub const COMMANDS: [Command; 9] = [
    Command {
        name: "check",
        words: "FILE",
        what: "looks for damage in a qcow2 image",
        options: &[
            FORMAT,
            OUTPUT,
            SHARE,
            QUIET,
            value('r', "repair", "WHAT", "put right what can be: leaks or all"),
            SOURCE_CACHE,
        ],
        run: check::run,
    },
    Command {
        name: "commit",
        words: "FILE",
        what: "writes an image's data into its backing file",
        options: &[
            FORMAT,
            QUIET,
            PROGRESS,
            value('b', "", "BASE", "the backing file"),
            flag('d', "", "do not empty the image afterwards"),
            CACHE,
            value('r', "", "RATE", ""),
        ],
        run: commit::run,
    },
    Command {
        name: "convert",
        words: "SOURCE TARGET",
        what: "makes an image with the data of another one",
        options: &[
            value('f', "", "FMT", "the source's format, raw or qcow2; found out if not given"),
            value('O', "", "FMT", "the target's format; raw if not given"),
            OPTIONS,
            flag('c', "", "compress the clusters of a qcow2 image"),
            PROGRESS,
            QUIET,
            flag('n', "", "write into an image that is there"),
            flag(' ', "target-is-zero", "with -n: it has nothing but zeros"),
            SHARE,
            CACHE,
            SOURCE_CACHE,
            value('S', "", "SIZE", ""),
            value('m', "", "NUMBER", ""),
            flag('W', "", ""),
        ],
        run: convert::run,
    },
    Command {
        name: "create",
        words: "FILE [SIZE]",
        what: "makes an empty image",
        options: &[
            value('f', "", "FMT", "raw or qcow2; raw if not given"),
            value('b', "", "FILE", "the backing file, which the image adds to"),
            value('F', "", "FMT", "the backing file's format"),
            flag('u', "", "do not look at the backing file"),
            OPTIONS,
            QUIET,
        ],
        run: create::run,
    },
    Command {
        name: "info",
        words: "FILE",
        what: "says what an image is",
        options: &[FORMAT, OUTPUT, SHARE, flag(' ', "backing-chain", "and those behind it")],
        run: info::run,
    },
    Command {
        name: "map",
        words: "FILE",
        what: "shows where an image's data is",
        options: &[
            FORMAT,
            OUTPUT,
            SHARE,
            value('s', "start-offset", "OFFSET", "where to begin"),
            value('l', "max-length", "LENGTH", "how much to show"),
        ],
        run: map::run,
    },
    Command {
        name: "measure",
        words: "[FILE]",
        what: "says how much room a new image takes",
        options: &[
            value('f', "", "FMT", "the source's format, raw or qcow2; found out if not given"),
            value('O', "", "FMT", "the new image's format; raw if not given"),
            OPTIONS,
            value(' ', "size", "SIZE", "of an empty disk of that size"),
            OUTPUT,
            SHARE,
        ],
        run: measure::run,
    },
    Command {
        name: "rebase",
        words: "FILE",
        what: "gives an image another backing file by name",
        options: &[
            FORMAT,
            flag('u', "", "change the name only"),
            value('b', "", "FILE", "the new backing file; \"\" for none"),
            value('F', "", "FMT", "its format"),
            PROGRESS,
            QUIET,
            SHARE,
            CACHE,
            SOURCE_CACHE,
        ],
        run: commit::rebase,
    },
    Command {
        name: "resize",
        words: "FILE [+|-]SIZE",
        what: "makes a disk longer or shorter",
        options: &[
            FORMAT,
            QUIET,
            flag(' ', "shrink", "the disk may become shorter"),
            value(' ', "preallocation", "MODE", "off"),
        ],
        run: resize::run,
    },
];

/// What `--help` shows.
pub fn text() -> String {
    let head = "usage: qemu-img COMMAND [OPTIONS]\nDisk images for hvrun, with QEMU's words.\n";
    let commands = COMMANDS.iter().map(command_text).collect::<Vec<String>>().join("\n");
    let tail = "SIZE is a number of bytes, or has a suffix: k, M, G, T, P or E. Supported formats: raw qcow2";
    format!("{}{head}\n{commands}\n{tail}\n", version())
}

/// What `COMMAND --help` shows.
pub fn command_text(command: &Command) -> String {
    let mut text = format!("qemu-img {} [OPTIONS] {}\n  {}\n", command.name, command.words, command.what);
    for option in command.options.iter().filter(|option| !option.help.is_empty()) {
        let mut names = String::new();
        if option.short != ' ' {
            names = format!("-{}", option.short);
        }
        if !option.long.is_empty() {
            let comma = if names.is_empty() { "" } else { ", " };
            names = format!("{names}{comma}--{}", option.long);
        }
        if let Some(value) = option.value {
            names = format!("{names} {value}");
        }
        text += &format!("    {names:<26} {}\n", option.help);
    }
    text
}
