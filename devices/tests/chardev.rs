//! Character devices on real pipes, sockets, files and terminals of the host, mostly behind a PL011 that is driven like a guest's
//! driver drives it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::Duration;

use hvrun_arch::{IrqChip, Spi};
use hvrun_devices::backend::BindError;
use hvrun_devices::backend::chardev::escape::{EscapeCommand, EscapeFilter};
use hvrun_devices::backend::chardev::terminal::{self, RawTerminal};
use hvrun_devices::backend::chardev::{
    CharBackend, CharFrontend, ChardevConfig, ChardevError, Peer, StdioStreams, Stream, open,
};
use hvrun_devices::{IrqLine, MmioDevice, Pl011};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::termios::{LocalModes, tcgetattr};

/// Longer than anything here takes: a wait that ends with it has failed.
const FOR_EVER: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;

/// The interrupt of the UART, which a guest can wait for.
#[derive(Default)]
struct Wire {
    level: Mutex<bool>,
    changed: Condvar,
}

impl IrqChip for Wire {
    fn set_spi(&self, _spi: Spi, level: bool) {
        *self.level.lock().unwrap() = level;
        self.changed.notify_all();
    }

    fn send_msi(&self, _addr: u64, _data: u32) {}
}

/// A guest with an interrupt-driven driver for its UART.
struct Guest {
    uart: Arc<Pl011>,
    wire: Arc<Wire>,
}

impl Guest {
    /// Its driver has enabled FIFOs, receiver and receive interrupts.
    fn new(config: &ChardevConfig, stdio: Option<StdioStreams>) -> Guest {
        let wire = Arc::new(Wire::default());
        let uart = Pl011::new(IrqLine::new(wire.clone(), Spi(1)), open(config, stdio).unwrap());
        let guest = Guest { uart, wire };
        guest.set(0x2c, 0x70);
        guest.set(0x30, 0x301);
        guest.set(0x38, 0x50);
        guest
    }

    /// On standard streams without an escape key.
    fn on_stdio(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Guest {
        let streams = StdioStreams { input: Some(input.into()), output: output.into(), filter: None };
        Guest::new(&ChardevConfig::Stdio, Some(streams))
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.uart.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.uart.write(offset, &value.to_le_bytes());
    }

    /// Waits for interrupts until `count` bytes have come, and sleeps for `pause` after each one.
    fn receive(&self, count: usize, pause: Duration) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < count {
            let level = self.wire.level.lock().unwrap();
            let waited = self.wire.changed.wait_timeout_while(level, FOR_EVER, |level| !*level).unwrap();
            assert!(!waited.1.timed_out(), "no interrupt after {} of {count} bytes", data.len());
            drop(waited);
            // Linux reads at most that many before it looks up (UART_FIFO limit of amba-pl011).
            for _ in 0..256 {
                if self.get(FR) & FR_RXFE != 0 {
                    break;
                }
                data.push(self.get(DR) as u8);
            }
            thread::sleep(pause);
        }
        data
    }

    /// Prints as a kernel does: waits while the FIFO is full.
    fn print(&self, data: &[u8]) {
        for byte in data {
            while self.get(FR) & FR_TXFF != 0 {
                thread::yield_now();
            }
            self.set(DR, u32::from(*byte));
        }
    }

    /// Writes until the FIFO stays full for as long as the output buffer needs to settle; says how much went in.
    fn print_until_stuck(&self, pattern: impl Fn(usize) -> u8) -> usize {
        let mut count = 0;
        while count < 4 * MIB {
            if self.get(FR) & FR_TXFF != 0 {
                thread::sleep(Duration::from_millis(200));
                if self.get(FR) & FR_TXFF != 0 {
                    return count;
                }
            }
            self.set(DR, u32::from(pattern(count)));
            count += 1;
        }
        panic!("the output of a stuck consumer is buffered without bound");
    }
}

/// Bytes that do not repeat with any power of two.
fn pattern(index: usize) -> u8 {
    (index % 251) as u8
}

fn pasted(len: usize) -> Vec<u8> {
    (0..len).map(pattern).collect()
}

fn read_exactly(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    from.read_exact(&mut data).unwrap();
    data
}

/// A terminal: the emulator's side and the program's side.
fn pty() -> (fs::File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, 0.into()).unwrap();
    (master.into(), slave)
}

