//! The calls about the interrupt controller (`hv_gic_*`, macOS 15): configuration, creation, interrupts and registers. Saved
//! states are in `gic_state`, the controller itself is in `host_gic`.

use std::ffi::c_void;
use std::sync::Arc;

use hvrun_arch::aarch64::raw::SysReg;

use crate::abi::{BAD_ARGUMENT, BUSY, Failed, NO_DEVICE, Return, UNSUPPORTED, call, put};
use crate::config::MacOs;
use crate::host_gic::{
    ALIGNMENT, DISTRIBUTOR_SIZE, GicConfig, HostGic, MSI_REGION_SIZE, REDISTRIBUTOR_REGION_SIZE,
    REDISTRIBUTOR_SIZE, SPIS,
};
use crate::objects::{self, Object};
use crate::run::Shared;
use crate::state::{refuse, since, state};
use crate::vcpu::with;
use crate::vm::with_vm;

/// hv_gic_intid_t: PMU, maintenance, EL2 physical, EL1 virtual and EL1 physical timer. The middle ones need EL2.
const INTIDS: [u32; 5] = [23, 25, 26, 27, 30];
/// hv_gic_icc_reg_t without SRE_EL2: PMR, BPR0, AP0R0, AP1R0, RPR, BPR1, CTLR, SRE, IGRPEN0, IGRPEN1.
const ICC_REGISTERS: [u16; 10] =
    [0xc230, 0xc643, 0xc644, 0xc648, 0xc65b, 0xc663, 0xc664, 0xc665, 0xc666, 0xc667];
/// GICD_IROUTER, the only 64-bit registers of the distributor.
const IROUTER: std::ops::Range<u32> = 0x6000..0x8000;
/// PIDR2 of both frames.
const PIDR2: u32 = 0xffe8;
/// GICR_TYPER, the only 64-bit register of a redistributor.
const GICR_TYPER: u32 = 8;
/// MSI_SETSPI_NS.
const SET_SPI: u64 = 0x40;

