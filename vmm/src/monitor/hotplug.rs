//! What monitors say of devices that come and go: the commands of people and programs, and what both are shown of slots and of what waits
//! for them. The words of options are a [`PlugParser`](crate::PlugParser)'s affair, and what happens the machine's.

use std::fmt::Write;

use hvrun_devices::virtio::block::{BlockStats, IoStatus};
use hvrun_devices::virtio::net::NetBackendConfig;
use serde_json::{Map, Value, json};

use super::hmp::Answer;
use super::target::{DiskFacts, PciDevice, Target, with_cause};
use crate::hotplug::{DriveFacts, DriveKind, PlugRequest, Said};
use crate::running::BlockNames;

/// Registers of a bridge (PCI-to-PCI Bridge 1.2, 3.2.5): header type, and the buses behind it.
const HEADER_TYPE: usize = 0x0e;
const SECONDARY_BUS: usize = 0x19;
const SUBORDINATE_BUS: usize = 0x1a;

fn perform(target: &dyn Target, request: PlugRequest, done: &str) -> Answer {
    match target.plug(request) {
        Ok(()) => Answer::text(done),
        Err(error) => Answer::error(with_cause(&error)),
    }
}

/// The last word of a command.
fn last(args: &[String]) -> String {
    args.last().cloned().unwrap_or_default()
}

pub(super) fn device_add(target: &dyn Target, args: &[String]) -> Answer {
    perform(target, PlugRequest::AddDevice(Said::Text(last(args))), "")
}

pub(super) fn device_del(target: &dyn Target, args: &[String]) -> Answer {
    perform(target, PlugRequest::RemoveDevice(last(args)), "")
}

/// The words before the last one, which say on which of several PCI buses a disk was to be, mean nothing to a drive without an interface.
pub(super) fn drive_add(target: &dyn Target, args: &[String]) -> Answer {
    perform(target, PlugRequest::AddDrive(Said::Text(last(args))), "OK\n")
}

pub(super) fn drive_del(target: &dyn Target, args: &[String]) -> Answer {
    perform(target, PlugRequest::RemoveDrive(last(args)), "")
}

pub(super) fn netdev_add(target: &dyn Target, args: &[String]) -> Answer {
    perform(target, PlugRequest::AddNetdev(Said::Text(last(args))), "")
}

pub(super) fn netdev_del(target: &dyn Target, args: &[String]) -> Answer {
    perform(target, PlugRequest::RemoveNetdev(last(args)), "")
}

/// A program's arguments as options: nested objects by dots, and each of several values by its key once more.
pub(super) fn said(arguments: Map<String, Value>) -> Said {
    let mut pairs = Vec::new();
    for (key, value) in arguments {
        flatten(&mut pairs, key, value);
    }
    Said::Pairs(pairs)
}

fn flatten(pairs: &mut Vec<(String, String)>, key: String, value: Value) {
    let value = match value {
        Value::Object(members) => {
            for (name, value) in members {
                // QEMU's lists of strings are lists of objects with this one member.
                let key = if name == "str" { key.clone() } else { format!("{key}.{name}") };
                flatten(pairs, key, value);
            }
            return;
        }
        Value::Array(items) => {
            items.into_iter().for_each(|item| flatten(pairs, key.clone(), item));
            return;
        }
        Value::Null => return,
        Value::Bool(on) => if on { "on" } else { "off" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text,
    };
    pairs.push((key, value));
}

/// What is behind a card, as `info network` has it.
pub(super) fn behind(backend: &NetBackendConfig) -> String {
    match backend {
        NetBackendConfig::User(user) => {
            format!(
                "type=user,net={},restrict={}",
                user.net.address,
                if user.restrict { "on" } else { "off" }
            )
        }
        NetBackendConfig::Vde(vde) => format!("type=vde,sock={}", vde.sock.display()),
        NetBackendConfig::Socket(_) => "type=socket".to_owned(),
        NetBackendConfig::Tap(tap) => format!("type=tap,ifname={}", tap.interface),
        NetBackendConfig::Switch(switch) => format!("type=switch,name={}", switch.name),
    }
}

/// The cards in slots, and the networks that wait for one.
pub(super) fn network(target: &dyn Target, text: &mut String) {
    let plugged = target.plugged();
    for card in &plugged.nets {
        let down = if card.link { "" } else { ",link=down" };
        let (id, mac) = (&card.id, &card.mac);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id}: index=0,type=nic,model=virtio-net-pci,macaddr={mac}{down}");
        if let Some(netdev) = plugged.netdevs.iter().find(|netdev| netdev.config.id == card.netdev) {
            let _ = writeln!(text, " \\ {}: index=0,{}", card.netdev, behind(&netdev.config.backend));
        }
    }
    for netdev in plugged.netdevs.iter().filter(|netdev| netdev.user.is_none()) {
        let _ = writeln!(text, "{}: index=0,{}", netdev.config.id, behind(&netdev.config.backend));
    }
}