/// Raw mode, as soon as no other test of this process holds the one terminal that can be raw.
fn enter_raw(slave: &OwnedFd) -> RawTerminal {
    loop {
        match RawTerminal::enter(slave) {
            Ok(raw) => return raw.unwrap(),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn unix_guest(dir: &Path) -> (Guest, UnixStream) {
    let path = dir.join("serial");
    let guest = Guest::new(&ChardevConfig::Unix(path.clone()), None);
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(FOR_EVER)).unwrap();
    (guest, client)
}

/// Prints until the client sees something: it is connected from then on.
fn until_connected(guest: &Guest, client: &mut UnixStream) {
    client.set_nonblocking(true).unwrap();
    while client.read(&mut [0; 64]).is_err() {
        guest.print(b".");
        thread::sleep(Duration::from_millis(2));
    }
    client.set_nonblocking(false).unwrap();
    // Whatever dots are still under way.
    assert!(guest.uart.flush(Some(FOR_EVER)));
    client.set_nonblocking(true).unwrap();
    while client.read(&mut [0; 64]).is_ok() {}
    client.set_nonblocking(false).unwrap();
}

#[test]
fn a_mebibyte_through_a_pipe_reaches_a_slow_guest_intact() {
    let (stdin, mut paste) = std::io::pipe().unwrap();
    let (_stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    let writer = thread::spawn(move || paste.write_all(&pasted(MIB)).unwrap());
    let received = guest.receive(MIB, Duration::from_micros(100));
    assert!(received == pasted(MIB), "the paste arrived damaged");
    writer.join().unwrap();
}

#[test]
fn a_mebibyte_through_a_socket_reaches_a_slow_guest_though_the_client_left() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, mut client) = unix_guest(dir.path());
    let writer = thread::spawn(move || client.write_all(&pasted(MIB)).unwrap());
    let received = guest.receive(MIB, Duration::from_micros(100));
    assert!(received == pasted(MIB), "the paste arrived damaged");
    writer.join().unwrap();
}

#[test]
fn a_mebibyte_through_a_raw_terminal_reaches_a_slow_guest_intact() {
    let (mut master, slave) = pty();
    let mut mode = tcgetattr(&slave).unwrap();
    mode.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &mode).unwrap();
    let guest = Guest::on_stdio(slave.try_clone().unwrap(), slave);
    let writer = thread::spawn(move || {
        master.write_all(&pasted(MIB)).unwrap();
        master
    });
    let received = guest.receive(MIB, Duration::ZERO);
    assert!(received == pasted(MIB), "the paste arrived damaged");
    writer.join().unwrap();
}