/// The VM's GIC; an error without one.
pub(crate) fn gic(name: &str) -> Result<Arc<HostGic>, Failed> {
    since(MacOs::V15, name)?;
    let gic = with_vm(name, |vm| Ok(vm.gic.clone()))?;
    gic.ok_or_else(|| refuse(format!("{name} without a GIC"), NO_DEVICE))
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_create() -> *mut c_void {
    if since(MacOs::V15, "hv_gic_config_create").is_err() {
        return std::ptr::null_mut();
    }
    state().objects.add(Object::Gic(GicConfig::default()))
}

fn configure(config: *mut c_void, name: &str, set: impl FnOnce(&mut GicConfig)) -> Return {
    call(|| {
        since(MacOs::V15, name)?;
        objects::change(config, name, |object| match object {
            Object::Gic(config) => {
                set(config);
                Some(())
            }
            _ => None,
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_set_distributor_base(config: *mut c_void, base: u64) -> Return {
    configure(config, "hv_gic_config_set_distributor_base", |config| config.distributor = Some(base))
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64) -> Return {
    configure(config, "hv_gic_config_set_redistributor_base", |config| config.redistributor = Some(base))
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_set_msi_region_base(config: *mut c_void, base: u64) -> Return {
    configure(config, "hv_gic_config_set_msi_region_base", |config| config.msi_base = Some(base))
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_set_msi_interrupt_range(
    config: *mut c_void,
    first: u32,
    count: u32,
) -> Return {
    configure(config, "hv_gic_config_set_msi_interrupt_range", |config| {
        config.msi_range = Some((first, count));
    })
}

/// What is wrong with a configuration for a VM of `bits` bits of IPA.
fn broken_rule(config: &GicConfig, bits: u32) -> Option<String> {
    if config.distributor.is_none() || config.redistributor.is_none() {
        return Some("hv_gic_create without a base of the distributor or of the redistributors".to_owned());
    }
    if config.msi_base.is_some() != config.msi_range.is_some() {
        return Some("hv_gic_create with half of what MSIs need: region and interrupt range".to_owned());
    }
    if let Some((first, count)) = config.msi_range {
        let inside = first >= SPIS.0 && first.saturating_add(count) <= SPIS.0 + SPIS.1;
        if count == 0 || !inside {
            return Some(format!("hv_gic_create with MSIs {first}+{count}, which are not all SPIs"));
        }
    }
    let regions: Vec<_> = config.regions().collect();
    for (index, &(base, size)) in regions.iter().enumerate() {
        if !base.is_multiple_of(ALIGNMENT) {
            return Some(format!("hv_gic_create with a region at {base:#x}, which is not aligned"));
        }
        if base.checked_add(size).is_none_or(|end| end > 1 << bits) {
            return Some(format!("hv_gic_create with a region at {base:#x}, beyond the IPA space"));
        }
        let others = &regions[index + 1..];
        if let Some((other, _)) = others.iter().find(|(b, s)| base < b + s && *b < base + size) {
            return Some(format!("hv_gic_create with regions that overlap: {base:#x} and {other:#x}"));
        }
    }
    None
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_create(config: *mut c_void) -> Return {
    call(|| {
        since(MacOs::V15, "hv_gic_create")?;
        let Object::Gic(config) = objects::look_up(config, "hv_gic_create")? else {
            return Err(refuse("hv_gic_create was given an object of another kind", BAD_ARGUMENT));
        };
        let (vcpus, refused) = {
            let state = state();
            (state.vcpus.len(), state.config.refuse_gic)
        };
        if refused {
            return Err(UNSUPPORTED);
        }
        if vcpus != 0 {
            return Err(refuse(format!("hv_gic_create after {vcpus} vCPUs were created"), BUSY));
        }
        let mut broken = None;
        let created = with_vm("hv_gic_create", |vm| {
            if vm.gic.is_some() {
                broken = Some("hv_gic_create of a second GIC".to_owned());
                return Err(BUSY);
            }
            broken = broken_rule(&config, vm.ipa_bits);
            if broken.is_none() && config.regions().any(|(base, size)| vm.is_mapped(base, size)) {
                broken = Some("hv_gic_create with a region where memory is mapped".to_owned());
            }
            if broken.is_some() {
                return Err(BAD_ARGUMENT);
            }
            vm.gic = Some(Arc::new(HostGic::new(config)));
            Ok(())
        });
        match broken {
            Some(broken) => created.map_err(|error| refuse(broken, error)),
            None => created,
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_reset() -> Return {
    call(|| {
        let gic = gic("hv_gic_reset")?;
        let running: Vec<u64> = {
            let state = state();
            state.vcpus.values().filter(|vcpu| vcpu.is_running()).map(|vcpu| vcpu.handle).collect()
        };
        if !running.is_empty() {
            return Err(refuse(format!("hv_gic_reset while the vCPUs {running:?} run"), BUSY));
        }
        gic.reset();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_spi(intid: u32, level: bool) -> Return {
    call(|| {
        let gic = gic("hv_gic_set_spi")?;
        if intid.wrapping_sub(SPIS.0) >= SPIS.1 {
            return Err(refuse(format!("hv_gic_set_spi of {intid}, which is no SPI"), BAD_ARGUMENT));
        }
        if gic.config().is_msi(intid) {
            return Err(refuse(
                format!("hv_gic_set_spi of {intid}, which is in the MSI range"),
                BAD_ARGUMENT,
            ));
        }
        gic.set_spi(intid, level);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_send_msi(address: u64, intid: u32) -> Return {
    call(|| {
        let gic = gic("hv_gic_send_msi")?;
        let doorbell = gic.config().msi_base.map(|base| base + SET_SPI);
        if doorbell != Some(address) || !gic.send_msi(intid) {
            return Err(refuse(
                format!("hv_gic_send_msi of {intid} to {address:#x}: no doorbell, or not in the MSI range"),
                BAD_ARGUMENT,
            ));
        }
        Ok(())
    })
}

macro_rules! sizes {
    ($($name:ident = $value:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name(value: *mut usize) -> Return {
                call(|| {
                    since(MacOs::V15, stringify!($name))?;
                    // SAFETY: the caller's promise to the framework.
                    unsafe { put(value, $value as usize) }
                })
            }
        )*
    };
}

sizes! {
    hv_gic_get_distributor_size = DISTRIBUTOR_SIZE;
    hv_gic_get_distributor_base_alignment = ALIGNMENT;
    hv_gic_get_redistributor_region_size = REDISTRIBUTOR_REGION_SIZE;
    hv_gic_get_redistributor_size = REDISTRIBUTOR_SIZE;
    hv_gic_get_redistributor_base_alignment = ALIGNMENT;
    hv_gic_get_msi_region_size = MSI_REGION_SIZE;
    hv_gic_get_msi_region_base_alignment = ALIGNMENT;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> Return {
    call(|| {
        since(MacOs::V15, "hv_gic_get_spi_interrupt_range")?;
        // SAFETY: the caller's promise to the framework.
        unsafe {
            put(first, SPIS.0)?;
            put(count, SPIS.1)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_intid(interrupt: u32, intid: *mut u32) -> Return {
    call(|| {
        since(MacOs::V15, "hv_gic_get_intid")?;
        // The enumeration's values are the INTIDs.
        if !INTIDS.contains(&interrupt) {
            return Err(BAD_ARGUMENT);
        }
        // SAFETY: the caller's promise to the framework.
        unsafe { put(intid, interrupt) }
    })
}

/// The access size of a distributor register that hv_gic_distributor_reg_t has: CTLR, TYPER, IGROUPR to ICFGR, IROUTER, PIDR2.
fn distributor_size(reg: u32) -> Result<usize, Failed> {
    match reg {
        _ if IROUTER.contains(&reg) && reg.is_multiple_of(8) => Ok(8),
        0 | 4 | 0x80..0x800 | 0xc00..0xd00 | PIDR2 if reg.is_multiple_of(4) => Ok(4),
        _ => Err(refuse(format!("there is no distributor register {reg:#x}"), BAD_ARGUMENT)),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_distributor_reg(reg: u32, value: *mut u64) -> Return {
    call(|| {
        let gic = gic("hv_gic_get_distributor_reg")?;
        let found = gic.distributor_read(reg.into(), distributor_size(reg)?);
        // SAFETY: the caller's promise to the framework.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_distributor_reg(reg: u32, value: u64) -> Return {
    call(|| {
        let gic = gic("hv_gic_set_distributor_reg")?;
        gic.distributor_write(reg.into(), distributor_size(reg)?, value);
        Ok(())
    })
}

/// Where a vCPU's redistributor lies.
fn redistributor_base(gic: &HostGic, vcpu: &Shared) -> Result<u64, Failed> {
    let cpu = gic.cpu_of(vcpu).ok_or_else(|| {
        refuse(format!("the redistributor of vCPU {}, which has no MPIDR_EL1", vcpu.handle), BAD_ARGUMENT)
    })?;
    Ok(gic.config().redistributor.unwrap_or(0) + u64::from(cpu) * REDISTRIBUTOR_SIZE)
}

fn vcpu_of(handle: u64) -> Result<Arc<Shared>, Failed> {
    let vcpu = state().vcpus.get(&handle).cloned();
    vcpu.ok_or_else(|| {
        refuse(format!("the redistributor of vCPU {handle}, which is not there"), BAD_ARGUMENT)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> Return {
    call(|| {
        let gic = gic("hv_gic_get_redistributor_base")?;
        let found = redistributor_base(&gic, &*vcpu_of(vcpu)?)?;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(base, found) }
    })
}

/// The access size of a redistributor register that hv_gic_redistributor_reg_t has: TYPER, PIDR2, IGROUPR0 to ICACTIVER0,
/// IPRIORITYR, ICFGR. WAKER is the guest's alone.
fn redistributor_size(reg: u32) -> Result<usize, Failed> {
    match reg {
        GICR_TYPER => Ok(8),
        PIDR2 => Ok(4),
        0x1_0080 | 0x1_0100 | 0x1_0180 | 0x1_0200 | 0x1_0280 | 0x1_0300 | 0x1_0380 => Ok(4),
        0x1_0400..0x1_0420 | 0x1_0c00..0x1_0c08 if reg.is_multiple_of(4) => Ok(4),
        _ => Err(refuse(format!("there is no redistributor register {reg:#x}"), BAD_ARGUMENT)),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_reg(vcpu: u64, reg: u32, value: *mut u64) -> Return {
    with(vcpu, "hv_gic_get_redistributor_reg", |local| {
        let gic = gic("hv_gic_get_redistributor_reg")?;
        let mut data = [0; 8];
        let size = redistributor_size(reg)?;
        gic.mmio_read(redistributor_base(&gic, &local.shared)? + u64::from(reg), &mut data[..size]);
        // SAFETY: the caller's promise to the framework.
        unsafe { put(value, u64::from_le_bytes(data)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_redistributor_reg(vcpu: u64, reg: u32, value: u64) -> Return {
    with(vcpu, "hv_gic_set_redistributor_reg", |local| {
        let gic = gic("hv_gic_set_redistributor_reg")?;
        let size = redistributor_size(reg)?;
        let address = redistributor_base(&gic, &local.shared)? + u64::from(reg);
        gic.mmio_write(address, &value.to_le_bytes()[..size]);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_icc_reg(vcpu: u64, reg: u16, value: *mut u64) -> Return {
    with(vcpu, "hv_gic_get_icc_reg", |local| {
        let gic = gic("hv_gic_get_icc_reg")?;
        if !ICC_REGISTERS.contains(&reg) {
            return Err(BAD_ARGUMENT);
        }
        let found = gic.icc_read(&local.shared, SysReg(reg)).ok_or(BAD_ARGUMENT)?;
        // SAFETY: the caller's promise to the framework.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_icc_reg(vcpu: u64, reg: u16, value: u64) -> Return {
    with(vcpu, "hv_gic_set_icc_reg", |local| {
        let gic = gic("hv_gic_set_icc_reg")?;
        let written = ICC_REGISTERS.contains(&reg) && gic.icc_write(&local.shared, SysReg(reg), value);
        if written { Ok(()) } else { Err(BAD_ARGUMENT) }
    })
}
