//! Walking, listing, and changing names.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn version_agrees_to_the_msize_of_the_client() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.version(16_384, "9P2000.L")?, (16_384, b"9P2000.L".to_vec()));
    Ok(())
}

#[test]
fn version_cuts_msize_to_one_mebibyte() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.version(10 << 20, "9P2000.L")?.0, 1 << 20);
    Ok(())
}

#[test]
fn version_refuses_an_msize_below_4096() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.version(4095, "9P2000.L"), refused(errno::EMSGSIZE));
    Ok(())
}

#[test]
fn version_of_another_protocol_is_unknown() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.version(8192, "9P2000.u")?.1, b"unknown");
    Ok(())
}

#[test]
fn version_clunks_all_fids() -> Result {
    let client = Host::new()?.client()?;
    client.version(65_536, "9P2000.L")?;
    assert_eq!((client.session.fids(), client.getattr(ROOT)), (0, refused(errno::EBADF)));
    Ok(())
}

#[test]
fn auth_is_refused() -> Result {
    let client = Host::new()?.client()?;
    let answer = client.call(op::TAUTH, Message::new().u32(1).string("root").string("").u32(0)).map(drop);
    assert_eq!(answer, refused(errno::EOPNOTSUPP));
    Ok(())
}

#[test]
fn nothing_works_before_version() -> Result {
    let host = Host::new()?;
    let client = Client { session: Session::new(Share::open(&host.config)?), msize: 8192, _dir: None };
    assert_eq!(client.attach(ROOT), refused(errno::EPROTO));
    Ok(())
}

#[test]
fn a_walk_gives_a_qid_for_each_component() -> Result {
    let host = Host::new()?;
    std::fs::create_dir_all(host.path("a/b"))?;
    std::fs::write(host.path("a/b/c"), "")?;
    let walked = host.client()?.walk(ROOT, 1, &["a", "b", "c"])?;
    let inode = std::fs::metadata(host.path("a/b/c"))?.ino();
    assert_eq!((walked.len(), walked[1].kind, walked[2].path), (3, 0x80, inode));
    Ok(())
}

#[test]
fn a_walk_that_fails_midway_says_how_far_it_came_and_makes_no_fid() -> Result {
    let host = Host::new()?;
    std::fs::create_dir(host.path("a"))?;
    let client = host.client()?;
    assert_eq!((client.walk(ROOT, 1, &["a", "none"])?.len(), client.getattr(1)), (1, refused(errno::EBADF)));
    Ok(())
}

#[test]
fn a_walk_of_more_than_16_components_is_refused() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.walk(ROOT, 1, &["."; 17]), refused(errno::EINVAL));
    Ok(())
}

#[test]
fn an_opened_fid_can_be_walked_from() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    client.open("f", 1, 0)?;
    client.walk(1, 2, &[])?;
    assert_eq!(client.getattr(2)?.size, 1);
    Ok(())
}

#[test]
fn dotdot_leads_to_the_directory_above() -> Result {
    let host = Host::new()?;
    std::fs::create_dir_all(host.path("a/b"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "a/b")?;
    let above = client.walk(1, 2, &[".."])?;
    client.go(ROOT, 3, "a")?;
    assert_eq!(above[0], client.getattr(3)?.qid);
    Ok(())
}

#[test]
fn a_fid_in_use_is_not_given_away() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!((client.walk(ROOT, ROOT, &[]), client.attach(ROOT)), (Ok(vec![]), refused(errno::EBADF)));
    Ok(())
}

#[test]
fn directories_links_and_nodes_are_made() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.mkdir(ROOT, "d", 0o755)?;
    client.symlink(ROOT, "s", "d/target")?;
    client.mknod(ROOT, "p", 0o010_644, (0, 0))?;
    client.go(ROOT, 1, "s")?;
    client.go(ROOT, 2, "p")?;
    assert_eq!((client.readlink(1)?.as_str(), client.getattr(2)?.mode), ("d/target", 0o010_644));
    assert!(host.path("d").is_dir());
    Ok(())
}

#[test]
fn modes_are_exact_whatever_the_umask() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.mkdir(ROOT, "d", 0o777)?;
    client.walk(ROOT, 1, &[])?;
    client.lcreate(1, "f", dotl::CREATE | dotl::RDWR, 0o666)?;
    let mode = |name| std::fs::metadata(host.path(name)).map(|m| m.mode() & 0o7777);
    assert_eq!((mode("d")?, mode("f")?), (0o777, 0o666));
    Ok(())
}

