//! What a user can get wrong: each ends before anything starts, with exit code 1 (2 for usage) and a message that names it.

use anyhow::{Result, ensure};
use hvrun_tests::bare::{Program, file, header};
use hvrun_tests::{Hvrun, Outcome, disks};
use rustix::process::Signal;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A chain of causes says each of them once.
fn said_once(stderr: &str) -> Result<()> {
    for line in stderr.lines() {
        let parts: Vec<&str> = line.split(": ").collect();
        let again = parts.iter().enumerate().find(|(at, part)| parts.iter().take(*at).any(|p| p == *part));
        ensure!(again.is_none(), "{again:?} is said twice: {line}");
    }
    Ok(())
}

/// hvrun refuses: nothing ran, and standard error holds all of `words` (whatever their case).
fn refused(hvrun: Hvrun, words: &[&str]) -> Result<Outcome> {
    let outcome = hvrun.run()?;
    ensure!(
        matches!(outcome.code, Some(1 | 2)),
        "code {:?}, signal {:?}: {}",
        outcome.code,
        outcome.signal,
        outcome.stderr
    );
    ensure!(outcome.serial.is_empty(), "standard output has: {}", outcome.serial);
    let message = outcome.stderr.to_lowercase();
    for word in words {
        ensure!(message.contains(&word.to_lowercase()), "'{word}' is not in: {}", outcome.stderr);
    }
    said_once(&outcome.stderr)?;
    Ok(outcome)
}

/// Refused with exit code 1: the words were understood, but what they say cannot be done.
fn refused_with_1(hvrun: Hvrun, words: &[&str]) -> Result<()> {
    let outcome = refused(hvrun, words)?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    Ok(())
}

/// Refused with exit code 2: the command line is wrong.
fn refused_with_2(hvrun: Hvrun, words: &[&str]) -> Result<()> {
    let outcome = refused(hvrun, words)?;
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    Ok(())
}

fn kernel_is_refused(bytes: &[u8], words: &[&str]) -> Result<()> {
    let (_dir, path) = file(bytes)?;
    refused_with_1(Hvrun::kernel(&path), words)
}

/// A kernel that would run.
fn good_kernel() -> Result<(TempDir, PathBuf)> {
    Program::new().print("RAN\n").power_off().file()
}

fn with_good_kernel(args: &[&str], words: &[&str]) -> Result<Outcome> {
    let (_dir, kernel) = good_kernel()?;
    refused(Hvrun::new().args(args).arg(&kernel), words)
}

// The kernel.

#[test]
fn missing_kernel_is_named() -> Result<()> {
    refused_with_1(
        Hvrun::kernel(Path::new("/nonexistent/vmlinuz")),
        &["/nonexistent/vmlinuz", "does not exist"],
    )
}

#[cfg(target_os = "linux")]
#[test]
fn unreadable_kernel_is_named() -> Result<()> {
    // Even root cannot read the beginning of an address space.
    refused_with_1(Hvrun::kernel(Path::new("/proc/self/mem")), &["/proc/self/mem"])
}

#[test]
fn directory_as_kernel_is_called_a_directory() -> Result<()> {
    let dir = TempDir::new()?;
    refused_with_1(Hvrun::kernel(dir.path()), &[&dir.path().to_string_lossy(), "directory"])
}

#[test]
fn empty_kernel_is_refused() -> Result<()> {
    kernel_is_refused(b"", &["empty"])
}

#[test]
fn text_as_kernel_is_refused() -> Result<()> {
    kernel_is_refused(&b"#!/bin/sh\necho this is no kernel\n".repeat(100), &["is a script"])
}

#[test]
fn x86_bzimage_is_called_x86() -> Result<()> {
    let mut bytes = vec![0; 65536];
    bytes[0..2].copy_from_slice(b"MZ");
    bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    kernel_is_refused(&bytes, &["x86"])
}

#[test]
fn elf_is_called_elf() -> Result<()> {
    let mut bytes = vec![0; 65536];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..20].copy_from_slice(&[2, 0, 183, 0]); // ET_EXEC, EM_AARCH64
    kernel_is_refused(&bytes, &["elf"])
}

#[test]
fn arm_zimage_is_called_32_bit() -> Result<()> {
    let mut bytes = vec![0; 65536];
    bytes[0x24..0x28].copy_from_slice(&0x016F_2818_u32.to_le_bytes());
    kernel_is_refused(&bytes, &["32-bit"])
}

#[test]
fn big_endian_image_is_called_big_endian() -> Result<()> {
    let mut bytes = header(0x2000, 0b1011);
    bytes.resize(0x2000, 0);
    kernel_is_refused(&bytes, &["big-endian"])
}