#[test]
fn input_that_nobody_takes_stays_at_its_source() {
    let (stdin, paste) = UnixStream::pair().unwrap();
    let (_stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    paste.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut taken = 0;
    while let Ok(count) = (&paste).write(&[b'x'; 4096]) {
        taken += count;
        assert!(taken < 8 * MIB, "input is buffered without bound");
    }
    assert_eq!(guest.receive(1, Duration::ZERO)[0], b'x');
}

#[test]
fn a_slow_consumer_stalls_the_guest_and_loses_nothing() {
    let (stdin, _paste) = std::io::pipe().unwrap();
    let (mut stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    let count = guest.print_until_stuck(pattern);
    let reader = thread::spawn(move || read_exactly(&mut stdout, count + 3));
    guest.print(b"end");
    assert!(guest.uart.flush(Some(FOR_EVER)));
    let output = reader.join().unwrap();
    assert!(output[..count] == pasted(count), "the output arrived damaged");
    assert_eq!(&output[count..], b"end");
}

#[test]
fn input_still_arrives_while_output_is_stuck() {
    let (stdin, mut keyboard) = std::io::pipe().unwrap();
    let (_stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    guest.print_until_stuck(pattern);
    keyboard.write_all(b"k").unwrap();
    assert_eq!(guest.receive(1, Duration::ZERO), b"k");
}

#[test]
fn a_stuck_consumer_does_not_hold_up_the_end_of_the_machine() {
    let (stdin, _keyboard) = std::io::pipe().unwrap();
    let (_stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    guest.print_until_stuck(pattern);
    assert!(!guest.uart.flush(Some(Duration::from_millis(10))));
    let (done, ended) = channel();
    thread::spawn(move || {
        drop(guest);
        done.send(()).unwrap();
    });
    ended.recv_timeout(FOR_EVER).unwrap();
}

#[test]
fn everything_printed_before_poweroff_leaves_with_the_flush() {
    let (stdin, _keyboard) = std::io::pipe().unwrap();
    let (mut stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    guest.print(&pasted(10_000));
    assert!(guest.uart.flush(None));
    assert!(read_exactly(&mut stdout, 10_000) == pasted(10_000));
}

#[test]
fn dropping_the_machine_without_a_flush_loses_nothing_either() {
    let (stdin, _keyboard) = std::io::pipe().unwrap();
    let (mut stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    guest.print(b"reboot: Power down\n");
    drop(guest);
    let mut output = String::new();
    stdout.read_to_string(&mut output).unwrap();
    assert_eq!(output, "reboot: Power down\n");
}

#[test]
fn the_end_of_stdin_is_no_event() {
    let (stdin, mut keyboard) = std::io::pipe().unwrap();
    let (mut stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    keyboard.write_all(b"last").unwrap();
    drop(keyboard);
    assert_eq!(guest.receive(4, Duration::ZERO), b"last");
    guest.print(b"still here");
    assert_eq!(read_exactly(&mut stdout, 10), b"still here");
    assert_ne!(guest.get(FR) & FR_RXFE, 0);
}

#[test]
fn dev_null_as_stdin_is_no_event() {
    let (mut stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(fs::File::open("/dev/null").unwrap(), sink);
    guest.print(b"ok");
    assert_eq!(read_exactly(&mut stdout, 2), b"ok");
}

#[test]
fn a_regular_file_can_be_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    fs::write(&path, pasted(50_000)).unwrap();
    let (_stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(fs::File::open(path).unwrap(), sink);
    assert!(guest.receive(50_000, Duration::ZERO) == pasted(50_000));
}

#[test]
fn a_reader_that_went_away_does_not_stop_the_guest() {
    let (stdin, mut keyboard) = std::io::pipe().unwrap();
    let (stdout, sink) = std::io::pipe().unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    drop(stdout);
    guest.print(&pasted(200_000));
    keyboard.write_all(b"k").unwrap();
    assert_eq!(guest.receive(1, Duration::ZERO), b"k");
}

#[test]
fn standard_streams_stay_in_blocking_mode() {
    let (stdin, mut keyboard) = std::io::pipe().unwrap();
    let (mut stdout, sink) = std::io::pipe().unwrap();
    let (stdin_too, sink_too) = (stdin.try_clone().unwrap(), sink.try_clone().unwrap());
    let guest = Guest::on_stdio(stdin, sink);
    keyboard.write_all(b"k").unwrap();
    guest.receive(1, Duration::ZERO);
    guest.print(b"x");
    read_exactly(&mut stdout, 1);
    assert!(!fcntl_getfl(&stdin_too).unwrap().contains(OFlags::NONBLOCK));
    assert!(!fcntl_getfl(&sink_too).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn a_nonblocking_stdout_loses_nothing() {
    let (stdin, _keyboard) = std::io::pipe().unwrap();
    let (mut stdout, sink) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&sink, true).unwrap();
    let guest = Guest::on_stdio(stdin, sink);
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        read_exactly(&mut stdout, 300_000)
    });
    guest.print(&pasted(300_000));
    assert!(guest.uart.flush(Some(FOR_EVER)));
    assert!(reader.join().unwrap() == pasted(300_000));
}

#[test]
fn the_escape_key_works_though_the_guest_takes_no_input() {
    let (mut master, slave) = pty();
    let _raw = enter_raw(&slave);
    let (sender, commands) = channel();
    let filter = EscapeFilter::new(move |command| sender.send(command).unwrap());
    let streams = StdioStreams {
        input: Some(slave.try_clone().unwrap()),
        output: slave.try_clone().unwrap(),
        filter: Some(Box::new(filter)),
    };
    let backend = open(&ChardevConfig::Stdio, Some(streams)).unwrap();
    master.write_all(b"abc\x01x").unwrap();
    assert_eq!(commands.recv_timeout(FOR_EVER), Ok(EscapeCommand::Quit));
    while !backend.has_input() {
        thread::sleep(Duration::from_millis(1));
    }
    let mut input = [0; 16];
    assert_eq!((backend.read(&mut input), &input[..3]), (3, &b"abc"[..]));
    master.write_all(b"\x01h").unwrap();
    let mut help = String::new();
    while !help.contains("Ctrl-A X") {
        help.push_str(std::str::from_utf8(&read_exactly(&mut master, 1)).unwrap());
    }
    let saved_local = tcgetattr(&slave).unwrap().local_modes;
    assert!(!saved_local.contains(LocalModes::ICANON));
    terminal::restore();
    assert!(tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
}

#[test]
fn raw_mode_is_undone_by_dropping_its_guard() {
    let (_master, slave) = pty();
    let before = tcgetattr(&slave).unwrap();
    let raw = enter_raw(&slave);
    assert!(!tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ISIG));
    drop(raw);
    let after = tcgetattr(&slave).unwrap();
    assert_eq!(
        (before.local_modes, before.input_modes, before.control_modes),
        (after.local_modes, after.input_modes, after.control_modes)
    );
}

#[test]
fn raw_mode_of_a_pipe_is_none() {
    let (stdin, _keyboard) = std::io::pipe().unwrap();
    assert!(RawTerminal::enter(&stdin).unwrap().is_none());
}

#[test]
fn a_file_is_emptied_and_gets_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "old").unwrap();
    let guest = Guest::new(&ChardevConfig::File(path.clone()), None);
    guest.print(&pasted(100_000));
    drop(guest);
    assert!(fs::read(path).unwrap() == pasted(100_000));
}

#[test]
fn a_file_that_cannot_be_created_is_named() {
    let error = open(&ChardevConfig::File("/nonexistent/log".into()), None).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/log"), "{error}");
}

#[test]
fn a_sink_of_an_embedder_gets_the_output() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let backend = Arc::new(Stream::to_writer("test", Box::new(theirs)).unwrap());
    let uart = Pl011::new(IrqLine::new(Arc::new(Wire::default()), Spi(1)), backend);
    uart.write(DR, b"!");
    assert_eq!(read_exactly(&mut ours, 1), b"!");
}

#[test]
fn a_client_talks_with_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, mut client) = unix_guest(dir.path());
    client.write_all(b"hello").unwrap();
    assert_eq!(guest.receive(5, Duration::ZERO), b"hello");
    guest.print(b"world");
    assert_eq!(read_exactly(&mut client, 5), b"world");
}

#[test]
fn another_client_may_come_when_the_first_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, mut client) = unix_guest(dir.path());
    client.write_all(b"a").unwrap();
    guest.receive(1, Duration::ZERO);
    drop(client);
    let mut client = UnixStream::connect(dir.path().join("serial")).unwrap();
    until_connected(&guest, &mut client);
    client.write_all(b"b").unwrap();
    assert_eq!(guest.receive(1, Duration::ZERO), b"b");
    guest.print(b"c");
    assert_eq!(read_exactly(&mut client, 1), b"c");
}

