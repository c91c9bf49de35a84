//! A machine whose interrupt controller is the host's.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::hypervisor::IrqChip;

#[derive(Debug, Default)]
struct Host {
    resets: AtomicU32,
}

impl IrqChip for Host {
    fn set_spi(&self, _spi: Spi, _level: bool) {}
    fn send_msi(&self, _addr: u64, _data: u32) {}
}

impl HostGic for Host {
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn machine_of(host: Arc<Host>) -> Arc<TrapMachine> {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(RAM_BASE), RAM_SIZE as usize)]).unwrap();
    let layout = Layout::new(1, RAM_SIZE);
    TrapMachine::with_host_gic(&VmConfig { cpus: 1, memory, layout, gic: GicChoice::Host }, host)
}

fn vcpu() -> TrapVcpu<Scripted> {
    let mut vcpu = vcpu_of(&machine_of(Arc::default()), 0, Scripted::new());
    vcpu.raw.host_ppis.clear();
    vcpu
}

#[test]
fn a_reset_of_the_machine_resets_the_hosts_gic() {
    let host = Arc::new(Host::default());
    machine_of(host.clone()).reset();
    assert_eq!(host.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn its_register_frames_are_not_ours_to_answer() {
    let mut vcpu = vcpu();
    let dist = Layout::new(1, RAM_SIZE).gic_dist.base;
    vcpu.raw.exits(word_abort(dist, false, 1));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::MmioRead { addr, .. } if addr == dist));
}

#[test]
fn its_cpu_interface_is_undefined_if_it_traps_all_the_same() {
    let mut vcpu = vcpu();
    vcpu.raw.traps(sysreg_trap(SysReg::new(3, 0, 4, 6, 0), true, 3)); // ICC_PMR_EL1
    run_script(&mut vcpu);
    assert_eq!(pc(&vcpu), VBAR + 0x200);
}

#[test]
fn the_emulated_physical_timer_drives_its_ppi_there() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 2, CTL_ENABLE);
    set_x(&mut vcpu, 3, CTL_ENABLE | CTL_IMASK);
    vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 2));
    vcpu.raw.traps(sysreg_trap(names::CNTP_CTL_EL0, false, 3));
    run_script(&mut vcpu);
    assert_eq!(vcpu.raw.host_ppis, [(30, true), (30, false)]);
}

#[test]
fn a_wait_does_not_outlast_what_cannot_be_seen() {
    let mut vcpu = vcpu();
    set_x(&mut vcpu, 0, 0xc400_0001);
    vcpu.raw.traps(esr(ec::HVC64, 0));
    run_script(&mut vcpu);
    assert_eq!((x(&vcpu, 0), vcpu.raw.runs.len()), (0, 2));
}
