//! A raw vCPU that follows a script, for tests: each `run` performs one step and gives its exit. Out of steps, it stays in
//! `run` until it is kicked. It keeps every register and executes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::aarch64::raw::{InterruptLine, RawExit, RawVcpu, Reg, SysReg};
use crate::aarch64::sysreg::names;
use crate::aarch64::timer::{CTL_ENABLE, CTL_ISTATUS};
use crate::hypervisor::{HypervisorError, Kick, Kicker};

/// How long `run` waits for a kick before it gives the test up.
const GIVE_UP: Duration = Duration::from_secs(20);

type Step = Box<dyn FnOnce(&mut Scripted) -> RawExit + Send>;

/// What a run began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub pc: u64,
    pub irq: bool,
    pub fiq: bool,
}

#[derive(Debug, Default)]
struct KickState {
    running: bool,
    kicked: bool,
}

#[derive(Debug, Default)]
struct Kicks {
    state: Mutex<KickState>,
    bell: Condvar,
    /// A kick outside `run` is remembered.
    sticky: bool,
}

impl Kick for Kicks {
    fn kick(&self) {
        let mut state = self.state.lock().unwrap();
        if state.running || self.sticky {
            state.kicked = true;
            self.bell.notify_all();
        }
    }
}

/// The scripted vCPU.
pub struct Scripted {
    x: [u64; 31],
    pc: u64,
    cpsr: u64,
    fp: [u64; 2],
    q: [u128; 32],
    sys: BTreeMap<SysReg, u64>,
    script: VecDeque<Step>,
    pending: [bool; 2],
    vtimer_masked: bool,
    vtimer_offset: u64,
    start: Instant,
    kicks: Arc<Kicks>,
    /// Called at the beginning of a run, when a kick that is not sticky would still be lost.
    pub before_run: Option<Box<dyn FnMut() + Send>>,
    /// Every run so far.
    pub runs: Vec<Run>,
    /// What was done to the PPIs of a GIC in the host.
    pub host_ppis: Vec<(u32, bool)>,
    /// How often it was reset.
    pub resets: u32,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted").field("pc", &self.pc).finish_non_exhaustive()
    }
}

impl Scripted {
    /// All registers zero, an empty script.
    pub fn new() -> Self {
        Self::with_kicks(true)
    }

    /// As [`Scripted::new`], but a kick outside `run` is lost.
    pub fn forgetful() -> Self {
        Self::with_kicks(false)
    }

    fn with_kicks(sticky: bool) -> Self {
        Scripted {
            x: [0; 31],
            pc: 0,
            cpsr: 0,
            fp: [0; 2],
            q: [0; 32],
            sys: BTreeMap::new(),
            script: VecDeque::new(),
            pending: [false; 2],
            vtimer_masked: false,
            vtimer_offset: 0,
            start: Instant::now(),
            kicks: Arc::new(Kicks { sticky, ..Kicks::default() }),
            before_run: None,
            runs: Vec::new(),
            host_ppis: Vec::new(),
            resets: 0,
        }
    }

    /// Adds a step: `act` may change registers, then the run ends with what it returns.
    pub fn then(&mut self, act: impl FnOnce(&mut Scripted) -> RawExit + Send + 'static) {
        self.script.push_back(Box::new(act));
    }

    /// Adds a step that only exits.
    pub fn exits(&mut self, exit: RawExit) {
        self.then(move |_| exit);
    }

    /// Adds a step that traps with `syndrome`.
    pub fn traps(&mut self, syndrome: u64) {
        self.exits(RawExit::Exception { syndrome, far: 0, ipa: 0 });
    }

    fn wait_for_kick(&self) {
        let mut state = self.kicks.state.lock().unwrap();
        state.running = true;
        let deadline = Instant::now() + GIVE_UP;
        while !state.kicked {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nobody kicked the scripted vCPU");
            state = self.kicks.bell.wait_timeout(state, left).unwrap().0;
        }
        state.running = false;
        state.kicked = false;
    }
}

