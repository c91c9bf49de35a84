//! Log lines and error messages on standard error. Standard output is the guest's.

use std::fmt;
use std::io::Write;
use std::sync::OnceLock;

use log::LevelFilter;

/// What lines begin with.
static NAME: OnceLock<String> = OnceLock::new();

/// From now on lines begin with this name.
pub fn call_me(name: &str) {
    // A process is called by one name.
    let _ = NAME.set(name.to_owned());
}

fn name() -> &'static str {
    NAME.get().map_or("hvrun", String::as_str)
}

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
    write_with(builder, verbosity > 1);
}

/// Starts logging as QEMU does, which has no `-v`: warnings and which accelerators were passed over, or what `RUST_LOG` says.
pub fn start_for_qemu() {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn).filter_module("hvrun_arch::select", LevelFilter::Info);
    builder.parse_default_env();
    write_with(builder, false);
}

fn write_with(mut builder: env_logger::Builder, with_target: bool) {
    builder.format(move |out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        match with_target {
            true => writeln!(out, "{}: {level}: {}: {}", name(), record.target(), record.args()),
            false => writeln!(out, "{}: {level}: {}", name(), record.args()),
        }
    });
    builder.init();
}

/// Says something to the person who called the command. If standard error is gone, nobody is there to hear it.
pub fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{}: {message}", name());
}
