//! One software CPU: its state, its public face and the run loop. Instructions are in `exec`, exceptions in `exception`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::code::{Block, CodeCache, Link, Variant};
use crate::machine::{Broadcast, CpuShared, Machine, Maintenance, PAGE_SIZE, Region, request};
use crate::mmu::{Access, Fault, Privilege, fsc};
use crate::op::{At, Next};
use crate::regs::{Regs, SP};
use crate::sysreg::{SysRegs, cntv_ctl, sctlr};
use crate::tlb::{FetchTlb, Tlb};
use crate::{exception, translate};

/// An interrupt input of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// IRQ.
    Irq = 0,
    /// FIQ.
    Fiq = 1,
}

/// Why [`Cpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its [`Canceller`] was used.
    Canceled,
    /// The guest did what a hypervisor must see to.
    Exception {
        /// ESR_EL2.
        syndrome: u64,
        /// FAR_EL2.
        far: u64,
        /// The intermediate physical address of an abort.
        ipa: u64,
    },
    /// The virtual timer's condition became true. The timer is masked now.
    VtimerActivated,
}

/// What the run loop must do before it goes on; set by an op that ends its block with [`Next::Event`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// Nothing but look for interrupts.
    None,
    /// Leave `run`.
    Exit(Exit),
    /// Wait until all CPUs have seen this CPU's maintenance broadcasts (DSB).
    Synchronise,
}

/// The part of PSTATE that is not the flags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PState {
    /// 0 or 1.
    pub el: u8,
    /// SPSel.
    pub sp_sel: bool,
    /// D, A, I, F: bits 3 to 0.
    pub daif: u8,
    pub pan: bool,
    /// Illegal execution state.
    pub il: bool,
}

/// The exclusive monitor: where and what a load-exclusive read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Monitor {
    /// Host address; 0 is none.
    pub host: u64,
    pub bytes: u8,
    pub value: u128,
}

/// One CPU of a [`Machine`]. Stays on the thread that made it; a [`Canceller`] may go anywhere.
pub struct Cpu {
    pub(crate) regs: Regs,
    /// Virtual address of the page that the current block lies in.
    pub(crate) page_va: u64,
    /// Valid between blocks.
    pub(crate) pc: u64,
    pub(crate) tlb: Tlb,
    pub(crate) shared: Arc<CpuShared>,
    pub(crate) code: CodeCache,
    /// Translation contexts of the lower and the upper half, for the jump cache.
    context: [u64; 2],
    /// Generations of the translations of each half.
    generation: [u64; 2],
    pub(crate) fetch_tlb: FetchTlb,
    pub(crate) sys: SysRegs,
    /// Identification registers that the guest reads with other values than this CPU's own.
    pub(crate) identification: Vec<(u16, u64)>,
    pub(crate) pstate: PState,
    /// SP_EL0 and SP_EL1; the one in use is stale, its value is `regs.x[SP]`.
    sp: [u64; 2],
    pub(crate) monitor: Monitor,
    /// IRQ, FIQ: pending for this run.
    pending: [bool; 2],
    pub(crate) event: Event,
    pub(crate) broadcast: Broadcast,
    pub(crate) regions: Arc<[Region]>,
    pub(crate) machine: Arc<Machine>,
    vtimer_masked: bool,
    vtimer_offset: u64,
    /// The counter value for which the alarm is set.
    alarm: Option<u64>,
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("pc", &self.pc).field("pstate", &self.pstate).finish_non_exhaustive()
    }
}

/// Makes a [`Cpu::run`] return, from any thread. Sticky: used outside `run` it ends the next one at once.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<CpuShared>);

impl Canceller {
    /// Ends the current or the next run.
    pub fn cancel(&self) {
        self.0.request(request::CANCEL);
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.machine.remove_cpu(&self.shared);
    }
}

impl Cpu {
    /// A CPU of `machine` in its reset state. Its MPIDR_EL1 must be set before it runs if it is not the first.
    pub fn new(machine: Arc<Machine>) -> Cpu {
        let shared = machine.add_cpu();
        let mut cpu = Cpu {
            regs: Regs::default(),
            page_va: 0,
            pc: 0,
            tlb: Tlb::new(),
            shared,
            code: CodeCache::new(),
            context: [0; 2],
            generation: [0; 2],
            fetch_tlb: FetchTlb::new(),
            sys: SysRegs::default(),
            identification: Vec::new(),
            pstate: PState { el: 1, sp_sel: true, daif: 0xf, pan: false, il: false },
            sp: [0; 2],
            monitor: Monitor::default(),
            pending: [false; 2],
            event: Event::None,
            broadcast: Broadcast::default(),
            regions: machine.regions(),
            machine,
            vtimer_masked: false,
            vtimer_offset: 0,
            alarm: None,
        };
        cpu.reset();
        cpu
    }

