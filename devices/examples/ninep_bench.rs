//! Requests per second of the 9P server: in process, over a unix socket, or of another server over its socket.
//!
//! `ninep_bench [--seconds N] [--socket PATH [--aname NAME --directory DIR]]`. Without `--socket` it makes a directory,
//! serves it in process and over a socket pair and measures both. With it, the server at PATH (diod, say, or
//! `ninep_serve`) must export DIR as NAME, and the same files are made in there and the same requests sent. One request is
//! under way at a time. Prints a line for each: transport, operation, requests per second, microseconds a request.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hvrun_devices::backend::ninep::{MAX_MSIZE, Session, Share, ShareConfig, serve};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const TVERSION: u8 = 100;
const TATTACH: u8 = 104;
const TWALK: u8 = 110;
const TCLUNK: u8 = 120;
const TLOPEN: u8 = 12;
const TGETATTR: u8 = 24;
const TREADLINK: u8 = 22;
const TREADDIR: u8 = 40;
const TREAD: u8 = 116;
const TWRITE: u8 = 118;

/// Large enough for a read of 512 KiB and accepted by diod, whose limit is 1 MiB as well.
const MSIZE: u32 = 524_288 + 24;
/// Of a message, what is not data in Tread, Rread and Twrite (Linux include/net/9p/9p.h, P9_IOHDRSZ).
const IO_HEADER: usize = 24;
const FILE_SIZE: usize = 16 << 20;
const ENTRIES: usize = 1000;

/// Something that answers requests.
trait Server {
    fn name(&self) -> &'static str;
    /// Sends a request, and leaves its reply in `reply`.
    fn call(&mut self, request: &[u8], reply: &mut [u8]) -> Outcome<usize>;
}

struct InProcess(Session);

impl Server for InProcess {
    fn name(&self) -> &'static str {
        "in process"
    }

    fn call(&mut self, request: &[u8], reply: &mut [u8]) -> Outcome<usize> {
        Ok(self.0.handle_bytes(request, reply))
    }
}

struct Socket(UnixStream, &'static str);

impl Server for Socket {
    fn name(&self) -> &'static str {
        self.1
    }

    fn call(&mut self, request: &[u8], reply: &mut [u8]) -> Outcome<usize> {
        self.0.write_all(request)?;
        let mut have = 0;
        loop {
            have += match self.0.read(reply.get_mut(have..).unwrap_or_default())? {
                0 => return Err("the server closed the connection".into()),
                count => count,
            };
            let size = reply.first_chunk().map_or(usize::MAX, |size| u32::from_le_bytes(*size) as usize);
            if have >= 4 && have >= size {
                return Ok(size);
            }
        }
    }
}

struct Client<'a> {
    server: &'a mut dyn Server,
    reply: Vec<u8>,
    seconds: f64,
    /// The largest payload of a read or a write that the server takes.
    payload: usize,
}

