//! PSCI 1.1 (Arm DEN0022): the power states of a machine's CPUs as a pure state machine.
//! It decides and answers; whoever calls it wakes threads, resets registers and leaves the run loop.

/// PSCI function identifiers: the 32-bit form; the 64-bit form has `SMC64` set too.
pub mod function {
    /// PSCI_VERSION (DEN0022 5.1.1).
    pub const VERSION: u32 = 0x8400_0000;
    /// CPU_SUSPEND.
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// CPU_ON.
    pub const CPU_ON: u32 = 0x8400_0003;
    /// AFFINITY_INFO.
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const FEATURES: u32 = 0x8400_000a;
    /// SYSTEM_RESET2.
    pub const SYSTEM_RESET2: u32 = 0x8400_0012;
    /// Bit 30 of a function identifier: arguments are 64 bits wide (SMCCC 2.5).
    pub const SMC64: u32 = 0x4000_0000;
}

/// Return codes (DEN0022 5.2.2).
pub mod code {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// There is no such function.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument is wrong.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// The CPU is on already.
    pub const ALREADY_ON: i64 = -4;
    /// The CPU has been told to come on.
    pub const ON_PENDING: i64 = -5;
    /// The entry point is no memory.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// What PSCI_VERSION says: 1.1.
pub const PSCI_VERSION: i64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: there is no trusted OS that would have to migrate.
const NO_TRUSTED_OS: i64 = 2;
/// The affinity fields of an MPIDR: Aff3 and Aff2 to Aff0.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;
/// The bits of CPU_SUSPEND's power_state that must be zero in the original format (DEN0022 5.4.2).
const POWER_STATE_RESERVED: u64 = 0xfcfe_0000;
/// SYSTEM_RESET2 reset_type 0: SYSTEM_WARM_RESET, the only architectural type.
const SYSTEM_WARM_RESET: u64 = 0;

/// Whether a CPU is on (the values of AFFINITY_INFO say the same as 0, 1, 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// It runs, or waits in WFI.
    On,
    /// It is off until CPU_ON.
    Off,
    /// CPU_ON has been called, the CPU has not started yet.
    OnPending {
        /// Its first instruction.
        entry: u64,
        /// What X0 will be.
        context: u64,
    },
}

/// A call: function identifier and the arguments X1 to X3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// W0.
    pub function: u32,
    /// X1 to X3.
    pub args: [u64; 3],
}

/// What must happen after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The value goes to X0 and the caller continues.
    Return(i64),
    /// CPU `cpu` is pending: wake it. The caller continues with SUCCESS.
    Started {
        /// Which one.
        cpu: u32,
    },
    /// The caller waits for an interrupt, then continues with SUCCESS.
    Suspend,
    /// The caller is off; it does not return.
    CpuOff {
        /// No CPU is left on, so that nothing can ever switch one on.
        last: bool,
    },
    /// The machine is to be powered off.
    SystemOff,
    /// The machine is to be reset.
    SystemReset,
}

/// The power states of all CPUs. CPU `n` has the affinity `layout::mpidr(n)`.
#[derive(Debug, Clone)]
pub struct Psci {
    cpus: Vec<PowerState>,
}

impl Psci {
    /// `cpus` CPUs of which the first is on.
    pub fn new(cpus: u32) -> Self {
        let mut psci = Psci { cpus: vec![PowerState::Off; cpus as usize] };
        psci.reset();
        psci
    }

    /// Back to CPU 0 on and all others off.
    pub fn reset(&mut self) {
        self.cpus.fill(PowerState::Off);
        if let Some(first) = self.cpus.first_mut() {
            *first = PowerState::On;
        }
    }

    /// The state of `cpu`.
    pub fn state(&self, cpu: u32) -> PowerState {
        self.cpus.get(cpu as usize).copied().unwrap_or(PowerState::Off)
    }

    /// If CPU_ON was called for `cpu`, it is on from now on: returns entry and context.
    pub fn take_pending(&mut self, cpu: u32) -> Option<(u64, u64)> {
        let state = self.cpus.get_mut(cpu as usize)?;
        let PowerState::OnPending { entry, context } = *state else { return None };
        *state = PowerState::On;
        Some((entry, context))
    }

    /// Whether PSCI_FEATURES reports `function`, and hence whether [`Psci::call`] implements it.
    pub fn implements(function: u32) -> bool {
        match function {
            function::VERSION
            | function::CPU_OFF
            | function::MIGRATE_INFO_TYPE
            | function::SYSTEM_OFF
            | function::SYSTEM_RESET
            | function::FEATURES => true,
            f => matches!(
                f & !function::SMC64,
                function::CPU_SUSPEND | function::CPU_ON | function::AFFINITY_INFO | function::SYSTEM_RESET2
            ),
        }
    }

