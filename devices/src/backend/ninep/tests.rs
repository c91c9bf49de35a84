//! The server as a client sees it: a small typed client over [`Session::handle_bytes`] and a directory that goes away.

mod confinement;
mod contents;
mod hostile;
mod models;
mod names;
mod together;

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

use super::proto::{NO_FID, NO_UID, dotl, errno, getattr, op, setattr};
use super::*;

/// What tests return, so that they can use `?`.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// An error number of the server, as an error of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server says errno {0}")]
struct Errno(u32);

type Answer<T> = std::result::Result<T, Errno>;

/// A message that is put together.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Self::default()
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn string(self, value: impl AsRef<[u8]>) -> Self {
        let mut with_length = self.u16(value.as_ref().len() as u16);
        with_length.0.extend(value.as_ref());
        with_length
    }

    fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend(value);
        self
    }

    /// With header and size.
    fn framed(&self, op: u8, tag: u16) -> Vec<u8> {
        let size = (self.0.len() + HEADER_SIZE) as u32;
        [&size.to_le_bytes()[..], &[op], &tag.to_le_bytes(), &self.0].concat()
    }
}

/// A reply that is taken apart. Running out of bytes gives zeros, which the assertions then show.
struct Answered(Vec<u8>);

impl Answered {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let rest = self.0.split_off(N.min(self.0.len()));
        let mut array = [0; N];
        let taken = std::mem::replace(&mut self.0, rest);
        array[..taken.len()].copy_from_slice(&taken);
        array
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn qid(&mut self) -> Qid {
        Qid { kind: self.u8(), version: self.u32(), path: self.u64() }
    }

