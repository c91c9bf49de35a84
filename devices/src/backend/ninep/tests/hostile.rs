//! Bytes that are no requests, and requests that want too much.

use proptest::prelude::*;

use super::*;

#[test]
fn a_message_without_a_header_has_no_reply() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.session.handle_bytes(&[7, 0, 0, 0, op::TCLUNK], &mut [0; 64]), 0);
    Ok(())
}

#[test]
fn a_message_longer_than_its_bytes_is_refused() -> Result {
    let client = Host::new()?.client()?;
    let mut reply = [0; 64];
    let length = client.session.handle_bytes(&[200, 0, 0, 0, op::TCLUNK, 1, 0, 0, 0, 0, 0], &mut reply);
    assert_eq!(unpack(&reply[..length], op::TCLUNK).map(drop), refused(errno::EPROTO));
    Ok(())
}

#[test]
fn a_reply_without_room_is_not_written() -> Result {
    let client = Host::new()?.client()?;
    let request = Message::new().u32(ROOT).u64(getattr::BASIC).framed(op::TGETATTR, 1);
    let lengths = [10, 20].map(|room| client.session.handle_bytes(&request, &mut vec![0; room]));
    // Ten bytes are too few even for an error.
    assert_eq!(lengths, [0, 11]);
    Ok(())
}

#[test]
fn a_write_of_more_than_it_brings_is_refused() -> Result {
    let client = Host::new()?.client()?;
    client.create("f", 1)?;
    let answer = client.call(op::TWRITE, Message::new().u32(1).u64(0).u32(u32::MAX).bytes(b"x")).map(drop);
    assert_eq!(answer, refused(errno::EPROTO));
    Ok(())
}

#[test]
fn an_unknown_request_is_not_supported() -> Result {
    let client = Host::new()?.client()?;
    let answers = [0, 6, 98, 112, 124, 255].map(|op| client.call(op, Message::new()).map(drop));
    assert_eq!(answers, [refused(errno::EOPNOTSUPP); 6]);
    Ok(())
}

#[test]
fn fids_are_limited() -> Result {
    let host = Host::with(|config| config.limits.fids = 10)?;
    let client = host.client()?;
    let made = (1..100).take_while(|fid| client.walk(ROOT, *fid, &[]).is_ok()).count();
    assert_eq!((made, client.walk(ROOT, 500, &[])), (9, refused(errno::EMFILE)));
    Ok(())
}

#[test]
fn opened_files_are_limited_and_given_back() -> Result {
    let host = Host::with(|config| config.limits.open_files = 2)?;
    std::fs::write(host.path("f"), "")?;
    let client = host.client()?;
    let opened = [1, 2, 3].map(|fid| client.open("f", fid, 0));
    client.clunk(1)?;
    assert_eq!((opened, client.lopen(3, 0).map(drop)), ([Ok(()), Ok(()), refused(errno::EMFILE)], Ok(())));
    Ok(())
}

#[test]
fn names_are_limited() -> Result {
    let host = Host::with(|config| config.limits.nodes = 16)?;
    let client = host.client()?;
    for n in 0..20 {
        std::fs::write(host.path(&n.to_string()), "")?;
    }
    let made = (0..20).take_while(|n| client.walk(ROOT, n + 1, &[&n.to_string()]).is_ok()).count();
    assert_eq!((made, client.walk(ROOT, 500, &["19"])), (15, refused(errno::ENFILE)));
    Ok(())
}

#[test]
fn directory_listings_are_limited() -> Result {
    let host = Host::with(|config| config.limits.listing_bytes = 100_000)?;
    for n in 0..3000 {
        std::fs::write(host.path(&format!("{n:050}")), "")?;
    }
    let client = host.client()?;
    client.walk(ROOT, 1, &[])?;
    client.lopen(1, 0)?;
    assert_eq!(client.readdir(1, 0, 4096), refused(errno::ENOMEM));
    Ok(())
}

#[test]
fn locks_are_limited() -> Result {
    let host = Host::with(|config| config.limits.locks = 10)?;
    let client = host.client()?;
    client.create("f", 1)?;
    let last = (0..20).map(|n| client.lock(1, 1, (n * 10, 1), 1)).last();
    assert_eq!(last, Some(refused(errno::ENOLCK)));
    Ok(())
}