    /// Puts every register (but MPIDR_EL1 and the timer's offset) into its reset state and forgets all cached translations
    /// and code.
    pub fn reset(&mut self) {
        self.regs = Regs::default();
        self.pc = 0;
        self.sys = SysRegs { sctlr: sctlr::RESET, mpidr: self.sys.mpidr | 1 << 31, ..SysRegs::default() };
        self.pstate = PState { el: 1, sp_sel: true, daif: 0xf, pan: false, il: false };
        self.sp = [0; 2];
        self.monitor = Monitor::default();
        self.pending = [false; 2];
        self.event = Event::None;
        self.vtimer_masked = false;
        self.shared.event.store(false, Ordering::SeqCst);
        self.regions = self.machine.regions();
        self.flush_translations();
        self.code.flush();
        self.state_changed();
    }

    /// The handle that interrupts [`Cpu::run`].
    pub fn canceller(&self) -> Canceller {
        Canceller(self.shared.clone())
    }

    /// The machine this CPU belongs to.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// X0 to X30; others read as zero.
    pub fn x(&self, n: u8) -> u64 {
        self.regs.read_x(n)
    }

    /// Sets X0 to X30; others are ignored.
    pub fn set_x(&mut self, n: u8, value: u64) {
        self.regs.write_x(n, value);
    }

    /// The program counter.
    pub fn pc(&self) -> u64 {
        self.pc
    }

    /// Sets the program counter.
    pub fn set_pc(&mut self, pc: u64) {
        self.pc = pc;
    }

    /// Q0 to Q31 (higher numbers wrap around).
    pub fn q(&self, n: u8) -> u128 {
        self.regs.q[usize::from(n & 31)]
    }

    /// Sets Q0 to Q31 (higher numbers wrap around).
    pub fn set_q(&mut self, n: u8, value: u128) {
        self.regs.q[usize::from(n & 31)] = value;
    }

    /// PSTATE in SPSR format.
    pub fn cpsr(&self) -> u64 {
        let p = self.pstate;
        u64::from(self.regs.flags.nzcv())
            | u64::from(p.pan) << 22
            | u64::from(p.il) << 20
            | u64::from(p.daif) << 6
            | u64::from(p.el) << 2
            | u64::from(p.el == 1 && p.sp_sel)
    }

    /// Sets PSTATE from SPSR format. Modes other than EL0t, EL1t and EL1h are illegal and raise PSTATE.IL.
    pub fn set_cpsr(&mut self, value: u64) {
        self.regs.flags.set_nzcv(value as u32 & 0xf000_0000);
        let legal = matches!(value & 0x1f, 0 | 4 | 5);
        let (el, sp_sel) = if legal {
            ((value >> 2 & 1) as u8, value & 1 != 0)
        } else {
            (self.pstate.el, self.pstate.sp_sel)
        };
        self.set_mode(el, sp_sel);
        self.pstate.daif = (value >> 6) as u8 & 0xf;
        self.pstate.pan = value >> 22 & 1 != 0;
        self.pstate.il = !legal || value >> 20 & 1 != 0;
        self.state_changed();
    }

    /// Makes a line pending for the next [`Cpu::run`] only.
    pub fn set_pending(&mut self, line: Line, pending: bool) {
        self.pending[line as usize] = pending;
    }

    /// Whether a line was made pending for the next run.
    pub fn is_pending(&self, line: Line) -> bool {
        self.pending[line as usize]
    }

    /// Whether the virtual timer is masked by the caller's side.
    pub fn vtimer_mask(&self) -> bool {
        self.vtimer_masked
    }

    /// Masks or unmasks the virtual timer. It masks itself whenever it fires.
    pub fn set_vtimer_mask(&mut self, masked: bool) {
        self.vtimer_masked = masked;
        self.update_timer();
    }

    /// CNTVOFF.
    pub fn vtimer_offset(&self) -> u64 {
        self.vtimer_offset
    }

    /// Sets CNTVOFF: the virtual counter is the machine's counter less this.
    pub fn set_vtimer_offset(&mut self, offset: u64) {
        self.vtimer_offset = offset;
        self.update_timer();
    }

    /// SP_EL0 (0) or SP_EL1 (1).
    pub(crate) fn sp_of(&self, el: usize) -> u64 {
        if self.current_sp() == el { self.regs.x[SP] } else { self.sp[el & 1] }
    }

