//! A file with the process id, for as long as the process runs.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The file; dropping it removes it.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
}

impl Pidfile {
    /// Creates or replaces the file at `path`.
    pub fn create(path: PathBuf) -> Result<Pidfile> {
        let failed = || format!("-pidfile {}: cannot be written", path.display());
        // Absolute, so that it is found again.
        let absolute = std::path::absolute(&path).with_context(failed)?;
        let mut file = fs::File::create(&absolute).with_context(failed)?;
        writeln!(file, "{}", std::process::id()).with_context(failed)?;
        Ok(Pidfile { path: absolute })
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
