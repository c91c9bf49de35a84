//! The machine itself: `-machine`, `-accel`, `-cpu`, `-smp`, `-m`, and what becomes of it (`-no-reboot`, `-action`).

use hvrun_vmm::{Accel, MachineConfig, MemorySize};

use super::command::{Command, Given};
use super::nearest::did_you_mean;
use super::opts::{Opts, Refusal, size};
use super::table::Id;

/// QEMU's memory of a machine for which nobody says any.
const DEFAULT_MEMORY: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// Accelerators of QEMU that this has under the same or another name.
const ACCELS: [(&str, Accel); 4] =
    [("hvf", Accel::Hvf), ("kvm", Accel::Kvm), ("tcg", Accel::Soft), ("soft", Accel::Soft)];
/// Accelerators of QEMU that this has not. In a list they are passed over.
const OTHER_ACCELS: [&str; 6] = ["xen", "hax", "whpx", "nvmm", "qtest", "mshv"];

/// Models that `-cpu` may name. They all get the CPU that the accelerator has.
pub const CPUS: [&str; 22] = [
    "max",
    "host",
    "cortex-a35",
    "cortex-a53",
    "cortex-a55",
    "cortex-a57",
    "cortex-a65",
    "cortex-a65ae",
    "cortex-a72",
    "cortex-a73",
    "cortex-a75",
    "cortex-a76",
    "cortex-a76ae",
    "cortex-a77",
    "cortex-a78",
    "cortex-a710",
    "cortex-x1",
    "a64fx",
    "neoverse-n1",
    "neoverse-n2",
    "neoverse-v1",
    "neoverse-v2",
];
/// Features of a CPU that may be turned on or off; whether a guest sees them is the accelerator's affair.
const CPU_FEATURES: [&str; 16] = [
    "pauth",
    "pauth-impdef",
    "pauth-qarma3",
    "pauth-qarma5",
    "sve",
    "sme",
    "sme_fa64",
    "pmu",
    "lpa2",
    "neon",
    "vfp",
    "reset-hivecs",
    "kvm-no-adjvtime",
    "kvm-steal-time",
    "aarch64",
    "rme",
];

/// The memory backend that RAM is taken from, by its id, and the option that names it.
#[derive(Debug)]
pub struct Backend {
    pub id: String,
    pub opts: Opts,
}

/// Fills in what these options say. Returns the memory backend, if there is one.
pub fn apply(command: &Command, config: &mut MachineConfig) -> Result<Option<Backend>, Refusal> {
    let backend = machine(command, config)?;
    cpu(command)?;
    if let Some(opts) = command.merged(Id::Smp)? {
        config.cpus = smp(opts)?;
    }
    config.memory = MemorySize::from_bytes(memory(command)?.unwrap_or(DEFAULT_MEMORY));
    config.lifecycle.no_reboot = command.has(Id::NoReboot);
    config.lifecycle.no_shutdown = command.has(Id::NoShutdown);
    config.lifecycle.paused = command.has(Id::Paused);
    action(command, config)?;
    match (backend, node(command)?) {
        (Some(_), Some(node)) => {
            Err(node.opts.refuse("-machine memory-backend=... says it already; use one of the two"))
        }
        (backend, node) => Ok(backend.or(node)),
    }
}

/// `-numa node`: of the one node that there is, only the memory backend matters.
fn node(command: &Command) -> Result<Option<Backend>, Refusal> {
    let mut backend = None;
    for (number, given) in command.each(Id::Numa).enumerate() {
        let mut opts = given.opts()?;
        opts.only("type", &["node"])?;
        opts.only("nodeid", &["0"])?;
        opts.without_effect(&["mem", "cpus"]);
        let id = opts.text("memdev")?;
        opts.clone().finish()?;
        if number > 0 {
            return Err(given.refuse("a machine has one node of memory"));
        }
        backend = id.map(|id| Backend { id, opts });
    }
    Ok(backend)
}

/// Whether memory was said at all; if not, a memory backend says how much there is.
pub fn memory(command: &Command) -> Result<Option<u64>, Refusal> {
    for given in command.each(Id::Memory) {
        let opts = given.opts()?;
        if opts.is_empty() {
            return Err(opts.refuse("it needs a size, as in 512M"));
        }
    }
    let Some(mut opts) = command.merged(Id::Memory)? else { return Ok(None) };
    let bytes = opts.size("size", MIB)?.filter(|bytes| *bytes != 0);
    // There is no hot-plug, so it makes no difference how much could be added.
    opts.without_effect(&["slots", "maxmem"]);
    opts.finish()?;
    Ok(bytes)
}