#[test]
fn output_without_a_client_does_not_stall_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::new(&ChardevConfig::Unix(dir.path().join("serial")), None);
    guest.print(&pasted(300_000));
    assert!(guest.uart.flush(Some(FOR_EVER)));
}

#[test]
fn a_client_that_only_listens_on_still_gets_output() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, mut client) = unix_guest(dir.path());
    client.write_all(b"uname\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.receive(6, Duration::ZERO), b"uname\n");
    thread::sleep(Duration::from_millis(20));
    guest.print(b"Linux\n");
    assert_eq!(read_exactly(&mut client, 6), b"Linux\n");
}

#[test]
fn a_client_stuck_in_output_gives_way_when_it_hangs_up() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, mut client) = unix_guest(dir.path());
    until_connected(&guest, &mut client);
    guest.print_until_stuck(pattern);
    drop(client);
    guest.print(&pasted(300_000));
    assert!(guest.uart.flush(Some(FOR_EVER)));
}

#[test]
fn a_client_that_reconnects_finds_a_listener_that_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let guest = Guest::new(&ChardevConfig::UnixReconnect { path: path.clone(), seconds: 1 }, None);
    let listener = UnixListener::bind(&path).unwrap();
    for text in [b"first", b"again"] {
        let (mut far, _) = listener.accept().unwrap();
        until_connected(&guest, &mut far);
        guest.print(text);
        assert_eq!(read_exactly(&mut far, text.len()), text);
    }
}