impl RawVcpu for Scripted {
    fn run(&mut self) -> Result<RawExit, HypervisorError> {
        self.runs.push(Run { pc: self.pc, irq: self.pending[0], fiq: self.pending[1] });
        if let Some(before_run) = &mut self.before_run {
            before_run();
        }
        let exit = match self.script.pop_front() {
            Some(step) => step(self),
            None => {
                self.wait_for_kick();
                RawExit::Canceled
            }
        };
        if exit == RawExit::VtimerActivated {
            self.vtimer_masked = true;
        }
        self.pending = [false; 2];
        Ok(exit)
    }

    fn reg(&self, reg: Reg) -> Result<u64, HypervisorError> {
        Ok(match reg {
            Reg::X(n) => self.x[usize::from(n)],
            Reg::Pc => self.pc,
            Reg::Cpsr => self.cpsr,
            Reg::Fpcr => self.fp[0],
            Reg::Fpsr => self.fp[1],
        })
    }

    fn set_reg(&mut self, reg: Reg, value: u64) -> Result<(), HypervisorError> {
        *match reg {
            Reg::X(n) => &mut self.x[usize::from(n)],
            Reg::Pc => &mut self.pc,
            Reg::Cpsr => &mut self.cpsr,
            Reg::Fpcr => &mut self.fp[0],
            Reg::Fpsr => &mut self.fp[1],
        } = value;
        Ok(())
    }

    fn simd_reg(&self, n: u8) -> Result<u128, HypervisorError> {
        Ok(self.q[usize::from(n)])
    }

    fn set_simd_reg(&mut self, n: u8, value: u128) -> Result<(), HypervisorError> {
        self.q[usize::from(n)] = value;
        Ok(())
    }

    fn sys_reg(&self, reg: SysReg) -> Result<u64, HypervisorError> {
        let value = self.sys.get(&reg).copied().unwrap_or(0);
        if reg == names::CNTV_CTL_EL0 && value & CTL_ENABLE != 0 {
            let cval = self.sys.get(&names::CNTV_CVAL_EL0).copied().unwrap_or(0);
            let met = self.counter().wrapping_sub(self.vtimer_offset) >= cval;
            return Ok(value | if met { CTL_ISTATUS } else { 0 });
        }
        Ok(value)
    }

    fn set_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<(), HypervisorError> {
        self.sys.insert(reg, value);
        Ok(())
    }

    fn set_pending(&mut self, line: InterruptLine, pending: bool) -> Result<(), HypervisorError> {
        self.pending[usize::from(line == InterruptLine::Fiq)] = pending;
        Ok(())
    }

    fn vtimer_mask(&self) -> Result<bool, HypervisorError> {
        Ok(self.vtimer_masked)
    }

    fn set_vtimer_mask(&mut self, masked: bool) -> Result<(), HypervisorError> {
        self.vtimer_masked = masked;
        Ok(())
    }

    fn vtimer_offset(&self) -> Result<u64, HypervisorError> {
        Ok(self.vtimer_offset)
    }

    fn set_vtimer_offset(&mut self, offset: u64) -> Result<(), HypervisorError> {
        self.vtimer_offset = offset;
        Ok(())
    }

    fn counter(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn counter_frequency(&self) -> u64 {
        1_000_000_000
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kicks.clone())
    }

    fn remembers_kicks(&self) -> bool {
        self.kicks.sticky
    }

    fn set_host_ppi(&mut self, intid: u32, level: bool) -> Result<(), HypervisorError> {
        self.host_ppis.push((intid, level));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), HypervisorError> {
        self.x = [0; 31];
        self.pc = 0;
        self.cpsr = 0;
        self.q = [0; 32];
        self.sys.clear();
        self.pending = [false; 2];
        self.resets += 1;
        Ok(())
    }
}