/// `-machine` and `-accel`. Returns the memory backend, if there is one.
fn machine(command: &Command, config: &mut MachineConfig) -> Result<Option<Backend>, Refusal> {
    let mut listed = None;
    let mut backend = None;
    if let Some(mut opts) = command.merged(Id::Machine)? {
        if let Some(name) = opts.text("type")? {
            check_type(&opts, &name)?;
        }
        listed = opts.text("accel")?;
        if let Some(list) = &listed {
            config.accel = accels(&opts, list.split(':'))?;
        }
        opts.only("gic-version", &["2", "3", "4", "max", "host"])?;
        for key in ["virtualization", "secure", "mte", "dumpdtb"] {
            opts.only(key, &["off"])?;
        }
        opts.only("iommu", &["none"])?;
        opts.only("firmware", &[])?;
        let id = opts.text("memory-backend")?;
        opts.without_effect(&[
            "highmem",
            "compact-highmem",
            "highmem-redists",
            "highmem-ecam",
            "highmem-mmio",
            "its",
            "acpi",
            "usb",
            "graphics",
            "dump-guest-core",
            "mem-merge",
            "ras",
            "dtb-randomness",
            "dtb-kaslr-seed",
            "kernel-irqchip",
            "suppress-vmdesc",
            "default-bus-bypass-iommu",
            "nvdimm",
            "hmat",
            "x-oem-id",
            "x-oem-table-id",
            "phandle-start",
        ]);
        opts.clone().finish()?;
        backend = id.map(|id| Backend { id, opts });
    }
    let named: Vec<&Given> = command.each(Id::Accel).filter(|given| given.option == "-accel").collect();
    if let (Some(list), Some(given)) = (&listed, named.first()) {
        return Err(given.refuse(format_args!("-machine accel={list} says it already; use one of the two")));
    }
    let mut list = Vec::new();
    for given in named {
        let mut opts = given.opts()?;
        let name = opts.needed("accel")?;
        opts.without_effect(&[
            "thread",
            "tb-size",
            "split-wx",
            "one-insn-per-tb",
            "kernel-irqchip",
            "dirty-ring-size",
        ]);
        for accel in accels(&opts, name.split(':'))? {
            if !list.contains(&accel) {
                list.push(accel);
            }
        }
        opts.finish()?;
    }
    if !list.is_empty() {
        config.accel = list;
    }
    Ok(backend)
}

fn check_type(opts: &Opts, name: &str) -> Result<(), Refusal> {
    let version = name.strip_prefix("virt").map(|rest| rest.strip_prefix('-').unwrap_or(rest));
    let is_version = |text: &str| text.split('.').all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    match version {
        Some(version) if is_version(version) => Ok(()),
        _ => Err(opts.refuse(format_args!(
            "there is no machine '{name}'; there is 'virt', in any version, for arm64 guests"
        ))),
    }
}

fn accels<'a>(opts: &Opts, names: impl Iterator<Item = &'a str>) -> Result<Vec<Accel>, Refusal> {
    let mut list = Vec::new();
    let mut passed_over = None;
    for name in names {
        match ACCELS.iter().find(|(known, _)| *known == name) {
            Some((_, accel)) if list.contains(accel) => {}
            Some((_, accel)) => list.push(*accel),
            None if OTHER_ACCELS.contains(&name) => passed_over = Some(name),
            None => {
                let hint = did_you_mean(name, ACCELS.iter().map(|(known, _)| *known));
                return Err(opts.refuse(format_args!("there is no accelerator '{name}'{hint}")));
            }
        }
    }
    match (list.is_empty(), passed_over) {
        (true, name) => Err(opts.refuse(format_args!(
            "there is no accelerator '{}' here; there are hvf, kvm and tcg (the software CPU)",
            name.unwrap_or_default()
        ))),
        (false, Some(name)) => {
            log::warn!("accelerator {name} is not there; the next of the list is taken");
            Ok(list)
        }
        (false, None) => Ok(list),
    }
}