#[test]
fn a_listener_that_waits_has_its_client_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let client = thread::spawn({
        let path = path.clone();
        move || loop {
            if let Ok(client) = UnixStream::connect(&path) {
                return client;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    let guest = Guest::new(&ChardevConfig::UnixWait(path), None);
    guest.print(b"hello");
    assert_eq!(read_exactly(&mut client.join().unwrap(), 5), b"hello");
}

#[test]
fn a_file_that_is_appended_to_keeps_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "before ").unwrap();
    let guest = Guest::new(&ChardevConfig::FileAppend(path.clone()), None);
    guest.print(b"after");
    drop(guest);
    assert_eq!(fs::read(&path).unwrap(), b"before after");
}

#[test]
fn the_socket_file_goes_away_with_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (guest, client) = unix_guest(dir.path());
    drop(guest);
    assert!(!dir.path().join("serial").exists());
    drop(client);
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    drop(UnixListener::bind(&path).unwrap());
    let (guest, mut client) = unix_guest(dir.path());
    client.write_all(b"x").unwrap();
    assert_eq!(guest.receive(1, Duration::ZERO), b"x");
}

#[test]
fn a_socket_in_use_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    let _other = UnixListener::bind(&path).unwrap();
    let error = open(&ChardevConfig::Unix(path.clone()), None).unwrap_err();
    assert!(matches!(error, ChardevError::Socket { source: BindError::InUse, .. }), "{error}");
    assert!(UnixStream::connect(path).is_ok());
}

#[test]
fn a_path_that_is_no_socket_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, "data").unwrap();
    let error = open(&ChardevConfig::Unix(path.clone()), None).unwrap_err();
    assert!(matches!(error, ChardevError::Socket { source: BindError::NotASocket, .. }), "{error}");
    assert_eq!(fs::read_to_string(path).unwrap(), "data");
}

#[test]
fn a_socket_path_that_is_too_long_says_how_long_it_may_be() {
    let path = format!("/tmp/{}", "x".repeat(200));
    let error = open(&ChardevConfig::Unix(path.into()), None).unwrap_err();
    assert!(
        matches!(error, ChardevError::Socket { source: BindError::TooLong { len: 205, max: 100..=107 }, .. }),
        "{error}"
    );
}

#[test]
fn nowhere_takes_everything() {
    let guest = Guest::new(&ChardevConfig::None, None);
    guest.print(&pasted(100_000));
    assert!(guest.uart.flush(None));
    assert_ne!(guest.get(FR) & FR_RXFE, 0);
}

#[test]
fn a_terminal_keeps_its_blocking_mode() {
    let (mut master, slave) = pty();
    let other = slave.try_clone().unwrap();
    let guest = Guest::on_stdio(slave.try_clone().unwrap(), slave);
    guest.print(b"x");
    assert_eq!(read_exactly(&mut master, 1), b"x");
    assert!(!fcntl_getfl(other.as_fd()).unwrap().contains(OFlags::NONBLOCK));
}

/// A device that only counts what it is told.
#[derive(Default)]
struct Watcher {
    peer_changes: Mutex<usize>,
    changed: Condvar,
}

impl CharFrontend for Watcher {
    fn input_ready(&self) {}

    fn input_retry(&self) {}

    fn output_ready(&self) {}

    fn peer_changed(&self) {
        *self.peer_changes.lock().unwrap() += 1;
        self.changed.notify_all();
    }
}

impl Watcher {
    fn on(backend: &dyn CharBackend) -> Arc<Watcher> {
        let watcher = Arc::new(Watcher::default());
        let frontend: Weak<Watcher> = Arc::downgrade(&watcher);
        backend.attach(frontend);
        watcher
    }

    /// Waits until the peer has changed `count` times since the beginning.
    fn wait(&self, count: usize) {
        let changes = self.peer_changes.lock().unwrap();
        let waited = self.changed.wait_timeout_while(changes, FOR_EVER, |changes| *changes < count).unwrap();
        assert!(!waited.1.timed_out());
    }
}

/// Waits for input and gives all of it.
fn take(backend: &dyn CharBackend) -> Vec<u8> {
    while !backend.has_input() {
        thread::sleep(Duration::from_millis(1));
    }
    let mut buf = vec![0; 100];
    let count = backend.read(&mut buf);
    buf.truncate(count);
    buf
}

/// A listener, and a character device that has connected to it.
fn connected(dir: &Path) -> (Arc<dyn CharBackend>, UnixStream) {
    let path = dir.join("server");
    let server = UnixListener::bind(&path).unwrap();
    let backend = open(&ChardevConfig::UnixConnect(path), None).unwrap();
    let (stream, _) = server.accept().unwrap();
    stream.set_read_timeout(Some(FOR_EVER)).unwrap();
    (backend, stream)
}

