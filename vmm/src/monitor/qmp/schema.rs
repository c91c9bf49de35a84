//! What `query-qmp-schema` tells programs: the commands of [`COMMANDS`], the events, and the types of what they take and return, as QEMU
//! documents introspection (docs/devel/qapi-code-gen, "Client JSON Protocol introspection").
//!
//! Types are written down in lines, a type each: `struct NAME MEMBER:TYPE MEMBER?:TYPE`, `enum NAME VALUE VALUE`; `[TYPE]` is an array.
//! Only members that are shown here are listed. As in QEMU, clients see numbers for the names of types, on which they shall not rely.

use serde_json::{Map, Value, json};

use super::NEGOTIATE;
use super::args::{ANY, Argument};
use super::commands::COMMANDS;

/// Types that no line defines, and their JSON.
const BUILTINS: [(&str, &str); 6] = [
    ("str", "string"),
    ("int", "int"),
    ("number", "number"),
    ("bool", "boolean"),
    ("null", "null"),
    ("any", "value"),
];

/// What commands return that return something.
const RETURNS: &[(&str, &str)] = &[
    ("human-monitor-command", "str"),
    ("qom-get", "any"),
    ("qom-list", "[ObjectPropertyInfo]"),
    ("query-balloon", "BalloonInfo"),
    ("query-block", "[BlockInfo]"),
    ("query-block-exports", "[BlockExportInfo]"),
    ("query-block-jobs", "[BlockJobInfo]"),
    ("query-blockstats", "[BlockStats]"),
    ("query-chardev", "[ChardevInfo]"),
    ("query-chardev-backends", "[ChardevBackendInfo]"),
    ("query-commands", "[CommandInfo]"),
    ("query-cpu-definitions", "[CpuDefinitionInfo]"),
    ("query-cpus-fast", "[CpuInfoFast]"),
    ("query-current-machine", "CurrentMachineParams"),
    ("query-display-options", "DisplayOptions"),
    ("query-fdsets", "[FdsetInfo]"),
    ("query-gic-capabilities", "[GICCapability]"),
    ("query-hotpluggable-cpus", "[HotpluggableCPU]"),
    ("query-iothreads", "[IOThreadInfo]"),
    ("query-jobs", "[JobInfo]"),
    ("query-kvm", "KvmInfo"),
    ("query-machines", "[MachineInfo]"),
    ("query-memdev", "[Memdev]"),
    ("query-memory-devices", "[MemoryDeviceInfo]"),
    ("query-memory-size-summary", "MemoryInfo"),
    ("query-mice", "[MouseInfo]"),
    ("query-migrate", "MigrationInfo"),
    ("query-name", "NameInfo"),
    ("query-named-block-nodes", "[BlockDeviceInfo]"),
    ("query-pci", "[PciInfo]"),
    ("query-pr-managers", "[PRManagerInfo]"),
    ("query-qmp-schema", "[SchemaInfo]"),
    ("query-rx-filter", "[RxFilterInfo]"),
    ("query-spice", "SpiceInfo"),
    ("query-status", "StatusInfo"),
    ("query-target", "TargetInfo"),
    ("query-tpm", "[TPMInfo]"),
    ("query-tpm-models", "[TpmModel]"),
    ("query-tpm-types", "[TpmType]"),
    ("query-uuid", "UuidInfo"),
    ("query-version", "VersionInfo"),
    ("query-vnc", "VncInfo"),
    ("query-vnc-servers", "[VncInfo2]"),
];

/// Events and their data.
pub(super) const EVENTS: &[(&str, &[&str])] = &[
    (
        "BLOCK_IO_ERROR",
        &[
            "device:str",
            "node-name?:str",
            "operation:IoOperationType",
            "action:BlockErrorAction",
            "nospace?:bool",
            "reason:str",
        ],
    ),
    ("DEVICE_DELETED", &["device?:str", "path:str"]),
    ("POWERDOWN", &[]),
    ("RESET", &["guest:bool", "reason:ShutdownCause"]),
    ("RESUME", &[]),
    ("SHUTDOWN", &["guest:bool", "reason:ShutdownCause"]),
    ("STOP", &[]),
];

