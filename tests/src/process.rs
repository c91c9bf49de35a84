//! A child process with a watchdog, and what it cost: `wait4` and `/proc`. It knows nothing of hvrun or of guests.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a process cost until its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on the CPU in user space.
    pub user: Duration,
    /// Time on the CPU in the host's kernel.
    pub system: Duration,
    /// Peak of the resident memory, in KiB.
    pub max_rss_kib: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it cost.
    pub usage: Usage,
    /// From just before its start to its end.
    pub wall: Duration,
    /// Whether the watchdog killed it.
    pub timed_out: bool,
}

#[derive(Debug, Default)]
struct State {
    /// The process has been waited for, so its id may belong to another one: it must not be signalled any more.
    reaped: bool,
    timed_out: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running process that is killed when its time is up, and when this value is dropped.
#[derive(Debug)]
pub struct Supervised {
    pid: Pid,
    started: Instant,
    shared: Arc<Shared>,
    watchdog: Option<JoinHandle<()>>,
}

impl Supervised {
    /// Watches over a process just started by `command`, for at most `limit`; its pipes are in the returned child.
    pub fn spawn(command: &mut Command, limit: Duration) -> Result<(Supervised, std::process::Child)> {
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let pid = Pid::from_child(&child);
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let watchdog = std::thread::spawn(move || {
            let state = watched.lock();
            let (mut state, result) = watched
                .changed
                .wait_timeout_while(state, limit, |state| !state.reaped)
                .unwrap_or_else(PoisonError::into_inner);
            if result.timed_out() && !state.reaped {
                state.timed_out = true;
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Ok((Supervised { pid, started, shared, watchdog: Some(watchdog) }, child))
    }

    /// The process's id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        Ok(waitid(WaitId::Pid(self.pid), options)?.is_some())
    }

    /// Sends a signal, unless the process has been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let state = self.shared.lock();
        if !state.reaped {
            kill_process(self.pid, signal)?;
        }
        Ok(())
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Result<Ended> {
        self.reap()
    }

    fn reap(&mut self) -> Result<Ended> {
        // First without collecting it, so that the watchdog can still kill it by its id.
        loop {
            match waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.map(|_| ())?,
            }
        }
        let wall = self.started.elapsed();
        let mut state = self.shared.lock();
        let (status, usage) = wait4(self.pid)?;
        state.reaped = true;
        let timed_out = state.timed_out;
        self.shared.changed.notify_all();
        drop(state);
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
        Ok(Ended { status, usage, wall, timed_out })
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            let _ = self.signal(Signal::KILL);
            let _ = self.reap();
        }
    }
}

fn wait4(pid: Pid) -> Result<(ExitStatus, Usage)> {
    let mut status = 0;
    // SAFETY: `rusage` is plain data for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the types that wait4(2) writes.
        let result = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, &raw mut usage) };
        if result >= 0 {
            break;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("wait4");
        }
    }
    let time = |value: libc::timeval| {
        Duration::from_micros(
            (value.tv_sec as u64).wrapping_mul(1_000_000).wrapping_add(value.tv_usec as u64),
        )
    };
    // Linux counts KiB, macOS bytes.
    let max_rss_kib =
        if cfg!(target_os = "macos") { usage.ru_maxrss as u64 / 1024 } else { usage.ru_maxrss as u64 };
    Ok((
        ExitStatus::from_raw(status),
        Usage { user: time(usage.ru_utime), system: time(usage.ru_stime), max_rss_kib },
    ))
}

/// The CPU time, user and system, that a running process has used so far.
pub fn cpu_time(pid: Pid) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // proc(5): fields 14 and 15 are utime and stime. The name in field 2 may hold spaces, so count from behind it.
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// A program that a test needs, also where an ordinary user's PATH has none of its folder.
pub fn need(program: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed: apt-get install {package}"))
}

/// How much of the host's memory a process holds, in bytes.
pub fn resident(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{}/statm", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let pages: u64 = text.split(' ').nth(1).context("statm has no second word")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