#[test]
fn a_port_connects_to_a_program_that_listens() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut server) = connected(dir.path());
    assert!(backend.peer().connected);
    assert_eq!(backend.send(b"to the server"), 13);
    assert_eq!(read_exactly(&mut server, 13), b"to the server");
    server.write_all(b"to the guest").unwrap();
    assert_eq!(take(backend.as_ref()), b"to the guest");
}

#[test]
fn a_program_that_does_not_listen_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nobody");
    let error = open(&ChardevConfig::UnixConnect(path.clone()), None).unwrap_err();
    assert!(matches!(error, ChardevError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[test]
fn a_server_that_went_away_is_noticed_and_stalls_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut server) = connected(dir.path());
    let watcher = Watcher::on(backend.as_ref());
    server.write_all(b"bye").unwrap();
    drop(server);
    watcher.wait(1);
    assert!(!backend.peer().connected);
    assert_eq!(take(backend.as_ref()), b"bye");
    for _ in 0..100 {
        assert_eq!(backend.send(&[b'x'; 10_000]), 10_000);
    }
    assert!(backend.flush(Some(FOR_EVER)));
}

#[test]
fn clients_that_come_and_go_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let backend = open(&ChardevConfig::Unix(path.clone()), None).unwrap();
    assert_eq!(backend.peer(), Peer::NOBODY);
    let watcher = Watcher::on(backend.as_ref());
    let client = UnixStream::connect(&path).unwrap();
    watcher.wait(1);
    assert_eq!(backend.peer(), Peer { connected: true, connections: 1 });
    drop(client);
    watcher.wait(2);
    assert_eq!(backend.peer(), Peer { connected: false, connections: 1 });
    let _client = UnixStream::connect(&path).unwrap();
    watcher.wait(3);
    assert_eq!(backend.peer(), Peer { connected: true, connections: 2 });
}

#[test]
fn messages_and_single_bytes_keep_their_order() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let backend = Stream::socket("test", theirs).unwrap();
    let mut expected = Vec::new();
    let reader = thread::spawn(move || read_exactly(&mut ours, 200 * 1001));
    for index in 0..200 {
        let message = pasted(1000);
        let mut sent = 0;
        while sent < message.len() {
            sent += backend.send(&message[sent..]);
        }
        while backend.write(&[pattern(index)]) == 0 {}
        expected.extend(message);
        expected.push(pattern(index));
    }
    assert!(backend.flush(Some(FOR_EVER)));
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn a_pseudo_terminal_carries_bytes_both_ways_as_they_are() {
    let backend = open(&ChardevConfig::Pty, None).unwrap();
    let watcher = Watcher::on(backend.as_ref());
    let path = backend.terminal().unwrap();
    let mut slave = fs::File::options().read(true).write(true).open(path).unwrap();
    watcher.wait(1);
    assert_eq!(backend.send(b"\x00\n\x03\xff"), 4);
    assert_eq!(read_exactly(&mut slave, 4), b"\x00\n\x03\xff");
    slave.write_all(b"\r\x03\x04\xfe").unwrap();
    let mut received = Vec::new();
    while received.len() < 4 {
        received.extend(take(backend.as_ref()));
    }
    assert_eq!(received, b"\r\x03\x04\xfe");
}

#[test]
fn a_mebibyte_through_a_pseudo_terminal_arrives_intact() {
    let backend = open(&ChardevConfig::Pty, None).unwrap();
    let watcher = Watcher::on(backend.as_ref());
    let mut slave = fs::File::open(backend.terminal().unwrap()).unwrap();
    watcher.wait(1);
    let reader = thread::spawn(move || read_exactly(&mut slave, MIB));
    let mut left = &pasted(MIB)[..];
    while !left.is_empty() {
        left = &left[backend.send(left)..];
        thread::yield_now();
    }
    assert!(reader.join().unwrap() == pasted(MIB), "the output arrived damaged");
}

#[test]
fn output_to_a_pseudo_terminal_that_nobody_has_open_does_not_stall_the_guest() {
    let backend = open(&ChardevConfig::Pty, None).unwrap();
    let watcher = Watcher::on(backend.as_ref());
    let slave = fs::File::open(backend.terminal().unwrap()).unwrap();
    watcher.wait(1);
    while backend.send(&[b'x'; 10_000]) > 0 {}
    drop(slave);
    watcher.wait(2);
    assert!(!backend.peer().connected);
    assert!(backend.flush(Some(FOR_EVER)));
    assert_eq!(backend.send(&[b'x'; 10_000]), 10_000);
}
