//! Cards that are plugged into a machine's slots and pulled out, by the host and by a scripted guest, and what is open meanwhile.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hvrun_vmm::disk::{Disk, DiskConfig};
use hvrun_vmm::{
    CardConfig, Cause, DiskCardConfig, MachineControl, MachineEvent, Outcome, PlugError, RootPortConfig,
};

use super::fake::Step;
use super::{Setup, setup};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Slot Control of the root port at place 9 (PCI Express Base 5.0, 7.2.2 and 7.5.3.10), and power and its indicator off.
const SLOT_CONTROL: u64 = 0x3f00_0000 + (9 << 15) + 0x4c + 0x18;
const POWER_OFF: u32 = 0x0700;

/// A machine with a slot, whose guest does `steps` when it is resumed, and an image.
fn setup_with_slot(steps: Vec<Step>, cold: bool) -> (Setup, PathBuf) {
    let mut setup = setup(vec![vec![steps]]);
    let image = setup.dir.path().join("hot.img");
    std::fs::write(&image, vec![0; 1 << 16]).unwrap();
    setup.config.lifecycle.paused = true;
    let card = cold.then(|| card(&image));
    setup.config.root_ports = vec![RootPortConfig { addr: Some(9), card, ..RootPortConfig::new("rp0") }];
    (setup, image)
}

fn card(image: &PathBuf) -> CardConfig {
    CardConfig::Disk(DiskCardConfig { id: Some("d0".to_owned()), drive: None, disk: DiskConfig::new(image) })
}

fn is_locked(image: &PathBuf) -> bool {
    Disk::open(&DiskConfig::new(image)).is_err()
}

fn events(control: &MachineControl) -> Receiver<MachineEvent> {
    let (sender, receiver) = channel();
    control.observe(move |event| drop(sender.send(event)));
    receiver
}

fn deleted() -> MachineEvent {
    MachineEvent::DeviceDeleted { device: Some("d0".to_owned()), path: "/machine/peripheral/d0".to_owned() }
}

#[test]
fn a_card_that_no_guest_has_turned_on_goes_at_once() {
    let (setup, image) = setup_with_slot(vec![], false);
    let (machine, _log, _dir) = setup.build().unwrap();
    let control = machine.control();
    let events = events(&control);
    control.plug("rp0", &card(&image)).unwrap();
    assert!(is_locked(&image));
    control.unplug("d0").unwrap();
    assert_eq!(events.try_recv(), Ok(deleted()));
    assert!(!is_locked(&image));
    control.plug("rp0", &card(&image)).unwrap();
}

#[test]
fn a_slot_takes_one_card_and_a_name_is_given_once() {
    let (setup, image) = setup_with_slot(vec![], false);
    let (machine, _log, dir) = setup.build().unwrap();
    let control = machine.control();
    let other = dir.path().join("other.img");
    std::fs::write(&other, vec![0; 512]).unwrap();
    control.plug("rp0", &card(&image)).unwrap();
    assert!(matches!(control.plug("rp0", &card(&other)), Err(PlugError::Duplicate { .. })));
    let nameless = DiskCardConfig { id: None, drive: None, disk: DiskConfig::new(&other) };
    let nameless = CardConfig::Disk(nameless);
    assert!(matches!(control.plug("rp0", &nameless), Err(PlugError::Full { .. })));
    assert!(matches!(control.plug("rp1", &nameless), Err(PlugError::NoBus(_))));
    assert!(matches!(control.unplug("d1"), Err(PlugError::NoDevice(_))));
    assert!(matches!(control.unplug("rp0"), Err(PlugError::FixedBus(_))));
    assert!(!is_locked(&other));
}

#[test]
fn the_names_of_a_disk_that_stays_are_not_given_again() {
    let (mut setup, image) = setup_with_slot(vec![], false);
    let fixed = setup.dir.path().join("fixed.img");
    std::fs::write(&fixed, vec![0; 512]).unwrap();
    let (id, device) = (Some("drive0".to_owned()), Some("d0".to_owned()));
    setup.config.disks = vec![DiskConfig { id, device, ..DiskConfig::new(&fixed) }];
    let (machine, _log, _dir) = setup.build().unwrap();
    let control = machine.control();
    let plug = |id: Option<&str>, drive: Option<&str>| {
        let (id, drive) = (id.map(str::to_owned), drive.map(str::to_owned));
        control.plug("rp0", &CardConfig::Disk(DiskCardConfig { id, drive, disk: DiskConfig::new(&image) }))
    };
    assert!(matches!(plug(Some("d0"), None), Err(PlugError::Duplicate { what: "device", .. })));
    assert!(matches!(plug(None, Some("drive0")), Err(PlugError::Duplicate { what: "drive", .. })));
    assert!(matches!(control.unplug("d0"), Err(PlugError::FixedBus(_))));
}

#[test]
fn a_card_goes_when_the_guest_turns_its_power_off() {
    let (setup, image) = setup_with_slot(vec![Step::Write(SLOT_CONTROL, POWER_OFF), Step::Off], true);
    let (machine, _log, _dir) = setup.build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    let events = events(&control);
    control.unplug("d0").unwrap();
    assert!(matches!(control.unplug("d0"), Err(PlugError::Leaving(_))));
    assert!(is_locked(&image) && events.try_recv().is_err());
    control.resume();
    assert_eq!(events.recv_timeout(LIMIT), Ok(MachineEvent::Resumed));
    assert_eq!(events.recv_timeout(LIMIT), Ok(deleted()));
    assert!(!is_locked(&image));
    assert_eq!(running.wait().unwrap(), Outcome::PoweredOff);
}

#[test]
fn a_reset_takes_a_card_that_was_asked_for() {
    let (setup, image) = setup_with_slot(vec![Step::Reset], true);
    let (machine, _log, _dir) = setup.build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    let events = events(&control);
    control.unplug("d0").unwrap();
    control.resume();
    let heard = [0, 1, 2].map(|_| events.recv_timeout(LIMIT).unwrap());
    assert_eq!(heard, [MachineEvent::Resumed, deleted(), MachineEvent::Reset(Cause::GuestReset)]);
    assert!(!is_locked(&image));
}

#[test]
fn an_ended_machine_has_no_slots_and_no_open_images() {
    let (setup, image) = setup_with_slot(vec![Step::Off], true);
    let (machine, _log, _dir) = setup.build().unwrap();
    let running = machine.start().unwrap();
    let control = running.control();
    control.resume();
    running.wait().unwrap();
    assert!(!is_locked(&image));
    assert!(matches!(control.plug("rp0", &card(&image)), Err(PlugError::Ended)));
}
