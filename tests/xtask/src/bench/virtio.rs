//! What the benchmarks of virtio devices share: an initrd with modules, tools and a script, a boot of it by hvrun or by QEMU, and the table
//! of what the script reports. Which devices there are and what is done with them is the caller's.

use super::QEMU;
use super::options::{Options, Side};
use crate::guest::Guest;
use crate::initrd::{self, Archive};
use crate::{cross, libraries, workspace};
use anyhow::{Context, Result, ensure};
use hvrun_tests::process::Supervised;
use hvrun_tests::spread::Spread;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Begins the lines between which the script's output lies.
const MARKER: &str = "HVRUN-BENCH";
/// The kernel's command line. A kernel that panics resets, and a reset ends the run.
const COMMAND_LINE: &str = "console=ttyAMA0 quiet panic=-1 modules=auto";
/// A run that takes longer is a failure. The slower side, on a busy machine, takes some minutes.
const LIMIT: Duration = Duration::from_secs(900);
/// What a guest runs besides busybox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Debian's fio.
    Fio,
    /// Debian's iperf3.
    Iperf3,
    /// `net_probe`, of this project.
    Probe,
}

/// A benchmark's guest.
#[derive(Debug)]
pub struct Bench {
    guest: Guest,
    initrd: PathBuf,
    hvrun: Option<PathBuf>,
    options: Options,
    cpus: u32,
}

/// What one run reported.
#[derive(Debug, Default)]
pub struct Report {
    /// The numbers by their names.
    pub values: HashMap<String, f64>,
    /// Checksums of what the guest read.
    pub sums: Vec<String>,
}

impl Bench {
    /// Builds the guest: `script` runs in it with `settings`, shell assignments, and with `tools`.
    pub fn prepare(
        options: &Options,
        cpus: u32,
        script: &str,
        settings: &str,
        tools: &[Tool],
        dir: &Path,
    ) -> Result<Bench> {
        let guest = crate::guest::ensure()?;
        let hvrun = match options.sides().contains(&Side::Hvrun) {
            true => Some(workspace::release_hvrun()?),
            false => None,
        };
        let bytes = initrd(&guest, script, settings, tools)?;
        let initrd = dir.join("bench.cpio");
        fs::write(&initrd, &bytes).with_context(|| format!("cannot write {}", initrd.display()))?;
        Ok(Bench { guest, initrd, hvrun, options: options.clone(), cpus: options.cpus.unwrap_or(cpus) })
    }

    /// How many CPUs the guest has.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// A boot by `side`, to which the caller adds devices; `append` goes behind the kernel's command line.
    pub fn command(&self, side: Side, append: &str) -> Result<Command> {
        let cpus = self.cpus.to_string();
        let append = format!("{COMMAND_LINE} {append}");
        let memory = &self.options.memory;
        Ok(match side {
            Side::Hvrun => {
                let mut command = Command::new(self.hvrun.as_ref().context("hvrun is not measured")?);
                command.args(["--accel", "soft", "--cpus", &cpus, "--memory", memory, "--no-reboot"]);
                command.args(["--append", append.trim_end()]);
                if let Some(transport) = &self.options.transport {
                    command.args(["--transport", transport]);
                }
                command.arg(&self.guest.kernel).arg(&self.initrd);
                command
            }
            Side::Qemu => {
                let mut command = Command::new(QEMU.0);
                command.args(["-accel", "tcg", "-cpu", "cortex-a72", "-M", "virt,gic-version=3"]);
                command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
                command.args(["-smp", &cpus, "-m", memory, "-append", append.trim_end()]);
                command.arg("-kernel").arg(&self.guest.kernel).arg("-initrd").arg(&self.initrd);
                command
            }
        })
    }
}

/// The initrd of a benchmark's guest, with modules, the script and its settings, and `tools`.
pub fn initrd(guest: &Guest, script: &str, settings: &str, tools: &[Tool]) -> Result<Vec<u8>> {
    let path = guest.with_modules()?;
    let mut bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    for tool in tools {
        bytes.extend(tool.archive()?);
    }
    bytes.extend(script_archive(script, settings)?);
    Ok(bytes)
}

/// Boots, and returns what the script reported.
pub fn run(command: &mut Command) -> Result<Report> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let (process, mut child) = Supervised::spawn(command, LIMIT)?;
    let mut serial = Vec::new();
    child.stdout.take().context("no stdout")?.read_to_end(&mut serial)?;
    let ended = process.wait()?;
    let what = || workspace::describe(command);
    let text = String::from_utf8_lossy(&serial);
    ensure!(!ended.timed_out, "'{}' took more than {LIMIT:?}; it wrote: {text}", what());
    ensure!(ended.status.success(), "'{}' failed ({}); it wrote: {text}", what(), ended.status);
    parse(&text).with_context(|| format!("the guest of '{}' wrote: {text}", what()))
}

