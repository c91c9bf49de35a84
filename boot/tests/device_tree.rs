//! The device tree as `dtc` sees it: without a warning, and word for word as the golden sources say.
//! `HVRUN_BLESS=1` writes the golden sources anew.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use hvrun_arch::aarch64::layout::{Layout, Window};
use hvrun_boot::fdt::{FdtConfig, Seeds, build};

/// Warnings of `dtc` that may stay, with the reason for each. There are none.
const ALLOWED_WARNINGS: &[&str] = &[];

/// Decompiles `tree`; gives the source and the warnings.
fn dtc(tree: &[u8]) -> (String, String) {
    let mut child = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs dtc: install the package device-tree-compiler");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(tree).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "dtc refuses the tree: {warnings}");
    // Up to 1.6 a list of strings is written as one string with NULs in it.
    (String::from_utf8(output.stdout).unwrap().replace("\\0", "\", \""), warnings)
}

fn tree(cpus: u32, ram: u64, initrd: Option<Window>) -> Vec<u8> {
    let layout = Layout::new(cpus, ram).with_ipa_bits(40);
    let mut rng = [0; 64];
    for (index, byte) in rng.iter_mut().enumerate() {
        *byte = index as u8;
    }
    let seeds = Seeds { rng, kaslr: 0x0123_4567_89ab_cdef };
    let cmdline = "console=ttyAMA0 panic=-1";
    build(&FdtConfig { layout: &layout, cpus, cmdline, initrd, seeds: &seeds, virtio_mmio_slots: cpus / 2 })
        .unwrap()
}

fn assert_golden(name: &str, source: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("HVRUN_BLESS").is_some() {
        std::fs::write(&path, source).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(source, golden, "the tree differs from {}", path.display());
}

fn assert_no_warning(tree: &[u8]) {
    let (_, warnings) = dtc(tree);
    let unexpected: Vec<&str> = warnings
        .lines()
        .filter(|line| !ALLOWED_WARNINGS.iter().any(|allowed| line.contains(allowed)))
        .collect();
    assert!(unexpected.is_empty(), "dtc warns: {unexpected:#?}");
}

#[test]
fn dtc_has_nothing_to_say_about_the_smallest_machine() {
    assert_no_warning(&tree(1, 128 << 20, None));
}

#[test]
fn dtc_has_nothing_to_say_about_the_largest_machine() {
    assert_no_warning(&tree(8, 64 << 30, Some(Window::new(0x4220_0000, 50_000_000))));
}

#[test]
fn tree_of_one_cpu_without_initrd_is_the_golden_one() {
    assert_golden("1-cpu.dts", &dtc(&tree(1, 1 << 30, None)).0);
}

#[test]
fn tree_of_four_cpus_with_initrd_is_the_golden_one() {
    assert_golden("4-cpus-initrd.dts", &dtc(&tree(4, 6 << 30, Some(Window::new(0x4220_0000, 0x12_3456)))).0);
}
