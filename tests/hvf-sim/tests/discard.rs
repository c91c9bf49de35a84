//! RAM given back to the host by hvrun's Hypervisor.framework backend, over the simulator, while a guest runs.
#![cfg(not(target_os = "macos"))]

use std::sync::Arc;
use std::thread;

use hvrun_arch::memory::Owner;
use hvrun_arch::{
    Accel, BootState, GicChoice, GuestMemory, Kicker, RamDiscard, Vcpu, VcpuExit, Vm, VmConfig,
};
use hvrun_hvf_sim::{Config, MacOs, Session, violations};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 160 << 20;
const GRANULE: u64 = 16 << 10;
/// Where the guest works, behind its program.
const DATA: u64 = RAM + 0x10_0000;

/// A device's address, where a store ends the run.
const DEVICE: u64 = 0x0900_0000;

/// A Mac with a machine.
struct Mac {
    vm: Arc<dyn Vm>,
    memory: GuestMemory,
    discard: Arc<dyn RamDiscard>,
    _session: Session,
}

/// Memory at an address that suits a Mac.
fn memory() -> GuestMemory {
    let size = RAM_SIZE as usize;
    let mapping = MmapRegion::<Owner>::new(size + GRANULE as usize).unwrap();
    let start = mapping.as_ptr();
    let start = start.wrapping_add(start.align_offset(GRANULE as usize));
    let builder = MmapRegionBuilder::new_with_bitmap(size, Owner::new(mapping))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the mapping has so many bytes there, and the region owns it.
    let region = unsafe { builder.with_raw_mmap_pointer(start) }.build().unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(RAM)).unwrap();
    GuestMemory::from_regions(vec![region]).unwrap()
}

fn mac() -> Mac {
    let session = Session::new(Config { macos: MacOs::V14, ..Config::default() });
    // SAFETY: the simulator's functions are Apple's.
    unsafe { hvrun_arch::hvf::install_simulator(hvrun_hvf_sim::hv_sim_dlsym) };
    let memory = memory();
    let hypervisor = hvrun_arch::open(&[Accel::Hvf]).unwrap();
    let layout = hypervisor.layout(1, RAM_SIZE, GicChoice::Soft).unwrap();
    let config = VmConfig { cpus: 1, memory: memory.clone(), layout, gic: GicChoice::Soft };
    let vm = hypervisor.create_vm(config).unwrap();
    let discard = vm.ram_discard().unwrap();
    Mac { vm, memory, discard, _session: session }
}

impl Mac {
    fn fill(&self, addr: u64, len: u64) {
        self.memory.write_slice(&vec![0x5a; len as usize], GuestAddress(addr)).unwrap();
    }

