//! Log lines and error messages on standard error. Standard output is the guest's.

use std::fmt;
use std::io::Write;

use log::LevelFilter;

/// Starts logging: warnings, or what `RUST_LOG` says; with `-v` information, with `-vv` and `-vvv` still more.
pub fn start(verbosity: u8) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn);
    match verbosity {
        0 => builder.parse_default_env(),
        1 => builder.filter_level(LevelFilter::Info),
        2 => builder.filter_level(LevelFilter::Debug),
        _ => builder.filter_level(LevelFilter::Trace),
    };
    let with_target = verbosity > 1;
    builder.format(move |out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        match with_target {
            true => writeln!(out, "hvrun: {level}: {}: {}", record.target(), record.args()),
            false => writeln!(out, "hvrun: {level}: {}", record.args()),
        }
    });
    builder.init();
}

/// Says something to the person who called the command. If standard error is gone, nobody is there to hear it.
pub fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "hvrun: {message}");
}
