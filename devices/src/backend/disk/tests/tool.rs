//! qemu-img, the judge of what an image is.

use std::ffi::OsStr;
use std::process::Command;

/// Runs `qemu-img` with `arguments`, which must succeed, and gives what it printed.
#[track_caller]
pub(in crate::backend::disk) fn run(arguments: &[&OsStr]) -> String {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img is needed for this test; on Debian it is in the package qemu-utils");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "qemu-img: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// `qemu-img` with words of different types.
macro_rules! qemu_img {
    ($($word:expr),+ $(,)?) => {
        $crate::backend::disk::tests::tool::run(&[$(std::ffi::OsStr::new($word)),+])
    };
}

pub(in crate::backend::disk) use qemu_img;
