//! [`hvrun_tests::driver::scenario`] with one machine on KVM as a program, for a machine without cargo: `driver_bench hvrun|qemu FOLDER TRIPS SECONDS
//! KERNEL-OPTIONS`. FOLDER has the kernel `Image`, `initrd-systemd.cpio` and `store`; programs are looked for on the PATH. Prints a line
//! `NAME NUMBER` for each value.
#![allow(clippy::print_stdout, reason = "this is a program")]

use anyhow::{Context, Result, bail};
use hvrun_tests::driver::scenario::{self, Size};
use hvrun_tests::driver::{Emulator, Guest};
use std::path::Path;
use std::time::Duration;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [side, folder, trips, seconds, options] = words.as_slice() else {
        bail!("driver_bench hvrun|qemu FOLDER TRIPS SECONDS KERNEL-OPTIONS");
    };
    let number = |text: &str| text.parse::<u32>().with_context(|| format!("no number: '{text}'"));
    let emulator = match *side {
        "hvrun" => Emulator::hvrun("hvrun".into()),
        "qemu" => Emulator::qemu(),
        other => bail!("there is no side '{other}', only hvrun and qemu"),
    };
    let emulator = emulator.kvm("hvrun".into(), options, Duration::from_secs(number(seconds)?.into()));
    let folder = Path::new(folder);
    let guest = Guest {
        kernel: folder.join("Image"),
        initrd: folder.join("initrd-systemd.cpio"),
        store: folder.join("store"),
    };
    let size = Size { trips: number(trips)? as usize, neighbour: false };
    scenario::run(emulator, guest, size, &mut |name, value| println!("{name} {value:.3}"))
}