    pub(crate) fn set_sp_of(&mut self, el: usize, value: u64) {
        if self.current_sp() == el {
            self.regs.x[SP] = value;
        } else {
            self.sp[el & 1] = value;
        }
    }

    fn current_sp(&self) -> usize {
        usize::from(self.pstate.el == 1 && self.pstate.sp_sel)
    }

    /// Changes exception level and stack pointer; [`Cpu::state_changed`] must follow.
    pub(crate) fn set_mode(&mut self, el: u8, sp_sel: bool) {
        self.sp[self.current_sp()] = self.regs.x[SP];
        self.pstate.el = el;
        self.pstate.sp_sel = sp_sel;
        self.regs.x[SP] = self.sp[self.current_sp()];
    }

    /// The privilege of ordinary accesses.
    pub(crate) fn privilege(&self) -> Privilege {
        match (self.pstate.el, self.pstate.pan) {
            (0, _) => Privilege::El0,
            (_, false) => Privilege::El1,
            (_, true) => Privilege::El1Pan,
        }
    }

    /// CPACR_EL1.FPEN (bits 21:20): 3 allows everybody, 1 only EL1.
    fn fp_allowed(&self) -> bool {
        match self.sys.cpacr >> 20 & 3 {
            3 => true,
            1 => self.pstate.el == 1,
            _ => false,
        }
    }

    pub(crate) fn variant(&self) -> Variant {
        self.pstate.el | u8::from(self.fp_allowed()) << 1
    }

    /// TCR_EL1.A1 chooses which TTBR holds the ASID; TCR_EL1.AS its width.
    pub(crate) fn asid(&self) -> u16 {
        let asid = (self.sys.ttbr[(self.sys.tcr >> 22 & 1) as usize] >> 48) as u16;
        if self.sys.tcr >> 36 & 1 != 0 { asid } else { asid & 0xff }
    }

    /// Recomputes what is derived from PSTATE, CPACR, the ASID and the generations.
    pub(crate) fn state_changed(&mut self) {
        // Nothing is executed, or found in the jump cache, in an illegal state.
        let variant = u64::from(self.variant()) | u64::from(self.pstate.il) << 2;
        self.context = [
            self.generation[0] << 20 | u64::from(self.asid()) << 4 | variant,
            self.generation[1] << 20 | variant,
        ];
        self.tlb.set_privilege(self.privilege());
    }

    /// Voids what was fetched and jumped to through the translations of a half.
    fn forget_fetched(&mut self, upper: bool) {
        self.fetch_tlb.forget(upper);
        self.generation[usize::from(upper)] += 1;
        self.state_changed();
    }

    /// Forgets every cached translation.
    pub(crate) fn flush_translations(&mut self) {
        self.tlb.flush();
        self.tlb.forget_upper_ng();
        self.forget_fetched(false);
        self.forget_fetched(true);
    }

    /// TLBI by ASID.
    pub(crate) fn flush_asid(&mut self, asid: u16) {
        if self.tlb.has_upper_ng() {
            return self.flush_translations();
        }
        // Data entries of other ASIDs were dropped when the ASID changed; jumps are kept for them.
        if asid == self.asid() {
            self.tlb.flush_asid();
        }
        self.forget_fetched(false);
    }

    /// The ASID changed: what belonged to the old one must not be used, but is not invalid.
    pub(crate) fn asid_changed(&mut self) {
        if self.tlb.has_upper_ng() {
            return self.flush_translations();
        }
        self.tlb.flush_asid();
        self.state_changed();
    }

    /// Forgets the translations of one page.
    pub(crate) fn flush_va(&mut self, va: u64) {
        self.tlb.flush_va(va);
        if self.fetch_tlb.may_hold(va) {
            self.forget_fetched(va >> 55 & 1 != 0);
        }
    }

    /// CNTVCT.
    pub(crate) fn virtual_counter(&self) -> u64 {
        self.machine.counter().wrapping_sub(self.vtimer_offset)
    }

    /// CNTV_CTL_EL0 with its status bit.
    pub(crate) fn cntv_ctl(&self) -> u64 {
        let met = self.sys.cntv_ctl & cntv_ctl::ENABLE != 0 && self.virtual_counter() >= self.sys.cntv_cval;
        self.sys.cntv_ctl | if met { cntv_ctl::ISTATUS } else { 0 }
    }

    fn vtimer_fires(&self) -> bool {
        !self.vtimer_masked && self.cntv_ctl() == cntv_ctl::ENABLE | cntv_ctl::ISTATUS
    }

