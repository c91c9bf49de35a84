//! Reading, writing, attributes, extended attributes, locks.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn what_is_written_is_read_and_on_the_host_at_once() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.create("f", 1)?;
    client.write(1, 0, b"hello")?;
    assert_eq!((client.read(1, 1, 3)?, std::fs::read(host.path("f"))?), (b"ell".to_vec(), b"hello".to_vec()));
    Ok(())
}

#[test]
fn a_read_never_exceeds_msize() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), vec![7; 100_000])?;
    let client = Client::with_msize(&Share::open(&host.config)?, 8192)?;
    client.open("f", 1, 0)?;
    assert_eq!(client.read(1, 0, 1 << 30)?.len(), 8192 - 11);
    Ok(())
}

#[test]
fn reading_at_the_end_gives_nothing() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    client.open("f", 1, 0)?;
    assert_eq!((client.read(1, 1, 10)?, client.read(1, u64::MAX, 10)), (vec![], refused(errno::EINVAL)));
    Ok(())
}

#[test]
fn payload_moves_between_scattered_memory_and_the_file() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.create("f", 1)?;
    let data: Vec<u8> = (0..40_000).map(|n| n as u8).collect();
    let message = Message::new().u32(1).u64(0).u32(data.len() as u32).bytes(&data);
    let mut request = message.framed(op::TWRITE, 1);
    let mut reply = vec![0; 50_000];
    let parts: Vec<_> = request.chunks_mut(333).map(vm_memory::VolatileSlice::from).collect();
    let room: Vec<_> = reply.chunks_mut(7).map(vm_memory::VolatileSlice::from).collect();
    client.session.handle(&parts, &room);
    let mut request = Message::new().u32(1).u64(0).u32(40_000).framed(op::TREAD, 1);
    let parts: Vec<_> = request.chunks_mut(3).map(vm_memory::VolatileSlice::from).collect();
    let length = client.session.handle(&parts, &room);
    drop(room);
    assert_eq!((&reply[11..length], std::fs::read(host.path("f"))?), (&data[..], data.clone()));
    Ok(())
}

#[test]
fn a_write_whose_size_leaves_the_data_out_is_written() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.create("f", 1)?;
    let mut request = Message::new().u32(1).u64(0).u32(5).framed(op::TWRITE, 1);
    request.extend(b"hello");
    client.session.handle_bytes(&request, &mut [0; 64]);
    assert_eq!(std::fs::read(host.path("f"))?, b"hello");
    Ok(())
}

#[test]
fn an_unlinked_file_still_works_through_its_fid() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    client.create("f", 1)?;
    client.write(1, 0, b"hello")?;
    client.unlink(ROOT, "f")?;
    client.write(1, 5, b" world")?;
    client.truncate(1, 8)?;
    client.chmod(1, 0o600)?;
    let attr = client.getattr(1)?;
    assert_eq!(
        (client.read(1, 0, 100)?, attr.size, attr.nlink, attr.mode),
        (b"hello wo".to_vec(), 8, 0, 0o100_600)
    );
    Ok(())
}

#[test]
fn an_idle_fid_of_an_unlinked_file_can_still_be_opened() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "still here")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.unlink(ROOT, "f")?;
    client.lopen(1, 0)?;
    assert_eq!(client.read(1, 0, 100)?, b"still here");
    Ok(())
}

#[test]
fn two_clients_and_the_host_see_each_others_writes_at_once() -> Result {
    let host = Host::new()?;
    let (one, two) = (host.client()?, host.client()?);
    one.create("f", 1)?;
    two.open("f", 1, dotl::RDWR)?;
    one.write(1, 0, b"one")?;
    let seen_by_two = (two.read(1, 0, 10)?, two.getattr(1)?.size);
    two.write(1, 3, b"two")?;
    let seen_by_one = (one.read(1, 0, 10)?, one.getattr(1)?.size);
    assert_eq!((seen_by_two, seen_by_one), ((b"one".to_vec(), 3), (b"onetwo".to_vec(), 6)));
    assert_eq!(std::fs::read(host.path("f"))?, b"onetwo");
    Ok(())
}

#[test]
fn two_appending_clients_do_not_overwrite_each_other() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("log"), "")?;
    let (one, two) = (host.client()?, host.client()?);
    one.open("log", 1, dotl::WRONLY | dotl::APPEND)?;
    two.open("log", 1, dotl::WRONLY | dotl::APPEND)?;
    one.write(1, 0, b"one.")?;
    two.write(1, 0, b"two.")?;
    assert_eq!(std::fs::read(host.path("log"))?, b"one.two.");
    Ok(())
}

