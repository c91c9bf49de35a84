//! A character device made of a source and a sink that may block, and the two threads that do so in the device's place.
//!
//! The reading thread waits on descriptors (`poll`, level-triggered) and can be stopped at any time; the writing thread just
//! writes, because a terminal or a pipe shared with other processes must not be made non-blocking. It knows no device.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::fd::poll;
use super::input::{self, Input};
use super::output::{Direct, Output, Taken};
use super::{CharBackend, CharFrontend, ChardevError, InputFilter, Peer};
use crate::util::{LogLimit, lock};

/// How long dropping a stream waits for its threads. A writer that is stuck behind its consumer is left alone after that;
/// whoever cares for the output has called [`CharBackend::flush`] before.
const PATIENCE: Duration = Duration::from_secs(1);

/// Largest single read from a source.
const READ_SIZE: usize = 32 * 1024;

/// Where input comes from.
pub(super) trait Source: Send {
    /// What to wait for; nothing when no input can ever come, or when there is no room for it (`has_room`).
    fn interest(&self, has_room: bool) -> Vec<PollFd<'_>>;

    /// One of the descriptors of [`Source::interest`] is ready, by `ready` in the same order. Reads at most `buf.len()` bytes;
    /// 0 says only that there are none now. After an error the source has nothing more to offer.
    fn read(&mut self, ready: &[PollFlags], buf: &mut [u8]) -> io::Result<usize>;

    /// Who is at the other end, after what [`Source::read`] found.
    fn peer(&self) -> Peer {
        Peer::ALWAYS
    }

    /// When to call [`Source::read`] at the latest, with nothing ready: for what no descriptor announces.
    fn recheck(&self) -> Option<Duration> {
        None
    }
}

/// What a [`Stream`] is made of.
pub(super) struct Parts {
    /// For log lines and thread names.
    pub(super) name: String,
    pub(super) source: Option<Box<dyn Source>>,
    pub(super) sink: Box<dyn Write + Send>,
    /// A way to write to the sink's descriptor without blocking, if there is one.
    pub(super) direct: Option<Box<dyn Direct>>,
    pub(super) filter: Option<Box<dyn InputFilter>>,
    /// The pseudo-terminal's path.
    pub(super) terminal: Option<PathBuf>,
    /// Makes a blocked write return, if that is possible; called when the stream is dropped.
    pub(super) interrupt: Option<Box<dyn Fn() + Send + Sync>>,
}

/// See the module.
pub struct Stream {
    shared: Arc<Shared>,
    /// Behind a lock only because a channel's receiver is not `Sync`.
    threads: Mutex<Vec<Worker>>,
    interrupt: Option<Box<dyn Fn() + Send + Sync>>,
    direct: Option<Box<dyn Direct>>,
    terminal: Option<PathBuf>,
}

struct Shared {
    name: String,
    input: Input,
    output: Output,
    peer: Mutex<Peer>,
    frontend: Mutex<Option<Weak<dyn CharFrontend>>>,
    failures: LogLimit,
}

struct Worker {
    handle: JoinHandle<()>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
}

impl Stream {
    /// A stream whose output goes into `sink`, which may block, and which has no input: a way for an embedding program to read
    /// a guest's port.
    pub fn to_writer(name: &str, sink: Box<dyn Write + Send>) -> Result<Stream, ChardevError> {
        Stream::start(Parts {
            name: name.to_owned(),
            source: None,
            sink,
            direct: None,
            filter: None,
            terminal: None,
            interrupt: None,
        })
    }

    /// Starts the threads.
    pub(super) fn start(parts: Parts) -> Result<Stream, ChardevError> {
        let Parts { name, source, sink, direct, filter, terminal, interrupt } = parts;
        let failed = |source| ChardevError::Start { name: name.clone(), source };
        let shared = Arc::new(Shared {
            name: name.clone(),
            input: Input::new().map_err(failed)?,
            output: Output::default(),
            peer: Mutex::new(source.as_ref().map_or(Peer::ALWAYS, |source| source.peer())),
            frontend: Mutex::new(None),
            failures: LogLimit::default(),
        });
        let mut threads = Vec::new();
        let writer = spawn("chardev-out", shared.clone(), move |shared| write_loop(shared, sink));
        threads.push(writer.map_err(failed)?);
        if let Some(source) = source {
            let reader = spawn("chardev-in", shared.clone(), move |shared| read_loop(shared, source, filter));
            threads.push(reader.map_err(failed)?);
        }
        Ok(Stream { shared, threads: Mutex::new(threads), interrupt, direct, terminal })
    }
}

impl CharBackend for Stream {
    fn attach(&self, frontend: Weak<dyn CharFrontend>) {
        *lock(&self.shared.frontend) = Some(frontend);
    }

    fn write(&self, data: &[u8]) -> usize {
        self.shared.output.push(data)
    }

    fn send(&self, data: &[u8]) -> usize {
        match &self.direct {
            Some(direct) => self.shared.output.send(data, direct.as_ref()),
            None => self.shared.output.push(data),
        }
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        self.shared.input.pop(buf)
    }

    fn has_input(&self) -> bool {
        !self.shared.input.is_empty()
    }

    fn retry_input(&self, after: Duration) {
        self.shared.input.retry(after);
    }

