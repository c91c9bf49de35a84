//! What the monitors of a running machine say of devices, in the words of the command line. What becomes of it is the machine's affair.

use hvrun_vmm::NetdevConfig;
use hvrun_vmm::disk::DiskConfig;
use hvrun_vmm::hotplug::{DeviceKind, DeviceRequest, NodeRequest, PlugParser, Said};

use super::devices::{self, Kind, properties};
use super::opts::{Opts, Refusal};
use super::{drives, nets};

/// Understands QEMU's options.
#[derive(Debug, Clone, Copy)]
pub struct Parser;

fn opts(command: &str, said: &Said, implied: Option<&str>) -> Result<Opts, Refusal> {
    match said {
        Said::Text(text) => Opts::parse(command, text, implied),
        Said::Pairs(pairs) => Ok(Opts::from_pairs(command, pairs.clone())),
    }
}

fn device(said: &Said) -> Result<DeviceRequest, Refusal> {
    let mut opts = opts("device_add", said, Some("driver"))?;
    let driver = opts.needed("driver")?;
    let kind = devices::hotplug(&driver).map_err(Refusal)?;
    let id = opts.text("id")?;
    let bus = opts.text("bus")?;
    properties::place(&mut opts)?;
    let kind = match kind {
        Kind::Net => DeviceKind::Net(properties::net(&mut opts)?),
        _ => {
            opts.without_effect(&["bootindex"]);
            let (drive, properties) = properties::disk(&mut opts)?;
            DeviceKind::Disk { drive, properties }
        }
    };
    opts.finish()?;
    Ok(DeviceRequest { id, bus, kind })
}

impl PlugParser for Parser {
    fn device(&self, said: &Said) -> Result<DeviceRequest, String> {
        device(said).map_err(|refusal| refusal.0)
    }

    fn drive(&self, said: &Said) -> Result<(String, DiskConfig), String> {
        opts("drive_add", said, None).and_then(drives::added).map_err(|refusal| refusal.0)
    }

    fn node(&self, said: &Said) -> Result<NodeRequest, String> {
        opts("blockdev-add", said, None).and_then(drives::node).map_err(|refusal| refusal.0)
    }

    fn netdev(&self, said: &Said) -> Result<NetdevConfig, String> {
        opts("netdev_add", said, Some("type")).and_then(nets::netdev).map_err(|refusal| refusal.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Said {
        Said::Text(text.to_owned())
    }

    #[test]
    fn device_add_takes_what_the_command_line_takes() {
        let request =
            Parser.device(&text("virtio-blk-pci,id=x,drive=d,bus=rp0,serial=s,num-queues=2,iothread=io"));
        let DeviceRequest { id, bus, kind } = request.unwrap();
        assert_eq!((id.as_deref(), bus.as_deref()), (Some("x"), Some("rp0")));
        let DeviceKind::Disk { drive, properties } = kind else { panic!("{kind:?}") };
        assert_eq!(
            (drive.as_str(), properties.serial.as_deref(), properties.queues),
            ("d", Some("s"), Some(2))
        );
    }

    #[test]
    fn a_device_that_cannot_come_later_is_answered_with_those_that_can() {
        let error = Parser.device(&text("virtio-rng-pci,bus=rp0")).unwrap_err();
        assert!(error.contains("virtio-blk-pci and virtio-net-pci"), "{error}");
        let error = Parser.device(&text("virtio-blk-pic,drive=d")).unwrap_err();
        assert_eq!(
            error,
            "'virtio-blk-pic' is not a valid device model name; did you mean 'virtio-blk-pci'?"
        );
        let error = Parser.device(&text("virtio-net-pci,netdev=n,spede=1")).unwrap_err();
        assert!(error.contains("spede") && error.contains("speed"), "{error}");
    }

    #[test]
    fn a_drive_of_a_running_machine_has_no_interface() {
        let (id, disk) = Parser.drive(&text("if=none,id=d,file=/a,format=raw")).unwrap();
        assert_eq!((id.as_str(), disk.path.to_str()), ("d", Some("/a")));
        assert!(Parser.drive(&text("id=d,file=/a")).unwrap_err().contains("if=none"));
    }

    #[test]
    fn a_node_is_a_format_over_a_file_or_a_file() {
        let pairs = |pairs: &[(&str, &str)]| {
            Said::Pairs(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let file = [("driver", "file"), ("node-name", "f"), ("filename", "/a")];
        assert!(Parser.node(&pairs(&file)).unwrap().is_file);
        let over = [("driver", "qcow2"), ("node-name", "q"), ("file", "f"), ("read-only", "on")];
        let request = Parser.node(&pairs(&over)).unwrap();
        assert_eq!((request.over.as_deref(), request.disk.readonly), (Some("f"), true));
        let whole = [("driver", "raw"), ("node-name", "r"), ("file.driver", "file"), ("file.filename", "/b")];
        assert_eq!(Parser.node(&pairs(&whole)).unwrap().disk.path.to_str(), Some("/b"));
        let unknown = [("driver", "vmdk"), ("node-name", "r"), ("file", "f")];
        assert!(Parser.node(&pairs(&unknown)).unwrap_err().contains("does not accept value 'vmdk'"));
    }
}
