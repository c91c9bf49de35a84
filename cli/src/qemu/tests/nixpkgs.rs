//! What nixpkgs says to QEMU beyond the plain machine of a test, from 22.11 to 26.11: options of `qemu-vm.nix`, of single tests and of the
//! Linux builder for Macs. Each is honoured, makes no difference, or is refused by name.

use super::*;

/// The NAT of `line`'s only card.
fn user(line: &str) -> UserConfig {
    match config(line).nets.into_iter().map(|net| net.backend).next() {
        Some(NetBackendConfig::User(user)) => user,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_test_on_a_mac_in_a_terminal_has_its_serial_port_there() {
    // 25.05 and later leave -nographic out where TERM_PROGRAM is set, for a window.
    let driver = DRIVER.replace(" -nographic", "");
    assert_eq!(config(&format!("{RUN_SCRIPT} {driver}")), test_machine());
}

#[test]
fn the_users_options_behind_the_scripts_win() {
    let options =
        "-cpu host -machine gic-version=3 -machine virt,accel=hvf -enable-kvm -m 6144 -smp 8 -nographic";
    let expected = MachineConfig {
        memory: MemorySize::from_mib(6144),
        cpus: 8,
        accel: vec![Accel::Hvf],
        ..test_machine()
    };
    assert_eq!(config(&format!("{RUN_SCRIPT} {options} {DRIVER}")), expected);
}

#[test]
fn accelerators_may_not_fall_back_where_a_test_forces_them() {
    assert_eq!(config("-machine virt,gic-version=2,accel=hvf -cpu max").accel, [Accel::Hvf]);
    assert_eq!(config("-machine virt,gic-version=max,accel=kvm:tcg").accel, [Accel::Kvm, Accel::Soft]);
}

#[test]
fn the_linux_builder_for_macs() {
    let line = "-machine virt,gic-version=2,accel=hvf:tcg -cpu max -name nixos -m 3072 -smp 1 -device virtio-rng-pci \
        -net nic,netdev=user.0,model=virtio -netdev user,id=user.0,hostfwd=tcp::31022-:22, \
        -virtfs local,path=/tmp/certs,security_model=none,mount_tag=certs \
        -virtfs local,path=/nix/store/keys,security_model=mapped-xattr,mount_tag=keys \
        -virtfs local,path=/state/xchg,security_model=none,mount_tag=xchg \
        -drive cache=writeback,file=/var/lib/linux-builder/nixos.qcow2,id=drive1,if=none,index=1,werror=report \
        -device virtio-blk-pci,bootindex=1,drive=drive1,serial=root \
        -drive file=/state/store.img,format=raw,id=drive2,if=none,index=2 -device virtio-blk-pci,bootindex=2,drive=drive2 \
        -nographic -device virtio-keyboard -device virtio-gpu-pci -device usb-ehci,id=usb0 -device usb-kbd -device usb-tablet \
        -initrd initrd -append console=tty0~console=ttyAMA0,115200n8";
    let hostfwd = vec!["tcp::31022-:22".parse().unwrap()];
    let user = NetBackendConfig::User(UserConfig { hostfwd, ..UserConfig::default() });
    let store = DiskConfig { format: Some(ImageFormat::Raw), ..disk("drive2", "/state/store.img") };
    let keys =
        ShareConfig { security: SecurityModel::MappedXattr, ..ShareConfig::new("/nix/store/keys", "keys") };
    let expected = MachineConfig {
        name: Some("nixos".into()),
        memory: MemorySize::from_mib(3072),
        cmdline: "console=tty0 console=ttyAMA0,115200n8".into(),
        disks: vec![DiskConfig { path: "/var/lib/linux-builder/nixos.qcow2".into(), ..root() }, store],
        shares: vec![ShareConfig::new("/tmp/certs", "certs"), keys, ShareConfig::new("/state/xchg", "xchg")],
        nets: vec![NetConfig { backend: user, ..user_card() }],
        consoles: Vec::new(),
        monitors: vec![MonitorConfig { kind: MonitorKind::Hmp, to: MonitorPlace::Serial, pretty: false }],
        ..test_machine()
    };
    let expected = MachineConfig { lifecycle: Default::default(), ..expected };
    assert_eq!(config(line), expected);
}

#[test]
fn forwarded_ports_and_restrictions_of_the_network() {
    let line = "-net nic,netdev=user.0,model=virtio -netdev user,id=user.0,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.15:53,\
        guestfwd=tcp:10.0.2.10:80-cmd:/nix/store/nc~127.0.0.1~8080,restrict=on,";
    let user = user(line);
    let hostfwd: Vec<_> = user.hostfwd.iter().map(ToString::to_string).collect();
    assert_eq!(hostfwd, ["tcp:0.0.0.0:2222-:22", "udp:127.0.0.1:53-10.0.2.15:53"]);
    assert_eq!((user.guestfwd.len(), user.restrict), (1, true));
}

#[test]
fn every_security_model_of_a_share() {
    for (name, model) in [
        ("none", SecurityModel::None),
        ("passthrough", SecurityModel::Passthrough),
        ("mapped-xattr", SecurityModel::MappedXattr),
        ("mapped-file", SecurityModel::MappedFile),
    ] {
        let shares = config(&format!("-virtfs local,path=/x,security_model={name},mount_tag=t")).shares;
        assert_eq!(shares, [ShareConfig { security: model, ..ShareConfig::new("/x", "t") }]);
    }
}

#[test]
fn store_images_and_boot_disks_of_all_releases() {
    for (drive, format) in [
        ("file=/t/store.img,format=raw,id=d,if=none,index=2", Some(ImageFormat::Raw)),
        ("file=/t/store.img,format=qcow2,id=d,if=none,index=2", Some(ImageFormat::Qcow2)),
        ("file=/t/disk.img,id=d,if=none,index=2,media=disk", None),
    ] {
        let disks = config(&format!("-drive {drive} -device virtio-blk-pci,bootindex=1,drive=d")).disks;
        assert_eq!((disks.len(), disks[0].format), (1, format), "{drive}");
    }
}

#[test]
fn start_commands_that_tests_write_themselves() {
    // qemu-kvm of 22.11, on an arm64 host.
    let line = "-m 384 -netdev user,id=net0 -device virtio-net-pci,netdev=net0 -drive file=/d.qcow2,if=virtio,werror=report";
    let machine = config(line);
    assert_eq!(
        (machine.memory, machine.disks),
        (
            MemorySize::from_mib(384),
            vec![DiskConfig { id: Some("virtio0".into()), ..DiskConfig::new("/d.qcow2") }]
        )
    );
    // boot.nix.
    let line = "-m 2048 -netdev user,id=net0,tftp=/srv,bootfile=netboot.ipxe -device virtio-net-pci,netdev=net0,romfile=ipxe.efirom \
        -cdrom /x.iso -boot order=n -device usb-ehci -drive id=stick,file=/x.iso,if=none,readonly -device virtio-blk-pci,drive=stick";
    let machine = config(line);
    let disks: Vec<_> =
        machine.disks.iter().map(|disk| (disk.path.to_str().unwrap(), disk.readonly)).collect();
    assert_eq!(disks, [("/x.iso", true), ("/x.iso", true)]);
    assert_eq!(user(line).bootfile.as_deref(), Some("netboot.ipxe"));
}

#[test]
fn a_socket_that_is_not_connected_again() {
    let line = "-chardev socket,id=c,path=/s,reconnect=0 -device virtio-serial -device virtconsole,chardev=c";
    assert_eq!(config(line).consoles[0].to, ChardevConfig::UnixConnect("/s".into()));
}

#[test]
fn displays_and_input_of_graphical_tests_make_no_difference() {
    for line in [
        "-vga none -device virtio-gpu-pci",
        "-vga none -device virtio-gpu-pci,xres=720,yres=1440",
        "-vga virtio",
        "-usb -device usb-tablet,bus=usb-bus.0",
        "-device usb-ehci,id=usb0 -device usb-kbd -device usb-tablet",
        "-device usb-kbd,bus=usb0.0 -device virtio-keyboard -device virtio-keyboard-pci",
        "-global driver=cfi.pflash01,property=secure,value=on",
    ] {
        assert_eq!(config(line), config(""), "{line}");
    }
}

#[test]
fn what_tests_ask_for_and_is_not_there_is_refused_by_name() {
    for (line, words) in [
        ("-machine type=q35,accel=hvf:tcg -cpu max", &["'q35'", "arm64 guests"][..]),
        ("-machine q35,smm=on", &["'q35'", "arm64 guests"]),
        ("-machine type=pc,accel=tcg", &["'pc'", "arm64 guests"]),
        ("-cpu IvyBridge", &["'IvyBridge'", "arm64 CPU"]),
        ("-cpu kvm64,svm=on,vmx=on", &["'kvm64'", "arm64 CPU"]),
        ("-drive if=pflash,format=raw,unit=1,file=/vars.fd", &["if=pflash", "-kernel"]),
        ("-bios /nix/store/bios.bin", &["-bios", "-kernel"]),
        ("-device lsi53c895a -device scsi-hd,drive=drive1", &["lsi53c895a", "virtio-blk-pci"]),
        (
            "-drive id=hda,file=/x,werror=report,if=none -device scsi-hd,drive=hda",
            &["scsi-hd", "virtio-blk-pci"],
        ),
        (
            "-drive id=d,file=/x,if=none,readonly -device usb-storage,drive=d",
            &["usb-storage", "virtio-blk-pci"],
        ),
        (
            "-chardev socket,id=chrtpm,path=/t/socket.ctrl -tpmdev emulator,id=tpm_dev_0,chardev=chrtpm",
            &["-tpmdev", "TPM"],
        ),
        ("-device tpm-tis-device,tpmdev=tpm_dev_0", &["tpm-tis-device", "TPM"]),
        ("-device tpm-tis,tpmdev=tpm0", &["tpm-tis", "TPM"]),
        ("-device i6300esb", &["i6300esb", "watchdog"]),
        ("-usb -device usb-mtp,rootdir=/tmp,readonly=false", &["usb-mtp", "-virtfs"]),
        ("-device canokey,file=/tmp/canokey-file", &["canokey", "USB is not there"]),
        ("-device u2f-emulated", &["u2f-emulated", "USB is not there"]),
    ] {
        let refusal = refusal(line);
        assert!(words.iter().all(|word| refusal.contains(word)), "{line}: {refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}
