//! `cargo xtask demo`: a real Linux with a shell on this terminal, or one command in it.

use crate::{guest, initrd, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// What the user asked for.
#[derive(Debug, Default)]
struct Options {
    run: Option<String>,
    cpus: Option<String>,
    memory: Option<String>,
    /// Handed to hvrun as they are.
    extra: Vec<OsString>,
}

fn parse(args: &[OsString]) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let word = arg.to_str().with_context(|| format!("'{}' is not an option", arg.to_string_lossy()))?;
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (word, None),
        };
        let mut value = || match inline.clone() {
            Some(value) => Ok(value),
            None => args
                .next()
                .and_then(|word| word.to_str())
                .map(str::to_owned)
                .with_context(|| format!("{name} wants a value")),
        };
        match name {
            "--run" => options.run = Some(value()?),
            "--cpus" | "-p" => options.cpus = Some(value()?),
            "--memory" | "-m" => options.memory = Some(value()?),
            "--" => {
                options.extra = args.cloned().collect();
                break;
            }
            _ => bail!("demo does not know '{word}'; options for hvrun itself come after '--'"),
        }
    }
    Ok(options)
}

/// `cargo xtask demo`.
pub fn command(args: &[OsString]) -> Result<ExitCode> {
    let options = parse(args)?;
    let guest = guest::ensure()?;
    let mut hvrun = Command::new(workspace::release_hvrun()?);
    for (name, value) in [("--cpus", &options.cpus), ("--memory", &options.memory)] {
        if let Some(value) = value {
            hvrun.arg(name).arg(value);
        }
    }
    match &options.run {
        Some(command) => run_one(hvrun, &options, &guest, command),
        None => {
            let (initrd, modules) = initrd_for(&options, &guest);
            hvrun.arg("--append").arg(format!("console=ttyAMA0{modules}{}", terminal_words()));
            hvrun.args(&options.extra).arg(&guest.kernel).arg(initrd);
            // hvrun takes this process's place, so that the terminal, signals and the exit status are its own.
            Err(hvrun.exec()).with_context(|| format!("cannot run {}", workspace::describe(&hvrun)))
        }
    }
}

/// The initrd with modules and the word for the kernel to load them, if hvrun was given options, which may be of devices; otherwise the
/// small one and nothing.
fn initrd_for<'a>(options: &Options, guest: &'a guest::Guest) -> (&'a Path, &'static str) {
    match &guest.virtio_initrd {
        Some(path) if !options.extra.is_empty() => (path, " modules=auto"),
        _ => (&guest.initrd, ""),
    }
}

/// The terminal's size and kind, for the guest's shell. A serial line cannot ask.
fn terminal_words() -> String {
    let mut words = String::new();
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout())
        && size.ws_row > 0
        && size.ws_col > 0
    {
        words += &format!(" hvrun_size={}x{}", size.ws_row, size.ws_col);
    }
    if let Ok(term) = std::env::var("TERM")
        && !term.is_empty()
        && term.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    {
        words += &format!(" TERM={term}");
    }
    words
}

fn run_one(mut hvrun: Command, options: &Options, guest: &guest::Guest, command: &str) -> Result<ExitCode> {
    // Long and random enough that no output contains it by accident.
    let mut nonce = [0_u8; 12];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut nonce))
        .context("no random numbers")?;
    let marker = format!("HVRUN-{}", nonce.iter().map(|byte| format!("{byte:02x}")).collect::<String>());

    let (initrd, modules) = initrd_for(options, guest);
    let mut bytes = std::fs::read(initrd)?;
    bytes.extend(initrd::run_archive(command, &marker)?);
    let mut file = tempfile::Builder::new().prefix("hvrun-demo-").suffix(".cpio").tempfile()?;
    file.write_all(&bytes)?;

    // A kernel that panics resets, and a reset ends the run: there is nobody to look at it.
    hvrun.arg("--append").arg(format!("console=ttyAMA0 quiet panic=-1{modules}")).arg("--no-reboot");
    hvrun.args(&options.extra).arg(&guest.kernel).arg(file.path());
    let mut child = hvrun
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", workspace::describe(&hvrun)))?;
    let mut serial = child.stdout.take().context("hvrun has no output")?;
    let mut filter = Filter::new(&marker);
    let mut chunk = [0_u8; 16384];
    let mut stdout = std::io::stdout().lock();
    loop {
        let count = serial.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        stdout.write_all(&filter.push(&chunk[..count]))?;
        stdout.flush()?;
    }
    let status = child.wait()?;
    if let Some(code) = filter.status {
        ensure!(status.success(), "the command ended with {code}, but hvrun did not end well ({status})");
        return Ok(ExitCode::from(code));
    }
    let written = if filter.inside { &filter.before } else { &filter.pending };
    std::io::stderr().write_all(written)?;
    bail!("the guest ended before the command did ({status}); above is what it wrote until then");
}

