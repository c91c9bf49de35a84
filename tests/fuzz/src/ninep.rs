//! A hostile 9P client. The input's first byte chooses the share; then come messages, each behind its length. Whatever they say, what
//! lies beside the share is not read, changed or removed.

use std::path::Path;

use hvrun_devices::backend::ninep::{CaseHack, Session, Share, ShareConfig};
use tempfile::TempDir;

use crate::input::Input;

/// In a message's length: its own size field is set right, so that the message is looked at.
const FIX_SIZE: u16 = 1 << 15;
/// Most messages of one input.
const MOST_MESSAGES: usize = 256;
/// Room for a reply.
const REPLY: usize = 16 << 10;
/// What a file beside the share holds.
const SECRET: &str = "nobody may read this: 7c1f59e0";

/// The target `9p`.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let options = input.byte();
    let top = directory();
    {
        let share = Share::open(&config(top.path(), options)).expect("it is a directory");
        let sessions = [Session::new(share.clone()), Session::new(share)];
        let mut reply = vec![0; REPLY];
        for _ in 0..MOST_MESSAGES {
            if input.0.is_empty() {
                break;
            }
            let length = u16::from_le_bytes([input.byte(), input.byte()]);
            let mut message = input.bytes(usize::from(length & 0xfff)).to_vec();
            if length & FIX_SIZE != 0 {
                let size = message.len() as u32;
                message.iter_mut().zip(size.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            // Two clients of one share.
            let session = &sessions[usize::from(length >> 14 & 1)];
            let written = session.handle_bytes(&message, &mut reply);
            let written = reply.get(..written).expect("the reply fits its buffer");
            let leak = written.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
            assert!(!leak, "a reply has what lies beside the share");
        }
    }
    check(top.path());
}

/// `top/share`, and beside it what a guest must not reach.
fn directory() -> TempDir {
    let top = TempDir::new().expect("a directory can be made");
    let path = |name: &str| top.path().join(name);
    let made = (|| {
        std::fs::create_dir_all(path("share/dir/deeper"))?;
        std::fs::write(path("share/file"), "contents of a file")?;
        std::fs::write(path("share/dir/inner"), "contents of another")?;
        std::fs::write(path("share/a~nix~case~hack~1"), "hacked")?;
        std::fs::write(path("secret"), SECRET)?;
        std::os::unix::fs::symlink("../secret", path("share/link"))?;
        std::os::unix::fs::symlink(path("secret"), path("share/absolute"))?;
        std::os::unix::fs::symlink("..", path("share/up"))
    })();
    made.expect("files can be made");
    top
}

fn config(top: &Path, options: u8) -> ShareConfig {
    let mut config = ShareConfig::new(top.join("share"), "fuzz");
    let models = ["none", "mapped-file", "none", "passthrough"];
    config.security = models[usize::from(options & 3)].parse().expect("that is a model");
    config.readonly = options & 4 != 0;
    config.case_hack = if options & 8 != 0 { CaseHack::On } else { CaseHack::Off };
    config.limits.fids = 64;
    config.limits.open_files = 16;
    config.limits.nodes = 128;
    config.limits.xattr_bytes = 4096;
    config.limits.locks = 8;
    config
}

/// Nothing beside the share has changed, and the share is still there.
fn check(top: &Path) {
    let secret = std::fs::read_to_string(top.join("secret"));
    assert_eq!(secret.ok().as_deref(), Some(SECRET), "what lies beside the share has changed");
    let entries = std::fs::read_dir(top).expect("it is a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["secret", "share"], "files beside the share have come or gone");
}

/// Message types.
mod op {
    pub const STATFS: u8 = 8;
    pub const LOPEN: u8 = 12;
    pub const LCREATE: u8 = 14;
    pub const SYMLINK: u8 = 16;
    pub const MKNOD: u8 = 18;
    pub const RENAME: u8 = 20;
    pub const READLINK: u8 = 22;
    pub const GETATTR: u8 = 24;
    pub const SETATTR: u8 = 26;
    pub const XATTRWALK: u8 = 30;
    pub const XATTRCREATE: u8 = 32;
    pub const READDIR: u8 = 40;
    pub const FSYNC: u8 = 50;
    pub const LOCK: u8 = 52;
    pub const GETLOCK: u8 = 54;
    pub const LINK: u8 = 70;
    pub const MKDIR: u8 = 72;
    pub const RENAMEAT: u8 = 74;
    pub const UNLINKAT: u8 = 76;
    pub const VERSION: u8 = 100;
    pub const ATTACH: u8 = 104;
    pub const FLUSH: u8 = 108;
    pub const WALK: u8 = 110;
    pub const READ: u8 = 116;
    pub const WRITE: u8 = 118;
    pub const CLUNK: u8 = 120;
    pub const REMOVE: u8 = 122;
}

/// Builds one message.
struct Message(Vec<u8>);

impl Message {
    fn new(op: u8) -> Self {
        Message(vec![0, 0, 0, 0, op, 1, 0])
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

    fn string(mut self, text: &str) -> Self {
        self = self.u16(text.len() as u16);
        self.0.extend(text.as_bytes());
        self
    }

    fn done(mut self) -> Vec<u8> {
        let size = self.0.len() as u32;
        self.0[..4].copy_from_slice(&size.to_le_bytes());
        self.0
    }
}

fn version() -> Vec<u8> {
    Message::new(op::VERSION).u32(8192).string("9P2000.L").done()
}

/// `fid` is the share's root.
fn attach(fid: u32) -> Vec<u8> {
    Message::new(op::ATTACH).u32(fid).u32(!0).string("root").string("").u32(0).done()
}

fn walk(fid: u32, to: u32, names: &[&str]) -> Vec<u8> {
    let message = Message::new(op::WALK).u32(fid).u32(to).u16(names.len() as u16);
    names.iter().fold(message, |message, name| message.string(name)).done()
}

fn lopen(fid: u32, flags: u32) -> Vec<u8> {
    Message::new(op::LOPEN).u32(fid).u32(flags).done()
}

/// Tread and Treaddir.
fn read(op: u8, fid: u32) -> Vec<u8> {
    Message::new(op).u32(fid).u64(0).u32(4096).done()
}

/// Requests that have nothing but a fid.
fn on(op: u8, fid: u32) -> Vec<u8> {
    Message::new(op).u32(fid).done()
}

/// A client that looks at a file and at a directory.
pub(crate) fn session() -> Vec<Vec<u8>> {
    vec![
        version(),
        attach(0),
        walk(0, 1, &["file"]),
        Message::new(op::GETATTR).u32(1).u64(0x7ff).done(),
        lopen(1, 0),
        read(op::READ, 1),
        walk(0, 2, &[]),
        lopen(2, 0o200000),
        read(op::READDIR, 2),
        on(op::STATFS, 2),
        on(op::CLUNK, 1),
        on(op::CLUNK, 2),
    ]
}

/// A client that makes, changes and removes.
fn changes() -> Vec<Vec<u8>> {
    let setattr = |fid, valid: u32, size| {
        let message = Message::new(op::SETATTR).u32(fid).u32(valid).u32(0o644).u32(0).u32(0);
        message.u64(size).u64(1).u64(2).u64(3).u64(4).done()
    };
    let mut write = Message::new(op::WRITE).u32(1).u64(10).u32(5);
    write.0.extend(b"bytes");
    vec![
        version(),
        attach(0),
        walk(0, 1, &["dir"]),
        Message::new(op::LCREATE).u32(1).string("new").u32(0o102).u32(0o644).u32(0).done(),
        write.done(),
        Message::new(op::FSYNC).u32(1).u32(0).done(),
        setattr(1, 1 | 8, 1 << 20),
        setattr(1, 16 | 32 | 128 | 256, 0),
        Message::new(op::MKDIR).u32(0).string("made").u32(0o755).u32(0).done(),
        Message::new(op::RENAMEAT).u32(0).string("made").u32(0).string("moved").done(),
        walk(0, 2, &["moved"]),
        Message::new(op::RENAME).u32(2).u32(0).string("again").done(),
        Message::new(op::SYMLINK).u32(2).string("soft").string("../../secret").u32(0).done(),
        walk(2, 3, &["soft"]),
        on(op::READLINK, 3),
        Message::new(op::LINK).u32(2).u32(1).string("hard").done(),
        Message::new(op::MKNOD).u32(2).string("fifo").u32(0o010_600).u32(0).u32(0).u32(0).done(),
        Message::new(op::UNLINKAT).u32(2).string("hard").u32(0).done(),
        on(op::REMOVE, 1),
        on(op::REMOVE, 2),
    ]
}

/// A client of the rarer kinds.
fn oddities() -> Vec<Vec<u8>> {
    let lock = |op, kind| {
        let message = Message::new(op).u32(1).u8(kind);
        let message = if op == op::LOCK { message.u32(0) } else { message };
        message.u64(0).u64(100).u32(7).string("client").done()
    };
    let mut value = Message::new(op::WRITE).u32(3).u64(0).u32(5);
    value.0.extend(b"value");
    vec![
        version(),
        attach(0),
        walk(0, 1, &["file"]),
        walk(0, 3, &["file"]),
        lopen(1, 2),
        lock(op::LOCK, 1),
        lock(op::GETLOCK, 0),
        lock(op::LOCK, 2),
        Message::new(op::XATTRCREATE).u32(3).string("user.name").u64(5).u32(0).done(),
        value.done(),
        on(op::CLUNK, 3),
        Message::new(op::XATTRWALK).u32(1).u32(4).string("user.name").done(),
        read(op::READ, 4),
        Message::new(op::XATTRWALK).u32(1).u32(5).string("").done(),
        read(op::READ, 5),
        Message::new(op::FLUSH).u16(1).done(),
        walk(0, 6, &["dir", "..", "dir", "deeper"]),
        walk(6, 7, &["..", "..", "..", "secret"]),
        walk(0, 8, &["link"]),
        lopen(8, 0),
        walk(0, 9, &["up", "secret"]),
        walk(0, 10, &["a"]),
    ]
}

/// Valid sessions, on shares of every kind.
pub fn corpus() -> Vec<Vec<u8>> {
    let sessions = [session(), changes(), oddities()];
    let inputs = |options: u8| sessions.iter().map(move |messages| input(options, messages));
    [0, 1, 4, 8].into_iter().flat_map(inputs).collect()
}

fn input(options: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut input = vec![options];
    for message in messages {
        input.extend((FIX_SIZE | message.len() as u16).to_le_bytes());
        input.extend(message);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages that are answered with Rlerror, by their place.
    fn refused(messages: &[Vec<u8>]) -> Vec<usize> {
        let top = directory();
        let session = Session::new(Share::open(&config(top.path(), 0)).unwrap());
        let mut reply = vec![0; REPLY];
        let mut is_refused = |message: &Vec<u8>| {
            let length = session.handle_bytes(message, &mut reply);
            assert!(length >= 7);
            reply[4] == 7
        };
        (0..messages.len()).filter(|place| is_refused(&messages[*place])).collect()
    }

    #[test]
    fn seeds_are_what_a_server_answers() {
        assert_eq!(refused(&session()), Vec::<usize>::new());
        // The directory that is removed last is not empty.
        assert_eq!(refused(&changes()), [changes().len() - 1]);
    }

    #[test]
    fn of_the_odd_seeds_only_those_that_follow_links_are_refused() {
        let messages = oddities();
        // Opening a link, and what only the case hack shows. (Walking through a link ends at the link.)
        let expected = [messages.len() - 3, messages.len() - 1];
        let refused: Vec<usize> = refused(&messages).into_iter().filter(|place| *place > 17).collect();
        assert_eq!(refused, expected);
    }
}
