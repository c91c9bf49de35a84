use super::super::testing::{FakeMachine, Person};
use super::*;

/// What `command` answers, without its echo and the prompt, and what was done to the machine.
fn answer(command: &str) -> (String, Vec<String>) {
    let machine = FakeMachine::new();
    let mut person = Person::at(Hmp::new(machine.clone()));
    person.hear(PROMPT);
    person.say(format!("{command}\n"));
    let heard = person.hear(PROMPT);
    let text = heard.strip_prefix(&format!("{command}\r\n")).unwrap_or_else(|| panic!("{heard:?}"));
    (text.strip_suffix(PROMPT).unwrap().to_owned(), machine.log())
}

#[test]
fn a_session_begins_with_the_banner_and_the_prompt() {
    let mut person = Person::at(Hmp::new(FakeMachine::new()));
    let banner = "QEMU 9.2.0 monitor - type 'help' for more information\r\n(qemu) ";
    assert_eq!(person.hear(PROMPT), banner);
    assert_eq!(person.leave(), "", "nothing follows the prompt");
}

#[test]
fn a_command_is_done_before_its_prompt() {
    assert_eq!(answer("stop"), (String::new(), vec!["pause".to_owned()]));
    assert_eq!(answer("system_reset").1, ["reset"]);
    assert_eq!(answer("system_powerdown").1, ["power button"]);
    assert_eq!(answer("c").1, ["resume"]);
}

#[test]
fn status_is_told_in_qemu_s_words() {
    let machine = FakeMachine::new();
    let status = |machine: &FakeMachine| execute(machine, "info status").text;
    assert_eq!(status(&machine), "VM status: running\n");
    machine.pause();
    assert_eq!(status(&machine), "VM status: paused\n");
}

#[test]
fn quit_has_no_prompt() {
    let machine = FakeMachine::new();
    let mut person = Person::at(Hmp::new(machine.clone()));
    person.hear(PROMPT);
    person.say("quit\n");
    assert_eq!(person.hear("\r\n"), "quit\r\n");
    assert_eq!(person.leave(), "");
    assert_eq!(machine.log(), ["quit"]);
}

#[test]
fn commands_in_one_write_are_done_in_their_order() {
    let machine = FakeMachine::new();
    let mut person = Person::at(Hmp::new(machine.clone()));
    person.hear(PROMPT);
    person.say("stop\ncont\nsystem_reset\n");
    for _ in 0..3 {
        person.hear(PROMPT);
    }
    assert_eq!(machine.log(), ["pause", "resume", "reset"]);
}

#[test]
fn a_command_that_comes_byte_by_byte_is_one() {
    let machine = FakeMachine::new();
    let mut person = Person::at(Hmp::new(machine.clone()));
    person.hear(PROMPT);
    for byte in b"stop" {
        person.say([*byte]);
        person.hear(&char::from(*byte).to_string());
    }
    person.say("\n");
    assert_eq!(person.hear(PROMPT), "\r\n(qemu) ");
    assert_eq!(machine.log(), ["pause"]);
}

#[test]
fn an_empty_line_has_the_prompt_alone_as_its_answer() {
    assert_eq!(answer("").0, "");
}

#[test]
fn an_unknown_command_is_named() {
    assert_eq!(answer("frobnicate now").0, "unknown command: 'frobnicate'\r\n");
    assert_eq!(answer("info frob").0, "unknown command: 'info frob'\r\n");
}

#[test]
fn too_few_and_too_many_words_are_told() {
    let few = answer("set_link net0").0;
    assert_eq!(few, "set_link: string expected\r\nTry \"help set_link\" for more information\r\n");
    let (many, log) = answer("stop now");
    assert!(many.starts_with("stop: extraneous characters at the end of line\r\n"), "{many}");
    assert!(log.is_empty(), "{log:?}");
}

#[test]
fn what_is_not_there_is_refused_with_its_reason() {
    assert_eq!(answer("screendump /tmp/x").0, "Error: screendump: There is no display\r\n");
    assert_eq!(answer("sendkey ret").0, "Error: sendkey: There is no keyboard\r\n");
    assert!(answer("object_add rng-random,id=x").0.contains("only disks and network cards"));
    assert_eq!(answer("x/4w 0").0, "Cannot access memory\r\n");
    assert_eq!(answer("nmi").0, "Error: this feature or command is not currently supported\r\n");
}

#[test]
fn a_link_is_cut_by_name() {
    assert_eq!(answer("set_link net0 off"), (String::new(), vec!["link net0 false".to_owned()]));
    assert_eq!(answer("set_link net7 on").0, "Error: Device 'net7' not found\r\n");
    let (text, log) = answer("set_link net0 maybe");
    assert!(text.starts_with("Error: ") && log.is_empty(), "{text} {log:?}");
}

#[test]
fn a_port_is_forwarded_with_and_without_the_network_s_name() {
    assert_eq!(answer("hostfwd_add tcp::2222-:22").1, ["forward None tcp:0.0.0.0:2222-:22"]);
    assert_eq!(
        answer("hostfwd_add user.0 udp:127.0.0.1:53-:5353").1,
        ["forward Some(\"user.0\") udp:127.0.0.1:53-:5353"]
    );
    assert_eq!(answer("hostfwd_remove tcp::2222").1, ["no forward None tcp 0.0.0.0:2222"]);
}

#[test]
fn a_forwarding_that_cannot_be_says_why() {
    assert!(answer("hostfwd_add nonsense").0.contains("Invalid host forwarding rule 'nonsense'"));
    assert!(answer("hostfwd_add tcp::80-:80").0.contains("it is taken"));
    assert!(answer("hostfwd_add none tcp::81-:80").0.contains("'none' not found"));
    assert_eq!(answer("hostfwd_remove nonsense").0, "invalid format\r\n");
    assert_eq!(answer("hostfwd_remove tcp::80").0, "host forwarding rule for tcp::80 not found\r\n");
}

