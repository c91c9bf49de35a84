//! The command's options as a table: names, values, help. Parsing is in `args`.

/// What an option is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    Append,
    Memory,
    Cpus,
    Accel,
    Gic,
    NoReboot,
    Serial,
    Disk,
    Share,
    VhostUser,
    Net,
    Console,
    Port,
    Rng,
    Balloon,
    Transport,
    PrintConfig,
    Verbose,
    Help,
    Version,
}

/// One option.
#[derive(Debug)]
pub struct Spec {
    pub id: Id,
    /// Without the two dashes.
    pub long: &'static str,
    /// Without the dash.
    pub short: Option<char>,
    /// What its value is called, if it takes one.
    pub value: Option<&'static str>,
    /// Lines of help.
    help: &'static [&'static str],
}

const fn spec(
    id: Id,
    long: &'static str,
    short: Option<char>,
    value: Option<&'static str>,
    help: &'static [&'static str],
) -> Spec {
    Spec { id, long, short, value, help }
}

/// All options, in the order of the help text.
pub const OPTIONS: [Spec; 20] = [
    spec(Id::Append, "append", None, Some("STR"), &["the kernel command line, at most 2047 bytes"]),
    spec(
        Id::Memory,
        "memory",
        Some('m'),
        Some("SIZE[,...]"),
        &[
            "memory, with K, M or G: 512M, 4G (default 1G). With shared, or",
            "file=PATH (a file or directory), for --vhost-user (Linux)",
        ],
    ),
    spec(Id::Cpus, "cpus", Some('p'), Some("N"), &["number of CPUs, 1 to 8 (default 1)"]),
    spec(
        Id::Accel,
        "accel",
        None,
        Some("NAME"),
        &["hvf, kvm or soft; a list such as hvf:kvm:soft takes the first", "that works (default auto: any)"],
    ),
    spec(
        Id::Gic,
        "gic",
        None,
        Some("WHOSE"),
        &[
            "interrupt controller: the host's (host), ours (soft) or the",
            "host's where it has one (default auto)",
        ],
    ),
    spec(
        Id::NoReboot,
        "no-reboot",
        None,
        None,
        &["end when the guest resets itself, instead of rebooting it"],
    ),
    spec(
        Id::Serial,
        "serial",
        None,
        Some("TO"),
        &[
            "where the guest's serial port ttyAMA0 goes: stdio, file:PATH,",
            "append:PATH, unix:PATH (listens), unix-wait:PATH (and waits),",
            "unix-connect:PATH, unix-reconnect:SECONDS:PATH (again and",
            "again), pty or none (default stdio)",
        ],
    ),
    spec(
        Id::Disk,
        "disk",
        None,
        Some("PATH[,...]"),
        &[
            "a disk, /dev/vda and so on in their order: an image, raw or",
            "qcow2, or a block device. With serial=NAME, ro, format=raw|qcow2,",
            "cache=writeback|none|unsafe, discard=off, queues=N,",
            "werror=report|ignore|enospc|stop, rerror=..., id=NAME,",
            "sync=fsync|full, lock=off, backing=off;",
            "a comma in a name is written twice",
        ],
    ),
    spec(
        Id::Share,
        "share",
        None,
        Some("DIR:TAG[,...]"),
        &[
            "a directory for the guest's 'mount -t 9p -o trans=virtio TAG'.",
            "With ro, security=none|passthrough|mapped-xattr|mapped-file,",
            "squash=on|off (all files are root's), case-hack=on|off",
        ],
    ),
    spec(
        Id::VhostUser,
        "vhost-user",
        None,
        Some("KIND:SOCKET"),
        &[
            "a device that another process serves at a unix socket (Linux):",
            "fs:SOCKET,tag=TAG[,queues=N][,queue-size=N] with virtiofsd, for the",
            "guest's 'mount -t virtiofs TAG', or vsock:SOCKET; needs --memory",
            "SIZE,shared",
        ],
    ),
    spec(
        Id::Net,
        "net",
        None,
        Some("TO[,...]"),
        &[
            "a network card, eth0 and so on: user (a NAT; hostfwd=tcp:[ADDR]:",
            "PORT-[ADDR]:PORT, guestfwd=..., restrict, net=...), vde:DIR (a VDE",
            "switch; port=N), socket:stream,path=PATH|addr=HOST:PORT[,server]",
            "[,reconnect=SECONDS], socket:dgram,local=ADDR,remote=ADDR,",
            "tap:NAME[,create] (Linux) or switch:NAME (cards that name the same",
            "one reach each other inside this process). With mac=ADDRESS,",
            "mtu=BYTES, dump=FILE.pcap, id=NAME",
        ],
    ),
    spec(Id::Console, "console", None, Some("TO"), &["a console, /dev/hvc0 and so on; TO as with --serial"]),
    spec(
        Id::Port,
        "port",
        None,
        Some("name=NAME,to=TO"),
        &["a serial port /dev/virtio-ports/NAME; TO as with --serial"],
    ),
    spec(
        Id::Rng,
        "rng",
        None,
        Some("on|off|..."),
        &["a source of entropy (default on); max-bytes=N,period=MS limits", "how fast it gives"],
    ),
    spec(
        Id::Balloon,
        "balloon",
        None,
        Some("on|off|..."),
        &[
            "memory that the guest has no use for goes back to the host",
            "(default off); deflate-on-oom, free-page-reporting=off",
        ],
    ),
    spec(
        Id::Transport,
        "transport",
        None,
        Some("NAME"),
        &["what carries disks, shares, consoles: pci or mmio (default pci)"],
    ),
    spec(Id::PrintConfig, "print-config", None, None, &["print the machine as JSON and boot nothing"]),
    spec(Id::Verbose, "verbose", Some('v'), None, &["say more on standard error; -vv and -vvv still more"]),
    spec(Id::Help, "help", Some('h'), None, &["print this"]),
    spec(Id::Version, "version", Some('V'), None, &["print the version"]),
];