fn message(op: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let size = (body.len() + 7) as u32;
    [&size.to_le_bytes()[..], &[op, 1, 0], &body].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

fn walk(from: u32, to: u32, names: &[&str]) -> Vec<u8> {
    let names_bytes: Vec<u8> = names.iter().flat_map(|name| string(name)).collect();
    message(TWALK, &[&number(from), &number(to), &(names.len() as u16).to_le_bytes(), &names_bytes])
}

fn clunk(fid: u32) -> Vec<u8> {
    message(TCLUNK, &[&number(fid)])
}

impl Client<'_> {
    fn call(&mut self, request: &[u8]) -> Outcome<usize> {
        let length = self.server.call(request, &mut self.reply)?;
        let expected = request[4] + 1;
        if length < 7 || self.reply[4] != expected {
            return Err(format!(
                "a request of type {} was answered with {:?}",
                request[4],
                &self.reply[4..11]
            )
            .into());
        }
        Ok(length)
    }

    fn set_up(&mut self, aname: &str) -> Outcome {
        self.call(&message(TVERSION, &[&number(MSIZE), &string("9P2000.L")]))?;
        let msize =
            self.reply.get(7..11).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).unwrap_or_default();
        self.payload = (u32::from_le_bytes(msize) as usize).saturating_sub(IO_HEADER);
        let uid = rustix::process::geteuid().as_raw();
        self.call(&message(
            TATTACH,
            &[&number(0), &number(!0), &string("root"), &string(aname), &number(uid)],
        ))?;
        self.call(&walk(0, 1, &["a", "b", "c"]))?;
        self.call(&walk(1, 2, &["data"]))?;
        self.call(&walk(1, 3, &["link"]))?;
        self.call(&walk(0, 4, &["entries"]))?;
        self.call(&message(TLOPEN, &[&number(4), &number(0)]))?;
        self.call(&walk(1, 5, &["data"]))?;
        self.call(&message(TLOPEN, &[&number(5), &number(2)]))?;
        Ok(())
    }

    /// Repeats a sequence of requests and prints how many of them are answered per second.
    fn measure(&mut self, what: &str, sequence: &[Vec<u8>]) -> Outcome {
        let start = Instant::now();
        let limit = Duration::from_secs_f64(self.seconds);
        let mut count = 0_u32;
        while start.elapsed() < limit {
            for _ in 0..16 {
                for request in sequence {
                    self.call(request)?;
                }
            }
            count += 16 * sequence.len() as u32;
        }
        let each = start.elapsed().as_secs_f64() / f64::from(count);
        let mut out = std::io::stdout();
        writeln!(
            out,
            "{:<12} {what:<26} {:>10.0} requests/s {:>8.2} us",
            self.server.name(),
            1.0 / each,
            each * 1e6
        )?;
        Ok(())
    }

    fn run(&mut self, aname: &str) -> Outcome {
        self.set_up(aname)?;
        let getattr = |fid: u32| message(TGETATTR, &[&number(fid), &0x7ff_u64.to_le_bytes()]);
        let read =
            |offset: u64, count: u32| message(TREAD, &[&number(5), &offset.to_le_bytes(), &number(count)]);
        let write = |count: usize| {
            let data = vec![0x55; count];
            message(TWRITE, &[&number(5), &0_u64.to_le_bytes(), &number(count as u32), &data])
        };
        self.measure("getattr", &[getattr(2)])?;
        self.measure("getattr of an open file", &[getattr(5)])?;
        self.measure("readlink", &[message(TREADLINK, &[&number(3)])])?;
        self.measure("walk 1, clunk", &[walk(1, 9, &["data"]), clunk(9)])?;
        self.measure("walk 4, clunk", &[walk(0, 9, &["a", "b", "c", "data"]), clunk(9)])?;
        let open = message(TLOPEN, &[&number(9), &number(0)]);
        self.measure("walk 1, lopen, clunk", &[walk(1, 9, &["data"]), open, clunk(9)])?;
        self.measure("walk 1, getattr, clunk", &[walk(1, 9, &["data"]), getattr(9), clunk(9)])?;
        let count = self.payload.min(65_536) as u32;
        let listing = message(TREADDIR, &[&number(4), &0_u64.to_le_bytes(), &number(count)]);
        self.measure("readdir of 1000 entries", &[listing])?;
        let offsets = |size: usize| (0..FILE_SIZE / size).map(move |n| (n * size) as u64);
        let payload = self.payload;
        let fits = |size: &usize| *size <= payload;
        for size in [4096, 16_384, 32_768, 131_072, 524_288].into_iter().filter(fits) {
            let reads: Vec<_> = offsets(size).map(|offset| read(offset, size as u32)).collect();
            self.measure(&format!("read {} KiB", size / 1024), &reads)?;
        }
        for size in [16_384, 32_768, 524_288].into_iter().filter(fits) {
            self.measure(&format!("write {} KiB", size / 1024), &[write(size)])?;
        }
        Ok(())
    }
}

/// Makes the files that the requests are about.
fn furnish(directory: &Path) -> Outcome {
    std::fs::create_dir_all(directory.join("a/b/c"))?;
    std::fs::create_dir_all(directory.join("entries"))?;
    std::fs::write(directory.join("a/b/c/data"), vec![0xaa; FILE_SIZE])?;
    let link = directory.join("a/b/c/link");
    if link.symlink_metadata().is_err() {
        std::os::unix::fs::symlink("../../../somewhere/else", link)?;
    }
    for n in 0..ENTRIES {
        std::fs::write(directory.join(format!("entries/entry-number-{n:06}")), "")?;
    }
    Ok(())
}

fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let (mut seconds, mut socket, mut aname, mut directory) = (1.0, None, String::new(), None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} wants a value"))?;
        match argument.as_str() {
            "--seconds" => seconds = value.parse()?,
            "--socket" => socket = Some(value),
            "--aname" => aname = value,
            "--directory" => directory = Some(PathBuf::from(value)),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let reply = vec![0; MAX_MSIZE as usize];
    if let Some(socket) = socket {
        if let Some(directory) = directory {
            furnish(&directory)?;
        }
        let mut server = Socket(UnixStream::connect(socket)?, "other server");
        return Client { server: &mut server, reply, seconds, payload: 0 }.run(&aname);
    }
    let temporary = tempfile::tempdir()?;
    furnish(temporary.path())?;
    let share = Share::open(&ShareConfig::new(temporary.path(), "bench"))?;
    let mut server = InProcess(Session::new(share.clone()));
    Client { server: &mut server, reply: reply.clone(), seconds, payload: 0 }.run("")?;
    let (ours, theirs) = UnixStream::pair()?;
    let served = std::thread::spawn(move || serve(&Session::new(share), theirs));
    let mut server = Socket(ours, "unix socket");
    Client { server: &mut server, reply, seconds, payload: 0 }.run("")?;
    drop(server);
    served.join().map_err(|_| "the server panicked")??;
    Ok(())
}
