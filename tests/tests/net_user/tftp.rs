//! Files from the network: the folder of `tftp=`, and nothing else of the host's.

use std::fs;
use std::io::Write;

use anyhow::{Result, ensure};

use crate::host::{LOOPBACK, pattern, server};
use crate::{end, fails, guest, text};

#[test]
fn tftp_serves_its_folder_and_nothing_beside_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("served");
    fs::create_dir_all(folder.join("boot"))?;
    let file = pattern(100_000);
    fs::write(folder.join("boot/kernel"), &file)?;
    fs::write(folder.join("empty"), "")?;
    // A multiple of the usual block, which ends with an empty one.
    fs::write(folder.join("blocks"), &file[..1024])?;
    fs::write(dir.path().join("secret"), "secret")?;
    let mut guest = guest(&format!("user,tftp={},bootfile=boot/kernel", text(&folder)?))?;

    guest.sh("printf '#!/bin/sh\\necho $1 $boot_file $tftp $siaddr\\n' > /tmp/boot && chmod +x /tmp/boot")?;
    let told = guest.sh("udhcpc -i eth0 -n -q -f -O bootfile -O tftp -s /tmp/boot 2>/dev/null")?;
    ensure!(told.contains("bound boot/kernel 10.0.2.2 10.0.2.2"), "{told}");

    // The same by another way.
    let sent = file.clone();
    let (port, _results) = server(LOOPBACK, move |mut client| Ok(client.write_all(&sent)?))?;
    guest.sh(&format!("nc 10.0.2.2 {port} </dev/null >/tmp/kernel"))?;
    guest.sh("head -c 1024 /tmp/kernel > /tmp/blocks; : > /tmp/empty")?;
    for (options, name, same) in [
        ("", "boot/kernel", "kernel"),
        ("-b 1400", "/boot/kernel", "kernel"),
        ("", "empty", "empty"),
        ("", "blocks", "blocks"),
    ] {
        let get = format!("rm -f /tmp/got; tftp -g {options} -r {name} -l /tmp/got 10.0.2.2");
        guest.sh(&format!("{get} && cmp /tmp/got /tmp/{same}"))?;
    }

    for name in
        ["../secret", "boot/../../secret", "/../secret", "boot", "missing", text(&dir.path().join("secret"))?]
    {
        let said = fails(&mut guest, &format!("tftp -g -r {name} -l /tmp/not 10.0.2.2"))?;
        ensure!(said.contains("no such file"), "{name}: {said}");
    }
    // Nor is anything written.
    fails(&mut guest, "tftp -p -l /tmp/got -r boot/kernel 10.0.2.2")?;
    ensure!(fs::read(folder.join("boot/kernel"))? == file, "the guest has changed a file");
    end(guest)
}
