//! `-object`: sources of entropy, memory, threads and records of a network's traffic. They are checked; of these, only the memory's size
//! what it is on the host, and the records change the machine.

use std::path::PathBuf;

use hvrun_vmm::MemoryBacking;
use hvrun_vmm::virtio::net::NetConfig;

use super::command::Command;
use super::machine::backend_size;
use super::nearest::did_you_mean;
use super::opts::{Opts, Refusal};
use super::registry::Registry;
use super::table::Id;

/// Types that there are.
pub const TYPES: [&str; 8] = [
    "rng-random",
    "rng-builtin",
    "memory-backend-ram",
    "memory-backend-memfd",
    "memory-backend-file",
    "memory-backend-shm",
    "iothread",
    "filter-dump",
];

/// An object.
#[derive(Debug)]
enum Object {
    Rng,
    /// Memory of so many bytes.
    Memory(u64, MemoryBacking),
    Thread,
    /// Where the traffic of the card behind a `-netdev` is recorded.
    Dump {
        netdev: String,
        file: PathBuf,
    },
}

/// All of them.
#[derive(Debug)]
pub struct Objects(Registry<Object>);

impl Objects {
    /// Reads the definitions.
    pub fn read(command: &Command) -> Result<Objects, Refusal> {
        let mut registry = Registry::new("object");
        for given in command.each(Id::Object) {
            let mut opts = given.opts()?;
            let kind = opts.needed("qom-type")?;
            let id = opts.needed("id")?;
            let object = object(&mut opts, &kind)?;
            opts.clone().finish()?;
            registry.insert(&opts, id, object)?;
        }
        Ok(Objects(registry))
    }

    /// Refuses an id that is no source of entropy.
    pub fn check_rng(&mut self, id: &str, opts: &Opts) -> Result<(), Refusal> {
        match self.0.share(id, opts)? {
            Object::Rng => Ok(()),
            _ => Err(opts.refuse(format_args!(
                "the object '{id}' is no source of entropy; use '-object rng-random,id=ID'"
            ))),
        }
    }

    /// The size of the memory called `id`, and what it is on the host.
    pub fn memory(&mut self, id: &str, opts: &Opts) -> Result<(u64, MemoryBacking), Refusal> {
        match self.0.share(id, opts)? {
            Object::Memory(bytes, backing) => Ok((*bytes, backing.clone())),
            _ => Err(opts.refuse(format_args!(
                "the object '{id}' is no memory; use '-object memory-backend-ram,id=ID,size=SIZE'"
            ))),
        }
    }

    /// Has the traffic of `nets` recorded where that was asked for.
    pub fn record(&self, nets: &mut [NetConfig]) -> Result<(), Refusal> {
        for entry in self.0.iter() {
            let Object::Dump { netdev, file } = &entry.value else { continue };
            let net = nets.iter_mut().find(|net| net.common.netdev.as_deref() == Some(netdev));
            match net {
                Some(net) => net.common.dump = Some(file.clone()),
                None => {
                    return Err(Refusal(format!(
                        "-object filter-dump,id={}: no network card has the netdev '{netdev}'",
                        entry.id
                    )));
                }
            }
        }
        Ok(())
    }
}

fn object(opts: &mut Opts, kind: &str) -> Result<Object, Refusal> {
    match kind {
        "rng-random" => {
            // Whatever the file, bytes come from the host's generator.
            opts.only("filename", &["/dev/urandom", "/dev/random", "/dev/hwrng"])?;
            Ok(Object::Rng)
        }
        "rng-builtin" => Ok(Object::Rng),
        "memory-backend-ram" | "memory-backend-memfd" | "memory-backend-file" | "memory-backend-shm" => {
            let text = opts.needed("size")?;
            let bytes = backend_size(opts, &text)?;
            // QEMU's defaults: what other processes could map only with a file of its own is private without one.
            let share = opts
                .switch("share")?
                .unwrap_or(matches!(kind, "memory-backend-memfd" | "memory-backend-shm"));
            let path = if kind == "memory-backend-file" { Some(opts.needed("mem-path")?) } else { None };
            let backing = match (share, path) {
                (true, Some(path)) => MemoryBacking::SharedFile(path.into()),
                (true, None) => MemoryBacking::Shared,
                (false, _) => MemoryBacking::Private,
            };
            opts.without_effect(&[
                "merge",
                "dump",
                "prealloc",
                "prealloc-threads",
                "seal",
                "hugetlb",
                "hugetlbsize",
                "discard-data",
                "align",
                "pmem",
                "reserve",
                "host-nodes",
                "policy",
            ]);
            Ok(Object::Memory(bytes, backing))
        }
        "iothread" => {
            opts.without_effect(&[
                "poll-max-ns",
                "poll-grow",
                "poll-shrink",
                "aio-max-batch",
                "thread-pool-min",
                "thread-pool-max",
            ]);
            Ok(Object::Thread)
        }
        "filter-dump" => {
            opts.without_effect(&["maxlen", "queue", "status", "position", "insert"]);
            Ok(Object::Dump { netdev: opts.needed("netdev")?, file: opts.needed("file")?.into() })
        }
        other => {
            let hint = did_you_mean(other, TYPES.into_iter());
            Err(opts.refuse(format_args!("there is no object '{other}'{hint}")))
        }
    }
}
