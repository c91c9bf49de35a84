//! No request reaches a file outside the share, or a file that is none.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn dotdot_from_the_root_stays_at_the_root() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    let walked = client.walk(ROOT, 1, &["..", "..", "secret"])?;
    let root = client.getattr(ROOT)?.qid;
    assert_eq!((walked, client.getattr(1)), (vec![root, root], refused(errno::EBADF)));
    Ok(())
}

#[test]
fn a_name_with_a_slash_is_refused() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.walk(ROOT, 1, &["../secret"]), refused(errno::ENOENT));
    Ok(())
}

#[test]
fn a_walk_does_not_go_through_a_symbolic_link() -> Result {
    let host = Host::new()?;
    symlink(host.dir.path(), host.path("out"))?;
    let client = host.client()?;
    let walked = client.walk(ROOT, 1, &["out", "secret"])?;
    assert_eq!((walked.len(), walked[0].kind, client.getattr(1)), (1, 0x02, refused(errno::EBADF)));
    Ok(())
}

#[test]
fn a_symbolic_link_is_not_opened() -> Result {
    let host = Host::new()?;
    symlink(host.secret(), host.path("out"))?;
    assert_eq!(host.client()?.open("out", 1, 0), refused(errno::ELOOP));
    Ok(())
}

#[test]
fn nothing_is_created_through_a_symbolic_link() -> Result {
    let host = Host::new()?;
    symlink(host.dir.path().join("made"), host.path("out"))?;
    let created = host.client()?.create("out", 1);
    assert_eq!((created, host.dir.path().join("made").exists()), (refused(errno::ELOOP), false));
    Ok(())
}

#[test]
fn nothing_is_made_in_a_directory_behind_a_symbolic_link() -> Result {
    let host = Host::new()?;
    symlink(host.dir.path(), host.path("out"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "out")?;
    let outcomes = [
        client.mkdir(1, "d", 0o755).map(drop),
        client.symlink(1, "s", "t").map(drop),
        client.mknod(1, "p", 0o010_644, (0, 0)).map(drop),
        client.unlink(1, "secret"),
        client.renameat((1, "secret"), (ROOT, "secret")),
        client.lcreate(1, "f", dotl::RDWR, 0o644).map(drop),
    ];
    assert!(outcomes.iter().all(|outcome| *outcome == refused(errno::ENOTDIR)), "{outcomes:?}");
    assert!(host.secret().exists());
    Ok(())
}

#[test]
fn nothing_is_renamed_into_a_directory_behind_a_symbolic_link() -> Result {
    let host = Host::new()?;
    symlink(host.dir.path(), host.path("out"))?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "out")?;
    client.go(ROOT, 2, "f")?;
    assert_eq!(
        (client.rename(2, 1, "secret"), std::fs::read(host.secret())?),
        (refused(errno::ENOTDIR), b"out of reach".to_vec())
    );
    Ok(())
}

#[test]
fn a_file_that_became_a_symbolic_link_after_the_walk_is_not_opened() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    std::fs::remove_file(host.path("f"))?;
    symlink(host.secret(), host.path("f"))?;
    assert_eq!((client.lopen(1, 0), client.truncate(1, 0)), (refused(errno::ELOOP), refused(errno::ELOOP)));
    Ok(())
}

/// A directory is swapped for a link to the outside between walk and use, once while its descriptor is kept and once
/// after it was let go of.
fn swap_after_walk(resolution: Resolution) -> Result<(Answer<u64>, Answer<u64>)> {
    let host = Host::with(|config| config.resolution = resolution)?;
    std::fs::create_dir_all(host.path("d/e"))?;
    std::fs::write(host.path("d/e/secret"), "inside")?;
    std::fs::create_dir(host.dir.path().join("e"))?;
    std::fs::write(host.dir.path().join("e/secret"), "quite outside")?;
    let share = Share::open(&host.config)?;
    let client = Client::of(&share)?;
    client.go(ROOT, 1, "d/e/secret")?;
    std::fs::rename(host.path("d"), host.path("away"))?;
    symlink(host.dir.path(), host.path("d"))?;
    let kept = client.getattr(1).map(|attr| attr.size);
    client.session.forget_directories_of(1);
    Ok((kept, client.getattr(1).map(|attr| attr.size)))
}

