//! Every fuzz target on its corpus and on a fixed number of damaged inputs: always the same ones.

use hvrun_fuzz::{runner, target};

/// Any number: another one finds other bugs.
const SEED: u64 = 0x68_7672_756e;

#[track_caller]
fn survives(name: &str) {
    let target = target(name).unwrap();
    if let Err(failure) = runner::soak(target, target.iterations, SEED, |_| true) {
        panic!("{failure}");
    }
}

#[test]
fn virtio_devices_over_mmio_survive_hostile_drivers() {
    survives("virtio-mmio");
}

#[test]
fn virtio_devices_over_pci_survive_hostile_drivers() {
    survives("virtio-pci");
}

#[test]
fn the_pci_bus_survives_hostile_configuration() {
    survives("pci");
}

#[test]
fn the_9p_server_survives_hostile_clients_and_keeps_them_inside_the_share() {
    survives("9p");
}

#[test]
fn the_user_mode_network_survives_hostile_guests_and_keeps_them_restricted() {
    survives("nat");
}

#[test]
fn a_stream_of_frames_survives_hostile_peers() {
    survives("net-stream");
}

#[test]
fn damaged_disk_images_are_errors_at_most() {
    survives("image");
}

#[test]
fn qemu_img_survives_damaged_images_and_makes_sound_copies() {
    survives("image-tool");
}

#[test]
fn any_text_is_an_option_or_an_error() {
    survives("options");
}
