//! Whole command lines: those that NixOS' run scripts and test driver have made since 22.11, and what is wrong with others.

mod bad_input;
mod nixpkgs;

use hvrun_vmm::disk::{DiskConfig, ErrorPolicy, ImageFormat};
use hvrun_vmm::net::user::UserConfig;
use hvrun_vmm::net::vde::VdeConfig;
use hvrun_vmm::ninep::{SecurityModel, ShareConfig};
use hvrun_vmm::serial::ChardevConfig;
use hvrun_vmm::virtio::balloon::BalloonConfig;
use hvrun_vmm::virtio::console::{ConsoleConfig, PortConfig};
use hvrun_vmm::virtio::net::{CommonOptions, NetBackendConfig, NetConfig};
use hvrun_vmm::virtio::rng::RngConfig;
use hvrun_vmm::virtio::vhost_user::{FsConfig, VhostUserConfig, VhostUserDevice};
use hvrun_vmm::{Accel, MemoryBacking, MonitorConfig, MonitorKind, MonitorPlace, Transport};

use proptest::prelude::*;

use super::table::OPTIONS;
use super::*;

/// Words are separated by spaces; a `~` stands for a space within one.
fn parse_line(line: &str) -> Result<Action, Refusal> {
    let words = line.split_whitespace().map(|word| OsString::from(word.replace('~', " ")));
    parse("qemu-system-aarch64", words)
}

/// The machine of this command line, with a kernel.
fn config(line: &str) -> MachineConfig {
    match parse_line(&format!("{line} -kernel Image")) {
        Ok(Action::Run { config, .. }) => config,
        other => panic!("{other:?}"),
    }
}