/// Column at which help texts begin.
const HELP_COLUMN: usize = 24;

/// The help text.
pub fn help() -> String {
    let mut text = String::from(
        "hvrun boots an arm64 Linux kernel in a virtual machine.\n\n\
         Usage: hvrun [OPTIONS] KERNEL [INITRD]\n\n\
         KERNEL is an arm64 Image, plain, packed with gzip or zstd, or as EFI zboot.\n\nOptions:\n",
    );
    for option in &OPTIONS {
        let short = option.short.map_or(String::from("    "), |short| format!("-{short}, "));
        let value = option.value.map_or(String::new(), |value| format!(" {value}"));
        let mut start = format!("  {short}--{}{value}", option.long);
        for line in option.help {
            text.push_str(&format!("{start:HELP_COLUMN$} {line}\n"));
            start.clear();
        }
    }
    text.push_str(
        "\nOn a terminal, Ctrl-A X ends the machine and Ctrl-A H shows the other keys; all else, Ctrl-C\n\
         too, goes to the guest. Standard output belongs to the guest's serial port.\n\n\
         Exit codes: 0 the guest powered off (or reset under --no-reboot, or was ended with Ctrl-A X or\n\
         a signal), 1 an error, 2 bad usage.\n",
    );
    text
}

/// The long option that somebody may have meant by `name`.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    // QEMU's names, and the beginnings of ours.
    let known = match name.as_str() {
        "smp" => Some("cpus"),
        "mem" | "ram" => Some("memory"),
        "cmdline" => Some("append"),
        "drive" | "hda" => Some("disk"),
        "virtfs" => Some("share"),
        "virtiofs" | "vsock" => Some("vhost-user"),
        "netdev" | "nic" => Some("net"),
        _ => None,
    };
    known.or_else(|| {
        let candidates = OPTIONS.iter().map(|option| (distance(&name, option.long), option.long));
        candidates.min().filter(|(distance, long)| *distance <= long.len() / 3).map(|(_, long)| long)
    })
}

/// Levenshtein's edit distance.
pub fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option() {
        let help = help();
        assert!(OPTIONS.iter().all(|option| help.contains(&format!("--{}", option.long))));
    }

    #[test]
    fn help_fits_a_terminal() {
        assert_eq!(help().lines().find(|line| line.len() > 100), None);
    }

    #[test]
    fn misspelt_option_has_a_nearest_one() {
        assert_eq!(nearest("memroy"), Some("memory"));
        assert_eq!(nearest("noreboot"), Some("no-reboot"));
    }

    #[test]
    fn qemus_names_are_known() {
        assert_eq!(nearest("smp"), Some("cpus"));
    }

    #[test]
    fn what_is_like_no_option_has_no_nearest_one() {
        assert_eq!(nearest("frobnicate"), None);
        assert_eq!(nearest(""), None);
    }
}
