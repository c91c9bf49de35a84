//! Which interrupt each PE is offered: routing of SPIs, choice of the highest priority, and whether it may be signalled
//! (IHI 0069, 4.8). Works on the state and on what is derived from it; registers and locking are elsewhere.

use super::registers::{AFFINITY_MASK, GICR_CTLR_DPG0, GICR_CTLR_DPG1NS, IROUTER_IRM};
use super::state::{Bank, CpuInterface, CpuState, GicState, INTID_LIMIT, SPI_BANKS};
use crate::aarch64::layout::{MAX_CPUS, mpidr};

const CPUS: usize = MAX_CPUS as usize;

/// Bit of the IRQ input in the published lines of a PE.
pub const LINE_IRQ: u8 = 1 << 0;
/// Bit of the FIQ input in the published lines of a PE.
pub const LINE_FIQ: u8 = 1 << 1;

/// The running priority of a PE that handles no interrupt (IHI 0069, 12.2).
pub const IDLE_PRIORITY: u8 = 0xFF;

/// A set of PEs, one bit each.
pub type CpuSet = u32;

/// The interrupt that a PE would take next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub intid: u32,
    pub priority: u8,
    /// 0 or 1.
    pub group: usize,
}

/// Where SPIs go, as words that can be masked onto the pending ones. Derived from GICD_IROUTER.
#[derive(Debug, Default)]
struct Routing {
    /// SPIs routed to this PE alone.
    to_cpu: [[u32; SPI_BANKS]; CPUS],
    /// SPIs that any participating PE may take.
    one_of_n: [u32; SPI_BANKS],
    /// Those of them that are pending now, each given to one PE.
    assigned: [[u32; SPI_BANKS]; CPUS],
    /// Whether `one_of_n` or `assigned` has any bit: without one, there is nothing to assign.
    used: bool,
}

/// The GIC without its lock: state, what is derived from it, and what must be derived anew.
#[derive(Debug)]
pub struct Model {
    pub state: GicState,
    routing: Routing,
    offered: [Option<Candidate>; CPUS],
    lines: [u8; CPUS],
    dirty: CpuSet,
}

/// The numbers of the bits set in `word`, in ascending order.
pub fn bits(mut word: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 32).then_some(bit)
    })
}

impl CpuInterface {
    /// Which bits of a priority of `group` take part in preemption (GroupBits, IHI 0069 4.8): group 1 counts its binary
    /// point from one bit higher, unless it shares that of group 0.
    pub fn group_priority_mask(&self, group: usize) -> u8 {
        let point = if group == 0 || self.common_bpr { self.bpr[0] } else { self.bpr[1].wrapping_sub(1) };
        (0xFF00_u32 >> (7 - u32::from(point.min(7)))) as u8
    }

    /// The most urgent active priority, or 0xFF when idle.
    pub fn running_priority(&self) -> u8 {
        match (self.active_priorities[0] | self.active_priorities[1]).trailing_zeros() {
            32 => IDLE_PRIORITY,
            level => (level << 3) as u8,
        }
    }

    /// Whether `candidate` is urgent enough to interrupt the PE now.
    pub fn can_signal(&self, candidate: Candidate) -> bool {
        let running = self.running_priority();
        let mask = self.group_priority_mask(candidate.group);
        candidate.priority < self.pmr
            && (running == IDLE_PRIORITY || candidate.priority & mask < running & mask)
    }
}

/// The interrupts of `bank` that may be forwarded while `groups` are enabled.
fn forwardable(bank: &Bank, groups: u32) -> u32 {
    let group1 = if groups & 2 != 0 { bank.group } else { 0 };
    let group0 = if groups & 1 != 0 { !bank.group } else { 0 };
    bank.pending() & bank.enabled & !bank.active & (group0 | group1)
}

/// Takes the most urgent of `candidates` if it beats `best`: lower priority value first, then lower INTID.
fn improve(best: &mut Option<Candidate>, bank: &Bank, candidates: u32, first_intid: u32) {
    for index in bits(candidates) {
        let priority = bank.priority[index as usize];
        if best.is_none_or(|b| priority < b.priority) {
            let group = (bank.group >> index & 1) as usize;
            *best = Some(Candidate { intid: first_intid + index, priority, group });
        }
    }
}

impl Model {
    pub fn new(state: GicState) -> Model {
        let mut model =
            Model { state, routing: Routing::default(), offered: [None; CPUS], lines: [0; CPUS], dirty: 0 };
        model.rebuild();
        model
    }

    /// Derives everything anew from the state.
    pub fn rebuild(&mut self) {
        self.routing = Routing::default();
        for spi in 0..self.state.routes.len() {
            self.route_spi(spi);
        }
        self.touch_all();
    }

    pub fn cpu_count(&self) -> usize {
        self.state.cpus.len()
    }

    /// Every PE.
    pub fn all(&self) -> CpuSet {
        (1 << self.cpu_count()) - 1
    }

    /// Notes that `cpus` may be offered something else than before.
    pub fn touch(&mut self, cpus: CpuSet) {
        self.dirty |= cpus;
    }

    /// Notes that every PE may be offered something else than before.
    pub fn touch_all(&mut self) {
        self.dirty |= self.all();
    }