    /// Sets the alarm for the timer's deadline. To be called whenever the timer's registers, mask or offset changed.
    pub(crate) fn update_timer(&mut self) {
        if self.vtimer_masked || self.sys.cntv_ctl & (cntv_ctl::ENABLE | cntv_ctl::IMASK) != cntv_ctl::ENABLE
        {
            return;
        }
        let now = self.machine.counter();
        let left = self.sys.cntv_cval.saturating_sub(now.wrapping_sub(self.vtimer_offset));
        if left == 0 {
            self.shared.request(request::TIMER);
            return;
        }
        // The offset may be "negative" (a guest's counter ahead of the machine's): only the distance is a time.
        let deadline = now.saturating_add(left);
        if self.alarm != Some(deadline)
            && let Some(at) = self.machine.instant_of(deadline)
        {
            self.alarm = Some(deadline);
            self.machine.timer.set(&self.shared, at);
        }
    }

    /// Runs guest code until the guest needs the caller, the virtual timer fires or a [`Canceller`] is used. Pending lines
    /// are clear afterwards.
    pub fn run(&mut self) -> Exit {
        self.shared.running.store(true, Ordering::SeqCst);
        let exit = self.run_blocks();
        self.shared.running.store(false, Ordering::SeqCst);
        self.pending = [false; 2];
        exit
    }

    fn run_blocks(&mut self) -> Exit {
        if let Some(exit) = self.service() {
            return exit;
        }
        self.take_interrupt();
        loop {
            if self.shared.request.load(Ordering::Relaxed) != 0
                && let Some(exit) = self.service()
            {
                return exit;
            }
            let half = (self.pc >> 55 & 1) as usize;
            let mut block = self.code.jump(self.pc, self.context[half]);
            if block.is_null() {
                block = match self.find_block() {
                    Ok(block) => block,
                    Err(None) => continue,
                    Err(Some(exit)) => return exit,
                };
                self.code.set_jump(self.pc, self.context[half], block);
            }
            self.page_va = self.pc & !(PAGE_SIZE - 1);
            if self.run_page(block) == Next::Event {
                match std::mem::replace(&mut self.event, Event::None) {
                    Event::None => {}
                    Event::Exit(exit) => return exit,
                    Event::Synchronise => self.synchronise(),
                }
                self.take_interrupt();
            }
        }
    }

    /// Runs `block` and what it links to within its page. Afterwards `pc` is the next instruction's address.
    #[inline]
    fn run_page(&mut self, mut block: *const Block) -> Next {
        loop {
            // SAFETY: the pointer was taken from the code cache in its current epoch, and blocks are freed only by
            // `service`, `find_block` and `decode_block`, none of which has run since; ops never free blocks.
            let b = unsafe { &*block };
            if self.shared.request.load(Ordering::Relaxed) != 0 {
                self.pc = self.page_va + u64::from(b.offset);
                return Next::Lookup;
            }
            // SAFETY: as above, and blocks end with an op that returns.
            let next = unsafe { At::new(b.ops.as_ptr()) };
            let next = (next.handler)(self, next);
            let cell = match next {
                Next::Taken => &b.links[0],
                Next::Through => &b.links[1],
                Next::Lookup | Next::Event => return next,
            };
            let link = cell.get();
            if link.epoch == self.code.epoch {
                block = link.block;
                continue;
            }
            self.pc = self.page_va.wrapping_add_signed(link.target);
            if !(0..PAGE_SIZE as i64).contains(&link.target) {
                return Next::Lookup;
            }
            let offset = link.target as u64;
            match self.code.find(b.page, offset, b.variant) {
                Some(target) => {
                    cell.set(Link { block: target, epoch: self.code.epoch, ..link });
                    block = target;
                }
                // Decoding may empty the cache, so not here.
                None => return Next::Lookup,
            }
        }
    }