/// See the module.
const TYPES: &str = "\
struct BalloonInfo actual:int
struct BlockDeviceInfo file:str node-name:str ro:bool drv:str backing_file_depth:int encrypted:bool detect_zeroes:DetectZeroes bps:int \
bps_rd:int bps_wr:int iops:int iops_rd:int iops_wr:int image:ImageInfo cache:BlockdevCacheInfo write_threshold:int
enum BlockDeviceIoStatus ok failed nospace
struct BlockDeviceStats rd_bytes:int wr_bytes:int zone_append_bytes:int unmap_bytes:int rd_operations:int wr_operations:int \
zone_append_operations:int flush_operations:int unmap_operations:int rd_total_time_ns:int wr_total_time_ns:int \
zone_append_total_time_ns:int flush_total_time_ns:int unmap_total_time_ns:int wr_highest_offset:int rd_merged:int wr_merged:int \
zone_append_merged:int unmap_merged:int idle_time_ns?:int failed_rd_operations:int failed_wr_operations:int \
failed_zone_append_operations:int failed_flush_operations:int failed_unmap_operations:int invalid_rd_operations:int \
invalid_wr_operations:int invalid_zone_append_operations:int invalid_flush_operations:int invalid_unmap_operations:int \
account_invalid:bool account_failed:bool timed_stats:[any]
enum BlockErrorAction ignore report stop
struct BlockExportInfo id:str type:str node-name:str shutting-down:bool
struct BlockInfo device:str qdev?:str type:str removable:bool locked:bool inserted?:BlockDeviceInfo tray_open?:bool \
io-status?:BlockDeviceIoStatus
struct BlockJobInfo type:str device:str len:int offset:int busy:bool paused:bool speed:int io-status:BlockDeviceIoStatus ready:bool \
status:JobStatus auto-finalize:bool auto-dismiss:bool error?:str
struct BlockStats device?:str qdev?:str node-name?:str stats:BlockDeviceStats parent?:BlockStats backing?:BlockStats
struct BlockdevCacheInfo writeback:bool direct:bool no-flush:bool
struct ChardevBackendInfo name:str
struct ChardevInfo label:str filename:str frontend-open:bool
struct CommandInfo name:str
struct CpuDefinitionInfo name:str migration-safe?:bool static:bool typename:str deprecated:bool
struct CpuInfoFast cpu-index:int qom-path:str thread-id:int props?:CpuInstanceProperties target:SysEmuTarget
struct CpuInstanceProperties node-id?:int socket-id?:int cluster-id?:int core-id?:int thread-id?:int
struct CurrentMachineParams wakeup-suspend-support:bool
enum DetectZeroes off on unmap
struct DisplayOptions type:DisplayType
enum DisplayType default none
struct FdsetInfo fdset-id:int fds:[any]
struct GICCapability version:int emulated:bool kernel:bool
struct HotpluggableCPU type:str vcpus-count:int props:CpuInstanceProperties qom-path?:str
struct IOThreadInfo id:str thread-id:int poll-max-ns:int poll-grow:int poll-shrink:int aio-max-batch:int
enum ImageFormat ppm png
struct ImageInfo filename:str format:str dirty-flag?:bool actual-size?:int virtual-size:int
enum IoOperationType read write
struct JobInfo id:str type:str status:JobStatus current-progress:int total-progress:int error?:str
enum JobStatus undefined created running paused ready standby waiting pending aborting concluded null
struct KvmInfo enabled:bool present:bool
struct MachineInfo name:str alias?:str is-default?:bool cpu-max:int hotpluggable-cpus:bool numa-mem-supported:bool deprecated:bool \
default-cpu-type?:str default-ram-id?:str acpi:bool
struct Memdev id?:str size:int merge:bool dump:bool prealloc:bool share:bool reserve?:bool host-nodes:[int] policy:str
struct MemoryDeviceInfo type:str data:any
struct MemoryInfo base-memory:int plugged-memory?:int
struct MigrationInfo status?:str
struct MouseInfo name:str index:int current:bool absolute:bool
struct NameInfo name?:str
struct ObjectPropertyInfo name:str type:str description?:str default-value?:any
struct PRManagerInfo id:str connected:bool
struct PciBridgeInfo bus:PciBusInfo devices?:[PciDeviceInfo]
struct PciBusInfo number:int secondary:int subordinate:int io_range:PciMemoryRange memory_range:PciMemoryRange \
prefetchable_range:PciMemoryRange
struct PciDeviceClass desc?:str class:int
struct PciDeviceId device:int vendor:int subsystem?:int subsystem-vendor?:int
struct PciDeviceInfo bus:int slot:int function:int class_info:PciDeviceClass id:PciDeviceId irq?:int irq_pin:int qdev_id:str \
regions:[PciMemoryRegion] pci_bridge?:PciBridgeInfo
struct PciInfo bus:int devices:[PciDeviceInfo]
struct PciMemoryRange base:int limit:int
struct PciMemoryRegion bar:int type:str address:int size:int prefetch?:bool mem_type_64?:bool
enum QMPCapability oob
enum RunState debug inmigrate internal-error io-error paused postmigrate prelaunch finish-migrate restore-vm running save-vm shutdown \
suspended watchdog guest-panicked colo
struct RxFilterInfo name:str promiscuous:bool multicast:RxState unicast:RxState vlan:RxState broadcast-allowed:bool \
multicast-overflow:bool unicast-overflow:bool main-mac:str vlan-table:[int] unicast-table:[str] multicast-table:[str]
enum RxState normal none all
struct SchemaInfo name:str meta-type:str arg-type?:str ret-type?:str members?:[any] element-type?:str json-type?:str values?:[str]
enum ShutdownCause none host-error host-qmp-quit host-qmp-system-reset host-signal host-ui guest-shutdown guest-reset guest-panic \
subsystem-reset snapshot-load
struct SpiceInfo enabled:bool migrated:bool mouse-mode:SpiceQueryMouseMode
enum SpiceQueryMouseMode client server unknown
struct StatusInfo running:bool status:RunState
enum SysEmuTarget aarch64
struct TPMInfo id:str model:TpmModel options:any
struct TargetInfo arch:SysEmuTarget
enum TpmModel tpm-tis tpm-crb tpm-spapr
enum TpmType passthrough emulator
struct UuidInfo UUID:str
struct VersionInfo qemu:VersionTriple package:str
struct VersionTriple major:int minor:int micro:int
struct VncInfo enabled:bool
struct VncInfo2 id:str server:[any] clients:[any] auth:str
";