    fn string(&mut self) -> Vec<u8> {
        let length = self.u16() as usize;
        let rest = self.0.split_off(length.min(self.0.len()));
        std::mem::replace(&mut self.0, rest)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Qid {
    kind: u8,
    version: u32,
    path: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes {
    valid: u64,
    qid: Qid,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u64,
    rdev: u64,
    size: u64,
    block_size: u64,
    mtime: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct DirEntry {
    qid: Qid,
    cookie: u64,
    kind: u8,
    name: String,
}

/// Fid of the root, after [`Client::of`].
const ROOT: u32 = 0;

/// A client that has attached as [`ROOT`].
struct Client {
    session: Session,
    msize: u32,
    /// Keeps the directory there, if nobody else does.
    _dir: Option<Arc<TempDir>>,
}

impl Client {
    fn of(share: &Arc<Share>) -> Result<Self> {
        Self::with_msize(share, 65_536)
    }

    fn with_msize(share: &Arc<Share>, msize: u32) -> Result<Self> {
        let mut client = Self { session: Session::new(share.clone()), msize, _dir: None };
        client.msize = client.version(msize, "9P2000.L")?.0;
        client.attach(ROOT)?;
        Ok(client)
    }

    /// One request and its reply.
    fn call(&self, op: u8, message: Message) -> Answer<Answered> {
        let mut reply = vec![0; self.msize as usize];
        let length = self.session.handle_bytes(&message.framed(op, 1), &mut reply);
        unpack(&reply[..length], op)
    }

    fn version(&self, msize: u32, version: &str) -> Answer<(u32, Vec<u8>)> {
        let mut answer = self.call(op::TVERSION, Message::new().u32(msize).string(version))?;
        Ok((answer.u32(), answer.string()))
    }

    fn attach(&self, fid: u32) -> Answer<Qid> {
        let message = Message::new().u32(fid).u32(NO_FID).string("root").string("").u32(NO_UID);
        Ok(self.call(op::TATTACH, message)?.qid())
    }

    fn walk(&self, fid: u32, new: u32, names: &[&str]) -> Answer<Vec<Qid>> {
        let message = Message::new().u32(fid).u32(new).u16(names.len() as u16);
        let message = names.iter().fold(message, |message, name| message.string(name));
        let mut answer = self.call(op::TWALK, message)?;
        Ok((0..answer.u16()).map(|_| answer.qid()).collect())
    }

    /// A walk that must come to its end.
    fn go(&self, fid: u32, new: u32, path: &str) -> Answer<()> {
        let names: Vec<_> = path.split('/').collect();
        let walked = self.walk(fid, new, &names)?.len();
        if walked == names.len() { Ok(()) } else { Err(Errno(errno::ENOENT)) }
    }

    fn lopen(&self, fid: u32, flags: u32) -> Answer<(Qid, u32)> {
        let mut answer = self.call(op::TLOPEN, Message::new().u32(fid).u32(flags))?;
        Ok((answer.qid(), answer.u32()))
    }

    fn open(&self, path: &str, new: u32, flags: u32) -> Answer<()> {
        self.go(ROOT, new, path)?;
        self.lopen(new, flags).map(drop)
    }

    fn lcreate(&self, fid: u32, name: &str, flags: u32, mode: u32) -> Answer<Qid> {
        let message = Message::new().u32(fid).string(name).u32(flags).u32(mode).u32(0);
        Ok(self.call(op::TLCREATE, message)?.qid())
    }

    /// Makes a file in the root and opens it for reading and writing.
    fn create(&self, name: &str, new: u32) -> Answer<()> {
        self.walk(ROOT, new, &[])?;
        self.lcreate(new, name, dotl::CREATE | dotl::RDWR, 0o644).map(drop)
    }

    fn read(&self, fid: u32, offset: u64, count: u32) -> Answer<Vec<u8>> {
        let mut answer = self.call(op::TREAD, Message::new().u32(fid).u64(offset).u32(count))?;
        let length = answer.u32() as usize;
        answer.0.truncate(length);
        Ok(answer.0)
    }

    fn write(&self, fid: u32, offset: u64, data: &[u8]) -> Answer<u32> {
        let message = Message::new().u32(fid).u64(offset).u32(data.len() as u32).bytes(data);
        Ok(self.call(op::TWRITE, message)?.u32())
    }

    fn clunk(&self, fid: u32) -> Answer<()> {
        self.call(op::TCLUNK, Message::new().u32(fid)).map(drop)
    }

    fn getattr(&self, fid: u32) -> Answer<Attributes> {
        self.getattr_of(fid, getattr::BASIC)
    }

    fn getattr_of(&self, fid: u32, mask: u64) -> Answer<Attributes> {
        let mut answer = self.call(op::TGETATTR, Message::new().u32(fid).u64(mask))?;
        let (valid, qid, mode, uid, gid) =
            (answer.u64(), answer.qid(), answer.u32(), answer.u32(), answer.u32());
        let (nlink, rdev, size, block_size) = (answer.u64(), answer.u64(), answer.u64(), answer.u64());
        let (_blocks, _atime, _, mtime) = (answer.u64(), answer.u64(), answer.u64(), answer.u64());
        Ok(Attributes { valid, qid, mode, uid, gid, nlink, rdev, size, block_size, mtime })
    }

    fn setattr(&self, fid: u32, valid: u32, mode: u32, owner: (u32, u32), size: u64) -> Answer<()> {
        let message = Message::new().u32(fid).u32(valid).u32(mode).u32(owner.0).u32(owner.1).u64(size);
        self.call(op::TSETATTR, message.u64(1000).u64(0).u64(2000).u64(0)).map(drop)
    }

    fn chmod(&self, fid: u32, mode: u32) -> Answer<()> {
        self.setattr(fid, setattr::MODE, mode, (0, 0), 0)
    }

    fn truncate(&self, fid: u32, size: u64) -> Answer<()> {
        self.setattr(fid, setattr::SIZE, 0, (0, 0), size)
    }

    /// The entries that one message holds.
    fn readdir(&self, fid: u32, cookie: u64, count: u32) -> Answer<Vec<DirEntry>> {
        let mut answer = self.call(op::TREADDIR, Message::new().u32(fid).u64(cookie).u32(count))?;
        let length = answer.u32() as usize;
        answer.0.truncate(length);
        let mut entries = Vec::new();
        while !answer.0.is_empty() {
            let (qid, cookie, kind) = (answer.qid(), answer.u64(), answer.u8());
            entries.push(DirEntry {
                qid,
                cookie,
                kind,
                name: String::from_utf8_lossy(&answer.string()).into_owned(),
            });
        }
        Ok(entries)
    }

    /// All entries from a cookie on.
    fn list_from(&self, fid: u32, mut cookie: u64) -> Answer<Vec<DirEntry>> {
        let mut all = Vec::new();
        loop {
            let some = self.readdir(fid, cookie, self.msize)?;
            let Some(last) = some.last() else { return Ok(all) };
            cookie = last.cookie;
            all.extend(some);
        }
    }

    /// The names in a directory, sorted, without `.` and `..`.
    fn names(&self, path: &str) -> Answer<Vec<String>> {
        const FID: u32 = 9_999;
        match path {
            "" => self.walk(ROOT, FID, &[]).map(drop)?,
            path => self.go(ROOT, FID, path)?,
        }
        self.lopen(FID, 0)?;
        let entries = self.list_from(FID, 0)?;
        self.clunk(FID)?;
        let mut names: Vec<_> =
            entries.into_iter().map(|e| e.name).filter(|n| n != "." && n != "..").collect();
        names.sort();
        Ok(names)
    }

    fn mkdir(&self, fid: u32, name: &str, mode: u32) -> Answer<Qid> {
        Ok(self.call(op::TMKDIR, Message::new().u32(fid).string(name).u32(mode).u32(0))?.qid())
    }

    fn symlink(&self, fid: u32, name: &str, target: &str) -> Answer<Qid> {
        Ok(self.call(op::TSYMLINK, Message::new().u32(fid).string(name).string(target).u32(0))?.qid())
    }

    fn readlink(&self, fid: u32) -> Answer<String> {
        let target = self.call(op::TREADLINK, Message::new().u32(fid))?.string();
        Ok(String::from_utf8_lossy(&target).into_owned())
    }

    fn mknod(&self, fid: u32, name: &str, mode: u32, device: (u32, u32)) -> Answer<Qid> {
        let message = Message::new().u32(fid).string(name).u32(mode).u32(device.0).u32(device.1).u32(0);
        Ok(self.call(op::TMKNOD, message)?.qid())
    }

    fn link(&self, directory: u32, fid: u32, name: &str) -> Answer<()> {
        self.call(op::TLINK, Message::new().u32(directory).u32(fid).string(name)).map(drop)
    }

    fn unlink(&self, directory: u32, name: &str) -> Answer<()> {
        self.call(op::TUNLINKAT, Message::new().u32(directory).string(name).u32(0)).map(drop)
    }

    fn rmdir(&self, directory: u32, name: &str) -> Answer<()> {
        self.call(op::TUNLINKAT, Message::new().u32(directory).string(name).u32(0x200)).map(drop)
    }

    fn remove(&self, fid: u32) -> Answer<()> {
        self.call(op::TREMOVE, Message::new().u32(fid)).map(drop)
    }

    fn rename(&self, fid: u32, directory: u32, name: &str) -> Answer<()> {
        self.call(op::TRENAME, Message::new().u32(fid).u32(directory).string(name)).map(drop)
    }

    fn renameat(&self, from: (u32, &str), to: (u32, &str)) -> Answer<()> {
        let message = Message::new().u32(from.0).string(from.1).u32(to.0).string(to.1);
        self.call(op::TRENAMEAT, message).map(drop)
    }

    fn fsync(&self, fid: u32, data_only: bool) -> Answer<()> {
        self.call(op::TFSYNC, Message::new().u32(fid).u32(u32::from(data_only))).map(drop)
    }

    fn xattr(&self, fid: u32, name: &str) -> Answer<Vec<u8>> {
        const FID: u32 = 9_998;
        let size = self.call(op::TXATTRWALK, Message::new().u32(fid).u32(FID).string(name))?.u64();
        let value = self.read(FID, 0, size as u32);
        self.clunk(FID)?;
        value
    }

    fn set_xattr(&self, fid: u32, name: &str, value: &[u8], flags: u32) -> Answer<()> {
        const FID: u32 = 9_997;
        self.walk(fid, FID, &[])?;
        let created = self
            .call(op::TXATTRCREATE, Message::new().u32(FID).string(name).u64(value.len() as u64).u32(flags));
        if let Err(error) = created {
            self.clunk(FID)?;
            return Err(error);
        }
        self.write(FID, 0, value)?;
        self.clunk(FID)
    }

    fn lock(&self, fid: u32, kind: u8, range: (u64, u64), process: u32) -> Answer<u8> {
        let message = Message::new().u32(fid).u8(kind).u32(1).u64(range.0).u64(range.1).u32(process);
        Ok(self.call(op::TLOCK, message.string("guest"))?.u8())
    }
}

/// The body of a reply to a request of type `op`.
fn unpack(reply: &[u8], op: u8) -> Answer<Answered> {
    let (header, body) = reply.split_at(HEADER_SIZE);
    let mut body = Answered(body.to_vec());
    let size = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    assert_eq!(size as usize, reply.len(), "a reply says its own length");
    if header[4] == op::RLERROR {
        return Err(Errno(body.u32()));
    }
    assert_eq!(header[4], op + 1, "a reply is of its request's type");
    Ok(body)
}

/// A shared directory that goes away.
struct Host {
    dir: Arc<TempDir>,
    config: ShareConfig,
}

impl Host {
    fn new() -> Result<Self> {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ShareConfig)) -> Result<Self> {
        let dir = Arc::new(tempfile::tempdir()?);
        let root = dir.path().join("share");
        std::fs::create_dir(&root)?;
        std::fs::write(dir.path().join("secret"), "out of reach")?;
        let mut config = ShareConfig::new(root, "test");
        change(&mut config);
        Ok(Self { dir, config })
    }

    fn model(security: SecurityModel) -> Result<Self> {
        Self::with(|config| config.security = security)
    }

    fn client(&self) -> Result<Client> {
        let client = Client::of(&Share::open(&self.config)?)?;
        Ok(Client { _dir: Some(self.dir.clone()), ..client })
    }

    /// A path within the share.
    fn path(&self, name: &str) -> PathBuf {
        self.config.path.join(name)
    }

    /// The file beside the share that no client may reach.
    fn secret(&self) -> PathBuf {
        self.dir.path().join("secret")
    }
}

/// What a failing call says.
fn refused<T>(number: u32) -> Answer<T> {
    Err(Errno(number))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
