//! Requests per second of diod, a 9P server, over a unix socket: each request waits for the reply to the one before. The client is just
//! large enough for that: it speaks 9P2000.L (diod's protocol.md), trusts the server, and knows none of its errors.

use crate::test;
use anyhow::{Context, Result, bail, ensure};
use hvrun_tests::disks::Pattern;
use hvrun_tests::process::Supervised;
use hvrun_tests::socket;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The server, and the Debian package that has it.
const DIOD: (&str, &str) = ("/usr/sbin/diod", "diod");
/// How long the server may live.
const LIMIT: Duration = Duration::from_secs(60);
/// The greatest message that we ask for. diod takes less.
const MSIZE: u32 = 128 * 1024;
/// Of a message, what is not data in Tread and Rread (Linux, include/net/9p/9p.h: P9_IOHDRSZ).
const IO_HEADER: u32 = 24;
const FILE_SIZE: u64 = 4 << 20;

/// 9P2000.L message types; the reply's is one more.
const TVERSION: u8 = 100;
const TATTACH: u8 = 104;
const TWALK: u8 = 110;
const TREAD: u8 = 116;
const TCLUNK: u8 = 120;
const TLOPEN: u8 = 12;
const TGETATTR: u8 = 24;
const RLERROR: u8 = 7;
const NOTAG: u16 = u16::MAX;
const NOFID: u32 = u32::MAX;
/// Tgetattr's mask of what stat(2) has.
const GETATTR_BASIC: u64 = 0x7FF;

const ROOT: u32 = 0;
const FILE: u32 = 1;
const OPEN: u32 = 2;
const SCRATCH: u32 = 3;

/// Starts diod and prints what it can do.
pub fn command(quick: bool) -> Result<()> {
    test::install_debian_packages(&[DIOD])?;
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let export = dir.path().join("export");
    fs::create_dir_all(export.join("a/b"))?;
    Pattern { seed: 1 }.write(&export.join("a/b/file"), FILE_SIZE)?;
    let path = dir.path().join("socket");
    let mut server = Command::new(DIOD.0);
    server
        .args(["--foreground", "--no-auth", "--no-userdb", "--listen"])
        .arg(&path)
        .arg("--export")
        .arg(&export);
    server.args(["--logdest", "stderr", "--config-file", "/dev/null"]);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (process, _child) = Supervised::spawn(&mut server, LIMIT)?;

    let each = Duration::from_millis(if quick { 300 } else { 2_000 });
    let mut client = Client::attach(&path, &export)?;
    println!("diod over a unix socket, one request at a time");
    let row = |name: &str, rate: f64| println!("  {name:<36} {rate:>12.0} /s");
    row("getattr", rate(each, || client.getattr(FILE))?);
    row(
        "walk of 3 names and clunk",
        rate(each, || client.walk(ROOT, SCRATCH, &["a", "b", "file"]).and_then(|()| client.clunk(SCRATCH)))?,
    );
    row("read of 4k", rate(each, || client.read(OPEN, 0, 4096))?);
    let large = client.msize - IO_HEADER;
    let reads = rate(each, || client.read(OPEN, 0, large))?;
    let name = format!("read, msize {}k", client.msize / 1024);
    println!("  {name:<36} {:>12.0} MiB/s", reads * f64::from(large) / f64::from(1 << 20));
    drop(process);
    Ok(())
}

