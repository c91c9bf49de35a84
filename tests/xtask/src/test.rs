//! `cargo xtask test`: every check of the project, one step after another; the first that fails ends it.

use crate::{cross, guest, lab, mac, pypi, systemd, workspace};
use anyhow::{Context, Result, bail, ensure};
use hvrun_tests::{artifacts, virtiofsd};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// One check.
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "tools", about: "the programs that the tests call are there", run: tools },
    Step { name: "fmt", about: "every file is formatted", run: fmt },
    Step { name: "clippy", about: "no warning, neither rustc's nor clippy's", run: clippy },
    Step { name: "doc", about: "the documentation builds without a warning", run: doc },
    Step { name: "unit", about: "unit and integration tests of the crates", run: unit },
    Step { name: "doctest", about: "the examples in the documentation", run: doctest },
    Step {
        name: "guest",
        about: "Debian's kernel and systemd and our initrds, in target/guest",
        run: guest_artifacts,
    },
    Step { name: "build", about: "the release build of hvrun", run: build },
    Step { name: "e2e", about: "end-to-end: the command, and boots of real kernels", run: end_to_end },
    Step {
        name: "mac",
        about: "hvrun for macOS: type-check, link, nothing newer than the oldest macOS",
        run: mac::step,
    },
    Step { name: "lab", about: "hvrun for arm64 on a real KVM, inside an emulated machine", run: lab::step },
];

/// A program that tests call, and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("dtc", "device-tree-compiler"),
    ("ip", "iproute2"),
    ("nix-instantiate", "nix-bin"),
    ("passt", "passt"),
    ("qemu-aarch64", "qemu-user"),
    ("qemu-img", "qemu-utils"),
    ("tcpdump", "tcpdump"),
    ("vde_switch", "vde2"),
];

/// The library with which programs control QEMU, by QEMU's own project.
const QMP_LIBRARY: &str = "qemu.qmp==0.0.6";

fn qmp_library() -> Result<PathBuf> {
    pypi::package(
        &workspace::target_dir().join("python"),
        QMP_LIBRARY,
        "a client of the monitor for programs",
    )
}

/// `cargo xtask test`.
pub fn command(args: &[OsString]) -> Result<ExitCode> {
    let names: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if names.iter().any(|name| name == "--list") {
        for step in STEPS {
            println!("{:8} {}", step.name, step.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = names.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        bail!("there is no step '{unknown}'; 'cargo xtask test --list' names them");
    }
    let chosen = STEPS.iter().filter(|step| names.is_empty() || names.iter().any(|name| name == step.name));
    let started = Instant::now();
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for step in chosen {
        println!("==> {}: {}", step.name, step.about);
        let step_started = Instant::now();
        (step.run)()
            .with_context(|| format!("step '{}' failed; 'cargo xtask test {0}' runs it alone", step.name))?;
        let took = step_started.elapsed();
        println!("==> {}: ok, {}", step.name, seconds(took));
        times.push((step.name, took));
    }
    let list: Vec<String> = times.iter().map(|(name, took)| format!("{name} {}", seconds(*took))).collect();
    println!("==> all ok in {}: {}", seconds(started.elapsed()), list.join(", "));
    Ok(ExitCode::SUCCESS)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Says what it runs, and runs it.
fn run(command: &mut Command) -> Result<()> {
    println!("    {}", workspace::describe(command));
    workspace::run(command)
}

fn tools() -> Result<()> {
    install_debian_packages(TOOLS)?;
    if !virtiofsd::PLACES.iter().any(|place| Path::new(place).exists()) {
        // A package of its own, where there is one.
        let [own, with_qemu] = virtiofsd::PLACES;
        install_debian_packages(&[(own, "virtiofsd")])
            .or_else(|_| install_debian_packages(&[(with_qemu, "qemu-system-common")]))?;
    }
    if !workspace::has_tool("cargo-nextest") {
        println!("    cargo-nextest, which runs the tests, is not installed: installing it");
        run(workspace::cargo().args(["install", "cargo-nextest", "--locked"]))
            .context("cargo-nextest is missing: install it with 'cargo install cargo-nextest --locked'")?;
    }
    qmp_library().map(drop)
}

/// Installs the packages of those programs (names on the PATH, or paths of files) that are missing; if that cannot be done here, says what to do.
pub fn install_debian_packages(tools: &[(&str, &str)]) -> Result<()> {
    let is_there = |tool: &str| match tool.starts_with('/') {
        true => Path::new(tool).exists(),
        false => workspace::has_tool(tool),
    };
    let missing: Vec<&(&str, &str)> = tools.iter().filter(|(tool, _)| !is_there(tool)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().map(|(tool, _)| *tool).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let advice = format!(
        "missing: {}. On Debian, as root: apt-get install {}",
        programs.join(", "),
        packages.join(" ")
    );
    let can = rustix::process::geteuid().is_root() && workspace::has_tool("apt-get");
    ensure!(can, "{advice}");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null()).arg("-qq");
        command
    };
    run(apt().arg("update")).with_context(|| advice.clone())?;
    // What apt has to say about each package goes only into the error message.
    let mut install = apt();
    install.args(["install", "--yes", "--no-install-recommends"]).args(&packages);
    println!("    {}", workspace::describe(&install));
    let output = install.output().context("cannot run apt-get")?;
    ensure!(output.status.success(), "{advice}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn fmt() -> Result<()> {
    run(workspace::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let lints = ["--all-targets", "--locked", "--", "-D", "warnings"];
    run(workspace::cargo().args(["clippy", "--workspace"]).args(lints))?;
    // The one crate with code for arm64 Linux alone: KVM. (What is for macOS alone is linted by the step 'mac'.)
    let mut arm64 = cross::cargo(cross::LINUX_ARM64, "clippy")?;
    run(arm64.args(["--package", "hvrun-arch"]).args(lints))
}

fn doc() -> Result<()> {
    run(workspace::cargo()
        .args(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

fn nextest() -> Command {
    let mut command = workspace::cargo();
    // A test says what went wrong in its message; backtraces through the test harness bury it.
    command.args(["nextest", "run", "--locked"]).env("RUST_BACKTRACE", "0");
    command
}

fn unit() -> Result<()> {
    // What boots Linux waits for the guest's files.
    run(nextest()
        .args(["--workspace", "--exclude", "hvrun-tests"])
        .args(["-E", "not (package(hvrun-hvf-sim) & binary(boot))"]))
}

fn doctest() -> Result<()> {
    run(workspace::cargo().args(["test", "--doc", "--workspace", "--locked"]))
}

fn guest_artifacts() -> Result<()> {
    guest::command()
}

fn build() -> Result<()> {
    println!("    {}", workspace::release_hvrun()?.display());
    Ok(())
}

fn end_to_end() -> Result<()> {
    systemd::ensure(&guest::ensure()?)?;
    let binary = workspace::release_hvrun()?;
    run(nextest()
        .args(["--package", "hvrun-tests", "--package", "hvrun-hvf-sim"])
        .env(artifacts::BINARY_VAR, binary)
        .env(artifacts::GUEST_DIR_VAR, guest::dir())
        .env(artifacts::QMP_LIBRARY_VAR, qmp_library()?))
}
