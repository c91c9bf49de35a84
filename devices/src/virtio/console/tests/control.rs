//! What a guest is told about its ports, and when.

use super::*;

const SIZE_80X25: TerminalSize = TerminalSize { cols: 80, rows: 25 };

#[test]
fn a_guest_finds_its_console_and_its_port_by_name() {
    let mut guest =
        Guest::new(vec![console(Arc::<Fake>::default()), serial("org.x", Arc::<Fake>::default())]);
    assert_eq!(guest.hear(), None);
    guest.say(0xffff_ffff, DEVICE_READY, 1);
    assert_eq!(guest.hear_all(), [heard(0, DEVICE_ADD, 1), heard(1, DEVICE_ADD, 1)]);
    guest.say(0, PORT_READY, 1);
    assert_eq!(guest.hear_all(), [heard(0, CONSOLE_PORT, 1), heard(0, PORT_OPEN, 1)]);
    guest.say(1, PORT_READY, 1);
    let name = Heard { more: b"org.x".to_vec(), ..heard(1, PORT_NAME, 1) };
    assert_eq!(guest.hear_all(), [name, heard(1, PORT_OPEN, 1)]);
}

#[test]
fn id_0_is_left_to_a_console() {
    let mut guest =
        Guest::new(vec![serial("a", Arc::<Fake>::default()), serial("b", Arc::<Fake>::default())]);
    guest.say(0, DEVICE_READY, 1);
    assert_eq!(guest.hear_all(), [heard(1, DEVICE_ADD, 1), heard(2, DEVICE_ADD, 1)]);
}

#[test]
fn the_first_console_gets_id_0_wherever_it_stands() {
    let setups = vec![serial("a", Arc::<Fake>::default()), console(Arc::<Fake>::default())];
    let mut guest = Guest::ready(setups);
    guest.say(0, PORT_READY, 1);
    assert_eq!(guest.hear(), Some(heard(0, CONSOLE_PORT, 1)));
}

#[test]
fn the_configuration_space_has_the_size_and_the_number_of_ports() {
    let mut setup = console(Arc::<Fake>::default());
    setup.kind = PortKind::Console(Some(SIZE_80X25));
    let guest = Guest::new(vec![setup, serial("a", Arc::<Fake>::default())]);
    assert_eq!(guest.driver.config::<12>(0), [80, 0, 25, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.console.queue_sizes().len(), 6);
}

#[test]
fn a_device_holds_31_ports_and_no_more() {
    let setups = |serials: usize| {
        let serials = (0..serials).map(|index| serial(&format!("p{index}"), Arc::<Fake>::default()));
        std::iter::once(console(Arc::<Fake>::default())).chain(serials).collect::<Vec<_>>()
    };
    assert_eq!(Console::new("console", setups(30)).unwrap().queue_sizes().len(), 64);
    let error = Console::new("console", setups(31)).unwrap_err();
    assert!(matches!(error, ConsoleError::TooManyPorts { count: 32 }), "{error}");
}

#[test]
fn a_console_of_known_size_tells_it() {
    let mut setup = console(Arc::<Fake>::default());
    setup.kind = PortKind::Console(Some(SIZE_80X25));
    let mut guest = Guest::new(vec![setup]);
    guest.say(0, PORT_READY, 1);
    let size = Heard { more: vec![80, 0, 25, 0], ..heard(0, RESIZE, 1) };
    assert_eq!(guest.hear_all()[1], size);
}

#[test]
fn a_new_size_reaches_the_console_that_it_is_for() {
    let setups = vec![
        console(Arc::<Fake>::default()),
        serial("a", Arc::<Fake>::default()),
        console(Arc::<Fake>::default()),
    ];
    let mut guest = Guest::ready(setups);
    assert!(guest.console.resize(1, SIZE_80X25));
    assert_eq!(guest.hear(), Some(Heard { more: vec![80, 0, 25, 0], ..heard(2, RESIZE, 1) }));
    assert!(!guest.console.resize(2, SIZE_80X25));
}

#[test]
fn a_driver_without_control_queues_hears_of_a_new_size_by_interrupt() {
    let guest = Guest::with_features(vec![console(Arc::<Fake>::default())], F_SIZE);
    guest.driver.acknowledge();
    guest.console.resize(0, SIZE_80X25);
    // VIRTIO_MMIO_INT_CONFIG (virtio 1.2, 4.2.2)
    assert_eq!(guest.driver.acknowledge(), 2);
    assert_eq!(guest.driver.config::<4>(0), [80, 0, 25, 0]);
}

#[test]
fn a_guest_is_told_that_a_peer_comes_and_goes() {
    let fake = Arc::new(Fake::default());
    fake.with(|state| state.peer = Peer::NOBODY);
    let mut guest = Guest::ready(vec![serial("a", fake.clone())]);
    assert_eq!(guest.hear(), None);
    fake.set_peer(Peer::joined);
    assert_eq!(guest.hear_all(), [heard(1, PORT_OPEN, 1)]);
    fake.set_peer(Peer::left);
    assert_eq!(guest.hear_all(), [heard(1, PORT_OPEN, 0)]);
}

#[test]
fn a_peer_that_was_replaced_unseen_is_told_as_gone_and_come() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![serial("a", fake.clone())]);
    fake.with(|state| state.peer = state.peer.left().joined().left().joined());
    fake.set_peer(|peer| peer);
    assert_eq!(guest.hear_all(), [heard(1, PORT_OPEN, 0), heard(1, PORT_OPEN, 1)]);
}

#[test]
fn a_peer_that_left_is_told_after_its_last_input() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![serial("a", fake.clone())]);
    fake.type_in(b"last words");
    fake.set_peer(Peer::left);
    assert_eq!(guest.hear(), None);
    guest.say(1, PORT_OPEN, 1);
    guest.post(4, 0);
    assert_eq!(guest.take_input(4), b"last words");
    assert_eq!(guest.hear(), Some(heard(1, PORT_OPEN, 0)));
}

#[test]
fn a_reset_tells_everything_anew() {
    let mut guest = Guest::ready(vec![console(Arc::<Fake>::default())]);
    guest.restart();
    assert_eq!(guest.hear(), None);
    guest.say(0, DEVICE_READY, 1);
    assert_eq!(guest.hear(), Some(heard(0, DEVICE_ADD, 1)));
}

#[test]
fn a_saved_state_comes_back() {
    let mut guest = Guest::ready(vec![console(Arc::<Fake>::default()), serial("a", Arc::<Fake>::default())]);
    guest.say(1, PORT_OPEN, 1);
    let state = guest.console.save();
    assert!(state.ports[1].guest_open && state.ports[1].ready && state.ports[1].told_open);
    let json = serde_json::to_string(&state).unwrap();
    guest.restart();
    assert_ne!(guest.console.save(), state);
    guest.console.restore(&serde_json::from_str(&json).unwrap());
    assert_eq!(guest.console.save(), state);
}

#[test]
fn a_peer_that_left_during_a_snapshot_is_told_afterwards() {
    let fake = Arc::new(Fake::default());
    let mut guest = Guest::ready(vec![serial("a", fake.clone())]);
    let state = guest.console.save();
    guest.restart();
    fake.set_peer(Peer::left);
    guest.console.restore(&state);
    assert_eq!(guest.hear(), Some(heard(1, PORT_OPEN, 0)));
}
