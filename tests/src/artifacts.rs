//! Where the tests find what they run: the hvrun binary, the kernel and the initrd. `cargo xtask test` makes them; this only looks.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// The hvrun to test, instead of `target/release/hvrun`.
pub const BINARY_VAR: &str = "HVRUN_TEST_BIN";
/// The folder of the guest, instead of `target/guest`.
pub const GUEST_DIR_VAR: &str = "HVRUN_TEST_GUEST_DIR";
/// The folder of the library `qemu.qmp`, instead of the one in `target/python`.
pub const QMP_LIBRARY_VAR: &str = "HVRUN_TEST_QMP_LIBRARY";

fn locate(variable: &str, default: &str, file: &str) -> Result<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let base = std::env::var_os(variable).map_or_else(|| top.join(default), PathBuf::from);
    let path = if file.is_empty() { base } else { base.join(file) };
    ensure!(path.exists(), "{} is missing: run 'cargo xtask test', which makes it", path.display());
    Ok(path)
}

/// The release build of hvrun.
pub fn hvrun() -> Result<PathBuf> {
    locate(BINARY_VAR, "target/release/hvrun", "")
}

/// Debian's arm64 kernel.
pub fn kernel() -> Result<PathBuf> {
    locate(GUEST_DIR_VAR, "target/guest", "vmlinuz")
}

/// The folder with the library `qemu.qmp` for Python.
pub fn qmp_library() -> Result<PathBuf> {
    let module = locate(QMP_LIBRARY_VAR, "target/python/qemu.qmp-0.0.6", "qemu/qmp/__init__.py")?;
    Ok(module.ancestors().nth(3).unwrap_or(&module).to_path_buf())
}

/// The initrd with busybox and the scripts of `tests/xtask/guest`.
pub fn initrd() -> Result<PathBuf> {
    locate(GUEST_DIR_VAR, "target/guest", "initrd.cpio")
}

/// The same initrd with the kernel's modules.
pub fn virtio_initrd() -> Result<PathBuf> {
    locate(GUEST_DIR_VAR, "target/guest", "initrd-virtio.cpio")
}

/// The initrd that mounts [`store`] and starts systemd.
pub fn systemd_initrd() -> Result<PathBuf> {
    locate(GUEST_DIR_VAR, "target/guest", "initrd-systemd.cpio")
}

/// The folder with systemd and all other programs of its guest.
pub fn store() -> Result<PathBuf> {
    locate(GUEST_DIR_VAR, "target/guest", "store")
}