#[test]
fn a_hard_link_is_the_same_file() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.link(ROOT, 1, "g")?;
    client.go(ROOT, 2, "g")?;
    assert_eq!((client.getattr(2)?.qid, client.getattr(2)?.nlink), (client.getattr(1)?.qid, 2));
    Ok(())
}

#[test]
fn what_exists_is_not_made_again() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    client.walk(ROOT, 1, &[])?;
    let created = client.lcreate(1, "f", dotl::CREATE | dotl::EXCL | dotl::RDWR, 0o644);
    assert_eq!((client.mkdir(ROOT, "f", 0o755), created), (refused(errno::EEXIST), refused(errno::EEXIST)));
    Ok(())
}

#[test]
fn create_without_excl_opens_what_is_there() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "contents")?;
    let client = host.client()?;
    client.create("f", 1)?;
    assert_eq!(client.read(1, 0, 100)?, b"contents");
    Ok(())
}

#[test]
fn removing_needs_the_right_kind() -> Result {
    let host = Host::new()?;
    std::fs::create_dir_all(host.path("d/e"))?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    let outcomes = [client.unlink(ROOT, "d"), client.rmdir(ROOT, "f"), client.rmdir(ROOT, "d")];
    assert_eq!(outcomes, [refused(errno::EISDIR), refused(errno::ENOTDIR), refused(errno::ENOTEMPTY)]);
    Ok(())
}

#[test]
fn remove_takes_the_file_and_the_fid() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.remove(1)?;
    assert_eq!((host.path("f").exists(), client.getattr(1)), (false, refused(errno::EBADF)));
    Ok(())
}

#[test]
fn remove_clunks_the_fid_even_if_it_fails() -> Result {
    let host = Host::new()?;
    std::fs::create_dir_all(host.path("d/e"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "d")?;
    assert_eq!((client.remove(1), client.getattr(1)), (refused(errno::ENOTEMPTY), refused(errno::EBADF)));
    Ok(())
}

#[test]
fn renaming_a_directory_carries_the_fids_below_it_along() -> Result {
    let host = Host::new()?;
    std::fs::create_dir_all(host.path("a/b"))?;
    std::fs::create_dir(host.path("z"))?;
    std::fs::write(host.path("a/b/f"), "old")?;
    let client = host.client()?;
    client.go(ROOT, 1, "a/b/f")?;
    client.go(ROOT, 2, "z")?;
    client.renameat((ROOT, "a"), (2, "moved"))?;
    std::fs::write(host.path("z/moved/b/f"), "longer")?;
    client.lopen(1, 0)?;
    assert_eq!((client.getattr(1)?.size, client.read(1, 0, 100)?), (6, b"longer".to_vec()));
    Ok(())
}

#[test]
fn rename_by_fid_moves_a_file_over_another() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("a"), "new")?;
    std::fs::write(host.path("b"), "replaced")?;
    let client = host.client()?;
    client.go(ROOT, 1, "a")?;
    client.open("b", 2, 0)?;
    client.rename(1, ROOT, "b")?;
    let contents = (std::fs::read(host.path("b"))?, client.getattr(1)?.size, client.read(2, 0, 100)?);
    assert_eq!(contents, (b"new".to_vec(), 3, b"replaced".to_vec()));
    Ok(())
}

#[test]
fn renaming_one_hard_link_over_another_changes_nothing() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("a"), "x")?;
    std::fs::hard_link(host.path("a"), host.path("b"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "a")?;
    client.renameat((ROOT, "a"), (ROOT, "b"))?;
    assert_eq!((client.names("")?, client.getattr(1)?.nlink), (vec!["a".to_owned(), "b".to_owned()], 2));
    Ok(())
}

#[test]
fn a_fid_of_a_removed_file_does_not_become_a_new_file_of_that_name() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "old")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.unlink(ROOT, "f")?;
    std::fs::write(host.path("f"), "another")?;
    client.go(ROOT, 2, "f")?;
    assert_eq!((client.getattr(1)?.size, client.getattr(2)?.size), (3, 7));
    Ok(())
}

