//! The properties of disks and network cards, which are the same on the command line and in a running machine's monitors.

use hvrun_vmm::hotplug::{DiskProperties, NetProperties};

use crate::qemu::opts::{Opts, Refusal};

/// Properties of whatever is on PCI or virtio-mmio that make no difference here. The guest sees modern devices, in their order.
const PLACE: [&str; 13] = [
    "addr",
    "multifunction",
    "romfile",
    "rombar",
    "romsize",
    "vectors",
    "ioeventfd",
    "event_idx",
    "indirect_desc",
    "acpi-index",
    "failover_pair_id",
    "page-per-vq",
    "any_layout",
];

/// Where a device is and how it is carried, but for its bus.
pub fn place(opts: &mut Opts) -> Result<(), Refusal> {
    opts.without_effect(&PLACE);
    opts.only("disable-legacy", &["on", "off", "auto", "true", "false"])?;
    opts.only("disable-modern", &["off", "false"])?;
    for key in ["iommu_platform", "ats", "packed", "aer", "x-disable-pcie"] {
        opts.only(key, &["off", "false"])?;
    }
    Ok(())
}

/// A disk's, with the id of its drive.
pub fn disk(opts: &mut Opts) -> Result<(String, DiskProperties), Refusal> {
    let Some(drive) = opts.text("drive")? else {
        return Err(opts.refuse("drive=ID is missing: a disk needs a '-drive if=none,id=ID,file=FILE'"));
    };
    let properties = DiskProperties {
        serial: opts.text("serial")?,
        queues: opts.value("num-queues")?,
        discard: opts.switch("discard")?,
        shared: opts.switch("share-rw")? == Some(true),
        werror: opts.value("werror")?,
        rerror: opts.value("rerror")?,
    };
    for key in ["logical_block_size", "physical_block_size"] {
        opts.only(key, &["512"])?;
    }
    opts.only("scsi", &["off", "false"])?;
    opts.without_effect(&[
        "iothread",
        "write-cache",
        "config-wce",
        "write-zeroes",
        "queue-size",
        "seg-max-adjust",
        "request-merging",
        "min_io_size",
        "opt_io_size",
        "discard_granularity",
        "max-discard-sectors",
        "max-write-zeroes-sectors",
        "cyls",
        "heads",
        "secs",
        "report-discard-granularity",
    ]);
    Ok((drive, properties))
}

/// A network card's.
pub fn net(opts: &mut Opts) -> Result<NetProperties, Refusal> {
    let Some(netdev) = opts.text("netdev")? else {
        return Err(opts.refuse("netdev=ID is missing: a card needs a '-netdev TYPE,id=ID'"));
    };
    let mac = opts.value("mac")?;
    let mtu = match opts.number("host_mtu")? {
        None | Some(0) => None,
        Some(mtu) => match u16::try_from(mtu) {
            Ok(mtu) => Some(mtu),
            Err(_) => return Err(opts.refuse(format_args!("host_mtu={mtu}: an MTU is at most 65535"))),
        },
    };
    opts.only("failover", &["off"])?;
    opts.without_effect(&[
        "bootindex",
        "mq",
        "csum",
        "gso",
        "guest_csum",
        "guest_tso4",
        "guest_tso6",
        "guest_ecn",
        "guest_ufo",
        "guest_uso4",
        "guest_uso6",
        "guest_announce",
        "host_tso4",
        "host_tso6",
        "host_ecn",
        "host_ufo",
        "host_uso",
        "mrg_rxbuf",
        "status",
        "ctrl_vq",
        "ctrl_rx",
        "ctrl_vlan",
        "ctrl_rx_extra",
        "ctrl_mac_addr",
        "ctrl_guest_offloads",
        "rx_queue_size",
        "tx_queue_size",
        "tx",
        "x-txtimer",
        "x-txburst",
        "rss",
        "hash",
        "speed",
        "duplex",
    ]);
    Ok(NetProperties { netdev, mac, mtu })
}
