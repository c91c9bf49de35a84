//! Serves files to a guest that boots from the network: TFTP (RFC 1350) with the options blksize, tsize and timeout (RFC 2347,
//! 2348, 2349). Read-only, one folder.

use std::fs::File;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use super::link::Link;
use super::packet::be16;

/// The well-known port (RFC 1350, 4).
pub(super) const PORT: u16 = 69;
/// Opcodes (RFC 1350, 5; RFC 2347).
const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;
/// Error codes (RFC 1350, 5).
const NOT_FOUND: u16 = 1;
const FORBIDDEN: u16 = 2;
const ILLEGAL: u16 = 4;
/// Block sizes (RFC 1350, 2; RFC 2348).
const DEFAULT_BLOCK: usize = 512;
const MIN_BLOCK: usize = 8;
/// Transfers at a time; the one silent for longest gives way.
const MAX_SESSIONS: usize = 16;
/// How long a silent one is kept.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Session {
    guest: SocketAddr,
    file: File,
    block_size: usize,
    /// Blocks that the guest has acknowledged. Their numbers on the wire have 16 bits and begin again at 0 in a long file.
    acknowledged: u64,
    last: Instant,
}

/// The server.
#[derive(Debug)]
pub(super) struct Tftp {
    root: Option<PathBuf>,
    sessions: Vec<Session>,
}

impl Tftp {
    pub(super) fn new(root: Option<PathBuf>) -> Self {
        Tftp { root, sessions: Vec::new() }
    }

    /// Whether there is anything to serve.
    pub(super) fn is_on(&self) -> bool {
        self.root.is_some()
    }

    /// Takes a message that `guest` has sent to `server`.
    pub(super) fn input(&mut self, link: &mut Link, guest: SocketAddr, server: SocketAddr, message: &[u8]) {
        self.sessions.retain(|session| link.now.saturating_duration_since(session.last) < IDLE);
        let answer = match be16(message, 0) {
            Some(READ) => {
                let mtu = usize::from(link.plan.mtu);
                self.open(link.now, guest, message.get(2..).unwrap_or_default(), mtu)
            }
            Some(WRITE) => Some(error(FORBIDDEN, "this server is read-only")),
            Some(ACK) => be16(message, 2).and_then(|block| self.next(link.now, guest, block)),
            Some(ERROR) => {
                self.sessions.retain(|session| session.guest != guest);
                None
            }
            _ => Some(error(ILLEGAL, "unknown request")),
        };
        if let Some(answer) = answer {
            link.send_udp(server, guest, &answer);
        }
    }

    fn open(&mut self, now: Instant, guest: SocketAddr, request: &[u8], mtu: usize) -> Option<Vec<u8>> {
        let mut words = request.split(|byte| *byte == 0).map(|word| std::str::from_utf8(word).unwrap_or(""));
        let (name, mode) = (words.next()?, words.next()?);
        if !mode.eq_ignore_ascii_case("octet") {
            return Some(error(ILLEGAL, "the mode has to be octet"));
        }
        let Some((file, size)) = self.file(name) else {
            return Some(error(NOT_FOUND, "no such file"));
        };
        let mut block_size = DEFAULT_BLOCK;
        let mut accepted = Vec::new();
        while let (Some(option), Some(value)) = (words.next(), words.next()) {
            let option = option.to_ascii_lowercase();
            let granted = match (option.as_str(), value.parse::<u64>()) {
                ("blksize", Ok(wanted)) => {
                    // IP's, UDP's and TFTP's own headers.
                    let most = mtu.saturating_sub(20 + 8 + 4);
                    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                    if wanted < MIN_BLOCK {
                        continue;
                    }
                    block_size = wanted.min(most);
                    block_size.to_string()
                }
                ("tsize", Ok(_)) => size.to_string(),
                ("timeout", Ok(seconds @ 1..=255)) => seconds.to_string(),
                _ => continue,
            };
            for word in [option.as_bytes(), granted.as_bytes()] {
                accepted.extend_from_slice(word);
                accepted.push(0);
            }
        }
        self.sessions.retain(|session| session.guest != guest);
        if self.sessions.len() >= MAX_SESSIONS {
            let oldest = self.sessions.iter().enumerate().min_by_key(|(_, session)| session.last);
            if let Some((index, _)) = oldest {
                self.sessions.remove(index);
            }
        }
        self.sessions.push(Session { guest, file, block_size, acknowledged: 0, last: now });
        if accepted.is_empty() {
            return self.next(now, guest, 0);
        }
        let mut answer = OPTIONS.to_be_bytes().to_vec();
        answer.extend_from_slice(&accepted);
        Some(answer)
    }

    /// The file that `name` says. Links are followed: the guest cannot make any, and whoever made the folder may want them.
    fn file(&self, name: &str) -> Option<(File, u64)> {
        let mut path = self.root.clone()?;
        for component in Path::new(name).components() {
            match component {
                Component::Normal(part) => path.push(part),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return None,
            }
        }
        // Looked at before it is opened, which would wait in the case of a pipe.
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let file = File::open(&path).ok()?;
        let size = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
        Some((file, size))
    }

    /// The block after `acknowledged`.
    fn next(&mut self, now: Instant, guest: SocketAddr, acknowledged: u16) -> Option<Vec<u8>> {
        let at = self.sessions.iter().position(|session| session.guest == guest)?;
        let session = self.sessions.get_mut(at)?;
        session.last = now;
        let block = acknowledged.wrapping_add(1);
        let offset = session.offset_after(acknowledged)?;
        let mut answer = DATA.to_be_bytes().to_vec();
        answer.extend_from_slice(&block.to_be_bytes());
        let mut data = vec![0; session.block_size];
        let mut len = 0;
        while let Some(room) = data.get_mut(len..).filter(|room| !room.is_empty()) {
            match session.file.read_at(room, offset + len as u64) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(error(0, "the file cannot be read")),
            }
        }
        if session.is_past_end(offset) {
            self.sessions.remove(at);
            return None;
        }
        answer.extend_from_slice(data.get(..len)?);
        Some(answer)
    }
}

impl Session {
    /// Where in the file the block after `acknowledged` begins.
    fn offset_after(&mut self, acknowledged: u16) -> Option<u64> {
        let step = acknowledged.wrapping_sub(u16::try_from(self.acknowledged & 0xffff).ok()?);
        // One ahead is progress, the same a repetition; anything else is an old duplicate.
        if step > 1 {
            return None;
        }
        self.acknowledged += u64::from(step);
        self.acknowledged.checked_mul(self.block_size as u64)
    }

    /// Whether everything has been acknowledged: the last block is shorter than the others, if only empty.
    fn is_past_end(&self, offset: u64) -> bool {
        self.file.metadata().is_ok_and(|metadata| offset > metadata.len())
    }
}

fn error(code: u16, message: &str) -> Vec<u8> {
    let mut answer = ERROR.to_be_bytes().to_vec();
    answer.extend_from_slice(&code.to_be_bytes());
    answer.extend_from_slice(message.as_bytes());
    answer.push(0);
    answer
}