/// Lets through what lies between the two markers.
#[derive(Debug)]
struct Filter {
    begin: Vec<u8>,
    end: Vec<u8>,
    pending: Vec<u8>,
    /// What the guest wrote before the first marker, for the error message.
    before: Vec<u8>,
    inside: bool,
    ended: bool,
    /// The command's exit status, once the second marker has been seen.
    status: Option<u8>,
}

impl Filter {
    fn new(marker: &str) -> Self {
        Filter {
            begin: format!("{marker}-BEGIN\n").into_bytes(),
            end: format!("{marker}-END:").into_bytes(),
            pending: Vec::new(),
            before: Vec::new(),
            inside: false,
            ended: false,
            status: None,
        }
    }

    /// Takes what the guest wrote and returns what the user shall see.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        if !self.inside {
            let Some(at) = find(&self.pending, &self.begin) else {
                return Vec::new();
            };
            self.before.extend(self.pending.drain(..at + self.begin.len()).take(at));
            self.inside = true;
        }
        if self.ended {
            self.read_status();
            return Vec::new();
        }
        match find(&self.pending, &self.end) {
            Some(at) => {
                let shown = self.pending.drain(..at).collect();
                self.pending.drain(..self.end.len());
                self.ended = true;
                self.read_status();
                shown
            }
            None => {
                // The marker may have begun.
                let keep = self.pending.len().min(self.end.len() - 1);
                self.pending.drain(..self.pending.len() - keep).collect()
            }
        }
    }

    fn read_status(&mut self) {
        if self.status.is_none()
            && let Some(at) = self.pending.iter().position(|&byte| byte == b'\n')
        {
            self.status =
                std::str::from_utf8(&self.pending[..at]).ok().and_then(|text| text.trim().parse().ok());
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_shows_only_what_lies_between_the_markers() {
        let mut filter = Filter::new("M");
        let mut shown = Vec::new();
        for byte in b"boot\nM-BEGIN\none\nM-EN two\nM-END:3\nrest" {
            shown.extend(filter.push(&[*byte]));
        }
        assert_eq!(shown, b"one\nM-EN two\n");
        assert_eq!(filter.status, Some(3));
    }

    #[test]
    fn filter_keeps_output_without_a_final_newline() {
        let mut filter = Filter::new("M");
        let shown = filter.push(b"M-BEGIN\nabcM-END:0\n");
        assert_eq!((shown, filter.status), (b"abc".to_vec(), Some(0)));
    }

    #[test]
    fn parse_hands_words_after_the_dashes_to_hvrun() {
        let args: Vec<OsString> =
            ["--run=ls -l", "--cpus", "2", "--", "-v", "-p", "4"].map(OsString::from).to_vec();
        let options = parse(&args).expect("valid options");
        assert_eq!(options.run.as_deref(), Some("ls -l"));
        assert_eq!(options.cpus.as_deref(), Some("2"));
        assert_eq!(options.extra, ["-v", "-p", "4"].map(OsString::from));
    }

    #[test]
    fn parse_names_an_unknown_option() {
        let error = parse(&["--frob".into()]).expect_err("unknown option");
        assert!(error.to_string().contains("--frob"), "{error}");
    }
}
