//! Shared folders: `-virtfs`, and `-fsdev` for `-device virtio-9p-pci`.

use hvrun_vmm::ninep::ShareConfig;

use super::command::{Command, Given};
use super::opts::{Opts, Refusal};
use super::registry::Registry;
use super::table::Id;

/// Reads every `-fsdev`; the tag is the device's.
pub fn read(command: &Command) -> Result<Registry<ShareConfig>, Refusal> {
    let mut registry = Registry::new("fsdev");
    for given in command.each(Id::Fsdev) {
        let mut opts = given.opts()?;
        let id = opts.needed("id")?;
        let share = share(&mut opts)?;
        opts.clone().finish()?;
        registry.insert(&opts, id, share)?;
    }
    Ok(registry)
}

/// What a `-virtfs` shares.
pub fn virtfs(given: &Given) -> Result<ShareConfig, Refusal> {
    let mut opts = given.opts()?;
    opts.without_effect(&["id"]);
    let share = share(&mut opts)?;
    let tag = tag(&mut opts)?;
    opts.finish()?;
    Ok(ShareConfig { tag, ..share })
}

/// The name by which the guest mounts it.
pub fn tag(opts: &mut Opts) -> Result<String, Refusal> {
    opts.needed("mount_tag")
}

/// Everything but the tag.
fn share(opts: &mut Opts) -> Result<ShareConfig, Refusal> {
    match opts.needed("fsdriver")?.as_str() {
        "local" => {}
        other @ ("proxy" | "synth") => {
            return Err(opts.refuse(format_args!("'{other}' is not supported; use 'local'")));
        }
        other => {
            return Err(
                opts.refuse(format_args!("there is no file system driver '{other}'; there is 'local'"))
            );
        }
    }
    let mut share = ShareConfig::new(opts.needed("path")?, "");
    match opts.value("security_model")? {
        Some(model) => share.security = model,
        None => {
            let models = "none, passthrough, mapped-xattr or mapped-file";
            return Err(opts.refuse(format_args!("security_model=... is missing; it can be {models}")));
        }
    }
    share.readonly = opts.switch("readonly")?.unwrap_or(false);
    if let Some(multidevs) = opts.value("multidevs")? {
        share.multidevs = multidevs;
    }
    // Every write is with the host's kernel before it is answered.
    opts.only("writeout", &["immediate"])?;
    opts.unsupported(&["fmode", "dmode"], "new files get the modes that the guest gives them")?;
    opts.unsupported(&["sock_fd", "socket"], "they are for the driver 'proxy'")?;
    Ok(share)
}