/// All types that have been met, and what is left to say of them.
#[derive(Default)]
struct Types {
    /// Those that have a number instead of a name; an argument list is one of its own.
    known: Vec<String>,
    told: Vec<Value>,
}

impl Types {
    /// What clients see instead of `name`. What it is follows.
    fn name(&mut self, name: &str) -> String {
        if BUILTINS.iter().any(|(builtin, _)| *builtin == name) {
            return name.to_owned();
        }
        if let Some(element) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let element = self.name(element);
            let name = format!("[{element}]");
            if !self.known.contains(&name) {
                self.known.push(name.clone());
                self.told.push(json!({ "name": name, "meta-type": "array", "element-type": element }));
            }
            return name;
        }
        match self.known.iter().position(|known| known == name) {
            Some(number) => number.to_string(),
            None => self.tell(name),
        }
    }

    /// Says what the type `name` is.
    fn tell(&mut self, name: &str) -> String {
        let number = self.known.len().to_string();
        self.known.push(name.to_owned());
        let line = TYPES.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut found = line.filter(|words| words.get(1) == Some(&name));
        match found.next().as_deref() {
            Some(["enum", _, values @ ..]) => {
                let members: Vec<Value> = values.iter().map(|value| json!({ "name": value })).collect();
                self.told.push(
                    json!({ "name": number, "meta-type": "enum", "members": members, "values": values }),
                );
            }
            Some([_, _, members @ ..]) => self.members(&number, members),
            _ => self.members(&number, &[]),
        }
        number
    }

    fn members(&mut self, number: &str, members: &[&str]) {
        let member = |text: &&str| {
            let Argument { name, optional, kind } = Argument::parse(text);
            let mut member = Map::new();
            member.insert("name".to_owned(), json!(name));
            if optional {
                member.insert("default".to_owned(), Value::Null);
            }
            member.insert("type".to_owned(), Value::String(self.name(kind)));
            Value::Object(member)
        };
        // As in QEMU, nothing tells of members that depend on others.
        let members: Vec<Value> = members.iter().filter(|text| **text != ANY).map(member).collect();
        self.told.push(json!({ "name": number, "meta-type": "object", "members": members }));
    }

    /// The type of these arguments of `owner`.
    fn arguments(&mut self, owner: &str, arguments: &[&str]) -> String {
        if arguments.is_empty() {
            return self.name("Empty");
        }
        let number = self.known.len().to_string();
        self.known.push(format!("{owner}-arg"));
        self.members(&number, arguments);
        number
    }
}