/// The images that wait for a disk, as monitors show disks.
pub(super) fn waiting(target: &dyn Target) -> Vec<DiskFacts> {
    let waits = |drive: &DriveFacts| drive.user.is_none() || drive.kind == DriveKind::File;
    let disk = |drive: DriveFacts| {
        let DriveFacts { id, kind, config, format, size, .. } = drive;
        let name = if kind == DriveKind::Drive { id.clone() } else { String::new() };
        DiskFacts {
            names: BlockNames { drive: name, node: id },
            device: String::new(),
            config,
            format,
            size,
            status: IoStatus::Ok,
            stats: BlockStats::default(),
        }
    };
    target.plugged().drives.into_iter().filter(waits).map(disk).collect()
}

/// The buses behind a bridge, if `device` is one: the first and the last.
fn buses(device: &PciDevice) -> Option<(u8, u8)> {
    let register = |at: usize| device.registers.get(at).copied();
    (register(HEADER_TYPE)? & 0x7f == 1).then_some((register(SECONDARY_BUS)?, register(SUBORDINATE_BUS)?))
}

/// The functions of a bus for `query-pci`, each by `show`, and with what is behind it.
pub(super) fn pci(devices: &[PciDevice], bus: u8, show: &dyn Fn(&PciDevice) -> Value) -> Vec<Value> {
    let here = devices.iter().filter(|device| device.bus == bus && device.behind.is_none());
    let device = |device: &PciDevice| {
        let mut value = show(device);
        if let (Some((secondary, subordinate)), Some(object)) = (buses(device), value.as_object_mut()) {
            let card = devices.iter().filter(|card| card.behind == Some(device.slot));
            let range = json!({ "base": 0, "limit": 0 });
            let bus = json!({
                "number": device.bus,
                "secondary": secondary,
                "subordinate": subordinate,
                "io_range": range,
                "memory_range": range,
                "prefetchable_range": range,
            });
            let behind = json!({ "bus": bus, "devices": card.map(show).collect::<Vec<_>>() });
            object.insert("pci_bridge".to_owned(), behind);
        }
        value
    };
    here.map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::FakeMachine;

    fn pairs(value: Value) -> Vec<(String, String)> {
        let Value::Object(arguments) = value else { panic!("no object") };
        match said(arguments) {
            Said::Pairs(pairs) => pairs,
            Said::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn a_program_s_arguments_become_options() {
        let arguments = json!({
            "driver": "qcow2",
            "read-only": true,
            "num-queues": 2,
            "file": { "driver": "file", "filename": "/a,b" },
            "hostfwd": [{ "str": "tcp::1-:2" }, { "str": "tcp::3-:4" }],
        });
        let expected = [
            ("driver", "qcow2"),
            ("read-only", "on"),
            ("num-queues", "2"),
            ("file.driver", "file"),
            ("file.filename", "/a,b"),
            ("hostfwd", "tcp::1-:2"),
            ("hostfwd", "tcp::3-:4"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut pairs = pairs(arguments);
        pairs.sort();
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(pairs, expected);
    }

    #[test]
    fn people_s_commands_hand_on_their_options() {
        let machine = FakeMachine::new();
        let word = |text: &str| [text.to_owned()];
        assert_eq!(device_add(machine.as_ref(), &word("virtio-blk-pci,drive=d")).text, "");
        assert_eq!(device_del(machine.as_ref(), &word("x")).text, "Error: Device 'x' not found\n");
        let words = ["0".to_owned(), "if=none,id=d,file=f".to_owned()];
        assert_eq!(drive_add(machine.as_ref(), &words).text, "OK\n");
        let log = machine.log();
        assert_eq!(log.len(), 3);
        assert!(log[2].contains("AddDrive(Text(\"if=none,id=d,file=f\"))"), "{log:?}");
    }
}