fn refusal(line: &str) -> String {
    match parse_line(&format!("{line} -kernel Image")) {
        Err(refusal) => refusal.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

/// A machine with nothing in it.
fn bare() -> MachineConfig {
    MachineConfig {
        memory: MemorySize::from_mib(128),
        serial: ChardevConfig::None,
        rng: None,
        ..MachineConfig::new("Image")
    }
}

fn card(id: &str, netdev: &str, mac: &str, backend: NetBackendConfig) -> NetConfig {
    let common = CommonOptions {
        mac: Some(mac.parse().unwrap()),
        id: Some(id.to_owned()),
        netdev: Some(netdev.to_owned()),
        ..CommonOptions::default()
    };
    NetConfig { common, backend }
}

fn user_card() -> NetConfig {
    let user = NetBackendConfig::User(UserConfig::default());
    card("virtio-net-pci.0", "user.0", "52:54:00:12:34:56", user)
}

fn vlan_card(number: usize, vlan: u32, mac: &str) -> NetConfig {
    let sock = format!("/run/vde{vlan}.ctl");
    let backend = NetBackendConfig::Vde(VdeConfig::new(sock));
    card(&format!("virtio-net-pci.{number}"), &format!("vlan{number}"), mac, backend)
}

/// The image of the drive `id`, with QEMU's policy where none is named.
fn disk(id: &str, path: &str) -> DiskConfig {
    DiskConfig { id: Some(id.into()), werror: ErrorPolicy::Enospc, ..DiskConfig::new(path) }
}

fn root() -> DiskConfig {
    let disk = disk("drive1", "/state/machine.qcow2");
    DiskConfig { serial: Some("root".into()), werror: ErrorPolicy::Report, ..disk }
}

fn shares() -> Vec<ShareConfig> {
    vec![
        ShareConfig::new("/nix/store", "nix-store"),
        ShareConfig::new("/shared", "shared"),
        ShareConfig::new("/state/xchg", "xchg"),
    ]
}

fn shell() -> ConsoleConfig {
    ConsoleConfig { to: ChardevConfig::UnixConnect("/state/shell".into()), ..ConsoleConfig::default() }
}

fn monitors() -> Vec<MonitorConfig> {
    vec![
        MonitorConfig::new(MonitorKind::Qmp, ChardevConfig::Unix("/state/qmp".into())),
        MonitorConfig::new(MonitorKind::Hmp, ChardevConfig::UnixConnect("/state/monitor".into())),
    ]
}

/// What the run script of a test's machine says on a Mac, before what the driver appends.
const RUN_SCRIPT: &str = "-machine virt,gic-version=2,accel=hvf:tcg -cpu max -name machine -m 1024 -smp 1 -device virtio-rng-pci \
    -net nic,netdev=user.0,model=virtio -netdev user,id=user.0, \
    -virtfs local,path=/nix/store,security_model=none,mount_tag=nix-store \
    -virtfs local,path=/shared,security_model=none,mount_tag=shared \
    -virtfs local,path=/state/xchg,security_model=none,mount_tag=xchg \
    -drive cache=writeback,file=/state/machine.qcow2,id=drive1,if=none,index=1,werror=report \
    -device virtio-blk-pci,bootindex=1,drive=drive1,serial=root \
    -device virtio-net-pci,netdev=vlan1,mac=52:54:00:12:01:01 -netdev vde,id=vlan1,sock=/run/vde1.ctl \
    -device virtio-keyboard -device virtio-gpu-pci -device usb-ehci,id=usb0 -device usb-kbd -device usb-tablet \
    -initrd initrd -append console=ttyAMA0~panic=1";

/// What the test driver has appended since 23.11.
const DRIVER: &str = "-qmp unix:/state/qmp,server=on,wait=off -monitor unix:/state/monitor \
    -chardev socket,id=shell,path=/state/shell -device virtio-serial -device virtconsole,chardev=shell \
    -device virtio-rng-pci -serial stdio -no-reboot -nographic";

/// The machine of both.
fn test_machine() -> MachineConfig {
    let mut config = MachineConfig {
        name: Some("machine".into()),
        memory: MemorySize::from_mib(1024),
        initrd: Some("initrd".into()),
        cmdline: "console=ttyAMA0 panic=1".into(),
        accel: vec![Accel::Hvf, Accel::Soft],
        serial: ChardevConfig::Stdio,
        disks: vec![root()],
        shares: shares(),
        nets: vec![user_card(), vlan_card(1, 1, "52:54:00:12:01:01")],
        consoles: vec![shell()],
        monitors: monitors(),
        rng: Some(RngConfig::default()),
        ..bare()
    };
    config.lifecycle.no_reboot = true;
    config
}

#[test]
fn a_test_on_a_mac_from_24_05_on() {
    let config = config(&format!("{RUN_SCRIPT} {DRIVER}"));
    assert_eq!(config, test_machine());
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn a_pinned_version_of_the_machine_changes_nothing() {
    let script = RUN_SCRIPT.replace("virt,gic-version=2", "virt-11.0,gic-version=2");
    assert_eq!(config(&format!("{script} {DRIVER}")), test_machine());
}

#[test]
fn a_test_of_22_11_whose_options_come_twice() {
    let script = RUN_SCRIPT.replace("bootindex=1,", "").replace(",serial=root", "");
    let driver = "-monitor unix:/state/monitor -chardev socket,id=shell,path=/state/shell -no-reboot -device virtio-serial \
        -device virtconsole,chardev=shell -device virtio-rng-pci -serial stdio -m 2048 -m 2048 -nographic -nographic";
    let mut expected = test_machine();
    expected.disks[0].serial = None;
    expected.monitors.remove(0);
    expected.memory = MemorySize::from_mib(2048);
    assert_eq!(config(&format!("{script} {driver}")), expected);
}

#[test]
fn a_plain_machine_of_a_linux_host() {
    let line = "-machine accel=kvm:tcg -cpu max -name horus -m 1024 -smp 1 -device virtio-rng-pci \
        -net nic,netdev=user.0,model=virtio -netdev user,id=user.0,hostfwd=tcp::2222-:22 \
        -virtfs local,path=/nix/store,security_model=none,mount_tag=nix-store \
        -drive cache=writeback,file=/state/machine.qcow2,id=drive1,if=none,index=1,werror=report \
        -device virtio-blk-pci,bootindex=1,drive=drive1,serial=root -device virtio-keyboard -usb \
        -device usb-tablet,bus=usb-bus.0 -append init=/init~console=tty0";
    let user = UserConfig { hostfwd: vec!["tcp::2222-:22".parse().unwrap()], ..UserConfig::default() };
    let expected = MachineConfig {
        name: Some("horus".into()),
        memory: MemorySize::from_mib(1024),
        cmdline: "init=/init console=tty0".into(),
        accel: vec![Accel::Kvm, Accel::Soft],
        // QEMU has it in a window.
        serial: ChardevConfig::Stdio,
        disks: vec![root()],
        shares: vec![ShareConfig::new("/nix/store", "nix-store")],
        nets: vec![NetConfig { backend: NetBackendConfig::User(user), ..user_card() }],
        rng: Some(RngConfig::default()),
        ..bare()
    };
    assert_eq!(config(line), expected);
}

#[test]
fn store_image_and_empty_disks_follow_the_root_disk_in_their_order() {
    let line = "-drive file=/a,id=drive1,if=none,index=1 -device virtio-blk-pci,bootindex=1,drive=drive1,serial=root \
        -drive file=/t/store.img,format=raw,id=drive2,if=none,index=2 -device virtio-blk-pci,bootindex=2,drive=drive2 \
        -drive file=/t/empty0.qcow2,id=drive3,if=none,index=3,werror=report -device virtio-blk-pci,drive=drive3 \
        -drive file=/t/empty1.qcow2,id=drive4,if=none,index=4,werror=report -device virtio-blk-pci,drive=drive4";
    let config = config(line);
    let paths: Vec<_> = config.disks.iter().map(|disk| disk.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/a", "/t/store.img", "/t/empty0.qcow2", "/t/empty1.qcow2"]);
    assert_eq!(config.disks[1].format, Some(ImageFormat::Raw));
}

#[test]
fn disks_of_their_own_follow_those_of_devices() {
    let line = "-drive index=2,file=/own,read-only,if=virtio -drive file=/a,id=a,if=none -device virtio-blk-pci,drive=a -cdrom /c -hda /h";
    // -cdrom has the index 2, too.
    assert!(refusal(line).contains("index=2"));
    let config = config(&line.replace("index=2", "index=4"));
    let disks: Vec<_> =
        config.disks.iter().map(|disk| (disk.path.to_str().unwrap(), disk.readonly)).collect();
    assert_eq!(disks, [("/a", false), ("/own", true), ("/c", true), ("/h", false)]);
}

#[test]
fn cards_of_net_come_before_those_of_devices() {
    let line = "-device virtio-net-pci,netdev=vlan1,mac=52:54:00:12:01:01 -device virtio-net-pci,netdev=vlan2,mac=52:54:00:12:02:01 \
        -netdev vde,id=vlan1,sock=/run/vde1.ctl -netdev vde,id=vlan2,sock=/run/vde2.ctl \
        -net nic,netdev=user.0,model=virtio -netdev user,id=user.0,restrict=on,";
    let user = NetBackendConfig::User(UserConfig { restrict: true, ..UserConfig::default() });
    let expected = [
        card("virtio-net-pci.0", "user.0", "52:54:00:12:34:56", user),
        vlan_card(1, 1, "52:54:00:12:01:01"),
        vlan_card(2, 2, "52:54:00:12:02:01"),
    ];
    assert_eq!(config(line).nets, expected);
}

#[test]
fn cards_without_an_address_get_qemus() {
    let line = "-nic user,mac=02:00:00:00:00:01 -nic user,id=n -netdev user,id=x -device virtio-net-pci,netdev=x,id=nic9";
    let nets = config(line).nets;
    let macs: Vec<_> = nets.iter().map(|net| net.common.mac.map(|mac| mac.to_string())).collect();
    assert_eq!(macs[0].as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(macs[1].as_deref(), Some("52:54:00:12:34:56"));
    assert_eq!(macs[2].as_deref(), Some("52:54:00:12:34:57"));
    assert_eq!((nets[1].common.netdev.as_deref(), nets[2].common.id.as_deref()), (Some("n"), Some("nic9")));
}

#[test]
fn without_a_word_about_networks_there_is_one_behind_a_nat() {
    let nets = config("-m 512").nets;
    assert_eq!(nets.len(), 1);
    assert_eq!(nets[0].backend, NetBackendConfig::User(UserConfig::default()));
    for line in ["-nodefaults", "-net none", "-nic none"] {
        assert_eq!(config(line).nets, [], "{line}");
    }
}

#[test]
fn a_nic_and_a_user_network_of_net_belong_together() {
    let nets = config("-net nic,macaddr=02:00:00:00:00:01 -net user,hostfwd=tcp::1-:1").nets;
    assert_eq!(nets.len(), 1);
    assert!(matches!(&nets[0].backend, NetBackendConfig::User(user) if user.hostfwd.len() == 1));
}

#[test]
fn the_metadata_server_of_the_images_of_clouds() {
    let line = "-m 1024 -device virtio-net-pci,netdev=vlan0 \
        -netdev user,id=vlan0,net=169.0.0.0/8,guestfwd=tcp:169.254.169.254:80-cmd:micro_httpd~/srv \
        -drive file=/d.qcow2,if=virtio,werror=report -nographic";
    let config = config(line);
    let NetBackendConfig::User(user) = &config.nets[0].backend else { panic!() };
    assert_eq!((user.net.to_string(), user.guestfwd.len()), ("169.0.0.0/8".to_owned(), 1));
    assert_eq!(config.disks, [DiskConfig { werror: ErrorPolicy::Report, ..disk("virtio0", "/d.qcow2") }]);
}

#[test]
fn forwardings_with_empty_variables_between_them() {
    for rest in ["", ",", ",,", ",restrict=on", ",,restrict=on", ",hostfwd=udp::53-10.0.2.15:53,"] {
        let config = config(&format!("-nic user,hostfwd=tcp::31022-:22{rest}"));
        let NetBackendConfig::User(user) = &config.nets[0].backend else { panic!() };
        assert_eq!(user.hostfwd[0].to_string(), "tcp:0.0.0.0:31022-:22", "{rest}");
        assert_eq!(user.restrict, rest.contains("restrict"), "{rest}");
    }
}

#[test]
fn a_share_of_the_linux_builder() {
    let line = "-virtfs local,path=/keys,security_model=mapped-xattr,mount_tag=keys,readonly=on,multidevs=remap \
        -fsdev local,id=f,path=/a,,b,security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=t";
    let keys = ShareConfig {
        security: SecurityModel::MappedXattr,
        readonly: true,
        ..ShareConfig::new("/keys", "keys")
    };
    assert_eq!(config(line).shares, [keys, ShareConfig::new("/a,b", "t")]);
}

#[test]
fn repeated_options_are_merged_or_the_last_one_counts() {
    let line = "-machine virt,gic-version=2,accel=hvf:tcg -machine gic-version=3 -machine accel=kvm -m 512 -m 1G -smp 2 -smp 4 \
        -cpu max -cpu host -enable-kvm -enable-kvm -append a -append b -nographic -nographic -nodefaults";
    let config = config(line);
    assert_eq!((config.accel, config.cpus), (vec![Accel::Kvm], 4));
    assert_eq!((config.memory, config.cmdline.as_str()), (MemorySize::from_mib(1024), "b"));
}

#[test]
fn memory_and_cpus_are_written_in_many_ways() {
    for (line, mib) in
        [("-m 1024", 1024), ("-m 1G", 1024), ("-m size=2G,slots=2,maxmem=4G", 2048), ("-m size=512", 512)]
    {
        assert_eq!(config(line).memory, MemorySize::from_mib(mib), "{line}");
    }
    for (line, cpus) in [
        ("-smp 2", 2),
        ("-smp cpus=2", 2),
        ("-smp 4,sockets=2,cores=2,threads=1", 4),
        ("-smp cores=3", 3),
        ("-smp 2,maxcpus=8", 2),
        ("-smp 4,cores=2", 4),
    ] {
        assert_eq!(config(line).cpus, cpus, "{line}");
    }
}

#[test]
fn accelerators_are_lists_by_either_option() {
    assert_eq!(config("-accel kvm -accel tcg,thread=multi").accel, [Accel::Kvm, Accel::Soft]);
    assert_eq!(config("-machine virt,accel=xen:tcg").accel, [Accel::Soft]);
    assert_eq!(config("-M virt").accel, Accel::ALL);
}

#[test]
fn a_memory_backend_says_how_much_there_is() {
    let line = "-object memory-backend-memfd,id=mem,size=2G,share=on -machine virt,memory-backend=mem";
    assert_eq!(config(line).memory, MemorySize::from_mib(2048));
    assert!(refusal(&format!("{line} -m 1G")).contains("-m says 1G"));
    assert!(refusal("-machine memory-backend=mem").contains("'mem'"));
}

#[test]
fn memory_is_shared_as_qemu_shares_it() {
    let backing = |object: &str| {
        config(&format!("-object {object},id=mem,size=1G -numa node,memdev=mem -m 1G")).memory_backing
    };
    assert_eq!(backing("memory-backend-memfd,share=on"), MemoryBacking::Shared);
    assert_eq!(backing("memory-backend-memfd"), MemoryBacking::Shared);
    assert_eq!(backing("memory-backend-memfd,share=off"), MemoryBacking::Private);
    assert_eq!(backing("memory-backend-ram"), MemoryBacking::Private);
    let file = "memory-backend-file,mem-path=/dev/shm";
    assert_eq!(backing(file), MemoryBacking::Private);
    assert_eq!(backing(&format!("{file},share=on")), MemoryBacking::SharedFile("/dev/shm".into()));
    assert!(refusal("-object memory-backend-file,id=mem,size=1G").contains("mem-path=..."));
}

#[test]
fn a_node_of_memory_is_the_machines_memory() {
    let mem = "-object memory-backend-memfd,id=mem,size=2G";
    assert_eq!(
        config(&format!("-numa node,nodeid=0,cpus=0-3,memdev=mem {mem}")).memory,
        MemorySize::from_mib(2048)
    );
    assert!(refusal(&format!("-numa node,memdev=mem -m 1G {mem}")).contains("-m says 1G"));
    assert!(
        refusal(&format!("-numa node,memdev=mem -M memory-backend=mem {mem}")).contains("use one of the two")
    );
    assert!(refusal("-numa node,memdev=mem").contains("'mem'"));
}

/// The words that the test driver and the run scripts of NixOS on Linux have for a share and for SSH over vsock.
#[test]
fn devices_of_other_processes_are_taken_as_nixos_writes_them() {
    let config = config(
        "-device vhost-user-fs-pci,chardev=store,tag=nix-store -chardev socket,id=store,path=/run/store.sock \
         -chardev socket,id=vsock_ssh,reconnect=0,path=/run/guest.sock -device vhost-user-vsock-pci,chardev=vsock_ssh \
         -device vhost-user-fs-pci,queue-size=1024,num-request-queues=4,cache-size=0,chardev=x,tag=xchg \
         -chardev socket,id=x,path=/run/x.sock,reconnect=1",
    );
    let fs = FsConfig { request_queues: 4, queue_size: 1024, ..FsConfig::new("xchg") };
    let device = |socket: &str, device| VhostUserConfig { socket: socket.into(), device };
    let expected = [
        device("/run/store.sock", VhostUserDevice::Fs(FsConfig::new("nix-store"))),
        device("/run/guest.sock", VhostUserDevice::Vsock),
        device("/run/x.sock", VhostUserDevice::Fs(fs)),
    ];
    assert_eq!(config.vhost_user, expected);
}

#[test]
fn where_the_serial_port_goes() {
    for (line, to) in [
        ("-serial stdio", ChardevConfig::Stdio),
        ("-serial mon:stdio", ChardevConfig::Stdio),
        ("-serial file:/a,b", ChardevConfig::File("/a,b".into())),
        ("-serial unix:/s,server=on,wait=off", ChardevConfig::Unix("/s".into())),
        ("-serial unix:/s,server,nowait", ChardevConfig::Unix("/s".into())),
        ("-serial unix:/s,server", ChardevConfig::UnixWait("/s".into())),
        ("-serial unix:/s", ChardevConfig::UnixConnect("/s".into())),
        ("-serial unix:/s,reconnect=2", ChardevConfig::UnixReconnect { path: "/s".into(), seconds: 2 }),
        ("-serial pty", ChardevConfig::Pty),
        ("-serial none", ChardevConfig::None),
        ("-serial null", ChardevConfig::None),
        ("-serial chardev:c -chardev file,id=c,path=/x,append=on", ChardevConfig::FileAppend("/x".into())),
        ("-nographic", ChardevConfig::Stdio),
        ("-display none", ChardevConfig::None),
        ("-nodefaults", ChardevConfig::None),
        ("-serial stdio -serial none -parallel none", ChardevConfig::Stdio),
    ] {
        assert_eq!(config(line).serial, to, "{line}");
    }
}

#[test]
fn nographic_has_a_monitor_behind_the_serial_port_unless_one_is_said() {
    let shared = [MonitorConfig { kind: MonitorKind::Hmp, to: MonitorPlace::Serial, pretty: false }];
    assert_eq!(config("-nographic").monitors, shared);
    assert_eq!(config("-serial mon:stdio").monitors, shared);
    assert_eq!(config("-chardev stdio,id=c,mux=on -serial chardev:c -mon chardev=c").monitors, shared);
    for line in ["-nographic -monitor none", "-nographic -serial stdio", "-nographic -nodefaults"] {
        assert_eq!(config(line).monitors, [], "{line}");
    }
}

#[test]
fn monitors_keep_their_order() {
    let line = "-chardev socket,id=m,path=/m,server=on,wait=off -mon m,mode=control,pretty=on -monitor stdio -qmp-pretty unix:/q -serial none";
    let expected = [
        MonitorConfig {
            pretty: true,
            ..MonitorConfig::new(MonitorKind::Qmp, ChardevConfig::Unix("/m".into()))
        },
        MonitorConfig::new(MonitorKind::Hmp, ChardevConfig::Stdio),
        MonitorConfig {
            pretty: true,
            ..MonitorConfig::new(MonitorKind::Qmp, ChardevConfig::UnixConnect("/q".into()))
        },
    ];
    assert_eq!(config(line).monitors, expected);
}

#[test]
fn consoles_and_ports_keep_their_order() {
    let line = "-device virtio-serial-pci,id=s0 -device virtserialport,bus=s0.0,chardev=a,name=org.qemu.guest_agent.0 \
        -device virtconsole,chardev=b,name=shell -device virtconsole -chardev null,id=a -chardev pty,id=b";
    let config = config(line);
    let port = PortConfig { name: "org.qemu.guest_agent.0".into(), to: ChardevConfig::None };
    assert_eq!(config.ports, [port]);
    assert_eq!(
        config.consoles[0],
        ConsoleConfig { to: ChardevConfig::Pty, name: Some("shell".into()), size: None }
    );
    assert_eq!(config.consoles[1].to, ChardevConfig::None);
}

#[test]
fn entropy_and_balloon_have_their_limits() {
    let line = "-object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r,max-bytes=1024,period=1000 \
        -device virtio-balloon-pci,deflate-on-oom=on";
    let config = config(line);
    assert_eq!(config.rng, Some(RngConfig { max_bytes: Some(1024), period: 1000 }));
    assert_eq!(config.balloon, Some(BalloonConfig { deflate_on_oom: true, free_page_reporting: false }));
}

#[test]
fn virtio_mmio_carries_what_is_called_device_and_is_found_backwards() {
    let line = "-nic none -drive if=none,id=a,file=/a -drive if=none,id=b,file=/b -device virtio-blk-device,drive=a \
        -device virtio-blk-device,drive=b -device virtio-rng-device -netdev user,id=x -netdev user,id=y \
        -device virtio-net-device,netdev=x -device virtio-net-device,netdev=y";
    let config = config(line);
    assert_eq!(config.transport, Transport::Mmio);
    assert_eq!(config.disks, [disk("b", "/b"), disk("a", "/a")]);
    let ids: Vec<_> = config.nets.iter().map(|net| net.common.id.clone().unwrap()).collect();
    assert_eq!(ids, ["virtio-net-device.1", "virtio-net-device.0"]);
    assert!(refusal(&format!("{line} -device virtio-balloon-pci")).contains("another bus"));
}

#[test]
fn a_file_of_options_is_read_in_their_place() {
    let path = std::env::temp_dir().join(format!("hvrun-readconfig-{}", std::process::id()));
    std::fs::write(&path, "[drive \"d\"]\nfile = \"/d.raw\"\nif = \"none\"\n[device]\ndriver = \"virtio-blk-pci\"\ndrive = \"d\"\n[memory]\nsize = \"512\"\n").unwrap();
    let config = config(&format!("-m 1G -readconfig {}", path.display()));
    std::fs::remove_file(&path).unwrap();
    assert_eq!((config.memory, &config.disks[..]), (MemorySize::from_mib(512), &[disk("d", "/d.raw")][..]));
}

#[test]
fn traffic_is_recorded_where_a_filter_says() {
    let config = config("-nic user,id=n -object filter-dump,id=f,netdev=n,file=/x.pcap");
    assert_eq!(config.nets[0].common.dump, Some("/x.pcap".into()));
    assert!(refusal("-object filter-dump,id=f,netdev=x,file=/x.pcap").contains("'x'"));
}

#[test]
fn what_makes_no_difference_is_accepted() {
    let line = "-no-user-config -usb -vga none -device virtio-gpu-pci,xres=720,yres=1440 -display gtk,gl=on -uuid 550e8400-e29b-41d4-a716-446655440000 \
        -rtc base=utc,clock=host -boot order=n,menu=on -global virtio-mmio.force-legacy=false -smbios type=1,serial=x -k de -D /log -d int \
        -overcommit mem-lock=off -msg timestamp=on -name a,process=b -watchdog-action none -action panic=none -echr 1 -audiodev none,id=a \
        -cpu max,pauth-impdef=on,sve=off,sve512=on -numa node -sandbox off -device qemu-xhci -device usb-kbd,bus=usb-bus.0";
    assert_eq!(
        MachineConfig { nets: Vec::new(), ..config(line) },
        MachineConfig {
            name: Some("a".into()),
            uuid: Some("550e8400-e29b-41d4-a716-446655440000".into()),
            serial: ChardevConfig::Stdio,
            ..bare()
        }
    );
}

#[test]
fn a_guest_that_powers_off_may_leave_its_machine_paused() {
    for line in ["-no-shutdown", "-action shutdown=pause"] {
        assert!(config(line).lifecycle.no_shutdown, "{line}");
    }
    assert!(!config("-no-shutdown -action shutdown=poweroff").lifecycle.no_shutdown);
}

#[test]
fn drives_and_devices_keep_their_ids_and_policies() {
    let line = "-drive if=none,id=a,file=/a,werror=stop,rerror=ignore -device virtio-blk-pci,drive=a,id=disk0,rerror=enospc -hda /b";
    let a = DiskConfig {
        device: Some("disk0".into()),
        werror: ErrorPolicy::Stop,
        rerror: ErrorPolicy::Enospc,
        ..disk("a", "/a")
    };
    assert_eq!(config(line).disks, [a, disk("virtio0", "/b")]);
}

#[test]
fn help_is_printed_instead_of_a_machine() {
    for (line, word) in [
        ("-h", "-machine"),
        ("--help", "Usage"),
        ("-version", "version 9."),
        ("-machine help", "virt"),
        ("-M ?", "virt"),
        ("-device help", "virtio-blk-pci"),
        ("-cpu help", "cortex-a53"),
        ("-accel help", "tcg"),
        ("-netdev help", "vde"),
        ("-chardev help", "socket"),
        ("-object help", "rng-random"),
        ("-device virtio-blk-pci,help", "virtio-blk-pci"),
    ] {
        match parse_line(line) {
            Ok(Action::Print(text)) => assert!(text.contains(word), "{line}: {text}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn print_config_and_pidfile_are_for_the_command() {
    assert!(matches!(parse_line("-kernel k --print-config"), Ok(Action::PrintConfig(_))));
    let Ok(Action::Run { pidfile, .. }) = parse_line("-kernel k -pidfile /run/x") else { panic!() };
    assert_eq!(pidfile, Some("/run/x".into()));
}

#[test]
fn every_refusal_names_the_argument_and_what_would_work() {
    for (line, words) in [
        ("-frobnicate", &["-frobnicate", "no such option"][..]),
        ("-devcie x", &["-devcie", "'device'"]),
        ("-device virtio-blk-pic", &["virtio-blk-pic", "'virtio-blk-pci'"]),
        ("-device virtio-blk-pci", &["drive=ID"]),
        ("-device virtio-blk-pci,drive=x", &["-drive", "'x'"]),
        ("-drive if=none,id=x,file=/x -device virtio-blk-pci,drive=y", &["'y'", "there is x"]),
        ("-drive if=none,id=x,file=/x -device virtio-blk-pci,drive=x,seriall=1", &["seriall", "'serial'"]),
        (
            "-drive if=none,id=x,file=/x -device virtio-blk-pci,drive=x -device virtio-blk-pci,drive=x",
            &["only be used once"],
        ),
        ("-drive if=none,id=x,file=/x -drive if=none,id=x,file=/y", &["'x'", "choose another"]),
        ("-drive if=none,index=1,file=/x -drive if=none,index=1,file=/y", &["index=1"]),
        ("-drive if=virtio,id=x,file=/x -device virtio-blk-pci,drive=x", &["if=none"]),
        ("-drive if=scsi,file=/x", &["if=scsi", "if=virtio"]),
        ("-drive if=none,id=x", &["file=... is missing"]),
        ("-drive file=/x,format=vmdk", &["vmdk", "raw, qcow2"]),
        ("-drive file=/x,cache=fast", &["fast", "writeback"]),
        ("-drive file=/x,werror=explode", &["werror=explode", "stop"]),
        ("-action shutdown=explode", &["shutdown=explode", "poweroff or pause"]),
        ("-drive file=/x,snapshot=on", &["snapshot=on", "qemu-img create"]),
        ("-drive file=/x,readonly=maybe", &["readonly=maybe", "on or off"]),
        (
            "-drive if=pflash,format=raw,unit=0,readonly=on,file=/OVMF.fd",
            &["if=pflash", "UEFI firmware is not there yet"],
        ),
        ("-bios u-boot.rom", &["-bios u-boot.rom", "firmware"]),
        ("-device virtio-net-pci", &["netdev=ID"]),
        ("-device virtio-net-pci,netdev=x", &["-netdev", "'x'"]),
        ("-device virtio-net-pci,netdev=x,mac=1 -netdev user,id=x", &["mac=1"]),
        ("-netdev users,id=x", &["'users'", "'user'"]),
        ("-netdev user", &["id=..."]),
        ("-netdev user,id=x,hostfw=tcp::1-:1", &["'hostfw'", "'hostfwd'"]),
        ("-netdev user,id=x,hostfwd=tcp::1", &["tcp::1", "tcp::2222-:22"]),
        ("-netdev user,id=x -netdev user,id=x", &["'x'", "choose another"]),
        ("-netdev hubport,id=x,hubid=0", &["hubport", "vde"]),
        ("-netdev tap,id=x,ifname=t,script=/etc/ifup", &["script=/etc/ifup", "script=no"]),
        ("-net nic", &["-net nic", "netdev=ID"]),
        ("-net nic,model=e1000,netdev=x", &["model=e1000", "virtio"]),
        ("-virtfs local,path=/x,mount_tag=t", &["security_model"]),
        ("-virtfs local,path=/x,security_model=tight,mount_tag=t", &["tight", "mapped-xattr"]),
        ("-virtfs local,path=/x,security_model=none", &["mount_tag"]),
        ("-virtfs synth,mount_tag=t", &["synth", "local"]),
        ("-chardev sockett,id=x,path=/x", &["'sockett'", "'socket'"]),
        ("-chardev socket,id=x,host=localhost,port=1", &["unix socket"]),
        ("-chardev pipe,id=x,path=/x", &["pipe", "socket"]),
        ("-chardev pty,id=x -chardev pty,id=x", &["'x'", "choose another"]),
        ("-device virtconsole", &["-device virtio-serial"]),
        ("-device virtio-serial -device virtconsole,chardev=x", &["-chardev", "'x'"]),
        (
            "-device virtio-serial -chardev pty,id=x -device virtconsole,chardev=x -device virtconsole,chardev=x",
            &["mux=on"],
        ),
        ("-device virtio-serial -chardev pty,id=x -device virtserialport,chardev=x", &["name=..."]),
        ("-serial tcp::4444,server", &["unix socket"]),
        ("-serial foo", &["-serial foo", "unix:PATH"]),
        ("-serial stdio -serial pty", &["one serial port"]),
        ("-machine q35", &["'q35'", "'virt'"]),
        ("-machine virtt", &["'virtt'", "'virt'"]),
        ("-machine virt,gic-version=7", &["gic-version=7", "3, 4, max"]),
        ("-machine virt,acell=tcg", &["'acell'", "'accel'"]),
        ("-machine accel=warp", &["'warp'", "tcg"]),
        ("-machine accel=kvm -accel tcg", &["-accel tcg", "one of the two"]),
        ("-machine accel=whpx", &["'whpx'", "hvf, kvm and tcg"]),
        ("-cpu cortex-a99", &["'cortex-a99'", "did you mean"]),
        ("-cpu max,svee=off", &["'svee'", "'sve'"]),
        ("-smp 0", &["cpus=0"]),
        ("-smp 3,sockets=2,cores=2,threads=1", &["4 CPUs", "3"]),
        ("-smp 4,maxcpus=2", &["maxcpus=2"]),
        ("-smp two", &["two", "no number"]),
        ("-m lots", &["-m lots", "512M"]),
        ("-object rng-rondom,id=x", &["'rng-rondom'", "'rng-random'"]),
        ("-device virtio-rng-pci,rng=x", &["-object", "'x'"]),
        ("-device usb-kbd,id=a -device usb-tablet,id=a", &["'a'", "choose another"]),
        (
            "-drive if=none,id=a,file=/a -drive if=none,id=b,file=/b -device virtio-blk-pci,drive=a,bootindex=1 -device virtio-blk-pci,drive=b,bootindex=1",
            &["bootindex=1"],
        ),
        ("-device tpm-tis-device,tpmdev=t", &["TPM"]),
        ("-device vhost-user-fs-pci,chardev=c,tag=t", &["-chardev", "'c'"]),
        ("-device vhost-user-fs-pci,tag=t", &["chardev=ID", "-chardev socket,id=ID,path=PATH"]),
        ("-device vhost-user-fs-pci,chardev=c -chardev socket,id=c,path=/s", &["tag=..."]),
        (
            "-device vhost-user-fs-pci,chardev=c,tag=t,cache-size=1G -chardev socket,id=c,path=/s",
            &["cache-size=1G", "0"],
        ),
        ("-device vhost-user-vsock-pci,chardev=c -chardev socket,id=c,path=/s,server=on", &["server=on"]),
        ("-device vhost-user-vsock-pci,chardev=c -chardev null,id=c", &["'c'", "socket,id=c,path=PATH"]),
        ("-device vhost-vsock-pci,guest-cid=3", &["vhost-user-vsock-pci"]),
        (
            "-device vhost-user-vsock-pci,chardev=c -serial chardev:c -chardev socket,id=c,path=/s",
            &["something else uses it"],
        ),
        ("-daemonize", &["-daemonize", "service manager"]),
        ("-fw_cfg name=a,string=b", &["fw_cfg"]),
        ("-dtb x.dtb", &["-dtb x.dtb"]),
        ("-display window", &["window", "gtk"]),
        ("-vga voodoo", &["voodoo", "virtio"]),
        ("-action reboot=explode", &["reboot=explode", "shutdown or reset"]),
        ("-uuid 1", &["-uuid 1", "550e8400"]),
        ("-global foo.bar=1", &["'foo'"]),
        ("-boot order=z", &["'z'"]),
        ("-mon chardev=x", &["-chardev", "'x'"]),
        ("-readconfig /nonexistent/x", &["/nonexistent/x"]),
        ("-device {\"driver\":\"x\"}", &["JSON"]),
    ] {
        let refusal = refusal(line);
        assert!(words.iter().all(|word| refusal.contains(word)), "{line}: {refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

#[test]
fn without_a_kernel_there_is_nothing_to_boot() {
    let line = "-m 2048 -netdev user,id=net0 -device virtio-net-pci,netdev=net0 -cdrom /x.iso -boot order=n";
    let refusal = parse_line(line).unwrap_err().to_string();
    assert!(refusal.contains("no kernel") && refusal.contains("-kernel"), "{refusal}");
}

#[test]
fn a_program_is_chosen_by_its_name_and_host() {
    assert_eq!(Program::called("hvrun", "x86_64"), Program::Hvrun);
    assert_eq!(Program::called("qemu-system-aarch64", "x86_64"), Program::Aarch64);
    assert_eq!(Program::called("qemu-img", "x86_64"), Program::Image);
    assert_eq!(Program::called("qemu-kvm", "aarch64"), Program::Aarch64);
    assert_eq!(Program::called("qemu-kvm", "x86_64"), Program::Other);
    assert_eq!(Program::called("qemu-system-x86_64", "aarch64"), Program::Other);
    assert!(Program::not_there("qemu-kvm").starts_with("x86 guests are not there yet"));
    assert!(Program::not_there("qemu-system-riscv64").starts_with("riscv64 guests"));
}

#[test]
fn every_config_survives_json() {
    let config = config(&format!("{RUN_SCRIPT} {DRIVER}"));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
}

proptest! {
    #[test]
    fn no_command_line_makes_it_panic(
        words in prop::collection::vec((0..OPTIONS.len(), "([a-z0-9.:-]{0,8}[,=]){0,4}.{0,6}"), 0..8)
    ) {
        let args = words.iter().flat_map(|(option, argument)| {
            let spec = &OPTIONS[*option];
            let name = format!("-{}", spec.name);
            std::iter::once(name).chain(spec.argument.map(|_| argument.clone()))
        });
        let _ = parse("qemu-system-aarch64", args.map(OsString::from));
    }
}