/// See the module.
pub(super) fn schema() -> Value {
    let mut types = Types::default();
    let mut told = Vec::new();
    let negotiate: (&str, &[&str]) = (NEGOTIATE, &["enable?: [QMPCapability]"]);
    for (name, arguments) in
        COMMANDS.iter().map(|(name, arguments, _)| (*name, *arguments)).chain([negotiate])
    {
        let returns = RETURNS.iter().find(|(command, _)| *command == name).map_or("Empty", |(_, kind)| *kind);
        let (takes, returns) = (types.arguments(name, arguments), types.name(returns));
        told.push(json!({ "name": name, "meta-type": "command", "arg-type": takes, "ret-type": returns }));
    }
    for (name, members) in EVENTS {
        let data = types.arguments(name, members);
        told.push(json!({ "name": name, "meta-type": "event", "arg-type": data }));
    }
    told.extend(types.told);
    told.extend(
        BUILTINS.map(|(name, kind)| json!({ "name": name, "meta-type": "builtin", "json-type": kind })),
    );
    Value::Array(told)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::super::testing::FakeMachine;
    use super::super::commands::execute;
    use super::*;

    fn entries() -> HashMap<String, Value> {
        let Value::Array(all) = schema() else { panic!("no array") };
        let count = all.len();
        let entries: HashMap<String, Value> =
            all.into_iter().map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry)).collect();
        assert_eq!(entries.len(), count, "a name is there twice");
        entries
    }

    #[test]
    fn every_type_that_is_named_is_there() {
        let entries = entries();
        for entry in entries.values() {
            let direct = ["arg-type", "ret-type", "element-type"].map(|key| &entry[key]);
            let members = entry["members"].as_array().into_iter().flatten().map(|member| &member["type"]);
            for name in direct.into_iter().chain(members).filter_map(Value::as_str) {
                assert!(entries.contains_key(name), "{name} of {entry}");
            }
        }
    }

    #[test]
    fn every_type_that_a_line_names_has_a_line_of_its_own() {
        let defined: Vec<&str> = TYPES.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let is_known = |kind: &str| {
            let kind = kind.trim_matches(['[', ']']);
            BUILTINS.iter().any(|(name, _)| *name == kind) || defined.contains(&kind)
        };
        let fields = TYPES.split_whitespace().filter_map(|word| word.split_once(':')).map(|(_, kind)| kind);
        let returned = RETURNS.iter().map(|(_, kind)| *kind);
        let taken = COMMANDS
            .iter()
            .flat_map(|(_, takes, _)| takes.iter())
            .filter(|text| **text != ANY)
            .map(|text| Argument::parse(text).kind);
        let told = EVENTS.iter().flat_map(|(_, data)| data.iter()).map(|text| Argument::parse(text).kind);
        for kind in fields.chain(returned).chain(taken).chain(told) {
            assert!(is_known(kind), "{kind}");
        }
        for (command, _) in RETURNS {
            assert!(COMMANDS.iter().any(|(name, ..)| name == command), "{command}");
        }
    }

    #[test]
    fn a_command_is_told_with_its_arguments() {
        let entries = entries();
        let command = &entries["set_link"];
        assert_eq!(command["meta-type"], "command");
        let members = &entries[command["arg-type"].as_str().unwrap()]["members"];
        assert_eq!(members, &json!([{ "name": "name", "type": "str" }, { "name": "up", "type": "bool" }]));
        let optional = &entries[entries["human-monitor-command"]["arg-type"].as_str().unwrap()]["members"][1];
        assert_eq!(optional, &json!({ "name": "cpu-index", "default": null, "type": "int" }));
    }

    /// Whether `value` is of the type `kind`.
    fn check(entries: &HashMap<String, Value>, kind: &str, value: &Value, path: &str) {
        let entry = &entries[kind];
        match entry["meta-type"].as_str().unwrap() {
            "builtin" => {
                let fits = match kind {
                    "str" => value.is_string(),
                    "int" => value.is_i64() || value.is_u64(),
                    "bool" => value.is_boolean(),
                    _ => true,
                };
                assert!(fits, "{path}: {value} is no {kind}");
            }
            "enum" => assert!(entry["values"].as_array().unwrap().contains(value), "{path}: {value}"),
            "array" => {
                for item in value.as_array().unwrap_or_else(|| panic!("{path}: {value}")) {
                    check(entries, entry["element-type"].as_str().unwrap(), item, path);
                }
            }
            _ => {
                let object = value.as_object().unwrap_or_else(|| panic!("{path}: {value}"));
                let members = entry["members"].as_array().unwrap();
                for member in members {
                    let (name, kind) = (member["name"].as_str().unwrap(), member["type"].as_str().unwrap());
                    let path = format!("{path}.{name}");
                    match object.get(name) {
                        Some(value) => check(entries, kind, value, &path),
                        None => assert!(member.get("default").is_some(), "{path} is missing"),
                    }
                }
                for name in object.keys() {
                    assert!(
                        members.iter().any(|member| member["name"] == **name),
                        "{path}.{name} is not in it"
                    );
                }
            }
        }
    }

    #[test]
    fn every_query_answers_with_the_type_that_the_schema_has() {
        let (entries, machine) = (entries(), FakeMachine::new());
        let mut asked = 0;
        for (name, ..) in COMMANDS.iter().filter(|(name, ..)| name.starts_with("query-")) {
            if let Ok(reply) = execute(machine.as_ref(), name, Map::new()) {
                if *name != "query-qmp-schema" {
                    check(&entries, entries[*name]["ret-type"].as_str().unwrap(), &reply.value, name);
                }
                asked += 1;
            }
        }
        assert!(asked > 35, "{asked}");
    }
}