/// The script's report in what the guest wrote.
fn parse(text: &str) -> Result<Report> {
    let (_, rest) =
        text.split_once(&format!("{MARKER}-BEGIN\n")).context("the guest did not come to its benchmark")?;
    let (lines, status) =
        rest.split_once(&format!("{MARKER}-END:")).context("the benchmark did not come to its end")?;
    let status = status.lines().next().unwrap_or_default();
    ensure!(status == "0", "the benchmark ended with {status}");
    let mut report = Report::default();
    for line in lines.lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["BENCH", name, number] => {
                let number = number.parse().with_context(|| format!("'{line}' has no number"))?;
                report.values.insert((*name).to_owned(), number);
            }
            ["BENCH-SUM", sum] => report.sums.push((*sum).to_owned()),
            _ => {}
        }
    }
    ensure!(!report.values.is_empty(), "the benchmark reported nothing");
    Ok(report)
}

impl Tool {
    /// An archive with it and what it needs.
    fn archive(self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        match self {
            // Large, because Debian's fio is linked with the clients of every storage there is.
            Tool::Fio => libraries::add(&mut archive, &debian("fio", "fio")?)?,
            Tool::Iperf3 => libraries::add(&mut archive, &debian("iperf3", "iperf3")?)?,
            Tool::Probe => archive.file("bin/net_probe", 0o755, &probe()?)?,
        }
        archive.finish()
    }
}

/// The program `name` of Debian's package `package`, and all that it loads, by their names in an initrd. Fetched once.
pub fn debian(package: &str, name: &str) -> Result<BTreeMap<String, PathBuf>> {
    let dir = crate::guest::dir();
    let root = dir.join(package);
    libraries::unpack(&dir.join("apt"), &[package], &root)?;
    libraries::files(&root, name)
}

/// `net_probe` for guests.
pub fn probe() -> Result<Vec<u8>> {
    let path = cross::static_example("hvrun-tests", "net_probe", "lab")?;
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// An archive with the script and its settings, which the guest runs instead of a shell.
fn script_archive(script: &str, settings: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.dir("bench")?;
    archive.dir("mnt")?;
    archive.file("bench/settings", 0o644, settings.as_bytes())?;
    archive.file("bench/script", 0o644, script.as_bytes())?;
    let mut bytes = archive.finish()?;
    bytes.extend(initrd::run_archive(". /bench/script", MARKER)?);
    Ok(bytes)
}

/// The rows of a table: a value's name, what it is, and how to print it.
pub type Rows = [(&'static str, &'static str)];

/// Prints the medians of both sides; of rates, a ratio above 1 says that hvrun is faster, and of times one below.
pub fn print(rows: &Rows, measured: &[(Side, Vec<Report>)]) {
    let of = |side: Side, name: &str| {
        let reports = measured.iter().filter(|(whose, _)| *whose == side).flat_map(|(_, reports)| reports);
        Spread::of(reports.filter_map(|report| report.values.get(name).copied()))
    };
    println!("{:<38} {:>26} {:>26} {:>7}", "", Side::Hvrun.name(), Side::Qemu.name(), "ratio");
    for (name, about) in rows {
        let (ours, theirs) = (of(Side::Hvrun, name), of(Side::Qemu, name));
        let cell = |spread: Spread| if spread.median.is_nan() { "-".to_owned() } else { short(spread) };
        println!("  {about:<36} {:>26} {:>26} {:>7}", cell(ours), cell(theirs), ours.ratio(theirs));
    }
    println!();
}

/// Most rates are large: whole numbers do.
fn short(spread: Spread) -> String {
    if spread.median < 20.0 {
        return spread.to_string();
    }
    format!("{:.0} ({:.0} to {:.0})", spread.median, spread.least, spread.most)
}

/// Runs `rounds` rounds, both sides in turn, so that whatever else the machine does meets both. `devices` adds a side's devices to its
/// command line; `tidy` puts the host's files back as they were.
pub fn rounds(
    bench: &Bench,
    rounds: usize,
    devices: &dyn Fn(Side, &mut Command),
    tidy: &dyn Fn() -> Result<()>,
) -> Result<Vec<(Side, Vec<Report>)>> {
    let sides = bench.options.sides();
    let mut measured: Vec<(Side, Vec<Report>)> = sides.iter().map(|side| (*side, Vec::new())).collect();
    for round in 1..=rounds {
        for (side, reports) in &mut measured {
            eprintln!("round {round} of {rounds}: {}", side.name());
            let mut command = bench.command(*side, "")?;
            devices(*side, &mut command);
            reports.push(run(&mut command)?);
            tidy()?;
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_outside_the_markers_do_not_count() -> Result<()> {
        let text = "BENCH a 1\nHVRUN-BENCH-BEGIN\nBENCH b 2.5\nnoise\nHVRUN-BENCH-END:0\nBENCH c 3\n";
        let report = parse(text)?;
        assert_eq!(report.values, HashMap::from([("b".to_owned(), 2.5)]));
        Ok(())
    }

    #[test]
    fn script_that_fails_is_an_error_with_its_status() {
        let error = parse("HVRUN-BENCH-BEGIN\nBENCH b 2\nHVRUN-BENCH-END:7\n").expect_err("it failed");
        assert!(error.to_string().contains('7'), "{error}");
    }

    #[test]
    fn guest_that_ends_early_is_an_error() {
        assert!(parse("HVRUN-BENCH-BEGIN\nBENCH b 2\n").is_err());
    }
}