    /// Takes over GICD_IROUTER of SPI number `spi` (INTID - 32).
    pub fn route_spi(&mut self, spi: usize) {
        let route = self.state.routes[spi];
        let (word, bit) = (spi / 32, 1_u32 << (spi % 32));
        let any = route & IROUTER_IRM != 0;
        for cpu in 0..self.cpu_count() {
            let here = !any && route & AFFINITY_MASK == mpidr(cpu as u32) & AFFINITY_MASK;
            let target = &mut self.routing.to_cpu[cpu][word];
            *target = if here { *target | bit } else { *target & !bit };
        }
        let one_of_n = &mut self.routing.one_of_n[word];
        *one_of_n = if any { *one_of_n | bit } else { *one_of_n & !bit };
        self.routing.used |= any;
        self.touch_all();
    }

    /// The PEs whose offer depends on `intid`, an interrupt that `cpu` sees.
    pub fn observers(&self, cpu: usize, intid: u32) -> CpuSet {
        if intid < 32 {
            return 1 << cpu;
        }
        let spi = (intid - 32) as usize;
        let (word, bit) = (spi / 32, 1_u32 << (spi % 32));
        if self.routing.one_of_n.get(word).is_none_or(|w| w & bit != 0) {
            return self.all();
        }
        (0..self.cpu_count())
            .filter(|&c| self.routing.to_cpu[c][word] & bit != 0)
            .fold(0, |set, c| set | 1 << c)
    }

    /// The bank and the index in it of `intid` as `cpu` sees it.
    pub fn bank_mut(&mut self, cpu: usize, intid: u32) -> Option<(&mut Bank, u32)> {
        match intid {
            0..32 => Some((&mut self.state.cpus.get_mut(cpu)?.private, intid)),
            32..INTID_LIMIT => Some((self.state.spis.get_mut((intid / 32 - 1) as usize)?, intid % 32)),
            _ => None,
        }
    }

    /// Changes one interrupt and notes who may see it, if whether it is pending changed.
    pub fn change_pending(&mut self, cpu: usize, intid: u32, change: impl FnOnce(&mut Bank, u32)) {
        let Some((bank, index)) = self.bank_mut(cpu, intid) else {
            log::debug!("GIC: INTID {intid} does not exist; ignored");
            return;
        };
        let before = bank.pending();
        change(bank, index);
        if bank.pending() != before {
            self.touch(self.observers(cpu, intid));
        }
    }

    /// What `cpu` would take next, whatever its priority mask and running priority say.
    pub fn offered(&self, cpu: usize) -> Option<Candidate> {
        self.offered[cpu]
    }

    /// Derives the offers and input lines of every PE that was touched; returns those PEs.
    pub fn refresh(&mut self) -> CpuSet {
        if self.dirty != 0 {
            self.assign_one_of_n();
        }
        let refreshed = std::mem::take(&mut self.dirty);
        for cpu in bits(refreshed) {
            let cpu = cpu as usize;
            let offered = self.select(cpu);
            self.offered[cpu] = offered;
            self.lines[cpu] = match offered {
                Some(c) if self.state.cpus[cpu].interface.can_signal(c) => [LINE_FIQ, LINE_IRQ][c.group],
                _ => 0,
            };
        }
        refreshed
    }

    /// [`LINE_IRQ`] and [`LINE_FIQ`] of a PE, as of the last refresh.
    pub fn lines(&self, cpu: usize) -> u8 {
        self.lines[cpu]
    }

    /// Groups of interrupts that reach `cpu`.
    fn groups(&self, cpu: &CpuState) -> u32 {
        if cpu.asleep { 0 } else { self.state.ctlr & cpu.interface.groups }
    }

    fn select(&self, cpu: usize) -> Option<Candidate> {
        let state = &self.state.cpus[cpu];
        let groups = self.groups(state);
        if groups == 0 {
            return None;
        }
        let mut best = None;
        improve(&mut best, &state.private, forwardable(&state.private, groups), 0);
        for (word, bank) in self.state.spis.iter().enumerate() {
            let here = self.routing.to_cpu[cpu][word] | self.routing.assigned[cpu][word];
            improve(&mut best, bank, forwardable(bank, groups) & here, 32 + 32 * word as u32);
        }
        best
    }

    /// Gives each pending 1-of-N interrupt to one PE (IHI 0069, 2.3.3): the first that it can interrupt now, else the first
    /// that takes part. It is given away again when that changes, which the architecture allows until it is acknowledged.
    fn assign_one_of_n(&mut self) {
        if !self.routing.used {
            return;
        }
        let mut assigned = [[0_u32; SPI_BANKS]; CPUS];
        for (word, bank) in self.state.spis.iter().enumerate() {
            let waiting = self.routing.one_of_n[word] & forwardable(bank, self.state.ctlr);
            for index in bits(waiting) {
                let candidate = Candidate {
                    intid: 0,
                    priority: bank.priority[index as usize],
                    group: (bank.group >> index & 1) as usize,
                };
                if let Some(cpu) = self.choose(candidate) {
                    assigned[cpu][word] |= 1 << index;
                }
            }
        }
        for (cpu, words) in assigned.iter().enumerate().take(self.state.cpus.len()) {
            if *words != self.routing.assigned[cpu] {
                self.dirty |= 1 << cpu;
            }
        }
        self.routing.used = self.routing.one_of_n.iter().any(|&w| w != 0);
        self.routing.assigned = assigned;
    }

    fn choose(&self, candidate: Candidate) -> Option<usize> {
        let refused = [GICR_CTLR_DPG0, GICR_CTLR_DPG1NS][candidate.group];
        let takes_part =
            |cpu: &CpuState| self.groups(cpu) & 1 << candidate.group != 0 && cpu.ctlr & refused == 0;
        let cpus = &self.state.cpus;
        cpus.iter()
            .position(|cpu| takes_part(cpu) && cpu.interface.can_signal(candidate))
            .or_else(|| cpus.iter().position(takes_part))
    }
}