    fn flush(&self, timeout: Option<Duration>) -> bool {
        self.shared.output.flush(timeout)
    }

    fn peer(&self) -> Peer {
        *lock(&self.shared.peer)
    }

    fn terminal(&self) -> Option<&Path> {
        self.terminal.as_deref()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The last reference to the device, and with it this stream, may end on one of the stream's own threads.
        let own = thread::current().id();
        let threads = std::mem::take(&mut *lock(&self.threads));
        let on_own_thread = threads.iter().any(|worker| worker.handle.thread().id() == own);
        self.shared.input.stop();
        if !on_own_thread && !self.shared.output.flush(Some(PATIENCE)) {
            log::warn!(
                "character device {}: its consumer is stuck, the rest of the output is lost",
                self.shared.name
            );
        }
        self.shared.output.close();
        if let Some(interrupt) = &self.interrupt {
            interrupt();
        }
        for worker in threads {
            if !on_own_thread && worker.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Disconnected) {
                let _ = worker.handle.join();
            }
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.shared.name).finish()
    }
}

impl Shared {
    /// The device, if one is attached and alive.
    fn frontend(&self) -> Option<Arc<dyn CharFrontend>> {
        lock(&self.frontend).as_ref().and_then(Weak::upgrade)
    }

    /// Tells the device if somebody has come or gone.
    fn set_peer(&self, peer: Peer) {
        let before = std::mem::replace(&mut *lock(&self.peer), peer);
        if before != peer
            && let Some(frontend) = self.frontend()
        {
            frontend.peer_changed();
        }
    }

    fn report(&self, what: &str, error: &io::Error) {
        if let Some(suppressed) = self.failures.allow() {
            log::warn!("character device {}: {what}: {error}{suppressed}", self.name);
        }
    }
}

fn spawn(name: &str, shared: Arc<Shared>, body: impl FnOnce(&Shared) + Send + 'static) -> io::Result<Worker> {
    let (alive, ended) = channel();
    let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _alive = alive;
        body(&shared);
    })?;
    Ok(Worker { handle, ended })
}

/// Writes what gathers until the output is closed. What cannot be written is dropped with a log line: the guest must not hang
/// because a disk is full or a reader went away.
fn write_loop(shared: &Shared, mut sink: Box<dyn Write + Send>) {
    let mut chunk = Vec::new();
    while let Taken::Bytes { starved } = shared.output.take(&mut chunk) {
        if starved && let Some(frontend) = shared.frontend() {
            frontend.output_ready();
        }
        if let Err(error) = sink.write_all(&chunk).and_then(|()| sink.flush()) {
            shared.report("output is lost", &error);
        }
        chunk.clear();
    }
}

/// Reads while there is room and somebody to wait for, until told to stop. The end of the source ends the reading only.
fn read_loop(shared: &Shared, mut source: Box<dyn Source>, mut filter: Option<Box<dyn InputFilter>>) {
    let mut buf = [0; READ_SIZE];
    let (mut to_guest, mut to_user) = (Vec::new(), Vec::new());
    let mut exhausted = false;
    while let Some(plan) = shared.input.plan() {
        if plan.retry
            && let Some(frontend) = shared.frontend()
        {
            frontend.input_retry();
        }
        let recheck = source.recheck().filter(|_| !exhausted);
        let ready = match wait(shared, source.as_ref(), !exhausted, &plan, recheck) {
            Ok(ready) => ready,
            Err(error) => {
                shared.report("no more input, waiting for it failed", &error);
                return;
            }
        };
        if recheck.is_none() && ready.iter().all(|flags| flags.is_empty()) {
            continue;
        }
        let room = plan.room.min(READ_SIZE);
        let result = source.read(&ready, &mut buf[..room]);
        shared.set_peer(source.peer());
        let input = match result {
            Ok(count) => &buf[..count.min(room)],
            Err(error) => {
                shared.report("no more input, reading failed", &error);
                exhausted = true;
                continue;
            }
        };
        if input.is_empty() {
            continue;
        }
        match &mut filter {
            None => shared.input.push(input),
            Some(filter) => {
                filter.filter(input, &mut to_guest, &mut to_user);
                shared.input.push(&to_guest);
                shared.output.push(&to_user);
                to_guest.clear();
                to_user.clear();
            }
        }
        if let Some(frontend) = shared.frontend() {
            frontend.input_ready();
        }
    }
}

/// Waits for the source, a wake-up or the earlier of both timeouts; gives the flags of the source's descriptors.
fn wait(
    shared: &Shared,
    source: &dyn Source,
    more: bool,
    plan: &input::Plan,
    recheck: Option<Duration>,
) -> io::Result<Vec<PollFlags>> {
    let wake_fd = shared.input.wake_fd();
    let mut fds = if more { source.interest(plan.room > 0) } else { Vec::new() };
    fds.push(PollFd::from_borrowed_fd(wake_fd, PollFlags::IN));
    let timeout = match (plan.timeout, recheck) {
        (Some(plan), Some(recheck)) => Some(plan.min(recheck)),
        (plan, recheck) => plan.or(recheck),
    };
    poll(&mut fds, timeout)?;
    fds.pop();
    Ok(fds.iter().map(PollFd::revents).collect())
}