#[test]
fn a_long_symbolic_link_is_kept_whole() -> Result {
    let client = Host::new()?.client()?;
    let target = "x".repeat(4000);
    client.symlink(ROOT, "s", &target)?;
    client.go(ROOT, 1, "s")?;
    assert_eq!(client.readlink(1)?, target);
    Ok(())
}

#[test]
fn a_link_target_longer_than_paths_is_refused() -> Result {
    let client = Host::new()?.client()?;
    assert_eq!(client.symlink(ROOT, "s", &"x".repeat(5000)), refused(errno::ENAMETOOLONG));
    Ok(())
}

/// A client with a directory on fid 1, an opened file on 2, an opened directory on 3, a link on 4 and an attribute on 5.
fn furnished(host: &Host) -> Result<Client> {
    std::fs::create_dir_all(host.path("d/e"))?;
    std::fs::write(host.path("d/f"), "contents")?;
    std::os::unix::fs::symlink("/etc/passwd", host.path("s"))?;
    let client = host.client()?;
    client.go(ROOT, 1, "d")?;
    client.open("d/f", 2, dotl::RDWR)?;
    client.walk(ROOT, 3, &[])?;
    client.lopen(3, 0)?;
    client.go(ROOT, 4, "s")?;
    client.go(ROOT, 5, "d/f")?;
    client.call(op::TXATTRCREATE, Message::new().u32(5).string("user.a").u64(10).u32(0))?;
    Ok(client)
}

/// Fields in the shapes that requests have, so that many get past the first check.
fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0_u32..8).prop_map(|fid| fid.to_le_bytes().to_vec()),
        any::<u64>().prop_map(|number| number.to_le_bytes().to_vec()),
        (0_u64..64).prop_map(|number| number.to_le_bytes().to_vec()),
        prop::sample::select(vec![
            "d",
            "e",
            "f",
            "s",
            "..",
            ".",
            "",
            "a/b",
            "new",
            "user.a",
            "x~nix~case~hack~1"
        ])
        .prop_map(|name| Message::new().string(name).0),
        prop::collection::vec(any::<u8>(), 0..40),
    ]
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    // Tmknod apart, for real: as root a passthrough device would be made.
    (any::<u8>(), prop::collection::vec(field(), 0..7))
        .prop_map(|(op, fields)| Message::new().bytes(&fields.concat()).framed(op, 1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_requests_are_answered_within_the_share(
        requests in prop::collection::vec(request(), 1..40),
        security in prop::sample::select(vec![SecurityModel::None, SecurityModel::MappedXattr, SecurityModel::MappedFile]),
        pieces in 1_usize..50,
    ) {
        let host = Host::with(|config| {
            config.security = security;
            config.case_hack = CaseHack::On;
        }).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let client = furnished(&host).map_err(|e| TestCaseError::fail(e.to_string()))?;
        for mut request in requests {
            let mut reply = vec![0; 8192];
            let length = {
                let parts: Vec<_> = request.chunks_mut(pieces).map(vm_memory::VolatileSlice::from).collect();
                let room: Vec<_> = reply.chunks_mut(pieces * 3).map(vm_memory::VolatileSlice::from).collect();
                client.session.handle(&parts, &room)
            };
            prop_assert!((HEADER_SIZE..=8192).contains(&length));
        }
        prop_assert_eq!(std::fs::read(host.secret()).ok(), Some(b"out of reach".to_vec()));
        prop_assert_eq!(std::fs::read_dir(host.dir.path()).map(Iterator::count).ok(), Some(2));
    }

    #[test]
    fn arbitrary_bytes_are_answered_or_dropped(bytes in prop::collection::vec(any::<u8>(), 0..200), room in 0_usize..300) {
        let host = Host::new().map_err(|e| TestCaseError::fail(e.to_string()))?;
        let client = host.client().map_err(|e| TestCaseError::fail(e.to_string()))?;
        let length = client.session.handle_bytes(&bytes, &mut vec![0; room]);
        prop_assert!(length <= room);
    }
}