#[test]
fn image_cut_inside_its_header_is_called_truncated() -> Result<()> {
    kernel_is_refused(&header(0x2000, 0b1010)[..60], &["truncated"])
}

#[test]
fn image_cut_behind_its_header_is_called_truncated() -> Result<()> {
    kernel_is_refused(&header(0x2000, 0b1010), &["truncated"])
}

#[test]
fn distribution_kernel_cut_in_half_is_called_truncated() -> Result<()> {
    let whole = std::fs::read(hvrun_tests::artifacts::kernel()?)?;
    kernel_is_refused(&whole[..whole.len() / 2], &["truncated"])
}

#[test]
fn image_larger_than_memory_is_refused() -> Result<()> {
    let mut bytes = header(1 << 40, 0b1010);
    bytes.resize(0x2000, 0);
    kernel_is_refused(&bytes, &["memory"])
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[test]
fn damaged_gzip_is_called_gzip() -> Result<()> {
    let mut bytes = gzip(&Program::new().power_off().image())?;
    let at = bytes.len() - 6; // in the checksum
    bytes[at] ^= 0xFF;
    kernel_is_refused(&bytes, &["gzip"])
}

#[test]
fn truncated_gzip_is_called_gzip() -> Result<()> {
    let bytes = gzip(&Program::new().power_off().image())?;
    kernel_is_refused(&bytes[..bytes.len() / 2], &["gzip"])
}

#[test]
fn gzip_of_something_else_is_refused() -> Result<()> {
    kernel_is_refused(&gzip(&b"this is no kernel\n".repeat(1000))?, &["kernel"])
}

/// An EFI zboot image (Linux, drivers/firmware/efi/libstub/zboot-header.S) around `payload`.
fn zboot(compression: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    bytes[0..2].copy_from_slice(b"MZ");
    bytes[4..8].copy_from_slice(b"zimg");
    bytes[8..12].copy_from_slice(&0x200_u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes[24..24 + compression.len()].copy_from_slice(compression);
    bytes[56..60].copy_from_slice(&0x8182_23CD_u32.to_le_bytes()); // LINUX_PE_MAGIC
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn damaged_zstd_is_called_zstd() -> Result<()> {
    let mut payload = vec![0x28, 0xB5, 0x2F, 0xFD];
    payload.extend([0xFF; 4096]);
    kernel_is_refused(&zboot(b"zstd22", &payload), &["zstd"])
}

#[test]
fn unknown_zboot_compression_is_named() -> Result<()> {
    kernel_is_refused(&zboot(b"lz5", &[0; 4096]), &["lz5"])
}

// The initrd.

#[test]
fn missing_initrd_is_named() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    refused_with_1(
        Hvrun::kernel(&kernel).arg("/nonexistent/initrd"),
        &["/nonexistent/initrd", "does not exist"],
    )
}

#[test]
fn directory_as_initrd_is_called_a_directory() -> Result<()> {
    let (dir, kernel) = good_kernel()?;
    refused_with_1(Hvrun::kernel(&kernel).arg(dir.path()), &[&dir.path().to_string_lossy(), "directory"])
}

#[test]
fn initrd_that_does_not_fit_is_refused() -> Result<()> {
    let (dir, kernel) = good_kernel()?;
    let initrd = dir.path().join("initrd");
    std::fs::File::create(&initrd)?.set_len(300 << 20)?; // a hole: it takes no space
    refused_with_1(Hvrun::kernel(&kernel).args(["-m", "256M"]).arg(&initrd), &["initrd", "memory"])
}

// Sizes and numbers.

#[test]
fn memory_too_small_is_refused() -> Result<()> {
    with_good_kernel(&["-m", "1M"], &["memory", "1M"]).map(|_| ())
}

#[test]
fn memory_that_is_no_number_is_refused() -> Result<()> {
    with_good_kernel(&["--memory", "lots"], &["memory", "lots"]).map(|_| ())
}

#[test]
fn memory_of_nothing_is_refused() -> Result<()> {
    with_good_kernel(&["--memory", "0"], &["memory", "0"]).map(|_| ())
}

#[test]
fn negative_memory_is_refused() -> Result<()> {
    with_good_kernel(&["--memory=-1G"], &["-1G"]).map(|_| ())
}

#[test]
fn memory_above_the_address_space_is_refused() -> Result<()> {
    with_good_kernel(&["-m", "999999G"], &["memory", "999999G"]).map(|_| ())
}

#[test]
fn memory_that_overflows_is_refused() -> Result<()> {
    with_good_kernel(&["-m", "99999999999999999999G"], &["99999999999999999999G"]).map(|_| ())
}

#[test]
fn no_cpus_are_refused() -> Result<()> {
    with_good_kernel(&["--cpus", "0"], &["cpu", "0"]).map(|_| ())
}

#[test]
fn nine_cpus_are_refused_and_the_limit_is_named() -> Result<()> {
    with_good_kernel(&["-p", "9"], &["cpu", "9", "8"]).map(|_| ())
}

#[test]
fn cpus_that_are_no_number_are_refused() -> Result<()> {
    with_good_kernel(&["-p", "many"], &["cpu", "many"]).map(|_| ())
}

#[test]
fn command_line_of_2048_bytes_is_refused_and_the_limit_is_named() -> Result<()> {
    with_good_kernel(&["--append", &"x".repeat(2048)], &["2048", "2047"]).map(|_| ())
}

#[test]
fn command_line_of_2047_bytes_is_taken() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    let outcome = Hvrun::kernel(&kernel).arg("--append").arg("x".repeat(2047)).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "RAN\n"), "{}", outcome.stderr);
    Ok(())
}