/// Checks the last `-cpu`; what the guest sees is the accelerator's affair.
fn cpu(command: &Command) -> Result<(), Refusal> {
    let Some(given) = command.last(Id::Cpu) else { return Ok(()) };
    let mut opts = given.opts()?;
    let model = opts.needed("model")?;
    // `cortex-a53-arm-cpu` is the same model by the name of its type.
    let short = model.strip_suffix("-arm-cpu").unwrap_or(&model);
    if !CPUS.contains(&short) {
        let hint = did_you_mean(short, CPUS.iter().copied());
        return Err(opts.refuse(format_args!("there is no arm64 CPU '{model}'{hint}")));
    }
    opts.only("aarch64", &["on", "true", "yes"])?;
    for (key, value) in opts.rest(&CPU_FEATURES) {
        // Vector lengths are called sve128, sme256 and so on.
        let known = CPU_FEATURES.contains(&key.as_str()) || {
            let length = key.strip_prefix("sve").or_else(|| key.strip_prefix("sme")).unwrap_or("x");
            length == "-default-vector-length" || length.parse::<u32>().is_ok()
        };
        let feature = key.trim_start_matches(['+', '-']);
        if !known && !CPU_FEATURES.contains(&feature) {
            let hint = did_you_mean(feature, CPU_FEATURES.iter().copied());
            return Err(given.refuse(format_args!("there is no CPU feature '{key}'{hint}")));
        }
        log::debug!("-cpu: {key}={value} makes no difference here");
    }
    Ok(())
}

/// The number of CPUs, from a number and a topology of which any part may be missing.
fn smp(mut opts: Opts) -> Result<u32, Refusal> {
    const LEVELS: [&str; 8] =
        ["drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"];
    let mut number = |key| match opts.number(key)? {
        Some(0) => Err(opts.refuse(format_args!("{key}=0: it has to be at least 1"))),
        number => Ok(number),
    };
    let cpus = number("cpus")?;
    let maxcpus = number("maxcpus")?;
    let mut levels = Vec::new();
    for level in LEVELS {
        levels.push((level, number(level)?));
    }
    let product =
        levels.iter().try_fold(1_u64, |product, (_, count)| product.checked_mul(count.unwrap_or(1)));
    let product = product.ok_or_else(|| opts.refuse("these are more CPUs than any machine has"))?;
    let most = maxcpus.or(cpus).unwrap_or(product);
    // The cores make up for what is missing, or the sockets if the cores are given, or the threads.
    let open = ["cores", "sockets", "threads"]
        .into_iter()
        .any(|level| levels.iter().any(|(name, count)| *name == level && count.is_none()));
    let whole = if open { most % product == 0 } else { most == product };
    if !whole {
        return Err(opts.refuse(format_args!("the topology has {product} CPUs, which do not make up {most}")));
    }
    let cpus = cpus.unwrap_or(most);
    if cpus > most {
        return Err(opts.refuse(format_args!("{cpus} CPUs are more than maxcpus={most}")));
    }
    let refusal = opts.refuse(format_args!("{cpus} are more CPUs than any machine has"));
    opts.finish()?;
    u32::try_from(cpus).map_err(|_| refusal)
}

fn action(command: &Command, config: &mut MachineConfig) -> Result<(), Refusal> {
    let Some(mut opts) = command.merged(Id::Action)? else { return Ok(()) };
    match opts.text("reboot")?.as_deref() {
        None => {}
        Some("shutdown") => config.lifecycle.no_reboot = true,
        Some("reset") => config.lifecycle.no_reboot = false,
        Some(other) => return Err(opts.refuse(format_args!("reboot={other}: it can be shutdown or reset"))),
    }
    match opts.text("shutdown")?.as_deref() {
        None => {}
        Some("pause") => config.lifecycle.no_shutdown = true,
        Some("poweroff") => config.lifecycle.no_shutdown = false,
        Some(other) => {
            return Err(opts.refuse(format_args!("shutdown={other}: it can be poweroff or pause")));
        }
    }
    opts.only("panic", &["pause", "shutdown", "exit-failure", "none"])?;
    opts.only("watchdog", &["reset", "shutdown", "poweroff", "inject-nmi", "pause", "debug", "none"])?;
    opts.finish()
}

/// The size of a memory backend.
pub fn backend_size(opts: &Opts, text: &str) -> Result<u64, Refusal> {
    size(text, 1).ok_or_else(|| opts.refuse(format_args!("size={text}: that is no size")))
}
