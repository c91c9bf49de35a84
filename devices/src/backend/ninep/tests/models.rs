//! The security models. The tests hold for root and for others; where the host's answer differs, both are said.

use std::os::unix::fs::MetadataExt;

use super::*;

/// An attribute that a mapped share keeps, as the host sees it.
fn kept(path: &std::path::Path, name: &str) -> Result<Vec<u8>> {
    let mut value = [0_u8; 16];
    let length = rustix::fs::getxattr(path, name, &mut value[..])?;
    Ok(value[..length].to_vec())
}

#[test]
fn none_shows_every_file_as_roots() -> Result {
    let client = Host::new()?.client()?;
    client.create("f", 1)?;
    let attr = client.getattr(1)?;
    assert_eq!((attr.uid, attr.gid), (0, 0));
    Ok(())
}

#[test]
fn none_without_squashing_shows_the_hosts_owner() -> Result {
    let host = Host::with(|config| config.squash_to_root = Some(false))?;
    std::fs::write(host.path("f"), "")?;
    if is_root() {
        std::os::unix::fs::chown(host.path("f"), Some(1234), Some(5678))?;
    }
    let metadata = std::fs::metadata(host.path("f"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    let attr = client.getattr(1)?;
    assert_eq!((attr.uid, attr.gid), (metadata.uid(), metadata.gid()));
    Ok(())
}

#[test]
fn none_ignores_chown() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.create("f", 1)?;
    client.setattr(1, setattr::UID | setattr::GID, 0, (1234, 1234), 0)?;
    assert_eq!(std::fs::metadata(host.path("f"))?.uid(), rustix::process::geteuid().as_raw());
    Ok(())
}

#[test]
fn passthrough_sets_the_owner_or_says_why_not() -> Result {
    let host = Host::model(SecurityModel::Passthrough)?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    let outcome = client.setattr(1, setattr::UID | setattr::GID, 0, (1234, 1234), 0);
    let expected =
        if is_root() { (Ok(()), 1234) } else { (refused(errno::EPERM), rustix::process::geteuid().as_raw()) };
    assert_eq!((outcome, std::fs::metadata(host.path("f"))?.uid()), expected);
    Ok(())
}

#[test]
fn mapped_xattr_keeps_owner_and_mode_as_qemu_does() -> Result {
    let host = Host::model(SecurityModel::MappedXattr)?;
    let client = host.client()?;
    client.create("f", 1)?;
    client.setattr(1, setattr::UID | setattr::GID | setattr::MODE, 0o4711, (1000, 100), 0)?;
    let path = host.path("f");
    let mode = u32::from_le_bytes(kept(&path, "user.virtfs.mode")?.try_into().unwrap_or_default());
    assert_eq!((kept(&path, "user.virtfs.uid")?, mode), (vec![0xe8, 3, 0, 0], 0o104_711));
    assert_eq!(std::fs::metadata(&path)?.mode() & 0o7777, 0o600);
    let attr = client.getattr(1)?;
    assert_eq!((attr.uid, attr.gid, attr.mode), (1000, 100, 0o104_711));
    Ok(())
}

#[test]
fn mapped_xattr_reads_what_qemu_wrote() -> Result {
    let host = Host::model(SecurityModel::MappedXattr)?;
    let path = host.path("disk");
    std::fs::write(&path, "")?;
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, "user.virtfs.uid", &0_u32.to_le_bytes(), flags)?;
    rustix::fs::setxattr(&path, "user.virtfs.gid", &6_u32.to_le_bytes(), flags)?;
    rustix::fs::setxattr(&path, "user.virtfs.mode", &0o060_660_u32.to_le_bytes(), flags)?;
    rustix::fs::setxattr(&path, "user.virtfs.rdev", &0x801_u64.to_le_bytes(), flags)?;
    let client = host.client()?;
    client.go(ROOT, 1, "disk")?;
    let attr = client.getattr(1)?;
    assert_eq!((attr.uid, attr.gid, attr.mode, attr.rdev), (0, 6, 0o060_660, 0x801));
    Ok(())
}

/// What a link and a device look like in a mapped share.
#[derive(Debug, PartialEq)]
struct Special {
    target: String,
    link_kind: u8,
    link_mode: u32,
    device_mode: u32,
    device: u64,
    opened: Answer<()>,
    plain_on_host: bool,
}

impl Special {
    fn expected() -> Self {
        Self {
            target: "where/to".to_owned(),
            link_kind: 2,
            link_mode: 0o120_777,
            device_mode: 0o020_666,
            device: 0x103,
            opened: refused(errno::ELOOP),
            plain_on_host: true,
        }
    }

    fn seen(security: SecurityModel) -> Result<Self> {
        let host = Host::model(security)?;
        let client = host.client()?;
        client.symlink(ROOT, "s", "where/to")?;
        client.mknod(ROOT, "null", 0o020_666, (1, 3))?;
        let link_kind = client.walk(ROOT, 1, &["s"])?[0].kind;
        client.go(ROOT, 2, "null")?;
        let device = client.getattr(2)?;
        let is_plain = |name| host.path(name).symlink_metadata().map(|metadata| metadata.is_file());
        Ok(Self {
            target: client.readlink(1)?,
            link_kind,
            link_mode: client.getattr(1)?.mode,
            device_mode: device.mode,
            device: device.rdev,
            opened: client.lopen(1, 0).map(drop),
            plain_on_host: is_plain("s")? && is_plain("null")?,
        })
    }
}

