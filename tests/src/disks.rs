//! Disk images for tests: files of a known pattern, and qcow2 images made by `qemu-img`, the program whose format it is. It knows nothing of
//! hvrun's own reader.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of which each block of 512 is like no other: its number, the `seed`, and bytes that follow from both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Tells one disk's pattern from another's.
    pub seed: u64,
}

/// The unit of a pattern, and of virtio-blk (virtio 1.2, 5.2.6).
pub const SECTOR: usize = 512;

impl Pattern {
    /// The bytes of the sector `number`.
    pub fn sector(self, number: u64) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let mut state = self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for word in bytes.chunks_exact_mut(8) {
            // splitmix64: short, and its output has no visible order.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    /// Writes a file of `size` bytes, a multiple of [`SECTOR`].
    pub fn write(self, path: &Path, size: u64) -> Result<()> {
        ensure!(size.is_multiple_of(SECTOR as u64), "{size} bytes are not whole sectors");
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        for number in 0..size / SECTOR as u64 {
            file.write_all(&self.sector(number))?;
        }
        Ok(file.into_inner()?.set_len(size)?)
    }

    /// An error that names the first sector of the file that is not this pattern's; `sectors` says which are looked at.
    pub fn check(self, path: &Path, sectors: std::ops::Range<u64>) -> Result<()> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = [0; SECTOR];
        for number in sectors {
            file.read_exact_at(&mut bytes, number * SECTOR as u64)
                .with_context(|| format!("{} ends before sector {number}", path.display()))?;
            ensure!(bytes == self.sector(number), "sector {number} of {} is another", path.display());
        }
        Ok(())
    }
}

/// A raw image of `size` bytes, all of them in a pattern, as `name` in `dir`.
pub fn raw(dir: &Path, name: &str, size: u64, pattern: Pattern) -> Result<PathBuf> {
    let path = dir.join(name);
    pattern.write(&path, size)?;
    Ok(path)
}

/// A raw image of `size` bytes without contents.
pub fn empty(dir: &Path, name: &str, size: u64) -> Result<PathBuf> {
    let path = dir.join(name);
    File::create(&path).with_context(|| format!("cannot create {}", path.display()))?.set_len(size)?;
    Ok(path)
}

/// A raw image with an ext4 file system that has what lies in the folder `from`.
pub fn ext4(dir: &Path, name: &str, size: u64, from: Option<&Path>) -> Result<PathBuf> {
    let path = empty(dir, name, size)?;
    let mut options = Vec::new();
    if let Some(from) = from {
        options.extend([OsStr::new("-d"), from.as_os_str()]);
    }
    format_ext4(&path, &options)?;
    Ok(path)
}

/// Makes an ext4 file system on a raw image. `options` are further ones of `mke2fs`.
pub fn format_ext4(path: &Path, options: &[impl AsRef<OsStr>]) -> Result<()> {
    // Debian keeps it where only root's PATH leads.
    let tool = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(tool.unwrap_or("mke2fs"));
    run(command.args(["-q", "-t", "ext4", "-F"]).args(options).arg(path))
}

/// A qcow2 image without contents, or over `backing` (a file and its format). `options` is what `qemu-img create -o` takes, or nothing.
pub fn qcow2(
    dir: &Path,
    name: &str,
    size: u64,
    options: &str,
    backing: Option<(&Path, &str)>,
) -> Result<PathBuf> {
    let path = dir.join(name);
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    if let Some((file, format)) = backing {
        command.arg("-b").arg(file).args(["-F", format]);
    }
    run(command.arg(&path).arg(size.to_string()))?;
    Ok(path)
}

/// Converts an image from one format to another. `options` is what `qemu-img convert` takes, such as `-c` or `-o compat=0.10`.
pub fn convert(from: (&Path, &str), to: (&Path, &str), options: &[&str]) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from.1, "-O", to.1]).args(options).arg(from.0).arg(to.0);
    run(&mut command)
}

/// What `qemu-img check` thinks of a qcow2 image: an error if it finds anything wrong.
pub fn check_qcow2(path: &Path) -> Result<()> {
    run(Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(path))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}: 'cargo xtask test tools' installs it"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {stderr}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_names_the_sector_that_differs() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let pattern = Pattern { seed: 1 };
        let path = raw(dir.path(), "disk", 8 * SECTOR as u64, pattern)?;
        File::options().write(true).open(&path)?.write_at(b"x", 5 * SECTOR as u64 + 100)?;
        let error = pattern.check(&path, 0..8).expect_err("one sector differs");
        assert!(error.to_string().contains("sector 5 "), "{error}");
        Ok(())
    }

    #[test]
    fn check_passes_over_what_was_written() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = raw(dir.path(), "disk", 64 * SECTOR as u64, Pattern { seed: 2 })?;
        Pattern { seed: 2 }.check(&path, 0..64)
    }

    #[test]
    fn patterns_of_two_seeds_differ() {
        assert_ne!(Pattern { seed: 1 }.sector(0), Pattern { seed: 2 }.sector(0));
    }
}