#[test]
fn a_directory_that_the_host_replaced_is_found_anew() -> Result {
    let host = Host::new()?;
    std::fs::create_dir(host.path("d"))?;
    std::fs::write(host.path("d/old"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "d")?;
    client.go(1, 2, "old")?;
    std::fs::remove_dir_all(host.path("d"))?;
    std::fs::create_dir(host.path("d"))?;
    std::fs::write(host.path("d/new"), "")?;
    assert_eq!(client.go(1, 3, "new"), Ok(()));
    Ok(())
}

#[test]
fn a_directory_that_the_host_exchanged_is_seen_by_the_next_walk() -> Result {
    let host = Host::new()?;
    std::fs::create_dir(host.path("d"))?;
    std::fs::create_dir(host.path("other"))?;
    std::fs::write(host.path("other/new"), "")?;
    let client = host.client()?;
    client.walk(ROOT, 1, &["d", "none"])?;
    std::fs::rename(host.path("d"), host.path("old"))?;
    std::fs::rename(host.path("other"), host.path("d"))?;
    assert_eq!(client.go(ROOT, 2, "d/new"), Ok(()));
    Ok(())
}

#[test]
fn readdir_tells_names_types_and_inodes() -> Result {
    let host = Host::new()?;
    std::fs::create_dir(host.path("d"))?;
    std::os::unix::fs::symlink("x", host.path("s"))?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.walk(ROOT, 1, &[])?;
    client.lopen(1, 0)?;
    let mut seen: Vec<_> =
        client.list_from(1, 0)?.into_iter().map(|e| (e.name, e.kind, e.qid.kind)).collect();
    seen.sort();
    let entry = |name: &str, kind, qid| (name.to_owned(), kind, qid);
    assert_eq!(
        seen,
        [entry(".", 4, 0x80), entry("..", 4, 0x80), entry("d", 4, 0x80), entry("f", 8, 0), entry("s", 10, 2)]
    );
    Ok(())
}

#[test]
fn readdir_of_the_root_does_not_tell_what_is_above() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.walk(ROOT, 1, &[])?;
    client.lopen(1, 0)?;
    let entries = client.list_from(1, 0)?;
    let root = std::fs::metadata(&host.config.path)?.ino();
    assert!(entries.iter().all(|entry| entry.qid.path == root));
    Ok(())
}

#[test]
fn readdir_of_100_000_entries_can_start_anywhere() -> Result {
    let host = Host::new()?;
    for n in 0..100_000 {
        std::fs::File::create(host.path(&format!("entry-{n:06}")))?;
    }
    let client = host.client()?;
    client.walk(ROOT, 1, &[])?;
    client.lopen(1, 0)?;
    let all = client.list_from(1, 0)?;
    let middle = &all[54_320];
    client.unlink(ROOT, "entry-000007")?;
    let rest = client.list_from(1, middle.cookie)?;
    let names: std::collections::HashSet<_> = all.iter().map(|entry| &entry.name).collect();
    assert_eq!((all.len(), names.len(), &all[54_321..]), (100_002, 100_002, &rest[..]));
    Ok(())
}

#[test]
fn readdir_from_the_start_sees_what_was_made_since() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.walk(ROOT, 1, &[])?;
    client.lopen(1, 0)?;
    let before = client.list_from(1, 0)?.len();
    std::fs::write(host.path("new"), "")?;
    assert_eq!(client.list_from(1, 0)?.len(), before + 1);
    Ok(())
}

#[test]
fn readdir_with_no_room_for_an_entry_is_an_error_not_the_end() -> Result {
    let client = Host::new()?.client()?;
    client.walk(ROOT, 1, &[])?;
    client.lopen(1, 0)?;
    assert_eq!(client.readdir(1, 0, 20), refused(errno::EINVAL));
    Ok(())
}

#[test]
fn a_directory_deeper_than_paths_can_be_long_is_reached() -> Result {
    let host = Host::with(|config| config.limits.directories = 4)?;
    let client = host.client()?;
    let name = "d".repeat(250);
    client.walk(ROOT, 1, &[])?;
    for _ in 0..300 {
        client.mkdir(1, &name, 0o755)?;
        client.walk(1, 1, &[&name])?;
    }
    client.walk(1, 2, &[])?;
    client.lcreate(2, "bottom", dotl::CREATE | dotl::RDWR, 0o644)?;
    // Others are used meanwhile, so that nothing of the way down is kept.
    for n in 0..8 {
        client.mkdir(ROOT, &n.to_string(), 0o755)?;
        client.walk(ROOT, 3, &[&n.to_string(), "none"])?;
    }
    assert_eq!(client.go(1, 4, "bottom"), Ok(()));
    Ok(())
}

