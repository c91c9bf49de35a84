//! Against the real `vde_switch`, and against peers that only pretend to be one.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use super::super::testing::{Ring, collect, drive, failure, frame, need, transmit, unicast};
use super::*;
use crate::sys::wire::UNIX_LAYOUT;

/// A running `vde_switch`, which ends with its console.
struct Switch {
    dir: std::rc::Rc<TempDir>,
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Switch {
    fn start(arguments: &[&str]) -> Switch {
        Self::start_in(tempfile::tempdir().unwrap().into(), arguments)
    }

    fn start_in(dir: std::rc::Rc<TempDir>, arguments: &[&str]) -> Switch {
        let program = need("vde_switch", "vde2");
        let mut process = Command::new("timeout")
            .arg("120")
            .arg(program)
            .arg("--sock")
            .arg(dir.path().join("s"))
            .args(["--dirmode", "0700"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut switch = Switch { dir, process, lines };
        // An answer says that it serves.
        switch.ask("showinfo");
        switch
    }

    /// Gives a command to the switch's console and returns what it says up to "1000 Success".
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut answer = String::new();
        for line in &mut self.lines {
            let line = line.unwrap();
            if line.contains("1000 Success") {
                return answer;
            }
            answer += &format!("{line}\n");
        }
        panic!("vde_switch ended: {answer}");
    }

    fn config(&self) -> VdeConfig {
        VdeConfig::new(self.dir.path().join("s"))
    }

    fn plug(&self) -> Vde {
        Vde::open(&self.config()).unwrap()
    }

    /// Plugs in once a port is free; the switch learns of a closed stream in its own time.
    fn plug_when_free(&self) -> Vde {
        for _ in 0..10 {
            match Vde::open(&self.config()) {
                Ok(vde) => return vde,
                Err(VdeError::Refused { .. }) => thread::sleep(Duration::from_millis(10)),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no port became free");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[test]
fn a_hub_carries_frames_to_every_other_card() {
    let switch = Switch::start(&["--hub"]);
    let (mut a, mut b, mut c) = (switch.plug(), switch.plug(), switch.plug());
    transmit(&mut a, &unicast(1, 2, 100));
    assert_eq!(collect(&mut b, 1), [unicast(1, 2, 100)]);
    assert_eq!(collect(&mut c, 1), [unicast(1, 2, 100)]);
}

#[test]
fn a_switch_learns_where_a_card_is() {
    let switch = Switch::start(&[]);
    let (mut a, mut b, mut c) = (switch.plug(), switch.plug(), switch.plug());
    transmit(&mut b, &frame(2, 60));
    assert_eq!(collect(&mut a, 1), [frame(2, 60)]);
    assert_eq!(collect(&mut c, 1), [frame(2, 60)]);
    transmit(&mut a, &unicast(1, 2, 200));
    assert_eq!(collect(&mut b, 1), [unicast(1, 2, 200)]);
    // Had the unicast frame been flooded, it would be here before this one.
    transmit(&mut a, &frame(1, 60));
    assert_eq!(collect(&mut c, 1), [frame(1, 60)]);
}

#[test]
fn a_tagged_frame_of_1518_bytes_passes() {
    let switch = Switch::start(&["--hub"]);
    let (mut a, mut b) = (switch.plug(), switch.plug());
    let mut tagged = frame(1, 1518);
    tagged[12..16].copy_from_slice(&[0x81, 0x00, 0x00, 0x07]);
    transmit(&mut a, &tagged);
    assert_eq!(collect(&mut b, 1), [tagged]);
}

#[test]
fn a_longer_frame_is_lost_and_the_next_one_passes() {
    let switch = Switch::start(&["--hub"]);
    let (mut a, mut b) = (switch.plug(), switch.plug());
    transmit(&mut a, &frame(1, 1519));
    transmit(&mut a, &frame(1, 64));
    assert_eq!(collect(&mut b, 1), [frame(1, 64)]);
}

#[test]
fn a_dropped_card_frees_its_port_and_its_path() {
    // Port 0 is none.
    let switch = Switch::start(&["--hub", "--numports", "3"]);
    let (_a, b) = (switch.plug(), switch.plug());
    assert!(matches!(Vde::open(&switch.config()), Err(VdeError::Refused { .. })), "only two ports");
    let path = b.socket().unwrap().to_owned();
    drop(b);
    assert!(!path.exists());
    switch.plug_when_free();
}

#[test]
fn a_card_gets_the_port_it_asks_for_and_nobody_else_does() {
    let mut switch = Switch::start(&["--hub"]);
    let config = VdeConfig { port: Some(7), ..switch.config() };
    let _card = Vde::open(&config).unwrap();
    let ports = switch.ask("port/print 7");
    assert!(ports.contains("hvrun user="), "{ports}");
    assert!(ports.contains(&format!("PID={}", std::process::id())), "{ports}");
}

#[test]
fn a_burst_reaches_a_reading_peer_without_loss_or_disorder() {
    let switch = Switch::start(&["--hub"]);
    let (mut a, mut b) = (switch.plug(), switch.plug());
    for round in 0..50u8 {
        for n in 0..8 {
            transmit(&mut a, &frame(round, 1000 + n));
        }
        let expected: Vec<_> = (0..8).map(|n| frame(round, 1000 + n)).collect();
        assert_eq!(collect(&mut b, 8), expected);
    }
}

#[test]
fn a_directory_that_is_a_symbolic_link_works() {
    let switch = Switch::start(&["--hub"]);
    let link = switch.dir.path().join("link");
    std::os::unix::fs::symlink(switch.dir.path().join("s"), &link).unwrap();
    let mut a = Vde::open(&VdeConfig::new(link)).unwrap();
    let mut b = switch.plug();
    transmit(&mut b, &frame(2, 60));
    assert_eq!(collect(&mut a, 1), [frame(2, 60)]);
}

#[test]
fn a_switch_that_goes_away_is_an_error_that_names_it() {
    let switch = Switch::start(&["--hub"]);
    let mut card = switch.plug();
    let dir = switch.dir.path().to_owned();
    drop(switch);
    let error = failure(&mut card).to_string();
    assert!(error.contains(dir.to_str().unwrap()), "{error}");
    assert!(!card.link() && card.descriptors(true).is_empty());
    assert_eq!(card.socket(), None, "its file would keep the directory from being removed");
    // The guest goes on sending.
    transmit(&mut card, &frame(1, 60));
}

/// Drives `card` until it has its link, or `attempts` times; says whether it has.
fn comes_back(card: &mut Vde, attempts: usize) -> bool {
    for _ in 0..attempts {
        // As if the time to look again had come.
        let now = card.deadline().unwrap_or_else(Instant::now);
        if card.service(now).is_ok() {
            return card.link();
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_switch_that_comes_back_is_plugged_into_again() {
    let switch = Switch::start(&["--hub"]);
    let dir = switch.dir.clone();
    let mut card = switch.plug();
    drop(switch);
    failure(&mut card);
    assert!(!comes_back(&mut card, 3), "nobody is there");
    let again = Switch::start_in(dir, &["--hub"]);
    assert!(comes_back(&mut card, 1000), "the switch is there and its port is not taken");
    let mut other = again.plug();
    transmit(&mut other, &frame(2, 60));
    assert_eq!(collect(&mut card, 1), [frame(2, 60)]);
    transmit(&mut card, &frame(1, 100));
    assert_eq!(collect(&mut other, 1), [frame(1, 100)]);
}

#[test]
fn a_switch_that_comes_back_and_keeps_silent_does_not_block_the_card() {
    let (mut card, peer, dir) = with_peer();
    drop(peer);
    std::fs::remove_file(dir.path().join("ctl")).unwrap();
    // The impostor hangs up when it hears something.
    let Cable::In(port) = &card.cable else { panic!("it is plugged in") };
    rustix::net::shutdown(&port.control, rustix::net::Shutdown::Write).unwrap();
    failure(&mut card);
    let _silent = UnixListener::bind(dir.path().join("ctl")).unwrap();
    assert!(card.service(card.deadline().unwrap()).is_err(), "it has not answered");
    assert!(matches!(card.cable, Cable::Asked(_)));
    assert_eq!(card.descriptors(false).len(), 1, "its answer would wake the card");
    // Its time is over: the card asks again later.
    assert!(card.service(card.deadline().unwrap()).is_err());
    assert!(matches!(card.cable, Cable::Out(_)));
}

#[test]
fn a_missing_directory_is_an_error_that_says_how_to_start_a_switch() {
    let error = Vde::open(&VdeConfig::new("/nonexistent/vde")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/vde") && error.contains("vde_switch --sock"), "{error}");
}

#[test]
fn a_directory_without_a_switch_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = Vde::open(&VdeConfig::new(dir.path())).unwrap_err();
    assert!(matches!(error, VdeError::NoSwitch { .. }), "{error}");
}

#[test]
fn a_directory_whose_path_is_too_long_is_an_error_with_both_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let error = Vde::open(&VdeConfig::new(deep)).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(matches!(error, VdeError::Path { .. }), "{error}");
    assert!(cause.contains("at most"), "{cause}");
}

/// A directory in which somebody listens who answers a request with `answer`, as far as that is, and then waits for the end.
fn impostor(answer: impl FnOnce(&TempDir) -> Vec<u8>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("ctl")).unwrap();
    let answer = answer(&dir);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 12 + 110 + 127];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(&answer);
        // An answer that is cut short ends with the stream, a whole one keeps it.
        if answer.len() >= UNIX_LAYOUT.size() {
            let _ = stream.read(&mut request);
        }
    });
    dir
}

fn answer_to(dir: &TempDir) -> VdeError {
    Vde::open(&VdeConfig::new(dir.path())).unwrap_err()
}

#[test]
fn a_switch_that_hangs_up_refuses_the_port() {
    let dir = impostor(|_| Vec::new());
    assert!(matches!(answer_to(&dir), VdeError::Refused { .. }));
}

#[test]
fn an_answer_that_is_cut_short_is_refused() {
    let dir = impostor(|_| vec![1; 20]);
    assert!(matches!(answer_to(&dir), VdeError::Refused { .. }));
}

#[test]
fn an_answer_that_is_no_address_is_refused() {
    let dir = impostor(|_| vec![0xff; UNIX_LAYOUT.size()]);
    assert!(matches!(answer_to(&dir), VdeError::Answer { .. }));
}

#[test]
fn an_answer_with_a_socket_that_is_not_there_is_refused_with_its_path() {
    let dir = impostor(|_| UNIX_LAYOUT.encode(Path::new("/nonexistent/001.1")).unwrap());
    let error = answer_to(&dir).to_string();
    assert!(error.contains("/nonexistent/001.1"), "{error}");
}

#[test]
fn a_failed_attempt_leaves_no_socket_behind() {
    let dir = impostor(|_| Vec::new());
    answer_to(&dir);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only ctl");
}

/// A card plugged into a switch that the test plays itself.
fn with_peer() -> (Vde, UnixDatagram, TempDir) {
    let mut peer = None;
    let dir = impostor(|dir| {
        let path = dir.path().join("001.1");
        peer = Some(UnixDatagram::bind(&path).unwrap());
        UNIX_LAYOUT.encode(&path).unwrap()
    });
    let card = Vde::open(&VdeConfig::new(dir.path())).unwrap();
    let peer = peer.unwrap();
    peer.connect(card.socket().unwrap()).unwrap();
    peer.set_nonblocking(true).unwrap();
    (card, peer, dir)
}

#[test]
fn a_guest_that_takes_nothing_does_not_fill_the_switchs_socket() {
    let (mut card, peer, _dir) = with_peer();
    let mut full = Ring::new(0);
    for n in 0..3000u32 {
        peer.send(&frame(n as u8, 1000)).unwrap();
        if n % 4 == 0 {
            card.service(Instant::now()).unwrap();
            card.receive(&mut full).unwrap();
        }
    }
    assert!(card.backlog.len() <= BACKLOG, "{}", card.backlog.len());
}

#[test]
fn a_guest_that_takes_frames_again_gets_the_newest_in_order() {
    let (mut card, peer, _dir) = with_peer();
    let mut full = Ring::new(0);
    for n in 0..BACKLOG + 10 {
        peer.send(&frame((n % 251) as u8, 100)).unwrap();
        card.service(Instant::now()).unwrap();
        card.receive(&mut full).unwrap();
    }
    let got = collect(&mut card, BACKLOG);
    let expected: Vec<_> = (10..BACKLOG + 10).map(|n| frame((n % 251) as u8, 100)).collect();
    assert!(got == expected, "{} frames", got.len());
}

#[test]
fn two_cards_talk_while_both_are_driven() {
    let switch = Switch::start(&["--hub"]);
    let (mut a, mut b) = (switch.plug(), switch.plug());
    let (mut ring_a, mut ring_b) = (Ring::new(9), Ring::new(9));
    transmit(&mut a, &frame(1, 60));
    transmit(&mut b, &frame(2, 60));
    drive(&mut [(&mut a, &mut ring_a), (&mut b, &mut ring_b)], |rings| {
        rings.iter().all(|ring| ring.frames().len() == 1)
    })
    .unwrap();
    assert_eq!((ring_a.frames(), ring_b.frames()), (vec![frame(2, 60)], vec![frame(1, 60)]));
}

#[test]
fn a_configuration_is_read_back_as_it_is_written() {
    for text in ["/tmp/vde1.ctl", "/tmp/a,,b,port=3"] {
        assert_eq!(text.parse::<VdeConfig>().unwrap().to_string(), text);
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_known_ones() {
    let error = "/tmp/s,hub".parse::<VdeConfig>().unwrap_err().to_string();
    assert!(error.contains("hub") && error.contains("port"), "{error}");
}
