//! The `qemu-img` command, under that name: makes, converts, resizes and examines disk images with QEMU's words, options, messages and
//! exit codes. What an image is, is in `hvrun_vmm::disk::image`.
//!
//! Exit codes: 0 done, 1 an error; `check` also 2 damaged, 3 only leaked clusters, 63 not a format that can be checked.

mod check;
mod commit;
mod convert;
mod create;
mod fail;
mod help;
mod info;
mod map;
mod measure;
mod options;
mod progress;
mod resize;
mod size;
mod words;

use std::ffi::OsString;
use std::io::Write;
use std::process::{self, ExitCode};
use std::thread;

use hvrun_vmm::disk::image;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::signals;
use fail::{Fail, Result};
use words::Words;

/// What a shell adds to a signal's number for the exit code of a process that the signal ended.
const EXIT_BY_SIGNAL: i32 = 128;

/// Runs the command; `arguments` are those behind its name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if let Err(error) = signals::survive_file_size_limit().and_then(|()| clean_up_on_signals()) {
        return Fail::new(format!("cannot handle signals: {error}")).report();
    }
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(fail) => fail.report(),
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<u8> {
    let mut words: Vec<String> = Vec::new();
    for argument in arguments {
        let text = argument.into_string();
        words.push(text.map_err(|bad| Fail::new(format!("the argument {} is not UTF-8", bad.display())))?);
    }
    let Some((command, rest)) = words.split_first() else {
        return Err(Fail::usage("Not enough arguments"));
    };
    match command.as_str() {
        "-h" | "--help" => return print(&help::text()),
        "-V" | "--version" => return print(&version()),
        _ => {}
    }
    let Some(command) = help::COMMANDS.iter().find(|known| known.name == command) else {
        if command.starts_with('-') {
            return Err(Fail::usage(format!("unrecognized option '{command}'")));
        }
        return Err(Fail::usage(format!("Command not found: {command}")));
    };
    if rest.iter().any(|word| word == "--help" || word == "-h") {
        return print(&help::command_text(command));
    }
    let words = Words::parse(rest, command.options)?;
    (command.run)(&words)
}

fn version() -> String {
    let [major, minor, micro] = hvrun_vmm::QEMU_VERSION;
    format!("qemu-img version {major}.{minor}.{micro} (hvrun {})\n", env!("CARGO_PKG_VERSION"))
}

/// Writes to standard output; the exit code of success.
fn print(text: &str) -> Result<u8> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(0),
        Err(error) => Err(Fail::new(format!("cannot write to standard output: {}", fail::plain(&error)))),
    }
}

/// Writes `value` as QEMU writes JSON: four spaces a level.
fn print_json(value: &serde_json::Value) -> Result<u8> {
    use serde::Serialize;
    use serde_json::ser::{PrettyFormatter, Serializer};
    let mut text = Vec::new();
    let mut to = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut to).map_err(|error| Fail::new(format!("cannot write JSON: {error}")))?;
    text.push(b'\n');
    print(&String::from_utf8_lossy(&text))
}

/// A signal that ends the command also removes what is half made.
fn clean_up_on_signals() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            image::remove_unfinished();
            process::exit(EXIT_BY_SIGNAL + signal);
        }
    })?;
    Ok(())
}