// Accelerators and other words.

#[test]
fn unknown_accelerator_is_named_and_the_known_ones_are_listed() -> Result<()> {
    with_good_kernel(&["--accel", "warp"], &["warp", "soft"]).map(|_| ())
}

#[test]
fn accelerator_that_this_host_lacks_is_named_with_the_reason() -> Result<()> {
    let other = if cfg!(target_os = "macos") { "kvm" } else { "hvf" };
    with_good_kernel(&["--accel", other], &[other, "soft"]).map(|_| ())
}

#[test]
fn unknown_serial_is_named() -> Result<()> {
    with_good_kernel(&["--serial", "pigeon:coop"], &["pigeon", "stdio"]).map(|_| ())
}

#[test]
fn serial_file_that_cannot_be_made_is_named() -> Result<()> {
    with_good_kernel(&["--serial", "file:/nonexistent/log"], &["/nonexistent/log"]).map(|_| ())
}

#[test]
fn serial_socket_that_cannot_be_made_is_named() -> Result<()> {
    with_good_kernel(&["--serial", "unix:/nonexistent/sock"], &["/nonexistent/sock"]).map(|_| ())
}

#[test]
fn no_kernel_is_a_usage_error() -> Result<()> {
    refused_with_2(Hvrun::new(), &["kernel"])
}

#[test]
fn unknown_option_is_a_usage_error() -> Result<()> {
    refused_with_2(Hvrun::new().args(["--frobnicate", "vmlinuz"]), &["--frobnicate"])
}

#[test]
fn option_without_its_value_is_a_usage_error() -> Result<()> {
    refused_with_2(Hvrun::new().args(["vmlinuz", "--memory"]), &["--memory"])
}

#[test]
fn third_file_is_a_usage_error() -> Result<()> {
    refused_with_2(Hvrun::new().args(["vmlinuz", "initrd", "surplus"]), &["surplus"])
}

// Disks.

/// The whole command refuses with exit code 1 what `args` ask for.
fn devices_are_refused(args: &[&str], words: &[&str]) -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    refused_with_1(Hvrun::kernel(&kernel).args(args), words)
}

/// The same for a disk at `path` in some directory, with options.
fn disk_is_refused(path: &Path, options: &str, words: &[&str]) -> Result<()> {
    let shown = path.to_string_lossy();
    let words: Vec<&str> = words.iter().copied().chain([&*shown]).collect();
    devices_are_refused(&["--disk", &format!("{shown}{options}")], &words)
}

#[test]
fn missing_disk_is_named_with_what_makes_one() -> Result<()> {
    disk_is_refused(Path::new("/nonexistent/root.qcow2"), "", &["no such file", "qemu-img create"])
}

#[test]
fn disk_serial_too_long_is_named_with_the_limit() -> Result<()> {
    let serial = "123456789012345678901";
    with_good_kernel(&["--disk", &format!("disk.raw,serial={serial}")], &[serial, "20"]).map(drop)
}

#[test]
fn directory_as_disk_is_called_a_directory() -> Result<()> {
    disk_is_refused(TempDir::new()?.path(), "", &["directory", "image file"])
}

#[test]
fn damaged_qcow2_is_called_damaged() -> Result<()> {
    let dir = TempDir::new()?;
    let image = disks::qcow2(dir.path(), "a.qcow2", 16 << 20, "", None)?;
    let bytes = std::fs::read(&image)?;
    std::fs::write(&image, &bytes[..70_000])?;
    disk_is_refused(&image, "", &["damaged qcow2"])
}

