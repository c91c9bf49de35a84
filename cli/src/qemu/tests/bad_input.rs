//! Command lines that contradict themselves: ids used twice, devices without a back-end, places taken twice.

use super::*;

/// That each line is refused in one line with all of its words.
fn all_are_refused(lines: &[(&str, &[&str])]) {
    for (line, words) in lines {
        let refusal = refusal(line);
        assert!(words.iter().all(|word| refusal.contains(word)), "{line}: {refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

#[test]
fn an_id_is_used_once() {
    all_are_refused(&[
        ("-drive if=none,id=x,file=/x -drive if=virtio,id=x,file=/y", &["-drive", "'x'", "choose another"]),
        ("-device usb-kbd,id=x -device virtio-balloon-pci,id=x", &["-device", "'x'", "choose another"]),
        ("-chardev pty,id=x -chardev null,id=x", &["-chardev", "'x'", "choose another"]),
        ("-netdev user,id=x -netdev vde,id=x,sock=/s", &["-netdev", "'x'", "choose another"]),
        ("-nic user,id=x -netdev user,id=x -device virtio-net-pci,netdev=x", &["'x'", "choose another"]),
        ("-nic user,id=x -nic user,id=x", &["-nic", "'x'", "choose another"]),
        (
            "-net nic -net user,id=x -netdev user,id=x -device virtio-net-pci,netdev=x",
            &["'x'", "choose another"],
        ),
        (
            "-fsdev local,id=x,path=/x,security_model=none -fsdev local,id=x,path=/y,security_model=none",
            &["-fsdev", "'x'", "choose another"],
        ),
        ("-object rng-builtin,id=x -object iothread,id=x", &["-object", "'x'", "choose another"]),
    ]);
}

#[test]
fn a_backend_has_one_device() {
    all_are_refused(&[
        (
            "-netdev user,id=x -device virtio-net-pci,netdev=x -device virtio-net-pci,netdev=x",
            &["x is used by"],
        ),
        (
            "-netdev user,id=x -net nic,netdev=x -device virtio-net-pci,netdev=x",
            &["x is used by", "-net nic"],
        ),
        (
            "-fsdev local,id=x,path=/x,security_model=none -device virtio-9p-pci,fsdev=x,mount_tag=a \
             -device virtio-9p-pci,fsdev=x,mount_tag=b",
            &["x is used by"],
        ),
        ("-chardev pty,id=x -serial chardev:x -monitor chardev:x", &["'x'", "mux=on"]),
        ("-chardev stdio,id=x,mux=on -monitor chardev:x -qmp chardev:x", &["'x'", "only the serial port"]),
    ]);
}

#[test]
fn a_device_has_its_backend() {
    all_are_refused(&[
        ("-device virtio-blk-pci", &["drive=ID is missing"]),
        ("-device virtio-blk-pci,drive=x", &["no -drive", "'x'"]),
        ("-device virtio-net-pci", &["netdev=ID is missing"]),
        ("-device virtio-net-pci,netdev=x", &["no -netdev", "'x'"]),
        ("-net nic,netdev=x", &["no -netdev", "'x'"]),
        ("-device virtio-9p-pci,mount_tag=t", &["fsdev=ID is missing"]),
        ("-device virtio-9p-pci,fsdev=x,mount_tag=t", &["no -fsdev", "'x'"]),
        ("-device virtio-rng-pci,rng=x", &["no -object", "'x'"]),
        ("-device virtio-serial -device virtserialport,chardev=x,name=n", &["no -chardev", "'x'"]),
        ("-serial chardev:x", &["-serial chardev:x", "no -chardev", "'x'"]),
        ("-monitor chardev:x", &["-monitor chardev:x", "no -chardev", "'x'"]),
        ("-qmp chardev:x", &["-qmp chardev:x", "no -chardev", "'x'"]),
        ("-mon x", &["-mon", "no -chardev", "'x'"]),
        ("-machine virt,memory-backend=x", &["no -object", "'x'"]),
        ("-object filter-dump,id=f,netdev=x,file=/x", &["filter-dump", "'x'"]),
    ]);
}

#[test]
fn an_object_of_another_kind_is_no_backend() {
    all_are_refused(&[
        (
            "-object iothread,id=x -device virtio-rng-pci,rng=x",
            &["'x'", "no source of entropy", "rng-random"],
        ),
        ("-object rng-builtin,id=x -machine memory-backend=x", &["'x'", "no memory", "memory-backend-ram"]),
    ]);
}

#[test]
fn a_place_is_taken_once() {
    all_are_refused(&[
        ("-hda /a -hda /b", &["-hda /b", "index=0", "choose another"]),
        ("/a -hda /b", &["index=0", "choose another"]),
        ("-cdrom /a -hdc /b", &["index=2", "choose another"]),
        ("-drive file=/a,index=1 -hdb /b", &["index=1", "choose another"]),
        ("-drive file=/a,if=none,index=1 -drive file=/b,if=none,index=1", &["index=1", "choose another"]),
        ("-drive file=/a,unit=1 -drive file=/b,index=1", &["index=1", "choose another"]),
        ("-drive file=/a,bus=1", &["bus=1"]),
        ("-drive file=/a,index=-1", &["index=-1", "no number"]),
        (
            "-netdev user,id=n -drive if=none,id=a,file=/a -drive if=none,id=b,file=/b \
             -device virtio-blk-pci,drive=a,bootindex=1 -device virtio-blk-pci,drive=b,bootindex=1",
            &["bootindex=1", "choose another"],
        ),
    ]);
}

#[test]
fn a_property_that_nothing_has_is_named() {
    const BACKENDS: &str = "-netdev user,id=n -drive if=none,id=d,file=/d -chardev null,id=c \
        -fsdev local,id=f,path=/f,security_model=none -device virtio-serial";
    for option in [
        "-machine virt",
        "-accel tcg",
        "-cpu max",
        "-smp 1",
        "-m 512",
        "-boot n",
        "-rtc base=utc",
        "-name machine",
        "-numa node",
        "-action reboot=shutdown",
        "-drive file=/x",
        "-virtfs local,path=/x,security_model=none,mount_tag=t",
        "-fsdev local,id=x,path=/x,security_model=none",
        "-net nic,netdev=n",
        "-net user",
        "-nic user",
        "-nic none",
        "-netdev user,id=x",
        "-netdev vde,id=x,sock=/s",
        "-netdev stream,id=x,addr.type=unix,addr.path=/s",
        "-netdev dgram,id=x,remote.type=inet,remote.host=h,remote.port=1",
        "-netdev socket,id=x,connect=h:1",
        "-netdev tap,id=x,ifname=t",
        "-chardev socket,id=x,path=/x",
        "-chardev file,id=x,path=/x",
        "-chardev pty,id=x",
        "-chardev stdio,id=x",
        "-chardev null,id=x",
        "-chardev vc,id=x",
        "-serial unix:/s,server=on",
        "-monitor unix:/s,server=on",
        "-mon c,mode=control",
        "-object rng-random,id=x",
        "-object iothread,id=x",
        "-object memory-backend-ram,id=x,size=1G",
        "-object filter-dump,id=x,netdev=n,file=/x",
        "-device virtio-blk-pci,drive=d",
        "-device virtio-net-pci,netdev=n",
        "-device virtio-9p-pci,fsdev=f,mount_tag=t",
        "-device virtio-serial-pci",
        "-device virtconsole,chardev=c",
        "-device virtserialport,chardev=c,name=n",
        "-device virtio-rng-pci",
        "-device virtio-balloon-pci",
        "-device virtio-keyboard",
        "-device virtio-gpu-pci",
        "-device usb-ehci",
        "-device usb-tablet",
    ] {
        let refusal = refusal(&format!("{BACKENDS} {option},frobnicate=1"));
        let (name, _) = option.split_once(' ').unwrap();
        assert!(refusal.starts_with(name) && refusal.contains("'frobnicate'"), "{option}: {refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

#[test]
fn an_empty_argument_is_refused_by_its_option() {
    for option in [
        "-m", "-drive", "-device", "-netdev", "-net", "-nic", "-chardev", "-virtfs", "-object", "-hda",
        "-accel", "-cpu",
    ] {
        let words = [option, "", "-kernel", "Image"].map(OsString::from);
        let refusal = parse("qemu-system-aarch64", words).unwrap_err().to_string();
        assert!(refusal.starts_with(&format!("{option}: ")), "{option}: {refusal}");
    }
}

#[test]
fn words_cut_short_are_refused() {
    for (line, words) in [
        ("-kernel Image -append", "-append needs an argument"),
        ("-kernel Image -", "-: there is no such option"),
        ("-kernel Image --", "--: there is no such option"),
        ("-kernel Image -chardev ,", "-chardev ,: "),
        ("-kernel Image -virtfs local", "-virtfs local: path=... is missing"),
        ("-kernel Image -object =x", "-object =x: "),
    ] {
        let refusal = parse_line(line).unwrap_err().to_string();
        assert!(refusal.starts_with(words), "{line}: {refusal}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let word = OsString::from_vec(b"\xff\xfe".to_vec());
    let refusal = parse("qemu-system-aarch64", ["-append".into(), word]).unwrap_err().to_string();
    assert!(refusal.contains("UTF-8"), "{refusal}");
}