    /// Answers a call of CPU `caller`; `is_memory` says whether an address is RAM. `None`: not a PSCI function of ours.
    pub fn call(&mut self, caller: u32, call: Call, is_memory: impl Fn(u64) -> bool) -> Option<Outcome> {
        if !Self::implements(call.function) {
            return None;
        }
        let wide = call.function & function::SMC64 != 0;
        let args = call.args.map(|arg| if wide { arg } else { arg & 0xffff_ffff });
        Some(match call.function & !function::SMC64 {
            function::VERSION => Outcome::Return(PSCI_VERSION),
            function::CPU_SUSPEND if args[0] & (POWER_STATE_RESERVED | !0xffff_ffff) != 0 => {
                Outcome::Return(code::INVALID_PARAMETERS)
            }
            // A power-down state may be answered with the shallower standby (DEN0022 5.4.5).
            function::CPU_SUSPEND => Outcome::Suspend,
            function::CPU_OFF => self.cpu_off(caller),
            function::CPU_ON => self.cpu_on(args, is_memory),
            function::AFFINITY_INFO => Outcome::Return(self.affinity_info(args[0], args[1])),
            function::MIGRATE_INFO_TYPE => Outcome::Return(NO_TRUSTED_OS),
            function::SYSTEM_OFF => Outcome::SystemOff,
            function::SYSTEM_RESET => Outcome::SystemReset,
            function::FEATURES => Outcome::Return(Self::features(args[0] as u32)),
            function::SYSTEM_RESET2 if args[0] == SYSTEM_WARM_RESET => Outcome::SystemReset,
            _ => Outcome::Return(code::INVALID_PARAMETERS),
        })
    }

    fn features(function: u32) -> i64 {
        // For CPU_SUSPEND the flags are zero: original power_state format, platform coordinated.
        if Self::implements(function) || function == super::smccc::function::VERSION {
            code::SUCCESS
        } else {
            code::NOT_SUPPORTED
        }
    }

    fn find(&self, affinity: u64) -> Option<u32> {
        (0..self.cpus.len() as u32).find(|id| super::layout::mpidr(*id) == affinity)
    }

    fn cpu_off(&mut self, caller: u32) -> Outcome {
        if let Some(state) = self.cpus.get_mut(caller as usize) {
            *state = PowerState::Off;
        }
        Outcome::CpuOff { last: self.cpus.iter().all(|state| *state == PowerState::Off) }
    }

    fn cpu_on(&mut self, [target, entry, context]: [u64; 3], is_memory: impl Fn(u64) -> bool) -> Outcome {
        let Some(cpu) = self.find(target) else { return Outcome::Return(code::INVALID_PARAMETERS) };
        match self.state(cpu) {
            PowerState::On => Outcome::Return(code::ALREADY_ON),
            PowerState::OnPending { .. } => Outcome::Return(code::ON_PENDING),
            PowerState::Off if entry & 3 != 0 || !is_memory(entry) => Outcome::Return(code::INVALID_ADDRESS),
            PowerState::Off => {
                if let Some(state) = self.cpus.get_mut(cpu as usize) {
                    *state = PowerState::OnPending { entry, context };
                }
                Outcome::Started { cpu }
            }
        }
    }