    fn bytes(&self, addr: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// How many of the host's pages behind a range are resident.
    fn resident(&self, addr: u64, len: u64) -> usize {
        let host = self.memory.get_host_address(GuestAddress(addr)).unwrap();
        let mut pages = vec![0u8; len as usize / 4096];
        // SAFETY: the range is mapped, and there is room for a byte a page (pages are not smaller than 4 KiB).
        assert_eq!(unsafe { libc::mincore(host.cast(), len as usize, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    fn load(&self, program: &[u32]) {
        for (at, word) in (RAM..).step_by(4).zip(program) {
            self.memory.write_obj(word.to_le(), GuestAddress(at)).unwrap();
        }
    }
}

/// movz xN, #value, lsl #(16 * half)
fn movz(n: u32, value: u32, half: u32) -> u32 {
    0xd280_0000 | half << 21 | value << 5 | n
}

/// Every run of the program at RAM's start, until a store to the device; gives what it stored.
fn stored(vcpu: &mut dyn Vcpu) -> u32 {
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::MmioWrite { data, .. } => return u32::from_le_bytes(data.try_into().unwrap()),
            VcpuExit::Kicked => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_discarded_range_reads_as_zeros_on_the_host_and_keeps_its_neighbours() {
    let mac = mac();
    mac.fill(DATA, 4 * GRANULE);
    mac.discard.discard(DATA + GRANULE, 2 * GRANULE).unwrap();
    assert!(mac.bytes(DATA, GRANULE).iter().all(|byte| *byte == 0x5a));
    assert!(mac.bytes(DATA + GRANULE, 2 * GRANULE).iter().all(|byte| *byte == 0));
    assert!(mac.bytes(DATA + 3 * GRANULE, GRANULE).iter().all(|byte| *byte == 0x5a));
    assert_eq!(violations(), Vec::<String>::new());
}

#[test]
fn a_discarded_range_reads_as_zeros_in_the_guest() {
    let mac = mac();
    // ldr w0, [x1]; str w0, [x2]; b back to the load
    mac.load(&[
        movz(1, (DATA >> 16) as u32, 1),
        movz(2, (DEVICE >> 16) as u32, 1),
        0xb940_0020,
        0xb900_0040,
        0x17ff_fffe,
    ]);
    mac.fill(DATA, GRANULE);
    let mut vcpu = mac.vm.create_vcpu(0, BootState { pc: RAM, x0: 0 }).unwrap();
    let before = stored(vcpu.as_mut());
    mac.discard.discard(DATA, GRANULE).unwrap();
    let after = stored(vcpu.as_mut());
    assert_eq!((before, after), (0x5a5a_5a5a, 0));
    assert_eq!(violations(), Vec::<String>::new());
}

#[test]
fn what_the_guest_writes_after_a_discard_reaches_the_host() {
    let mac = mac();
    // str w2, [x1]; str w0, [x2]
    mac.load(&[movz(1, (DATA >> 16) as u32, 1), movz(2, (DEVICE >> 16) as u32, 1), 0xb900_0022, 0xb900_0040]);
    mac.discard.discard(DATA, GRANULE).unwrap();
    let mut vcpu = mac.vm.create_vcpu(0, BootState { pc: RAM, x0: 0 }).unwrap();
    stored(vcpu.as_mut());
    assert_eq!(mac.memory.read_obj::<u32>(GuestAddress(DATA)).unwrap(), DEVICE as u32);
}

#[test]
fn discarded_pages_go_back_to_the_host() {
    let mac = mac();
    mac.fill(DATA, 64 * GRANULE);
    let before = mac.resident(DATA, 64 * GRANULE);
    mac.discard.discard(DATA, 64 * GRANULE).unwrap();
    assert_eq!((before, mac.resident(DATA, 64 * GRANULE)), (64 * 4, 0));
}

#[test]
fn parts_of_granules_are_kept() {
    let mac = mac();
    mac.fill(DATA, 3 * GRANULE);
    mac.discard.discard(DATA + 0x1000, 3 * GRANULE - 0x2000).unwrap();
    let bytes = mac.bytes(DATA, 3 * GRANULE);
    let zeros = bytes.iter().filter(|byte| **byte == 0).count() as u64;
    assert_eq!((zeros, bytes[GRANULE as usize], bytes[2 * GRANULE as usize - 1]), (GRANULE, 0, 0));
}

#[test]
fn less_than_a_granule_is_kept() {
    let mac = mac();
    mac.fill(DATA, GRANULE);
    mac.discard.discard(DATA + 0x1000, GRANULE - 0x1000).unwrap();
    assert!(mac.bytes(DATA, GRANULE).iter().all(|byte| *byte == 0x5a));
}

#[test]
fn discards_may_overlap_and_cover_each_other_and_all_ends_well() {
    let mac = mac();
    for (start, count) in [(5, 3), (0, 2), (6, 1), (1, 8), (0, 20), (19, 1), (3, 4), (0, 6000)] {
        mac.fill(DATA + start * GRANULE, count * GRANULE);
        mac.discard.discard(DATA + start * GRANULE, count * GRANULE).unwrap();
        assert!(mac.bytes(DATA + start * GRANULE, count * GRANULE).iter().all(|byte| *byte == 0));
    }
    let Mac { vm, discard, _session, .. } = mac;
    drop(vm);
    // Everything has been unmapped exactly as it was mapped.
    assert_eq!(violations(), Vec::<String>::new());
    assert!(discard.discard(DATA, GRANULE).is_err(), "the machine is gone");
}

#[test]
fn all_of_ram_but_the_program_can_go() {
    let mac = mac();
    mac.fill(RAM + RAM_SIZE - 1, 1);
    mac.discard.discard(RAM + GRANULE, RAM_SIZE - GRANULE).unwrap();
    assert_eq!(mac.bytes(RAM + RAM_SIZE - 1, 1), [0]);
    assert_eq!(violations(), Vec::<String>::new());
}

#[test]
fn what_is_not_all_ram_is_refused_and_kept() {
    let mac = mac();
    mac.fill(RAM, GRANULE);
    for (addr, len) in [
        (RAM - GRANULE, 2 * GRANULE),
        (RAM + RAM_SIZE, GRANULE),
        (RAM, RAM_SIZE + 1),
        (RAM, u64::MAX),
        (0, 0),
    ] {
        assert!(mac.discard.discard(addr, len).is_err(), "{addr:#x} {len:#x}");
    }
    assert!(mac.bytes(RAM, GRANULE).iter().all(|byte| *byte == 0x5a));
}

#[test]
fn a_vcpu_that_uses_what_is_discarded_goes_on() {
    let mac = mac();
    // ldr w0, [x1]; str w2, [x1]; add x3, x3, #1; b back to the load
    mac.load(&[
        movz(1, (DATA >> 16) as u32, 1),
        movz(3, 0, 0),
        0xb940_0020,
        0xb900_0022,
        0x9100_0463,
        0x17ff_fffd,
    ]);
    let (vm, (sender, receiver)) = (mac.vm.clone(), std::sync::mpsc::channel::<Kicker>());
    let cpu = thread::spawn(move || {
        let mut vcpu = vm.create_vcpu(0, BootState { pc: RAM, x0: 0 }).unwrap();
        sender.send(vcpu.kicker()).unwrap();
        let kicked = matches!(vcpu.run().unwrap(), VcpuExit::Kicked);
        (kicked, vcpu.describe())
    });
    let kicker = receiver.recv().unwrap();
    for _ in 0..300 {
        mac.discard.discard(DATA, GRANULE).unwrap();
    }
    kicker.kick();
    let (kicked, registers) = cpu.join().unwrap();
    assert!(kicked, "{registers}");
    assert_eq!(violations(), Vec::<String>::new());
}

#[test]
fn a_vcpu_whose_code_shares_a_block_with_what_is_discarded_goes_on() {
    let mac = mac();
    // add x3, x3, #1; b back
    mac.load(&[0x9100_0463, 0x17ff_ffff]);
    let (vm, (sender, receiver)) = (mac.vm.clone(), std::sync::mpsc::channel::<Kicker>());
    let cpu = thread::spawn(move || {
        let mut vcpu = vm.create_vcpu(0, BootState { pc: RAM, x0: 0 }).unwrap();
        sender.send(vcpu.kicker()).unwrap();
        matches!(vcpu.run().unwrap(), VcpuExit::Kicked)
    });
    let kicker = receiver.recv().unwrap();
    for at in 0..300 {
        mac.discard.discard(DATA + at * GRANULE, GRANULE).unwrap();
    }
    kicker.kick();
    assert!(cpu.join().unwrap());
    assert_eq!(violations(), Vec::<String>::new());
}
