//! Numbers and layouts of Hypervisor.framework's C interface (Hypervisor/hv_error.h, hv_vcpu_types.h, hv_gic_types.h), and how
//! a C call is made of fallible Rust. No behaviour.

/// What calls return: zero or one of the errors below.
pub type Return = i32;
/// An error as the `Err` of calls in the making.
pub type Failed = Return;

const fn error(low: u32) -> Return {
    (0xfae9_4000 | low) as i32
}

/// The call did what it should.
pub const SUCCESS: Return = 0;
/// Any failure without a code of its own.
pub const ERROR: Return = error(0x01);
/// The owner of the resource is busy.
pub const BUSY: Return = error(0x02);
/// An argument is wrong.
pub const BAD_ARGUMENT: Return = error(0x03);
/// Out of resources.
pub const NO_RESOURCES: Return = error(0x05);
/// There is no such device: no VM, no GIC.
pub const NO_DEVICE: Return = error(0x06);
/// The process lacks the entitlement.
pub const DENIED: Return = error(0x07);
/// This host cannot do that.
pub const UNSUPPORTED: Return = error(0x0f);

/// Stage 2 granule: addresses and sizes are multiples of it.
pub const GRANULE: u64 = 16 << 10;

/// HV_MEMORY_READ.
pub const MEMORY_READ: u64 = 1;
/// HV_MEMORY_WRITE.
pub const MEMORY_WRITE: u64 = 2;
/// HV_MEMORY_EXEC.
pub const MEMORY_EXEC: u64 = 4;

/// HV_EXIT_REASON_CANCELED.
pub const EXIT_CANCELED: u32 = 0;
/// HV_EXIT_REASON_EXCEPTION.
pub const EXIT_EXCEPTION: u32 = 1;
/// HV_EXIT_REASON_VTIMER_ACTIVATED.
pub const EXIT_VTIMER_ACTIVATED: u32 = 2;
/// HV_EXIT_REASON_UNKNOWN.
pub const EXIT_UNKNOWN: u32 = 3;
/// What the exit structure of a destroyed vCPU says: no reason that exists.
pub const EXIT_GONE: u32 = 0xdead_dead;

/// HV_REG_PC; X0 to X30 come before it.
pub const REG_PC: u32 = 31;
/// HV_REG_FPCR.
pub const REG_FPCR: u32 = 32;
/// HV_REG_FPSR.
pub const REG_FPSR: u32 = 33;
/// HV_REG_CPSR, the last one: there is no SP.
pub const REG_CPSR: u32 = 34;

/// HV_INTERRUPT_TYPE_IRQ.
pub const INTERRUPT_IRQ: u32 = 0;
/// HV_INTERRUPT_TYPE_FIQ.
pub const INTERRUPT_FIQ: u32 = 1;

/// hv_vcpu_exit_t: why `hv_vcpu_run` came back. 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuExit {
    /// One of the exit reasons.
    pub reason: u32,
    /// ESR_EL2.
    pub syndrome: u64,
    /// FAR_EL2.
    pub virtual_address: u64,
    /// The faulting IPA.
    pub physical_address: u64,
}

const _: () = assert!(size_of::<VcpuExit>() == 32);

/// Makes what a C call returns of what its body returns.
pub fn call(body: impl FnOnce() -> Result<(), Failed>) -> Return {
    match body() {
        Ok(()) => SUCCESS,
        Err(error) => error,
    }
}

/// Stores a result where the caller wants it.
///
/// # Safety
/// `to` is null or may be written.
pub unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Failed> {
    if to.is_null() {
        return Err(BAD_ARGUMENT);
    }
    // SAFETY: not null, and else the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}
