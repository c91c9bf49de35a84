//! The kernel modules that tests of virtio need, picked out of the kernel's package with all that they depend on, and an archive of them
//! to append to the initrd. The indexes that `modprobe` reads are made here, because Debian's package leaves that to the machine that
//! installs it. This knows modules; what is done with them in the guest is in `guest/init`.

use crate::elf;
use crate::initrd::Archive;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What tests and benchmarks load. What a kernel has built in or does not have is left out.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "tun",
    "virtio_console",
    "virtio-rng",
    "virtio_balloon",
    "8021q",
    "9p",
    "9pnet_virtio",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "ext4",
    "overlay",
    "erofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
    "loop",
    "crc32c_generic",
    "libcrc32c",
];

/// Kernel modules under their file names, with the names of those that each depends on.
#[derive(Debug, Default)]
struct Closure {
    modules: BTreeMap<String, Module>,
}

#[derive(Debug)]
struct Module {
    /// Uncompressed.
    bytes: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Copies what the tests need of a kernel's modules, `from` being its `lib/modules/VERSION`, to the folder `to`, which is made anew.
pub fn collect(from: &Path, to: &Path) -> Result<()> {
    let files = module_files(from)?;
    let mut closure = Closure::default();
    for name in WANTED {
        // A kernel that has it built in has no file of it.
        if files.contains_key(&key(name)) {
            closure.add(name, &files)?;
        }
    }
    ensure!(!closure.modules.is_empty(), "{} has none of the modules {WANTED:?}", from.display());

    let part = to.with_extension(format!("part{}", std::process::id()));
    fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
    for (name, module) in &closure.modules {
        fs::write(part.join(format!("{name}.ko")), &module.bytes)?;
    }
    fs::write(part.join("modules.dep"), closure.dependencies())?;
    fs::write(part.join("modules.alias"), closure.aliases())?;
    // modprobe of what is built in succeeds.
    fs::write(part.join("modules.builtin"), fs::read(from.join("modules.builtin")).unwrap_or_default())?;
    let version = from.file_name().context("modules have no version")?;
    fs::write(part.join("version"), version.as_encoded_bytes())?;
    remove(to)?;
    fs::rename(&part, to).with_context(|| format!("cannot create {}", to.display()))
}

/// Removes a folder of modules, if it is there.
pub fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The archive to append to the initrd, of a folder that [`collect`] made.
pub fn archive(dir: &Path) -> Result<Vec<u8>> {
    let version = fs::read_to_string(dir.join("version"))
        .with_context(|| format!("{} is no folder of modules", dir.display()))?;
    let mut names: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    names.sort();
    let mut archive = Archive::default();
    let home = format!("lib/modules/{version}");
    for folder in ["lib", "lib/modules", &home] {
        archive.dir(folder)?;
    }
    for path in names.iter().filter(|path| !path.ends_with("version")) {
        let name = path.file_name().context("a module has no name")?.to_string_lossy();
        archive.file(&format!("{home}/{name}"), 0o644, &fs::read(path)?)?;
    }
    // Where the kernel looks when it wants a module, such as that of a file system that is mounted.
    archive.symlink("sbin/modprobe", "/bin/busybox")?;
    archive.finish()
}

impl Closure {
    fn add(&mut self, name: &str, files: &HashMap<String, PathBuf>) -> Result<()> {
        let path = files.get(&key(name)).with_context(|| format!("the kernel has no module {name}"))?;
        let file_name = module_name(path).with_context(|| format!("{} is no module", path.display()))?;
        if self.modules.contains_key(&file_name) {
            return Ok(());
        }
        let bytes = uncompressed(path)?;
        let info = elf::modinfo(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let values = |wanted: &str| -> Vec<String> {
            info.iter().filter(|(key, _)| key == wanted).map(|(_, value)| value.clone()).collect()
        };
        let depends: Vec<String> = values("depends")
            .iter()
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let module = Module { bytes, depends: depends.clone(), aliases: values("alias") };
        self.modules.insert(file_name, module);
        depends.iter().try_for_each(|name| self.add(name, files))
    }

    /// `modules.dep`: a line a module, the modules it needs behind it, those last that must be loaded first.
    fn dependencies(&self) -> String {
        let mut text = String::new();
        for name in self.modules.keys() {
            let mut order = Vec::new();
            self.collect_dependencies(name, &mut order);
            let list: String = order.iter().map(|name| format!(" {name}.ko")).collect();
            text += &format!("{name}.ko:{list}\n");
        }
        text
    }

    fn collect_dependencies<'a>(&'a self, name: &str, order: &mut Vec<&'a str>) {
        let Some(module) = self.named(name) else { return };
        for needed in &module.1.depends {
            let Some((file_name, _)) = self.named(needed) else { continue };
            // One that is needed twice goes behind whatever needs it.
            order.retain(|name| *name != file_name);
            order.push(file_name);
            self.collect_dependencies(needed, order);
        }
    }

    fn named(&self, name: &str) -> Option<(&str, &Module)> {
        let found = self.modules.iter().find(|(file_name, _)| key(file_name) == key(name));
        found.map(|(file_name, module)| (file_name.as_str(), module))
    }

    /// `modules.alias`: which module a device or a file system wants.
    fn aliases(&self) -> String {
        let lines = self.modules.iter().flat_map(|(name, module)| {
            module.aliases.iter().map(move |alias| format!("alias {alias} {}\n", key(name)))
        });
        lines.collect()
    }
}

/// The name by which modules are compared: a dash and an underscore are the same.
fn key(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in the file `path`, without `.ko` and what compresses it; `None` if it is another kind of file.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let plain = name.strip_suffix(".xz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    plain.strip_suffix(".ko").map(str::to_owned)
}

/// All modules below a folder, by their key.
fn module_files(dir: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    let mut folders = vec![dir.join("kernel")];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("{} is no folder of modules", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                files.insert(key(&name), entry.path());
            }
        }
    }
    Ok(files)
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(tool.0)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .with_context(|| format!("cannot run {}; on Debian the package {} has it", tool.0, tool.1))?;
    ensure!(output.status.success(), "{} cannot uncompress {}", tool.0, path.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closure(modules: &[(&str, &[&str])]) -> Closure {
        let module = |depends: &[&str]| Module {
            bytes: Vec::new(),
            depends: depends.iter().map(|name| (*name).to_owned()).collect(),
            aliases: Vec::new(),
        };
        Closure {
            modules: modules.iter().map(|(name, depends)| ((*name).to_owned(), module(depends))).collect(),
        }
    }

    #[test]
    fn dependency_shared_by_two_is_loaded_before_both() {
        let closure = closure(&[
            ("9p", &["9pnet", "fscache"]),
            ("9pnet", &["netfs"]),
            ("fscache", &["netfs"]),
            ("netfs", &[]),
        ]);
        let text = closure.dependencies();
        assert!(text.contains("9p.ko: 9pnet.ko fscache.ko netfs.ko\n"), "{text}");
    }

    #[test]
    fn dependency_with_an_underscore_is_found_in_a_file_with_a_dash() {
        let closure = closure(&[("a", &["virtio_rng"]), ("virtio-rng", &[])]);
        assert!(closure.dependencies().contains("a.ko: virtio-rng.ko\n"));
    }

    #[test]
    fn compressed_module_has_the_name_of_the_plain_one() {
        assert_eq!(module_name(Path::new("kernel/fs/9p/9p.ko.xz")).as_deref(), Some("9p"));
    }
}
