//! The hvrun command: arguments in, a machine, an exit code out. The only place that reads argv, prints to stdout or exits the
//! process. What a machine is and does is in `hvrun-vmm`.
//!
//! It is one binary, chosen by the name it is called by: under one of QEMU's names it understands QEMU's command line, else its own.
//!
//! Exit codes: 0 the guest powered off (or reset under `--no-reboot`, or somebody ended the machine), 1 an error, 2 bad usage (1 under
//! QEMU's names, as QEMU does).

mod args;
mod console;
mod logging;
mod options;
mod pidfile;
mod qemu;
mod qemu_img;
mod signals;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use args::Action;
use hvrun_vmm::{MachineConfig, Outcome};

/// Exit code for a command line that is wrong.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    console::restore_on_panic();
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match qemu::Program::called(&name, std::env::consts::ARCH) {
        qemu::Program::Hvrun => hvrun(args),
        qemu::Program::Aarch64 => {
            logging::call_me(&name);
            qemu(&name, args)
        }
        qemu::Program::Image => qemu_img::main(args),
        qemu::Program::Other => {
            logging::call_me(&name);
            logging::say(format_args!("{}", qemu::Program::not_there(&name)));
            ExitCode::FAILURE
        }
    }
}

/// The command by its own name.
fn hvrun(args: impl Iterator<Item = OsString>) -> ExitCode {
    let action = match args::parse(args) {
        Ok(action) => action,
        Err(error) => {
            logging::say(format_args!("{error}\ntry 'hvrun --help'"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    ended(act(action))
}

/// The command by the name of QEMU that is `program`.
fn qemu(program: &str, args: impl Iterator<Item = OsString>) -> ExitCode {
    // Before the options are read: those without effect are in the log.
    logging::start_for_qemu();
    match qemu::parse(program, args) {
        Ok(action) => ended(act_as_qemu(action)),
        Err(refusal) => {
            logging::say(format_args!("{refusal}"));
            ExitCode::FAILURE
        }
    }
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act_as_qemu(action: qemu::Action) -> Result<()> {
    match action {
        qemu::Action::Print(text) => print(&text),
        qemu::Action::PrintConfig(config) => print_config(&config),
        qemu::Action::Run { config, pidfile } => {
            config.validate()?;
            let _pidfile = pidfile.map(pidfile::Pidfile::create).transpose()?;
            run(config)
        }
    }
}

fn act(action: Action) -> Result<()> {
    match action {
        Action::Help => print(&options::help()),
        Action::Version => print(concat!("hvrun ", env!("CARGO_PKG_VERSION"), "\n")),
        Action::PrintConfig(config) => print_config(&config),
        Action::Run { config, verbosity } => {
            logging::start(verbosity);
            run(config)
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

fn print_config(config: &MachineConfig) -> Result<()> {
    config.validate()?;
    let json = serde_json::to_string_pretty(config).context("the configuration has no JSON form")?;
    print(&(json + "\n"))
}

/// Runs a machine to its end.
fn run(config: MachineConfig) -> Result<()> {
    let console = console::Console::new(&config);
    signals::survive_file_size_limit().context("cannot handle SIGXFSZ")?;
    // Before the machine, so that no signal finds the terminal raw and nobody to restore it.
    let _signals = signals::watch(console.remote().clone()).context("cannot watch for signals")?;
    let builder = console.connect(config)?.plug_parser(Arc::new(qemu::Parser));
    let machine = builder.build()?;
    console.remote().attach(machine.control());
    let raw = console.enter_raw_mode()?;
    let end = machine.start()?.wait();
    // The error, if there is one, belongs on a terminal in its usual mode.
    drop(raw);
    match end? {
        Outcome::PoweredOff => log::info!("the guest has powered off"),
        Outcome::Reset => log::info!("the guest has reset itself, which ends it under --no-reboot"),
        Outcome::Stopped => log::info!("the machine was stopped"),
    }
    Ok(())
}
