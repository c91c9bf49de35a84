use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use hvrun_devices::backend::chardev::Stream;

use super::*;

/// A device that takes all its input at once and reports it.
struct Device {
    port: Arc<dyn CharBackend>,
    name: &'static str,
    heard: Sender<(&'static str, Vec<u8>)>,
}

impl CharFrontend for Device {
    fn input_ready(&self) {
        let mut bytes = vec![0; 64];
        let count = self.port.read(&mut bytes);
        bytes.truncate(count);
        self.heard.send((self.name, bytes)).unwrap();
    }

    fn input_retry(&self) {
        if self.port.has_input() {
            self.input_ready();
        }
    }

    fn output_ready(&self) {}
}

struct Bench {
    person: UnixStream,
    mux: Arc<Mux>,
    _devices: [Arc<Device>; 2],
    heard: Receiver<(&'static str, Vec<u8>)>,
    keys: Receiver<Key>,
}

fn bench() -> Bench {
    let (person, far) = UnixStream::pair().unwrap();
    person.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mux = Mux::new(Arc::new(Stream::socket("test", far).unwrap()));
    let (sender, heard) = channel();
    let device = |port: Arc<dyn CharBackend>, name| {
        let device = Arc::new(Device { port: port.clone(), name, heard: sender.clone() });
        let weak: Weak<Device> = Arc::downgrade(&device);
        port.attach(weak);
        device
    };
    let devices = [device(mux.serial(), "serial"), device(mux.monitor(), "monitor")];
    let (key_sender, keys) = channel();
    mux.on_key(move |key| key_sender.send(key).unwrap());
    Bench { person, mux, _devices: devices, heard, keys }
}

impl Bench {
    /// What `name` hears until it has heard `count` bytes; the other may hear nothing meanwhile.
    fn hears(&self, name: &str, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            let (who, bytes) = self.heard.recv_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!(who, name, "{bytes:?}");
            all.extend(bytes);
        }
        all
    }
}

#[test]
fn ctrl_a_c_moves_the_keyboard_to_the_monitor_and_back() {
    let mut bench = bench();
    bench.person.write_all(b"ls\x01c").unwrap();
    assert_eq!(bench.hears("serial", 2), b"ls");
    bench.person.write_all(b"stop\x01c").unwrap();
    assert_eq!(bench.hears("monitor", 4), b"stop");
    bench.person.write_all(b"\x01\x01x").unwrap();
    assert_eq!(bench.hears("serial", 2), b"\x01x");
}

#[test]
fn both_write_to_the_same_place() {
    let mut bench = bench();
    bench.mux.serial().send(b"guest ");
    bench.mux.monitor().send(b"monitor");
    let mut text = [0; 13];
    bench.person.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"guest monitor");
}

#[test]
fn nobody_is_there_for_the_monitor_until_it_is_looked_at() {
    let mut bench = bench();
    assert_eq!(bench.mux.monitor().peer(), Peer::NOBODY);
    assert!(bench.mux.serial().peer().connected);
    bench.person.write_all(b"\x01cx").unwrap();
    assert_eq!(bench.hears("monitor", 1), b"x");
    assert!(bench.mux.monitor().peer().connected);
}

#[test]
fn keys_of_the_machine_reach_it() {
    let mut bench = bench();
    bench.person.write_all(b"\x01b\x01x").unwrap();
    let next = || bench.keys.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!([next(), next()], [Key::Break, Key::Quit]);
}

#[test]
fn input_that_one_side_does_not_take_all_at_once_is_not_lost() {
    let mut bench = bench();
    let sent: Vec<u8> = (0..20_000u32).map(|i| b'a' + (i % 26) as u8).collect();
    bench.person.write_all(&sent).unwrap();
    // The device takes 64 bytes a call; what is left comes with the calls that the next bytes cause.
    let mut heard = 0;
    while heard < CAPACITY {
        heard += bench.heard.recv_timeout(Duration::from_secs(30)).unwrap().1.len();
        bench.mux.under.retry_input(Duration::ZERO);
    }
}