#[test]
fn noatime_and_direct_are_ignored() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    assert_eq!(client.open("f", 1, dotl::NOATIME | dotl::DIRECT), Ok(()));
    Ok(())
}

#[test]
fn truncating_on_open_empties_the_file() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    host.client()?.open("f", 1, dotl::WRONLY | dotl::TRUNC)?;
    assert_eq!(std::fs::metadata(host.path("f"))?.len(), 0);
    Ok(())
}

#[test]
fn a_fid_is_opened_once() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    let client = host.client()?;
    client.open("f", 1, 0)?;
    assert_eq!(client.lopen(1, 0), refused(errno::EBUSY));
    Ok(())
}

#[test]
fn the_block_size_is_whole_pages_that_fill_a_message() -> Result {
    let host = Host::new()?;
    let client = Client::with_msize(&Share::open(&host.config)?, 512_000)?;
    assert_eq!(client.getattr(ROOT)?.block_size, (512_000 - 24) / 4096 * 4096);
    Ok(())
}

#[test]
fn statfs_says_v9fs() -> Result {
    let client = Host::new()?.client()?;
    let mut answer = client.call(op::TSTATFS, Message::new().u32(ROOT))?;
    let (magic, block_size, blocks) = (answer.u32(), answer.u32(), answer.u64());
    assert_eq!((magic, block_size > 0, blocks > 0), (0x0102_1997, true, true));
    Ok(())
}

#[test]
fn times_and_sizes_are_set() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "long")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    let valid = setattr::SIZE | setattr::MTIME | setattr::MTIME_SET | setattr::ATIME | setattr::ATIME_SET;
    client.setattr(1, valid, 0, (0, 0), 2)?;
    let metadata = std::fs::metadata(host.path("f"))?;
    assert_eq!(
        (metadata.len(), metadata.atime(), metadata.mtime(), client.getattr(1)?.mtime),
        (2, 1000, 2000, 2000)
    );
    Ok(())
}

#[test]
fn the_times_of_a_symbolic_link_are_its_own() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    std::os::unix::fs::symlink("f", host.path("s"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "s")?;
    client.setattr(1, setattr::MTIME | setattr::MTIME_SET, 0, (0, 0), 0)?;
    assert_eq!(host.path("s").symlink_metadata()?.mtime(), 2000);
    assert_ne!(std::fs::metadata(host.path("f"))?.mtime(), 2000);
    Ok(())
}

#[test]
fn the_time_of_birth_is_told_to_who_asks() -> Result {
    let client = Host::new()?.client()?;
    let valid = client.getattr_of(ROOT, getattr::BASIC | getattr::BTIME)?.valid;
    assert!(valid & getattr::BASIC == getattr::BASIC);
    Ok(())
}

#[test]
fn a_write_takes_set_user_id_away() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    std::fs::set_permissions(host.path("f"), std::fs::Permissions::from_mode(0o6755))?;
    let client = host.client()?;
    client.open("f", 1, dotl::WRONLY)?;
    client.write(1, 0, b"y")?;
    assert_eq!(std::fs::metadata(host.path("f"))?.mode() & 0o7777, 0o755);
    Ok(())
}

#[test]
fn a_truncation_takes_set_user_id_away() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "x")?;
    std::fs::set_permissions(host.path("f"), std::fs::Permissions::from_mode(0o4755))?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.truncate(1, 0)?;
    assert_eq!(std::fs::metadata(host.path("f"))?.mode() & 0o7777, 0o755);
    Ok(())
}

#[test]
fn files_and_directories_are_synced() -> Result {
    let client = Host::new()?.client()?;
    client.create("f", 1)?;
    client.walk(ROOT, 2, &[])?;
    client.lopen(2, 0)?;
    let outcomes =
        (client.fsync(1, false), client.fsync(1, true), client.fsync(2, false), client.fsync(ROOT, false));
    assert_eq!(outcomes, (Ok(()), Ok(()), Ok(()), refused(errno::EBADF)));
    Ok(())
}

#[test]
fn extended_attributes_are_set_listed_read_and_removed() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.set_xattr(1, "user.a", b"value", 0)?;
    let listed = client.xattr(1, "")?;
    let value = client.xattr(1, "user.a")?;
    client.set_xattr(1, "user.a", b"", 2)?;
    assert_eq!(
        (listed, value, client.xattr(1, "user.a")),
        (b"user.a\0".to_vec(), b"value".to_vec(), refused(errno::ENODATA))
    );
    Ok(())
}

#[test]
fn an_empty_extended_attribute_is_set_not_removed() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    client.set_xattr(1, "user.empty", b"", 0)?;
    assert_eq!(client.xattr(1, "user.empty")?, b"");
    Ok(())
}