#[test]
fn help_has_every_command_and_info_every_topic() {
    let help = answer("help").0;
    for name in ["cont|c ", "quit|q ", "set_link name on|off", "system_reset "] {
        assert!(help.contains(name), "{name} is not in {help}");
    }
    let topics = answer("info").0;
    assert_eq!(topics.lines().count(), info::TOPICS.len());
    assert_eq!(answer("help info status").0.lines().count(), 1);
}

#[test]
fn every_topic_of_info_shows_something() {
    for topic in info::TOPICS {
        let text = execute(FakeMachine::new().as_ref(), &format!("info {}", topic.name)).text;
        // Where there is nothing, nothing is said, as in QEMU.
        let nothing = ["iothreads", "memory-devices"].contains(&topic.name);
        assert!(text.is_empty() == nothing && !text.starts_with("unknown"), "{}: {text:?}", topic.name);
    }
}

#[test]
fn network_and_block_show_what_was_configured() {
    let network = answer("info network").0;
    assert!(network.starts_with("net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54"), "{network}");
    assert!(network.contains(" \\ user.0: index=0,type=user,net=10.0.2.0,restrict=off"), "{network}");
    assert!(answer("info block").0.starts_with("drive1 (#block000): /images/root.qcow2 (qcow2)\r\n"));
    let second = "virtio1 (#block001): /images/cd.iso (qcow2, read-only)\r\n    \
                  Attached to:      /machine/peripheral-anon/device[0]/virtio-backend\r\n    \
                  Cache mode:       writeback\r\n";
    assert_eq!(answer("info block virtio1").0, second);
    assert_eq!(answer("info block x").0, "Error: Device 'x' not found\r\n");
}

#[test]
fn a_line_of_ten_mib_is_refused_and_the_next_command_works() {
    let mut person = Person::at(Hmp::new(FakeMachine::new()));
    person.hear(PROMPT);
    let chunk = vec![b'a'; 1 << 20];
    for _ in 0..10 {
        person.say(&chunk);
    }
    person.say("\n");
    let heard = person.hear(PROMPT);
    assert!(heard.len() < 5000 && heard.contains("too long"), "{} bytes", heard.len());
    person.say("info status\n");
    assert!(person.hear(PROMPT).contains("VM status: running"));
}

#[test]
fn a_disk_is_resized_in_mib_or_by_suffix() {
    assert_eq!(answer("block_resize drive1 128").1, ["resize drive1 134217728"]);
    assert_eq!(answer("block_resize drive1 1G").1, ["resize drive1 1073741824"]);
    assert_eq!(answer("block_resize x 1b").0, "Error: Cannot find device='x' nor node-name=''\r\n");
    for wrong in ["", "M", "-1", "99999999999999999999G", "1é"] {
        assert_eq!(
            answer(&format!("block_resize drive1 \"{wrong}\"")).0,
            "Error: Parameter 'size' expects a size\r\n"
        );
    }
}

#[test]
fn disks_have_no_medium_to_take_out() {
    assert_eq!(answer("eject -f drive1").0, "Error: Device 'drive1' is not removable\r\n");
    assert_eq!(answer("change drive1 /x").0, "Error: Device 'drive1' is not removable\r\n");
    assert_eq!(answer("eject x").0, "Error: Device 'x' not found\r\n");
}

#[test]
fn the_balloon_is_told_in_mib() {
    assert_eq!(answer("info balloon").0, "balloon: actual=512\r\n");
    assert_eq!(answer("balloon 100").1, ["balloon 104857600"]);
}

#[test]
fn the_machine_has_a_name() {
    assert_eq!(answer("info name").0, "horus\r\n");
    assert_eq!(answer("info uuid").0, "00000000-0000-0000-0000-000000000000\r\n");
}

#[test]
fn memory_is_shown_with_the_format_at_the_command_or_behind_it() {
    let shown = "0000000040000000: 0x00 0x01\r\n";
    assert_eq!(answer("xp/2xb 0x40000000").0, shown);
    assert_eq!(answer("xp /2xb 0x40000000").0, shown);
}

#[test]
fn pci_devices_have_their_bars() {
    let pci = answer("info pci").0;
    assert!(pci.contains("Ethernet controller: PCI device 1af4:1041\r\n"), "{pci}");
    let bar = "BAR4: 64 bit prefetchable memory at 0x0000008000000000 [0x8000003fff].\r\n";
    assert!(pci.contains(bar), "{pci}");
    assert!(answer("info qtree").0.contains("      dev: virtio-net-pci, id \"\"\r\n        addr = 01.0\r\n"));
}

#[test]
fn an_early_hang_up_leaves_half_a_command_undone() {
    let machine = FakeMachine::new();
    let mut person = Person::at(Hmp::new(machine.clone()));
    person.hear(PROMPT);
    person.say("stop");
    person.hear("stop");
    person.leave();
    assert!(machine.log().is_empty(), "{:?}", machine.log());
}

#[test]
fn garbage_is_answered_and_harms_nothing() {
    let machine = FakeMachine::new();
    let mut person = Person::at(Hmp::new(machine.clone()));
    person.hear(PROMPT);
    let all: Vec<u8> = (0..=255).collect();
    person.say(&all);
    person.say("\ninfo \"status\n\x1b[\ninfo status\n");
    while !person.hear(PROMPT).contains("VM status") {}
    assert!(machine.log().is_empty(), "{:?}", machine.log());
}
