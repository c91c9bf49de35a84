//! Several requests at once, flushes among them, and the server over a stream.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::*;

fn header(op: u8, tag: u16) -> [u8; HEADER_SIZE] {
    let [low, high] = tag.to_le_bytes();
    [9, 0, 0, 0, op, low, high]
}

#[test]
fn a_flush_is_answered_after_the_request_in_flight() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    let mut slow = Message::new().u32(ROOT).u64(getattr::BASIC).framed(op::TGETATTR, 5);
    let ticket = client.session.admit(&header(op::TGETATTR, 5));
    let (answers, order) = mpsc::channel();
    std::thread::scope(|scope| {
        let (client, second) = (&client, answers.clone());
        let mut reply = [0; 256];
        let (slow, room) = ([VolatileSlice::from(&mut slow[..])], [VolatileSlice::from(&mut reply[..])]);
        client.session.finish(ticket, &slow, &room, |_| {
            // The reply is written but not yet the guest's when the flush arrives.
            scope.spawn(move || {
                let request = Message::new().u16(5).framed(op::TFLUSH, 6);
                client.session.handle_bytes(&request, &mut [0; 64]);
                second.send("flush").ok();
            });
            std::thread::sleep(Duration::from_millis(50));
            answers.send("request").ok();
        });
    });
    assert_eq!(order.iter().take(2).collect::<Vec<_>>(), ["request", "flush"]);
    Ok(())
}

#[test]
fn a_queued_request_that_was_flushed_is_not_carried_out() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    let mut queued = Message::new().u32(ROOT).string("d").u32(0o755).u32(0).framed(op::TMKDIR, 5);
    let ticket = client.session.admit(&header(op::TMKDIR, 5));
    let flush = Message::new().u16(5).framed(op::TFLUSH, 6);
    let flushed = client.session.handle_bytes(&flush, &mut [0; 64]);
    let mut length = None;
    client
        .session
        .finish(ticket, &[VolatileSlice::from(&mut queued[..])], &[], |written| length = Some(written));
    assert_eq!((flushed, length, host.path("d").exists()), (HEADER_SIZE, Some(0), false));
    Ok(())
}

#[test]
fn a_queued_request_does_not_survive_version() -> Result {
    let host = Host::new()?;
    let client = host.client()?;
    let mut queued = Message::new().u32(ROOT).string("d").u32(0o755).u32(0).framed(op::TMKDIR, 5);
    let ticket = client.session.admit(&header(op::TMKDIR, 5));
    client.version(8192, "9P2000.L")?;
    client.session.finish(ticket, &[VolatileSlice::from(&mut queued[..])], &[], drop);
    assert!(!host.path("d").exists());
    Ok(())
}

#[test]
fn many_threads_use_one_session() -> Result {
    let host = Host::new()?;
    let share = Share::open(&host.config)?;
    let client = Client::of(&share)?;
    let work = |thread: u32| -> Answer<()> {
        let (directory, file) = (thread * 10 + 1, thread * 10 + 2);
        for round in 0..50 {
            let name = format!("{thread}-{round}");
            client.mkdir(ROOT, &name, 0o755)?;
            client.walk(ROOT, directory, &[&name])?;
            client.walk(directory, file, &[])?;
            client.lcreate(file, "f", dotl::RDWR, 0o644)?;
            client.write(file, 0, name.as_bytes())?;
            client.renameat((ROOT, &name), (ROOT, &format!("{name}-moved")))?;
            client.walk(directory, file + 1, &["f"])?;
            client.lopen(file + 1, 0)?;
            assert_eq!(client.read(file + 1, 0, 100)?, name.as_bytes());
            client.unlink(directory, "f")?;
            client.rmdir(ROOT, &format!("{name}-moved"))?;
            for fid in [directory, file, file + 1] {
                client.clunk(fid)?;
            }
        }
        Ok(())
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..5).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(refused(0))).collect()
    });
    assert_eq!((outcomes, client.session.fids()), (vec![Ok(()); 4], 1));
    let cached = share.tree().cached();
    assert_eq!(share.tree().len(), 1 + cached);
    Ok(())
}

#[test]
fn a_stream_is_served_until_it_ends() -> Result {
    let host = Host::new()?;
    let share = Share::open(&host.config)?;
    let (ours, theirs) = UnixStream::pair()?;
    let server = std::thread::spawn(move || serve(&Session::new(share), theirs));
    let mut stream = &ours;
    // Two requests in one piece, then one in two.
    let version = Message::new().u32(8192).string("9P2000.L").framed(op::TVERSION, !0);
    let attach = Message::new().u32(0).u32(NO_FID).string("").string("").u32(0).framed(op::TATTACH, 1);
    let clunk = Message::new().u32(0).framed(op::TCLUNK, 2);
    stream.write_all(&[version, attach, clunk[..3].to_vec()].concat())?;
    stream.write_all(&clunk[3..])?;
    let mut replies = vec![0; 21 + 20 + 7];
    stream.read_exact(&mut replies)?;
    drop(ours);
    assert_eq!((replies[4], replies[21 + 4], replies[41 + 4]), (101, 105, 121));
    assert!(server.join().is_ok_and(|served| served.is_ok()));
    Ok(())
}

#[test]
fn a_stream_of_garbage_is_closed() -> Result {
    let host = Host::new()?;
    let share = Share::open(&host.config)?;
    let (ours, theirs) = UnixStream::pair()?;
    (&ours).write_all(b"GET / HTTP/1.1\r\n")?;
    let served = serve(&Session::new(share), theirs);
    assert!(matches!(served, Err(ServeError::Size { size: 0x2054_4547 })), "{served:?}");
    Ok(())
}