#[test]
fn an_opened_file_has_extended_attributes_too() -> Result {
    let client = Host::new()?.client()?;
    client.create("f", 1)?;
    client.go(ROOT, 2, "f")?;
    client.set_xattr(2, "user.a", b"value", 0)?;
    assert_eq!(client.xattr(1, "user.a")?, b"value");
    Ok(())
}

#[test]
fn attributes_of_the_system_are_not_the_guests() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    client.go(ROOT, 1, "f")?;
    let read = (client.xattr(1, "security.capability"), client.xattr(1, "system.posix_acl_access"));
    assert_eq!(read, (refused(errno::ENODATA), refused(errno::EOPNOTSUPP)));
    assert_eq!(client.set_xattr(1, "trusted.overlay.opaque", b"y", 0), refused(errno::EOPNOTSUPP));
    Ok(())
}

#[test]
fn an_extended_attribute_of_more_than_64_kib_is_refused() -> Result {
    let client = Host::new()?.client()?;
    client.create("f", 1)?;
    client.go(ROOT, 2, "f")?;
    let answer =
        client.call(op::TXATTRCREATE, Message::new().u32(2).string("user.a").u64(65_537).u32(0)).map(drop);
    assert_eq!(answer, refused(errno::ENOSPC));
    Ok(())
}

#[test]
fn xattr_fids_cannot_exhaust_memory() -> Result {
    let host = Host::with(|config| config.limits.xattr_bytes = 200_000)?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    let create = |fid: u32| -> Answer<()> {
        client.go(ROOT, fid, "f")?;
        client.call(op::TXATTRCREATE, Message::new().u32(fid).string("user.a").u64(65_536).u32(0)).map(drop)
    };
    let filled = [create(1), create(2), create(3)];
    let beyond = create(4);
    client.clunk(1).ok();
    assert_eq!((filled, beyond, create(5)), ([Ok(()); 3], refused(errno::ENOMEM), Ok(())));
    Ok(())
}

#[test]
fn an_attribute_that_was_not_written_completely_is_not_set() -> Result {
    let client = Host::new()?.client()?;
    client.create("f", 1)?;
    client.go(ROOT, 2, "f")?;
    client.call(op::TXATTRCREATE, Message::new().u32(2).string("user.a").u64(10).u32(0))?;
    client.write(2, 0, b"half")?;
    assert_eq!(
        (client.clunk(2), client.xattr(1, "user.a")),
        (refused(errno::EINVAL), refused(errno::ENODATA))
    );
    Ok(())
}

#[test]
fn a_lock_of_one_guest_blocks_another() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let (one, two) = (host.client()?, host.client()?);
    one.open("f", 1, dotl::RDWR)?;
    two.open("f", 1, dotl::RDWR)?;
    let granted = one.lock(1, 1, (0, 10), 100)?;
    assert_eq!((granted, two.lock(1, 1, (5, 10), 100)?, two.lock(1, 1, (10, 10), 100)?), (0, 1, 0));
    Ok(())
}

#[test]
fn a_lock_goes_with_its_fid() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let (one, two) = (host.client()?, host.client()?);
    one.open("f", 1, dotl::RDWR)?;
    two.open("f", 1, dotl::RDWR)?;
    one.lock(1, 1, (0, 0), 100)?;
    one.clunk(1)?;
    assert_eq!(two.lock(1, 1, (0, 0), 100)?, 0);
    Ok(())
}

#[test]
fn a_lock_goes_with_its_session() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let (one, two) = (host.client()?, host.client()?);
    one.open("f", 1, dotl::RDWR)?;
    two.open("f", 1, dotl::RDWR)?;
    one.lock(1, 1, (0, 0), 100)?;
    drop(one);
    assert_eq!(two.lock(1, 1, (0, 0), 100)?, 0);
    Ok(())
}

#[test]
fn getlock_tells_who_is_in_the_way() -> Result {
    let host = Host::new()?;
    std::fs::write(host.path("f"), "")?;
    let (one, two) = (host.client()?, host.client()?);
    one.open("f", 1, dotl::RDWR)?;
    two.open("f", 1, dotl::RDWR)?;
    one.lock(1, 1, (4, 6), 77)?;
    let message = Message::new().u32(1).u8(0).u64(0).u64(0).u32(5).string("guest");
    let mut answer = two.call(op::TGETLOCK, message)?;
    assert_eq!(
        (answer.u8(), answer.u64(), answer.u64(), answer.u32(), answer.string()),
        (1, 4, 6, 77, b"guest".to_vec())
    );
    Ok(())
}