    /// The block at `pc`; `Err(None)` if an exception changed `pc`.
    fn find_block(&mut self) -> Result<*const Block, Option<Exit>> {
        let target = self.branch_target(self.pc);
        if target != self.pc {
            self.pc = target;
            return Err(None);
        }
        if self.pc & 3 != 0 {
            exception::pc_alignment(self);
            return Err(None);
        }
        let context = self.context[(self.pc >> 55 & 1) as usize];
        let page = match self.fetch_tlb.lookup(self.pc, context) {
            Some(page) => page,
            None => {
                let who = if self.pstate.el == 0 { Privilege::El0 } else { Privilege::El1 };
                match self.translate(self.pc, Access::Fetch, who) {
                    Ok(translation) => {
                        self.tlb.note_fetch(self.pc, translation.not_global);
                        self.fetch_tlb.insert(self.pc, context, &translation);
                        translation.page
                    }
                    Err(Fault::Stage1(code)) => {
                        exception::instruction_abort(self, code);
                        return Err(None);
                    }
                    Err(Fault::WalkOutsideMemory { ipa, level }) => {
                        let code = fsc::TRANSLATION | level;
                        return Err(Some(exception::stage2_fetch(self.pc, ipa, code, true)));
                    }
                }
            }
        };
        if self.pstate.il {
            exception::illegal_state(self);
            return Err(None);
        }
        if let Some(block) = self.code.find(page, self.pc, self.variant()) {
            return Ok(block);
        }
        let refused =
            |code: u8| exception::stage2_fetch(self.pc, page | self.pc & (PAGE_SIZE - 1), code | 3, false);
        let Some(region) = self.regions.iter().find(|r| r.host(page, PAGE_SIZE).is_some()).cloned() else {
            return Err(Some(refused(fsc::TRANSLATION)));
        };
        if !region.perms.execute {
            return Err(Some(refused(fsc::PERMISSION)));
        }
        if self.code.is_full() {
            self.code.flush();
        }
        Ok(translate::block(self, &region, page))
    }

    /// Where a branch to `pc` goes: without its tag, if translation ignores the top byte (Arm ARM, AArch64.BranchAddr).
    fn branch_target(&self, pc: u64) -> u64 {
        match (pc >> 55 & 1 != 0, self.sys.tcr >> 37 & 3) {
            (false, 1 | 3) => pc << 8 >> 8,
            (true, 2 | 3) => pc | 0xff << 56,
            _ => pc,
        }
    }

    /// Takes a pending interrupt if PSTATE lets it.
    fn take_interrupt(&mut self) {
        if self.pending[Line::Fiq as usize] && self.pstate.daif & 1 == 0 {
            exception::fiq(self);
        } else if self.pending[Line::Irq as usize] && self.pstate.daif & 2 == 0 {
            exception::irq(self);
        }
    }

    /// Whether an interrupt would be taken now.
    #[inline]
    pub(crate) fn interrupt_due(&self) -> bool {
        self.pending[Line::Irq as usize] && self.pstate.daif & 2 == 0
            || self.pending[Line::Fiq as usize] && self.pstate.daif & 1 == 0
    }

    /// ISR_EL1: which lines are pending.
    pub(crate) fn isr(&self) -> u64 {
        u64::from(self.pending[Line::Irq as usize]) << 7 | u64::from(self.pending[Line::Fiq as usize]) << 6
    }

    /// Acts on the requests of other threads. Must not be called while a block is being executed.
    #[cold]
    fn service(&mut self) -> Option<Exit> {
        let bits = self.shared.request.load(Ordering::SeqCst);
        if bits & request::MAINTENANCE != 0 {
            self.shared.request.fetch_and(!request::MAINTENANCE, Ordering::SeqCst);
            let (mail, number) = self.shared.take_mail();
            for item in mail {
                self.maintain(item);
            }
            self.shared.acknowledge(number);
        }
        if bits & request::TIMER != 0 {
            self.shared.request.fetch_and(!request::TIMER, Ordering::SeqCst);
            self.alarm = None;
            if self.vtimer_fires() {
                self.vtimer_masked = true;
                return Some(Exit::VtimerActivated);
            }
            self.update_timer();
        }
        if bits & request::CANCEL != 0 {
            self.shared.request.fetch_and(!request::CANCEL, Ordering::SeqCst);
            return Some(Exit::Canceled);
        }
        None
    }

    /// Waits until every other CPU has seen this one's broadcasts, and answers theirs meanwhile.
    fn synchronise(&mut self) {
        while !self.broadcast.is_complete() {
            let (mail, number) = self.shared.take_mail();
            for item in mail {
                self.maintain(item);
            }
            self.shared.acknowledge(number);
            std::thread::yield_now();
        }
    }

    fn maintain(&mut self, item: Maintenance) {
        match item {
            Maintenance::TlbAll => self.flush_translations(),
            Maintenance::TlbAsid(asid) => self.flush_asid(asid),
            Maintenance::TlbVa(va) => self.flush_va(va),
            Maintenance::Code(page) => self.code.flush_page(page),
            Maintenance::CodeAll => self.code.flush(),
            Maintenance::Map => {
                self.regions = self.machine.regions();
                self.monitor = Monitor::default();
                self.flush_translations();
                self.code.flush();
            }
        }
    }
}