#[test]
fn mapped_xattr_keeps_links_and_devices_as_plain_files() -> Result {
    assert_eq!(Special::seen(SecurityModel::MappedXattr)?, Special::expected());
    Ok(())
}

#[test]
fn mapped_file_keeps_links_and_devices_as_plain_files() -> Result {
    assert_eq!(Special::seen(SecurityModel::MappedFile)?, Special::expected());
    Ok(())
}

#[test]
fn mapped_xattr_hides_its_own_attributes() -> Result {
    let client = Host::model(SecurityModel::MappedXattr)?.client()?;
    client.create("f", 1)?;
    client.go(ROOT, 2, "f")?;
    client.set_xattr(2, "user.mine", b"1", 0)?;
    let outcomes = (
        client.xattr(2, "")?,
        client.xattr(2, "user.virtfs.uid"),
        client.set_xattr(2, "user.virtfs.uid", b"0000", 0),
    );
    assert_eq!(outcomes, (b"user.mine\0".to_vec(), refused(errno::ENODATA), refused(errno::EACCES)));
    Ok(())
}

#[test]
fn mapped_xattr_takes_set_user_id_away_when_written() -> Result {
    let client = Host::model(SecurityModel::MappedXattr)?.client()?;
    client.create("f", 1)?;
    client.chmod(1, 0o4755)?;
    client.write(1, 0, b"x")?;
    assert_eq!(client.getattr(1)?.mode, 0o100_755);
    Ok(())
}

#[test]
fn mapped_file_keeps_owner_and_mode_as_qemu_does() -> Result {
    let host = Host::model(SecurityModel::MappedFile)?;
    let client = host.client()?;
    client.mkdir(ROOT, "d", 0o750)?;
    client.go(ROOT, 1, "d")?;
    client.setattr(1, setattr::UID | setattr::GID, 0, (1000, 100), 0)?;
    let text = std::fs::read_to_string(host.path(".virtfs_metadata/d"))?;
    assert_eq!(text, format!("virtfs.uid=1000\nvirtfs.gid=100\nvirtfs.mode={}\n", 0o040_750));
    let attr = client.getattr(1)?;
    assert_eq!((attr.uid, attr.gid, attr.mode), (1000, 100, 0o040_750));
    Ok(())
}

#[test]
fn mapped_file_keeps_the_roots_attributes_beside_it() -> Result {
    let host = Host::model(SecurityModel::MappedFile)?;
    let client = host.client()?;
    client.setattr(ROOT, setattr::UID, 0, (42, 0), 0)?;
    assert_eq!(
        (client.getattr(ROOT)?.uid, client.names("")?, host.path(".virtfs_metadata_root").exists()),
        (42, vec![], true)
    );
    Ok(())
}

#[test]
fn mapped_file_hides_its_metadata_and_lets_nobody_at_it() -> Result {
    let host = Host::model(SecurityModel::MappedFile)?;
    let client = host.client()?;
    client.create("f", 1)?;
    client.walk(ROOT, 2, &[])?;
    let outcomes = [
        client.walk(ROOT, 3, &[".virtfs_metadata"]).map(drop),
        client.walk(ROOT, 3, &[".VIRTFS_METADATA", "f"]).map(drop),
        client.mkdir(ROOT, ".virtfs_metadata", 0o755).map(drop),
        client.lcreate(2, ".virtfs_metadata_root", dotl::RDWR, 0o644).map(drop),
        client.renameat((ROOT, "f"), (ROOT, ".virtfs_metadata")),
        client.rmdir(ROOT, ".virtfs_metadata"),
    ];
    let (absent, invalid) = (refused(errno::ENOENT), refused(errno::EINVAL));
    assert_eq!(outcomes, [absent, absent, invalid, invalid, invalid, absent]);
    assert_eq!(client.names("")?, ["f"]);
    Ok(())
}

#[test]
fn mapped_file_metadata_follows_a_rename_and_goes_with_the_file() -> Result {
    let host = Host::model(SecurityModel::MappedFile)?;
    let client = host.client()?;
    client.create("f", 1)?;
    client.setattr(1, setattr::UID, 0, (1000, 0), 0)?;
    client.renameat((ROOT, "f"), (ROOT, "g"))?;
    client.go(ROOT, 2, "g")?;
    let uid = client.getattr(2)?.uid;
    client.unlink(ROOT, "g")?;
    let left = std::fs::read_dir(host.path(".virtfs_metadata"))?.count();
    assert_eq!((uid, left), (1000, 0));
    Ok(())
}

#[test]
fn mapped_file_removes_a_directory_that_only_holds_metadata() -> Result {
    let host = Host::model(SecurityModel::MappedFile)?;
    let client = host.client()?;
    client.mkdir(ROOT, "d", 0o755)?;
    client.go(ROOT, 1, "d")?;
    client.mkdir(1, "e", 0o755)?;
    let full = client.rmdir(ROOT, "d");
    client.rmdir(1, "e")?;
    assert_eq!(
        (full, client.rmdir(ROOT, "d"), host.path("d").exists()),
        (refused(errno::ENOTEMPTY), Ok(()), false)
    );
    Ok(())
}
