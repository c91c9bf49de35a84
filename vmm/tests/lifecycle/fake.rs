//! A hypervisor that runs scripts instead of guest code, and writes down what the machine does to it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use hvrun_arch::{
    Accel, BootState, GuestMemory, Hypervisor, HypervisorError, IrqChip, Kick, Kicker, Spi, Vcpu, VcpuExit,
    Vm, VmConfig,
};
use vm_memory::{Bytes, GuestAddress};

/// What a vCPU does in one `run`. Behind the last step it sleeps until it is kicked.
#[derive(Debug, Clone)]
pub enum Step {
    /// Reads 4 bytes and writes the answer down as `read CPU VALUE`.
    Read(u64),
    Write(u64, u32),
    /// Writes to RAM, without an exit.
    Poke(u64, u32),
    /// Writes down what is in RAM, as `peek CPU VALUE`.
    Peek(u64),
    Off,
    Reset,
    Fault,
    Fail,
    Panic,
}

/// The machine's doings, in order, one line each.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// How many lines begin with `start`.
    pub fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }
}

/// `scripts[cpu][boot]`: what that vCPU does after that boot.
#[derive(Debug, Default)]
pub struct FakeHypervisor {
    pub scripts: Vec<Vec<Vec<Step>>>,
    pub log: Log,
    /// The vCPU that cannot be made.
    pub unmakeable: Option<u32>,
}

impl Hypervisor for FakeHypervisor {
    fn accel(&self) -> Accel {
        Accel::Soft
    }

    fn ipa_bits(&self) -> u32 {
        36
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(FakeVm {
            scripts: self.scripts.clone(),
            log: self.log.clone(),
            unmakeable: self.unmakeable,
            memory: config.memory,
        }))
    }
}

struct FakeVm {
    scripts: Vec<Vec<Vec<Step>>>,
    log: Log,
    unmakeable: Option<u32>,
    memory: GuestMemory,
}

impl Vm for FakeVm {
    fn create_vcpu(&self, id: u32, _boot: BootState) -> Result<Box<dyn Vcpu>, HypervisorError> {
        if self.unmakeable == Some(id) {
            return Err(HypervisorError::Call { call: "create_vcpu", reason: "no CPUs today".to_owned() });
        }
        self.log.add(format!("create {id}"));
        let mut boots = VecDeque::from(self.scripts.get(id as usize).cloned().unwrap_or_default());
        let steps = boots.pop_front().unwrap_or_default().into();
        Ok(Box::new(FakeVcpu {
            id,
            boots,
            steps,
            log: self.log.clone(),
            memory: self.memory.clone(),
            kicks: Arc::default(),
            answer: None,
            buffer: [0; 4],
            home: thread::current().id(),
        }))
    }

    fn irq_chip(&self) -> Arc<dyn IrqChip> {
        Arc::new(NoIrq)
    }

    fn reset(&self) {
        self.log.add("reset vm".to_owned());
    }
}

struct NoIrq;

impl IrqChip for NoIrq {
    fn set_spi(&self, _spi: Spi, _level: bool) {}
    fn send_msi(&self, _addr: u64, _data: u32) {}
}

#[derive(Default)]
struct Kicks {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Kick for Kicks {
    fn kick(&self) {
        *self.pending.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

struct FakeVcpu {
    id: u32,
    boots: VecDeque<Vec<Step>>,
    steps: VecDeque<Step>,
    log: Log,
    memory: GuestMemory,
    kicks: Arc<Kicks>,
    answer: Option<()>,
    buffer: [u8; 4],
    home: thread::ThreadId,
}

impl FakeVcpu {
    fn sleep(&self) {
        let pending = self.kicks.pending.lock().unwrap();
        *self.kicks.changed.wait_while(pending, |pending| !*pending).unwrap() = false;
    }

    fn assert_home(&self) {
        assert_eq!(thread::current().id(), self.home, "a vCPU has left its thread");
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<VcpuExit<'_>, HypervisorError> {
        self.assert_home();
        if self.answer.take().is_some() {
            self.log.add(format!("read {} {:#x}", self.id, u32::from_le_bytes(self.buffer)));
        }
        loop {
            if std::mem::take(&mut *self.kicks.pending.lock().unwrap()) {
                return Ok(VcpuExit::Kicked);
            }
            let Some(step) = self.steps.pop_front() else {
                self.sleep();
                return Ok(VcpuExit::Kicked);
            };
            match step {
                Step::Read(addr) => {
                    self.answer = Some(());
                    return Ok(VcpuExit::MmioRead { addr, data: &mut self.buffer });
                }
                Step::Write(addr, value) => {
                    self.buffer = value.to_le_bytes();
                    return Ok(VcpuExit::MmioWrite { addr, data: &self.buffer });
                }
                Step::Poke(addr, value) => self.memory.write_obj(value, GuestAddress(addr)).unwrap(),
                Step::Peek(addr) => {
                    let value: u32 = self.memory.read_obj(GuestAddress(addr)).unwrap();
                    self.log.add(format!("peek {} {value:#x}", self.id));
                }
                Step::Off => return Ok(VcpuExit::SystemOff),
                Step::Reset => return Ok(VcpuExit::SystemReset),
                Step::Fault => return Ok(VcpuExit::Fault("it tripped over 0xbad".to_owned())),
                Step::Fail => {
                    let reason = "out of luck".to_owned();
                    return Err(HypervisorError::Call { call: "run", reason });
                }
                Step::Panic => panic!("scripted panic"),
            }
        }
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kicks.clone())
    }

    fn reset(&mut self, boot: BootState) -> Result<(), HypervisorError> {
        self.assert_home();
        self.log.add(format!("reset {} at {:#x}", self.id, boot.pc));
        self.steps = self.boots.pop_front().unwrap_or_default().into();
        Ok(())
    }

    fn set_stopped_time(&mut self, _total: Duration) -> Result<(), HypervisorError> {
        self.assert_home();
        self.log.add(format!("clock {}", self.id));
        Ok(())
    }

    fn describe(&self) -> String {
        format!("PC=0x1234 CPU={}\n", self.id)
    }
}

impl Drop for FakeVcpu {
    fn drop(&mut self) {
        self.log.add(format!("drop {}", self.id));
    }
}

impl fmt::Debug for FakeVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeVcpu").field("id", &self.id).finish_non_exhaustive()
    }
}