    fn affinity_info(&self, affinity: u64, level: u64) -> i64 {
        let Some(ignored_bits) =
            [0u64, 0xff, 0xffff, 0xff_ffff].get(usize::try_from(level).unwrap_or(usize::MAX))
        else {
            return code::INVALID_PARAMETERS;
        };
        if affinity & !AFFINITY_MASK != 0 {
            return code::INVALID_PARAMETERS;
        }
        let members = (0..self.cpus.len() as u32)
            .filter(|id| (super::layout::mpidr(*id) ^ affinity) & AFFINITY_MASK & !ignored_bits == 0)
            .map(|id| match self.state(id) {
                PowerState::On => 0,
                PowerState::OnPending { .. } => 2,
                PowerState::Off => 1,
            });
        // A group is on as soon as one of its CPUs is, else pending if one is.
        members.min_by_key(|state| [0, 2, 1][*state as usize]).unwrap_or(code::INVALID_PARAMETERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x4008_0000;

    fn is_memory(addr: u64) -> bool {
        (0x4000_0000..0x8000_0000).contains(&addr)
    }

    fn call(psci: &mut Psci, function: u32, args: [u64; 3]) -> Option<Outcome> {
        psci.call(0, Call { function, args }, is_memory)
    }

    fn ret(value: i64) -> Option<Outcome> {
        Some(Outcome::Return(value))
    }

    #[test]
    fn version_is_1_1() {
        assert_eq!(call(&mut Psci::new(1), 0x8400_0000, [0; 3]), ret(0x1_0001));
    }

    #[test]
    fn there_is_no_64_bit_version_call() {
        assert_eq!(call(&mut Psci::new(1), 0xc400_0000, [0; 3]), None);
    }

    #[test]
    fn migrate_info_type_is_2() {
        assert_eq!(call(&mut Psci::new(1), 0x8400_0006, [0; 3]), ret(2));
    }

    #[test]
    fn features_reports_exactly_what_is_implemented() {
        let mut psci = Psci::new(1);
        let ids = (0x8400_0000..=0x8400_0020).chain(0xc400_0000..=0xc400_0020);
        let reported: Vec<u32> =
            ids.filter(|id| call(&mut psci, function::FEATURES, [u64::from(*id), 0, 0]) == ret(0)).collect();
        assert_eq!(
            reported,
            [
                0x8400_0000,
                0x8400_0001,
                0x8400_0002,
                0x8400_0003,
                0x8400_0004,
                0x8400_0006,
                0x8400_0008,
                0x8400_0009,
                0x8400_000a,
                0x8400_0012,
                0xc400_0001,
                0xc400_0003,
                0xc400_0004,
                0xc400_0012
            ]
        );
    }

    #[test]
    fn every_reported_function_is_answered() {
        for id in (0x8400_0000..=0x8400_0020).chain(0xc400_0000..=0xc400_0020) {
            let mut psci = Psci::new(1);
            assert_eq!(call(&mut psci, id, [0; 3]).is_some(), Psci::implements(id), "{id:#x}");
        }
    }

    #[test]
    fn features_knows_smccc_version() {
        assert_eq!(call(&mut Psci::new(1), function::FEATURES, [0x8000_0000, 0, 0]), ret(0));
    }

    #[test]
    fn features_of_an_unknown_function_is_not_supported() {
        assert_eq!(call(&mut Psci::new(1), function::FEATURES, [0x8400_00ff, 0, 0]), ret(-1));
    }

    #[test]
    fn cpu_on_makes_the_target_pending() {
        let mut psci = Psci::new(2);
        assert_eq!(call(&mut psci, 0xc400_0003, [1, ENTRY, 7]), Some(Outcome::Started { cpu: 1 }));
        assert_eq!(psci.state(1), PowerState::OnPending { entry: ENTRY, context: 7 });
    }

    #[test]
    fn a_second_cpu_on_is_on_pending() {
        let mut psci = Psci::new(2);
        call(&mut psci, 0xc400_0003, [1, ENTRY, 7]);
        assert_eq!(call(&mut psci, 0xc400_0003, [1, ENTRY, 7]), ret(-5));
    }

    #[test]
    fn cpu_on_of_a_running_cpu_is_already_on() {
        let mut psci = Psci::new(2);
        assert_eq!(call(&mut psci, 0xc400_0003, [0, ENTRY, 0]), ret(-4));
        call(&mut psci, 0xc400_0003, [1, ENTRY, 7]);
        assert_eq!(psci.take_pending(1), Some((ENTRY, 7)));
        assert_eq!(call(&mut psci, 0xc400_0003, [1, ENTRY, 7]), ret(-4));
    }

    #[test]
    fn cpu_on_of_an_absent_cpu_is_invalid_parameters() {
        assert_eq!(call(&mut Psci::new(2), 0xc400_0003, [2, ENTRY, 0]), ret(-2));
        assert_eq!(call(&mut Psci::new(2), 0xc400_0003, [0x1_0001, ENTRY, 0]), ret(-2));
    }

    #[test]
    fn cpu_on_outside_memory_is_invalid_address() {
        let mut psci = Psci::new(2);
        assert_eq!(call(&mut psci, 0xc400_0003, [1, 0x1000, 0]), ret(-9));
        assert_eq!(call(&mut psci, 0xc400_0003, [1, ENTRY + 2, 0]), ret(-9));
        assert_eq!(psci.state(1), PowerState::Off);
    }

    #[test]
    fn the_32_bit_cpu_on_ignores_upper_halves() {
        let mut psci = Psci::new(2);
        let high = 0xffff_ffff_0000_0000;
        call(&mut psci, 0x8400_0003, [high | 1, high | ENTRY, high | 9]);
        assert_eq!(psci.state(1), PowerState::OnPending { entry: ENTRY, context: 9 });
    }

    #[test]
    fn pending_is_taken_once() {
        let mut psci = Psci::new(2);
        call(&mut psci, 0xc400_0003, [1, ENTRY, 7]);
        assert!(psci.take_pending(1).is_some());
        assert_eq!(psci.take_pending(1), None);
    }

    #[test]
    fn affinity_info_tells_the_three_states() {
        let mut psci = Psci::new(3);
        call(&mut psci, 0xc400_0003, [2, ENTRY, 0]);
        assert_eq!(call(&mut psci, 0xc400_0004, [0, 0, 0]), ret(0));
        assert_eq!(call(&mut psci, 0xc400_0004, [1, 0, 0]), ret(1));
        assert_eq!(call(&mut psci, 0xc400_0004, [2, 0, 0]), ret(2));
    }

    #[test]
    fn affinity_info_of_an_absent_cpu_or_level_is_invalid() {
        assert_eq!(call(&mut Psci::new(1), 0xc400_0004, [1, 0, 0]), ret(-2));
        assert_eq!(call(&mut Psci::new(1), 0xc400_0004, [0, 4, 0]), ret(-2));
        assert_eq!(call(&mut Psci::new(1), 0xc400_0004, [1 << 40, 0, 0]), ret(-2));
    }

    #[test]
    fn a_cluster_is_on_while_one_of_its_cpus_is() {
        assert_eq!(call(&mut Psci::new(4), 0xc400_0004, [3, 1, 0]), ret(0));
    }

    #[test]
    fn cpu_off_can_be_undone_by_cpu_on() {
        let mut psci = Psci::new(2);
        call(&mut psci, 0xc400_0003, [1, ENTRY, 7]);
        psci.take_pending(1);
        let off = psci.call(1, Call { function: 0x8400_0002, args: [0; 3] }, is_memory);
        assert_eq!(off, Some(Outcome::CpuOff { last: false }));
        assert_eq!(call(&mut psci, 0xc400_0004, [1, 0, 0]), ret(1));
        assert_eq!(call(&mut psci, 0xc400_0003, [1, ENTRY, 8]), Some(Outcome::Started { cpu: 1 }));
    }

    #[test]
    fn cpu_off_of_the_only_cpu_says_so() {
        assert_eq!(call(&mut Psci::new(2), 0x8400_0002, [0; 3]), Some(Outcome::CpuOff { last: true }));
    }

    #[test]
    fn cpu_suspend_accepts_standby_and_power_down() {
        assert_eq!(call(&mut Psci::new(1), 0xc400_0001, [0, 0, 0]), Some(Outcome::Suspend));
        assert_eq!(call(&mut Psci::new(1), 0x8400_0001, [0x1_0000, ENTRY, 0]), Some(Outcome::Suspend));
    }

    #[test]
    fn cpu_suspend_rejects_reserved_bits() {
        assert_eq!(call(&mut Psci::new(1), 0xc400_0001, [1 << 31, 0, 0]), ret(-2));
        assert_eq!(call(&mut Psci::new(1), 0xc400_0001, [1 << 17, 0, 0]), ret(-2));
    }

    #[test]
    fn system_calls_have_their_outcomes() {
        assert_eq!(call(&mut Psci::new(1), 0x8400_0008, [0; 3]), Some(Outcome::SystemOff));
        assert_eq!(call(&mut Psci::new(1), 0x8400_0009, [0; 3]), Some(Outcome::SystemReset));
        assert_eq!(call(&mut Psci::new(1), 0xc400_0012, [0; 3]), Some(Outcome::SystemReset));
    }

    #[test]
    fn reset2_of_a_vendor_type_is_invalid() {
        assert_eq!(call(&mut Psci::new(1), 0xc400_0012, [0x8000_0000, 0, 0]), ret(-2));
    }

    #[test]
    fn reset_leaves_only_the_first_cpu_on() {
        let mut psci = Psci::new(2);
        call(&mut psci, 0xc400_0003, [1, ENTRY, 7]);
        psci.call(0, Call { function: 0x8400_0002, args: [0; 3] }, is_memory);
        psci.reset();
        assert_eq!((psci.state(0), psci.state(1)), (PowerState::On, PowerState::Off));
    }
}
