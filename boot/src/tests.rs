//! Whole loads: what lies where afterwards, and what is refused before anything is written.

use super::*;
use crate::testing::{RAM_BASE, efi_image, file, image, memory, read};

const RAM: usize = 16 << 20;

fn layout() -> Layout {
    Layout::new(2, RAM as u64)
}

fn config(initrd: Option<&[u8]>) -> BootConfig {
    BootConfig {
        kernel: Kernel::open(file(&efi_image(0x5000, 0x12_0000))).unwrap(),
        initrd: initrd.map(|bytes| Initrd::open(file(bytes)).unwrap()),
        cmdline: "console=ttyAMA0".to_owned(),
        cpus: 2,
        seeds: Some(Seeds { rng: [1; 64], kaslr: 2 }),
        virtio_mmio_slots: 0,
    }
}

#[test]
fn kernel_initrd_and_tree_lie_where_the_result_says() {
    let memory = memory(RAM);
    let config = config(Some(b"an initrd"));

    let loaded = load(&memory, &layout(), &config).unwrap();

    let initrd = loaded.initrd.unwrap();
    assert_eq!((loaded.entry, loaded.kernel), (RAM_BASE, Window::new(RAM_BASE, 0x12_0000)));
    assert_eq!(initrd, Window::new(RAM_BASE + 0x12_0000, 9));
    assert_eq!((loaded.fdt_addr, loaded.fdt.base), (RAM_BASE + 0x20_0000, RAM_BASE + 0x20_0000));
    assert!(read(&memory, loaded.entry, 0x5000) == efi_image(0x5000, 0x12_0000));
    assert_eq!(read(&memory, initrd.base, 9), b"an initrd");
    assert_eq!(read(&memory, loaded.fdt_addr, 4), [0xd0, 0x0d, 0xfe, 0xed]);
}

#[test]
fn plan_and_load_agree() {
    let config = config(Some(&[7; 100_000]));
    assert_eq!(config.plan(&layout()).unwrap(), load(&memory(RAM), &layout(), &config).unwrap());
}

#[test]
fn tree_in_memory_names_the_initrds_place() {
    let memory = memory(RAM);
    let config = config(Some(b"an initrd"));

    let loaded = load(&memory, &layout(), &config).unwrap();

    let tree = read(&memory, loaded.fdt.base, loaded.fdt.size as usize);
    let seeds = config.seeds.as_ref().unwrap();
    assert!(tree == config.fdt(&layout(), loaded.initrd, seeds).unwrap());
}

#[test]
fn second_load_gives_the_same_memory() {
    let (first, second) = (memory(RAM), memory(RAM));
    let config = config(Some(b"an initrd"));

    load(&first, &layout(), &config).unwrap();
    load(&second, &layout(), &config).unwrap();

    assert!(read(&first, RAM_BASE, RAM) == read(&second, RAM_BASE, RAM));
}

#[test]
fn loads_without_given_seeds_differ() {
    let (first, second) = (memory(RAM), memory(RAM));
    let config = BootConfig { seeds: None, ..config(None) };

    let loaded = load(&first, &layout(), &config).unwrap();
    load(&second, &layout(), &config).unwrap();

    let tree = |memory| read(memory, loaded.fdt.base, loaded.fdt.size as usize);
    assert!(tree(&first) != tree(&second));
}

#[test]
fn command_line_of_2047_bytes_is_accepted_and_2048_are_refused() {
    let longest = BootConfig { cmdline: "a".repeat(2047), ..config(None) };
    let longer = BootConfig { cmdline: "a".repeat(2048), ..config(None) };
    assert!(longest.plan(&layout()).is_ok());
    assert_eq!(
        longer.plan(&layout()).unwrap_err().to_string(),
        "the kernel command line has 2048 bytes; Linux takes at most 2047"
    );
}

#[test]
fn command_line_with_a_nul_is_refused() {
    let error = check_command_line("quiet\0splash").unwrap_err();
    assert_eq!(error.to_string(), "the kernel command line has a NUL character at byte 5; remove it");
}

#[test]
fn too_many_cpus_are_refused_by_the_plan() {
    let nine = BootConfig { cpus: 9, ..config(None) };
    assert!(matches!(nine.plan(&layout()), Err(BootError::Fdt(FdtError::Cpus(9)))));
}

#[test]
fn initrd_that_does_not_fit_is_refused_by_the_plan() {
    let config = config(Some(&vec![0; RAM]));
    let message = config.plan(&layout()).unwrap_err().to_string();
    assert!(message.starts_with("an initrd of 16 MiB does not fit beside a kernel of 1.2 MiB"), "{message}");
    assert!(message.ends_with("in 16 MiB of memory; 18 MiB or more would do"), "{message}");
}

#[test]
fn header_with_an_absurd_size_is_refused_by_the_plan() {
    let kernel = Kernel::open(file(&image(0x5000, u64::MAX, 0))).unwrap();
    let message = BootConfig { kernel, ..config(None) }.plan(&layout()).unwrap_err().to_string();
    assert!(message.contains("asks for 0xffffffffffffffff bytes"), "{message}");
}

#[test]
fn memory_smaller_than_the_layout_is_reported() {
    let memory = memory(0x1000);
    let message = load(&memory, &layout(), &config(None)).unwrap_err().to_string();
    assert!(
        message.starts_with("guest memory from 0x40000000 to 0x40005000 cannot take the kernel"),
        "{message}"
    );
}
