//! A disk image of somebody else's as `qemu-img` handles it: examined, mapped, measured, copied, checked and repaired. The input is the
//! file. Everything may be refused.

use hvrun_devices::backend::disk::image::{
    self, ConvertOptions, Layout, NewImage, Repair, check, convert, info, measure, rebase_unsafe,
};
use hvrun_devices::backend::disk::{BlockBackend, CacheMode, ImageFormat};
use tempfile::TempDir;

/// Larger disks are not mapped or copied.
const LARGEST: u64 = 64 << 20;

/// The target `image-tool`.
pub fn run(bytes: &[u8]) {
    // The seeds of the target `image` have a byte more.
    let file = bytes.get(1..).unwrap_or_default();
    let dir = TempDir::new().expect("a directory can be made");
    let (path, copy) = (dir.path().join("image"), dir.path().join("copy"));
    std::fs::write(&path, file).expect("a file can be made");
    std::fs::write(dir.path().join("base"), [0x55; 8192]).expect("a file can be made");
    let _ = info(&path, None, true);
    if let Ok(disk) = image::open(&path, None, true)
        && disk.capacity() <= LARGEST
    {
        let layout = Layout::new(disk.capacity());
        let _ = measure(Some(&disk), ImageFormat::Qcow2, &layout);
        let new = NewImage { path: copy.clone(), format: ImageFormat::Qcow2, layout, preallocate: false };
        let options = ConvertOptions { compress: bytes.len().is_multiple_of(2), sync: false };
        if convert(&disk, &new, options, &mut |_, _| {}).is_ok() {
            let report = check(&copy, Repair::No, true, &mut |_| {}).expect("a copy can be checked");
            assert_eq!((report.corruptions, report.leaks), (0, 0), "a copy is not sound");
        }
    }
    let _ = check(&path, Repair::All, true, &mut |_| {});
    let _ = rebase_unsafe(&path, Some(("base", "raw")));
    // Again, with what these have written.
    let _ = check(&path, Repair::Leaks, true, &mut |_| {});
    let _ = image::commit(&path, None, true, CacheMode::Unsafe, &mut |_, _| {});
}