#[test]
fn backing_file_that_is_gone_is_named_with_the_image_that_wants_it() -> Result<()> {
    let dir = TempDir::new()?;
    let base = disks::empty(dir.path(), "base.raw", 1 << 20)?;
    let top = disks::qcow2(dir.path(), "top.qcow2", 1 << 20, "", Some((&base, "raw")))?;
    std::fs::remove_file(&base)?;
    disk_is_refused(&top, "", &["backing image", "base.raw", "no such file"])
}

#[test]
fn zstd_image_is_named_as_unsupported() -> Result<()> {
    let dir = TempDir::new()?;
    let image = disks::qcow2(dir.path(), "a.qcow2", 1 << 20, "compression_type=zstd", None)?;
    disk_is_refused(&image, "", &["zstd", "not supported", "qemu-img convert"])
}

#[test]
fn extended_l2_image_is_named_as_unsupported() -> Result<()> {
    let dir = TempDir::new()?;
    let image = disks::qcow2(dir.path(), "a.qcow2", 1 << 20, "extended_l2=on", None)?;
    disk_is_refused(&image, "", &["extended L2", "not supported", "qemu-img convert"])
}

/// A kernel that says that it runs, and goes on until it is killed.
fn endless_kernel() -> Result<(TempDir, PathBuf)> {
    Program::new().print("RAN\n").spin().file()
}

#[test]
fn image_of_a_running_machine_is_refused_and_free_when_it_has_ended() -> Result<()> {
    let dir = TempDir::new()?;
    let image = disks::empty(dir.path(), "disk.raw", 1 << 20)?;
    let disk = format!("{},format=raw", image.display());
    let (_kernel_dir, kernel) = endless_kernel()?;
    let mut first = Hvrun::kernel(&kernel).args(["--disk", &disk]).start()?;
    first.expect("RAN\n")?;
    disk_is_refused(&image, ",format=raw", &["another process uses it"])?;
    first.signal(Signal::TERM)?;
    first.wait()?;
    let (_good_dir, good) = good_kernel()?;
    let outcome = Hvrun::kernel(&good).args(["--disk", &disk]).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "RAN\n"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn two_machines_may_read_one_image() -> Result<()> {
    let dir = TempDir::new()?;
    let image = disks::empty(dir.path(), "disk.raw", 1 << 20)?;
    let disk = format!("{},format=raw,ro", image.display());
    let (_kernel_dir, kernel) = endless_kernel()?;
    let mut first = Hvrun::kernel(&kernel).args(["--disk", &disk]).start()?;
    first.expect("RAN\n")?;
    let (_good_dir, good) = good_kernel()?;
    let outcome = Hvrun::kernel(&good).args(["--disk", &disk]).run()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    disk_is_refused(&image, ",format=raw", &["another process uses it"])
}

#[test]
fn one_image_for_two_disks_is_refused() -> Result<()> {
    let dir = TempDir::new()?;
    let image = disks::empty(dir.path(), "disk.raw", 1 << 20)?;
    let disk = format!("{},format=raw", image.display());
    devices_are_refused(&["--disk", &disk, "--disk", &disk], &["disk.raw", "uses it"])
}

#[test]
fn unknown_disk_option_is_a_usage_error_and_the_known_ones_are_listed() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    let hvrun = Hvrun::kernel(&kernel).args(["--disk", "root.raw,speed=high"]);
    refused_with_2(hvrun, &["--disk", "speed", "serial", "cache"])
}

#[test]
fn unknown_value_of_a_disk_option_is_a_usage_error_and_the_known_ones_are_listed() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    let hvrun = Hvrun::kernel(&kernel).args(["--disk", "root.raw,cache=lots"]);
    refused_with_2(hvrun, &["--disk", "cache=lots", "writeback", "unsafe"])
}

#[test]
fn serial_of_21_bytes_is_a_usage_error_and_the_limit_is_named() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    let hvrun = Hvrun::kernel(&kernel).args(["--disk", &format!("root.raw,serial={}", "x".repeat(21))]);
    refused_with_2(hvrun, &["serial=", "21 bytes", "20"])
}

// Shares.

#[test]
fn missing_share_is_named() -> Result<()> {
    devices_are_refused(
        &["--share", "/nonexistent/src:src"],
        &["/nonexistent/src", "'src'", "does not exist"],
    )
}

#[test]
fn file_as_share_is_called_no_directory() -> Result<()> {
    let (_dir, path) = file(b"a file")?;
    let share = format!("{}:src", path.display());
    devices_are_refused(&["--share", &share], &[&path.to_string_lossy(), "not a directory"])
}

