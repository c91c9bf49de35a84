//! Why the command ends without success, in QEMU's manner: `qemu-img: ` before each message.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use hvrun_vmm::disk::DiskError;
use hvrun_vmm::disk::image::ImageError;

/// The exit code of an error.
const EXIT_ERROR: u8 = 1;

pub type Result<T> = std::result::Result<T, Fail>;

/// A message and an exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Fail {
    message: String,
    code: u8,
    usage: bool,
}

impl Fail {
    /// An error.
    pub fn new(message: impl Into<String>) -> Self {
        Fail { message: message.into(), code: EXIT_ERROR, usage: false }
    }

    /// A command line that is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Fail { usage: true, ..Fail::new(message) }
    }

    /// With an exit code of its own.
    pub fn with_code(message: impl Into<String>, code: u8) -> Self {
        Fail { code, ..Fail::new(message) }
    }

    /// Tells it to the person who called the command.
    pub fn report(self) -> ExitCode {
        say(&self.message);
        if self.usage {
            // If standard error is gone, nobody is there to hear it.
            let _ = writeln!(std::io::stderr().lock(), "Try 'qemu-img --help' for more information");
        }
        ExitCode::from(self.code)
    }

    #[cfg(test)]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Says something to the person who called the command.
pub fn say(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "qemu-img: {message}");
}

impl From<DiskError> for Fail {
    fn from(error: DiskError) -> Self {
        Fail::new(describe(&error))
    }
}

impl From<ImageError> for Fail {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Disk(error) => error.into(),
            ImageError::Io { path, what: "created", source } => {
                let path = path.display();
                Fail::new(format!("{path}: Could not create '{path}': {}", plain(&source)))
            }
            error => Fail::new(chain(&error)),
        }
    }
}

/// What is wrong with an image, with QEMU's words around it.
fn describe(error: &DiskError) -> String {
    let opening = |path: &Path, why: &str| format!("Could not open '{}': {why}", path.display());
    match error {
        DiskError::Missing(path) => {
            return opening(path, &opening(path, "No such file or directory"));
        }
        DiskError::NotWritable { path, source } => return opening(path, &opening(path, &plain(source))),
        DiskError::Locked { path, writing } => {
            let kind = if *writing { "" } else { "shared " };
            let path_text = path.display();
            return opening(
                path,
                &format!(
                    "Failed to get {kind}\"write\" lock\nIs another process using the image [{path_text}]?"
                ),
            );
        }
        DiskError::UnsupportedFormat { path, format } => {
            return opening(
                path,
                &format!(
                    "it looks like a {format} image, which is not supported; say -f raw if these bytes are the disk's own"
                ),
            );
        }
        DiskError::Backing { path, source } => {
            return opening(path, &format!("{}\nCould not open backing image.", describe(source)));
        }
        _ => {}
    }
    let text = chain(error);
    // Everything else begins with the file's name, too.
    let (path, why) = match text.strip_prefix("disk ").and_then(|rest| rest.split_once(": ")) {
        Some((path, why)) => (path, why),
        None => return text,
    };
    format!("Could not open '{path}': {why}")
}

/// An error without the number that Rust adds to what the host says.
pub fn plain(error: &dyn Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error ").map_or(text.clone(), |(before, _)| before.to_owned())
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {}", plain(error));
        cause = error.source();
    }
    text
}