#[test]
fn a_directory_swapped_for_a_link_after_the_walk_leads_nowhere() -> Result {
    let (kept, anew) = swap_after_walk(Resolution::Auto)?;
    assert_eq!((kept, anew), (Ok(6), refused(errno::ELOOP)));
    Ok(())
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere_component_by_component_either() -> Result {
    let (kept, anew) = swap_after_walk(Resolution::Components)?;
    assert_eq!((kept, anew), (Ok(6), refused(errno::ENOTDIR)));
    Ok(())
}

#[test]
fn changing_a_link_does_not_change_what_it_points_to() -> Result {
    let host = Host::new()?;
    symlink(host.secret(), host.path("out"))?;
    let before = std::fs::metadata(host.secret())?.permissions();
    let client = host.client()?;
    client.go(ROOT, 1, "out")?;
    let changed = client.chmod(1, 0o777);
    assert_eq!(
        (changed, std::fs::metadata(host.secret())?.permissions()),
        (refused(errno::EOPNOTSUPP), before)
    );
    Ok(())
}

#[test]
fn extended_attributes_of_a_link_are_not_those_of_its_target() -> Result {
    let host = Host::new()?;
    symlink(host.secret(), host.path("out"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "out")?;
    client.set_xattr(1, "user.a", b"1", 0).err();
    let target = rustix::fs::getxattr(host.secret(), "user.a", &mut [0_u8; 8][..]);
    assert!(target.is_err());
    Ok(())
}

#[test]
fn a_fifo_neither_opens_nor_blocks() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.mknod(ROOT, "fifo", 0o010_644, (0, 0))?;
    client.go(ROOT, 1, "fifo")?;
    assert_eq!(
        (client.lopen(1, 0), client.lopen(1, dotl::WRONLY)),
        (refused(errno::ENXIO), refused(errno::ENXIO))
    );
    Ok(())
}

#[test]
fn a_fifo_is_not_opened_by_creating_it() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.mknod(ROOT, "fifo", 0o010_644, (0, 0))?;
    assert_eq!(client.create("fifo", 1), refused(errno::ENXIO));
    Ok(())
}

#[test]
fn a_socket_is_not_opened() -> Result {
    let host = Host::new()?;
    let _listener = std::os::unix::net::UnixListener::bind(host.path("socket"))?;
    assert_eq!(host.client()?.open("socket", 1, 0), refused(errno::ENXIO));
    Ok(())
}

#[test]
fn a_guest_of_an_untrusted_share_makes_no_devices() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.mknod(ROOT, "disk", 0o060_660, (8, 0)), refused(errno::EPERM));
    Ok(())
}

#[test]
fn a_missing_directory_is_named() -> Result {
    let error = Share::open(&ShareConfig::new("/nowhere/at/all", "t")).map(drop).map_err(|e| e.to_string());
    let expected = "cannot share /nowhere/at/all as 't': it does not exist; create the directory first";
    assert_eq!(error, Err(expected.to_owned()));
    Ok(())
}

#[test]
fn a_file_is_no_share() -> Result {
    let host = Host::new()?;
    let error = Share::open(&ShareConfig::new(host.secret(), "t"));
    assert!(matches!(error, Err(ShareError::NotADirectory { .. })), "{error:?}");
    Ok(())
}

#[test]
fn a_tag_that_is_too_long_is_no_share() -> Result {
    let host = Host::with(|config| config.tag = "t".repeat(32))?;
    assert!(matches!(Share::open(&host.config), Err(ShareError::Tag { .. })));
    Ok(())
}