#[test]
fn tag_that_is_too_long_is_refused_and_the_limit_is_named() -> Result<()> {
    let dir = TempDir::new()?;
    let tag = "t".repeat(32);
    let share = format!("{}:{tag}", dir.path().display());
    devices_are_refused(&["--share", &share], &[&tag, "32 bytes", "1 to 31"])
}

#[test]
fn two_shares_of_one_tag_are_refused() -> Result<()> {
    let dir = TempDir::new()?;
    let share = format!("{}:src", dir.path().display());
    devices_are_refused(&["--share", &share, "--share", &share], &["two shares", "\"src\""])
}

#[test]
fn share_without_a_tag_is_a_usage_error_and_shows_the_form() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    refused_with_2(Hvrun::kernel(&kernel).args(["--share", "/tmp"]), &["--share", "DIR:TAG"])
}

// Consoles and ports.

#[test]
fn console_socket_on_which_somebody_listens_is_named_and_left_alone() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("shell.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path)?;
    let console = format!("unix:{}", path.display());
    let words = ["console", &*path.to_string_lossy(), "another process uses it"];
    devices_are_refused(&["--console", &console], &words)?;
    ensure!(path.exists(), "the socket of another program was removed");
    Ok(())
}

#[test]
fn file_in_the_place_of_a_console_socket_is_named_and_left_alone() -> Result<()> {
    let (_dir, path) = file(b"precious")?;
    let console = format!("unix:{}", path.display());
    devices_are_refused(&["--console", &console], &[&path.to_string_lossy(), "not a socket"])?;
    assert_eq!(std::fs::read(&path)?, b"precious");
    Ok(())
}

#[test]
fn socket_on_which_nobody_listens_is_named() -> Result<()> {
    let dir = TempDir::new()?;
    let path = dir.path().join("nobody.sock");
    let to = format!("unix-connect:{}", path.display());
    devices_are_refused(&["--console", &to], &["console", &path.to_string_lossy(), "must listen"])?;
    let port = format!("name=org.example.0,to={to}");
    devices_are_refused(&["--port", &port], &["org.example.0", &path.to_string_lossy(), "must listen"])
}

#[test]
fn serial_port_and_console_on_stdio_are_refused_with_what_would_work() -> Result<()> {
    devices_are_refused(&["--console", "stdio"], &["stdio", "--serial none"])
}

#[test]
fn two_consoles_on_stdio_are_refused() -> Result<()> {
    devices_are_refused(&["--serial", "none", "--console", "stdio", "--console", "stdio"], &["stdio"])
}

#[test]
fn two_ports_of_one_name_are_refused() -> Result<()> {
    let port = ["--port", "name=org.example.0,to=none"];
    devices_are_refused(&[port, port].concat(), &["two ports", "org.example.0"])
}

#[test]
fn port_without_a_name_is_a_usage_error_and_shows_the_form() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    refused_with_2(Hvrun::kernel(&kernel).args(["--port", "stdio"]), &["--port", "name=NAME,to=TO"])
}

// The transport.

#[test]
fn more_devices_than_virtio_mmio_slots_are_refused_and_the_limit_is_named() -> Result<()> {
    let dir = TempDir::new()?;
    // The source of entropy is the 33rd.
    let mut args = vec!["--transport".to_owned(), "mmio".to_owned()];
    for number in 0..32 {
        let image = disks::empty(dir.path(), &format!("{number}.raw"), 1 << 20)?;
        args.extend(["--disk".to_owned(), format!("{},format=raw", image.display())]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    devices_are_refused(&args, &["33", "mmio", "32"])?;
    let (_dir, kernel) = good_kernel()?;
    let outcome = Hvrun::kernel(&kernel).args(&args).args(["--rng", "off"]).run()?;
    assert_eq!((outcome.code, outcome.serial.as_str()), (Some(0), "RAN\n"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn more_devices_than_pci_slots_are_refused() -> Result<()> {
    let dir = TempDir::new()?;
    let mut args = Vec::new();
    for number in 0..31 {
        let image = disks::empty(dir.path(), &format!("{number}.raw"), 1 << 20)?;
        args.extend(["--disk".to_owned(), format!("{},format=raw", image.display())]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    devices_are_refused(&args, &["PCI", "31"])
}

#[test]
fn unknown_transport_is_a_usage_error_and_the_known_ones_are_listed() -> Result<()> {
    let (_dir, kernel) = good_kernel()?;
    refused_with_2(Hvrun::kernel(&kernel).args(["--transport", "isa"]), &["isa", "pci", "mmio"])
}