#[test]
fn components_are_resolved_one_by_one_where_the_host_has_no_better_way() -> Result {
    let host = Host::with(|config| config.resolution = Resolution::Components)?;
    std::fs::create_dir_all(host.path("a/b/c"))?;
    std::fs::write(host.path("a/b/c/f"), "x")?;
    let share = Share::open(&host.config)?;
    let client = Client::of(&share)?;
    client.go(ROOT, 1, "a/b/c/f")?;
    client.session.forget_directories_of(1);
    assert_eq!(client.getattr(1)?.size, 1);
    Ok(())
}

#[test]
fn hacked_names_are_listed_and_found_as_nix_meant_them() -> Result {
    let host = Host::with(|config| config.case_hack = CaseHack::On)?;
    std::fs::write(host.path("readme"), "lower")?;
    std::fs::write(host.path("README~nix~case~hack~1"), "upper")?;
    let client = host.client()?;
    client.open("README", 1, 0)?;
    assert_eq!(
        (client.names("")?, client.read(1, 0, 9)?),
        (vec!["README".to_owned(), "readme".to_owned()], b"upper".to_vec())
    );
    Ok(())
}

#[test]
fn a_hacked_name_is_removed_by_the_name_that_nix_meant() -> Result {
    let host = Host::with(|config| config.case_hack = CaseHack::On)?;
    std::fs::write(host.path("A~nix~case~hack~1"), "")?;
    host.client()?.unlink(ROOT, "A")?;
    assert!(!host.path("A~nix~case~hack~1").exists());
    Ok(())
}

#[test]
fn hacked_names_stay_as_they_are_when_the_hack_is_off() -> Result {
    let host = Host::with(|config| config.case_hack = CaseHack::Off)?;
    std::fs::write(host.path("A~nix~case~hack~1"), "")?;
    assert_eq!(host.client()?.names("")?, ["A~nix~case~hack~1"]);
    Ok(())
}

#[test]
fn a_read_only_share_refuses_every_change() -> Result {
    let host = Host::with(|config| config.readonly = true)?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.walk(ROOT, 2, &[])?;
    let outcomes = [
        client.lopen(1, dotl::WRONLY).map(drop),
        client.lopen(1, dotl::TRUNC).map(drop),
        client.lcreate(2, "g", dotl::RDWR, 0o644).map(drop),
        client.mkdir(ROOT, "d", 0o755).map(drop),
        client.symlink(ROOT, "s", "t").map(drop),
        client.mknod(ROOT, "p", 0o010_644, (0, 0)).map(drop),
        client.link(ROOT, 1, "l"),
        client.unlink(ROOT, "f"),
        client.renameat((ROOT, "f"), (ROOT, "g")),
        client.rename(1, ROOT, "g"),
        client.chmod(1, 0o777),
        client.truncate(1, 0),
        client.set_xattr(1, "user.a", b"1", 0),
        client.remove(1),
    ];
    assert!(outcomes.iter().all(|outcome| *outcome == refused(errno::EROFS)), "{outcomes:?}");
    Ok(())
}

#[test]
fn nodes_are_given_back_with_their_fids() -> Result {
    let host = Host::new()?;
    std::fs::create_dir_all(host.path("a/b/c/d"))?;
    let share = Share::open(&host.config)?;
    let client = Client::of(&share)?;
    for _ in 0..100 {
        client.go(ROOT, 1, "a/b/c/d")?;
        client.clunk(1)?;
    }
    let cached = share.tree().cached();
    let nodes = share.tree().len();
    // The root, and the directories whose descriptors are kept.
    assert_eq!(nodes, 1 + cached);
    Ok(())
}

#[test]
fn no_more_directory_descriptors_are_kept_than_the_limit() -> Result {
    let host = Host::with(|config| config.limits.directories = 8)?;
    let share = Share::open(&host.config)?;
    let client = Client::of(&share)?;
    for n in 0..50 {
        let name = n.to_string();
        client.mkdir(ROOT, &name, 0o755)?;
        client.walk(ROOT, 100, &[&name, "none"])?;
        client.walk(ROOT, n + 1, &[&name])?;
    }
    assert_eq!((share.tree().cached(), client.session.fids()), (8, 51));
    Ok(())
}
