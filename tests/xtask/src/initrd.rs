//! Builds the initrd of the demo and the tests: busybox, the scripts under `guest/`, and nothing else.
//! It knows the cpio format and what lies where; it does not know where busybox comes from (`guest.rs`).

use anyhow::{Context, Result};
use cpio::newc::{self, ModeFileType};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The guest's first process; see the comments in the script for its three modes.
const INIT: &str = include_str!("../guest/init");
/// What a login shell reads.
const PROFILE: &str = include_str!("../guest/profile");
/// What `udhcpc` calls when it has an address.
pub const DHCP: &str = include_str!("../guest/dhcp");
/// Ends the machine without asking an init that is not there.
const POWEROFF: &str = include_str!("../guest/poweroff");

/// Where the kernel expects archives that follow each other to begin (it skips zeroes up to a multiple of 4; 512 is what `cpio` does).
const ARCHIVE_ALIGN: usize = 512;

/// An initrd in the making: a newc archive in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(
        &mut self,
        name: &str,
        kind: ModeFileType,
        mode: u32,
        rdev: (u32, u32),
        data: &[u8],
    ) -> Result<()> {
        self.entries += 1;
        let builder = newc::Builder::new(name)
            .ino(self.entries)
            .nlink(1)
            .mode(mode)
            .rdev_major(rdev.0)
            .rdev_minor(rdev.1)
            .set_mode_file_type(kind);
        let size = u32::try_from(data.len()).with_context(|| format!("{name} is too large for an initrd"))?;
        let mut writer = builder.write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, data)?;
        writer.finish()?;
        Ok(())
    }

    /// Adds a directory.
    pub fn dir(&mut self, name: &str) -> Result<()> {
        self.entry(name, ModeFileType::Directory, 0o755, (0, 0), &[])
    }

    /// Adds a file with `mode`'s permission bits.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entry(name, ModeFileType::Regular, mode, (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, ModeFileType::Symlink, 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a folder of the host's with all that is in it.
    pub fn tree(&mut self, name: &str, from: &Path) -> Result<()> {
        self.dir(name)?;
        let entries = std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            let about = entry.metadata()?;
            if about.is_symlink() {
                self.symlink(&name, &std::fs::read_link(&path)?.to_string_lossy())?;
            } else if about.is_dir() {
                self.tree(&name, &path)?;
            } else {
                let bytes =
                    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.file(&name, about.permissions().mode() & 0o7777, &bytes)?;
            }
        }
        Ok(())
    }

    /// Adds a character device.
    pub fn char_device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(name, ModeFileType::Char, 0o600, (major, minor), &[])
    }

    /// Closes the archive and returns its bytes, padded so that another one can be appended.
    pub fn finish(self) -> Result<Vec<u8>> {
        let mut bytes = newc::trailer(self.bytes)?;
        bytes.resize(bytes.len().next_multiple_of(ARCHIVE_ALIGN), 0);
        Ok(bytes)
    }
}

/// The initrd around the busybox at `busybox`.
pub fn build(busybox: &Path) -> Result<Vec<u8>> {
    build_with(busybox, INIT)
}

/// The same with another script as the first process.
pub fn build_with(busybox: &Path, init: &str) -> Result<Vec<u8>> {
    let busybox_bytes =
        std::fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"] {
        archive.dir(dir)?;
    }
    // The kernel opens it for the first process before anything can mount devtmpfs.
    archive.char_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, &busybox_bytes)?;
    archive.file("init", 0o755, init.as_bytes())?;
    archive.file("etc/profile", 0o644, PROFILE.as_bytes())?;
    archive.dir("etc/udhcpc")?;
    archive.file("etc/udhcpc/default.script", 0o755, DHCP.as_bytes())?;
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\n")?;
    for name in ["sbin/poweroff", "sbin/reboot", "sbin/halt"] {
        archive.file(name, 0o755, POWEROFF.as_bytes())?;
    }
    archive.finish()
}

/// An archive to append to the initrd: `command` is run instead of a shell, its output between lines that begin with `marker`.
pub fn run_archive(command: &str, marker: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("run.sh", 0o755, format!("{command}\n").as_bytes())?;
    archive.file("run.marker", 0o644, marker.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Cursor;

    #[test]
    fn tree_has_folders_before_what_is_in_them_and_links_as_links() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("b"))?;
        fs::write(dir.path().join("b/program"), "text")?;
        fs::set_permissions(dir.path().join("b/program"), fs::Permissions::from_mode(0o751))?;
        std::os::unix::fs::symlink("b/nothing", dir.path().join("a"))?;
        let mut archive = Archive::default();
        archive.tree("top", dir.path())?;

        let bytes = archive.finish()?;
        let mut rest = Cursor::new(bytes.as_slice());
        let mut seen = Vec::new();
        loop {
            let reader = newc::Reader::new(rest)?;
            if reader.entry().is_trailer() {
                break;
            }
            seen.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish()?;
        }
        let named = |name: &str, mode: u32| (name.to_owned(), mode);
        assert_eq!(
            seen,
            [
                named("top", 0o040_755),
                named("top/a", 0o120_777),
                named("top/b", 0o040_755),
                named("top/b/program", 0o100_751)
            ]
        );
        Ok(())
    }
}