/// How often `work` can be done in a second.
fn rate(time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    // Looking at the clock each time would be part of what is measured.
    const BATCH: u32 = 64;
    let started = Instant::now();
    let mut count = 0_u32;
    while started.elapsed() < time {
        for _ in 0..BATCH {
            work()?;
        }
        count += BATCH;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

/// A connection with these fids: [`ROOT`], [`FILE`], and [`OPEN`], which is the file opened for reading.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// The greatest message, as the server has answered.
    msize: u32,
    message: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    fn attach(path: &Path, export: &Path) -> Result<Client> {
        let mut client =
            Client { stream: socket::connect(path)?, msize: MSIZE, message: Vec::new(), reply: Vec::new() };
        client.begin(TVERSION, NOTAG).u32(MSIZE).text("9P2000.L");
        client.call(TVERSION)?;
        let (msize, version) = client.reply.split_first_chunk().context("diod's version is cut off")?;
        ensure!(version.ends_with(b"9P2000.L"), "diod does not speak 9P2000.L");
        client.msize = u32::from_le_bytes(*msize).clamp(4096, MSIZE);
        let user = rustix::process::geteuid().as_raw();
        client.begin(TATTACH, 0).u32(ROOT).u32(NOFID).text("").text(&export.display().to_string()).u32(user);
        client.call(TATTACH)?;
        client.walk(ROOT, FILE, &["a", "b", "file"])?;
        client.walk(FILE, OPEN, &[])?;
        client.begin(TLOPEN, 0).u32(OPEN).u32(0);
        client.call(TLOPEN)?;
        Ok(client)
    }

    fn getattr(&mut self, fid: u32) -> Result<()> {
        self.begin(TGETATTR, 0).u32(fid).u64(GETATTR_BASIC);
        self.call(TGETATTR)
    }

    fn walk(&mut self, fid: u32, new_fid: u32, names: &[&str]) -> Result<()> {
        self.begin(TWALK, 0).u32(fid).u32(new_fid).u16(names.len() as u16);
        for name in names {
            self.text(name);
        }
        self.call(TWALK)
    }

    fn clunk(&mut self, fid: u32) -> Result<()> {
        self.begin(TCLUNK, 0).u32(fid);
        self.call(TCLUNK)
    }

    fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<()> {
        self.begin(TREAD, 0).u32(fid).u64(offset).u32(count);
        self.call(TREAD)?;
        ensure!(self.reply.len() == count as usize + 4, "diod read {} bytes of {count}", self.reply.len());
        Ok(())
    }

    fn begin(&mut self, kind: u8, tag: u16) -> &mut Self {
        self.message.clear();
        self.message.extend([0; 4]);
        self.message.push(kind);
        self.u16(tag)
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.message.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.message.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.message.extend(value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u16(text.len() as u16);
        self.message.extend(text.as_bytes());
        self
    }

    /// Sends the message and leaves what follows the reply's tag in `reply`.
    fn call(&mut self, kind: u8) -> Result<()> {
        let size = (self.message.len() as u32).to_le_bytes();
        self.message[..4].copy_from_slice(&size);
        self.stream.write_all(&self.message).context("diod does not listen any more")?;
        let mut header = [0; 7];
        self.stream.read_exact(&mut header).context("diod has ended")?;
        let [a, b, c, d, reply_kind, _, _] = header;
        let size = u32::from_le_bytes([a, b, c, d]);
        ensure!((7..=MSIZE).contains(&size), "diod sends a message of {size} bytes");
        self.reply.resize(size as usize - header.len(), 0);
        self.stream.read_exact(&mut self.reply).context("diod has ended")?;
        match reply_kind {
            RLERROR => bail!("diod answers message {kind} with error {:?}", self.reply),
            _ if reply_kind == kind + 1 => Ok(()),
            _ => bail!("diod answers message {kind} with {reply_kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_reply_is_an_error() -> Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        let mut client = Client { stream: near, msize: MSIZE, message: Vec::new(), reply: Vec::new() };
        far.write_all(&[11, 0, 0, 0, RLERROR, 0, 0, 2, 0, 0, 0])?;
        let error = client.getattr(FILE).expect_err("Rlerror");
        assert!(error.to_string().contains("error [2, 0, 0, 0]"), "{error}");
        Ok(())
    }

    #[test]
    fn message_begins_with_its_size() -> Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        let mut client = Client { stream: near, msize: MSIZE, message: Vec::new(), reply: Vec::new() };
        far.write_all(&[7, 0, 0, 0, TCLUNK + 1, 0, 0])?;
        client.clunk(5)?;
        let mut sent = [0; 11];
        far.read_exact(&mut sent)?;
        assert_eq!(sent, [11, 0, 0, 0, TCLUNK, 0, 0, 5, 0, 0, 0]);
        Ok(())
    }
}
