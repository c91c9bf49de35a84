//! The few of QEMU's objects that programs look for: the machine, and the devices that users have named. No object has properties here but
//! its type and its children.

use serde_json::{Value, json};

use super::super::names;
use super::super::target::Target;
use super::QmpError;

/// The type of `/machine`.
fn machine_type() -> String {
    let [major, minor, _] = super::QEMU_VERSION;
    format!("virt-{major}.{minor}-machine")
}

/// An object: its type, and the names and types of its children.
struct Object {
    kind: String,
    children: Vec<(String, String)>,
}

fn object(target: &dyn Target, path: &str) -> Option<Object> {
    let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let disks = target.disks();
    let driver = |device: &super::super::target::PciDevice| {
        names::virtio_word(device).map(|word| format!("virtio-{word}-pci"))
    };
    let named = target.pci().into_iter().filter_map(|device| {
        let id = names::disk_of(&disks, &device)?.config.device.clone()?;
        Some((id, driver(&device)?))
    });
    let container = |children: Vec<(String, String)>| Object { kind: "container".to_owned(), children };
    let folder = |name: &str| (name.to_owned(), "container".to_owned());
    match path.as_slice() {
        [] => Some(container(vec![("machine".to_owned(), machine_type())])),
        ["machine"] => Some(Object {
            kind: machine_type(),
            children: ["peripheral", "peripheral-anon", "unattached"].map(folder).to_vec(),
        }),
        ["machine", "peripheral"] => Some(container(named.collect())),
        ["machine", "peripheral-anon" | "unattached"] => Some(container(Vec::new())),
        ["machine", "peripheral", id] => named
            .into_iter()
            .find(|(name, _)| name == id)
            .map(|(_, kind)| Object { kind, children: Vec::new() }),
        _ => None,
    }
}

fn find(target: &dyn Target, path: &str) -> Result<Object, QmpError> {
    object(target, path).ok_or_else(|| QmpError::no_device(path))
}

/// `qom-list`.
pub(super) fn list(target: &dyn Target, path: &str) -> Result<Value, QmpError> {
    let children = find(target, path)?.children;
    let child = |(name, kind): (String, String)| json!({ "name": name, "type": format!("child<{kind}>") });
    let own = json!({ "name": "type", "type": "string" });
    Ok(Value::Array(std::iter::once(own).chain(children.into_iter().map(child)).collect()))
}

/// `qom-get`.
pub(super) fn get(target: &dyn Target, path: &str, property: &str) -> Result<Value, QmpError> {
    let object = find(target, path)?;
    if property == "type" {
        return Ok(Value::String(object.kind));
    }
    match object.children.iter().any(|(name, _)| name == property) {
        true => Ok(Value::String(format!("{}/{property}", path.trim_end_matches('/')))),
        false => Err(QmpError::generic(format!("Property '{}.{property}' not found", object.kind))),
    }
}
