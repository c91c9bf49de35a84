use serde_json::{Value, json};

use super::super::testing::{FakeMachine, Person};
use super::*;
use crate::running::RunState;

/// A program behind the negotiation.
fn program(machine: &Arc<FakeMachine>) -> Person {
    let mut program = Person::at(Qmp::new(machine.clone(), false));
    program.hear("\n");
    program.say("{\"execute\": \"qmp_capabilities\"}\n");
    assert_eq!(program.hear("\n"), "{\"return\": {}}\r\n");
    program
}

fn hear(program: &mut Person) -> Value {
    serde_json::from_str(&program.hear("\n")).unwrap()
}

/// What `message` is answered, and what was done to the machine.
fn answer(message: &str) -> (Value, Vec<String>) {
    let machine = FakeMachine::new();
    let mut program = program(&machine);
    program.say(format!("{message}\n"));
    (hear(&mut program), machine.log())
}

/// Class and description of the error that `message` is answered.
fn error(message: &str) -> (String, String) {
    let (value, log) = answer(message);
    assert!(log.is_empty(), "{log:?}");
    let member = |name: &str| value["error"][name].as_str().unwrap_or_default().to_owned();
    assert!(value.get("return").is_none(), "{value}");
    (member("class"), member("desc"))
}

#[test]
fn a_session_begins_with_the_greeting() {
    let mut program = Person::at(Qmp::new(FakeMachine::new(), false));
    let greeting = hear(&mut program);
    assert_eq!(greeting["QMP"]["version"]["qemu"], json!({ "micro": 0, "minor": 2, "major": 9 }));
    assert_eq!(greeting["QMP"]["capabilities"], json!([]));
    assert_eq!(program.leave(), "", "nothing follows the greeting");
}

#[test]
fn nothing_is_done_before_the_negotiation() {
    let machine = FakeMachine::new();
    let mut program = Person::at(Qmp::new(machine.clone(), false));
    program.hear("\n");
    program.say("{\"execute\": \"stop\"}\n");
    assert_eq!(hear(&mut program)["error"]["class"], "CommandNotFound");
    assert!(machine.log().is_empty());
}

#[test]
fn negotiation_happens_once() {
    assert_eq!(error(r#"{"execute": "qmp_capabilities"}"#).0, "CommandNotFound");
}

#[test]
fn a_capability_that_was_not_offered_cannot_be_enabled() {
    let mut program = Person::at(Qmp::new(FakeMachine::new(), false));
    program.hear("\n");
    program.say(r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#);
    assert_eq!(hear(&mut program)["error"]["class"], "GenericError");
}

#[test]
fn an_id_of_any_kind_comes_back() {
    for id in [json!(7), json!("x"), json!({ "a": [null] })] {
        let (value, _) = answer(&json!({ "execute": "query-status", "id": id }).to_string());
        assert_eq!(value["id"], id);
        let (value, _) = answer(&json!({ "execute": "nope", "id": id }).to_string());
        assert_eq!(value["id"], id);
    }
}

#[test]
fn an_unknown_command_has_its_class_and_no_id() {
    let (value, _) = answer(r#"{"execute": "no-such-command"}"#);
    let desc = "The command no-such-command has not been found";
    assert_eq!(value, json!({ "error": { "class": "CommandNotFound", "desc": desc } }));
}

#[test]
fn messages_that_are_no_commands_say_what_is_wrong() {
    for (message, wrong) in [
        ("[]", "must be a JSON object"),
        ("7", "must be a JSON object"),
        ("{}", "lacks member 'execute'"),
        (r#"{"execute": 1}"#, "'execute' must be a string"),
        (r#"{"execute": "stop", "arguments": []}"#, "'arguments' must be an object"),
        (r#"{"execute": "stop", "frob": 1}"#, "'frob' is unexpected"),
        (r#"{"execute": "stop", "arguments": {"frob": 1}}"#, "Parameter 'frob' is unexpected"),
        (r#"{"execute": "set_link", "arguments": {"up": true}}"#, "Parameter 'name' is missing"),
        (r#"{"execute": "set_link", "arguments": {"name": 1, "up": true}}"#, "'name', expected: string"),
        ("{]", "JSON parse error"),
        ("hello", "JSON parse error"),
    ] {
        let (class, desc) = error(message);
        assert_eq!(class, "GenericError");
        assert!(desc.contains(wrong), "{message}: {desc}");
    }
}

#[test]
fn stop_and_cont_change_the_status() {
    let machine = FakeMachine::new();
    let mut program = program(&machine);
    program.say(
        r#"{"execute": "stop"}{"execute": "query-status"}{"execute": "cont"}{"execute": "query-status"}"#,
    );
    let answers: Vec<Value> = (0..4).map(|_| hear(&mut program)["return"].clone()).collect();
    let status = |status: &str, running: bool| json!({ "status": status, "running": running });
    assert_eq!(answers, [json!({}), status("paused", false), json!({}), status("running", true)]);
}

#[test]
fn what_ends_or_resets_the_machine_comes_behind_its_answer() {
    for (command, done) in [("quit", "quit"), ("system_reset", "reset"), ("system_powerdown", "power button")]
    {
        let machine = FakeMachine::new();
        let mut program = program(&machine);
        program.say(json!({ "execute": command }).to_string());
        assert_eq!(hear(&mut program), json!({ "return": {} }));
        program.leave();
        assert_eq!(machine.log(), [done]);
    }
}

#[test]
fn a_link_is_cut_by_name_and_a_missing_one_has_its_class() {
    let (value, log) = answer(r#"{"execute": "set_link", "arguments": {"name": "net0", "up": false}}"#);
    assert_eq!((value, log), (json!({ "return": {} }), vec!["link net0 false".to_owned()]));
    let (value, _) = answer(r#"{"execute": "set_link", "arguments": {"name": "x", "up": false}}"#);
    assert_eq!(value["error"]["class"], "DeviceNotFound");
}

#[test]
fn a_human_s_command_answers_with_text() {
    let command = |line: &str| {
        json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } }).to_string()
    };
    assert_eq!(answer(&command("info status")).0, json!({ "return": "VM status: running\r\n" }));
    assert_eq!(answer(&command("system_reset")).1, ["reset"]);
}

#[test]
fn every_command_that_is_listed_exists() {
    let (value, _) = answer(r#"{"execute": "query-commands"}"#);
    let names: Vec<&str> =
        value["return"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert!(names.contains(&"qmp_capabilities") && names.contains(&"query-block"), "{names:?}");
    for name in names.iter().filter(|name| **name != "qmp_capabilities") {
        let (value, _) = answer(&json!({ "execute": name }).to_string());
        assert_ne!(value["error"]["class"], "CommandNotFound", "{name}");
    }
}

#[test]
fn queries_have_the_members_that_the_schema_demands() {
    let query = |name: &str| answer(&json!({ "execute": name }).to_string()).0["return"].clone();
    let block = &query("query-block")[0];
    assert_eq!((&block["device"], &block["io-status"]), (&json!("drive1"), &json!("ok")));
    assert_eq!(block["qdev"], "/machine/peripheral/root/virtio-backend");
    let second = &query("query-block")[1];
    assert_eq!(second["qdev"], "/machine/peripheral-anon/device[0]/virtio-backend");
    assert!(second.get("io-status").is_none(), "no error of it stops the machine");
    assert_eq!(query("query-name"), json!({ "name": "horus" }));
    assert_eq!(block["inserted"]["image"]["virtual-size"], 1 << 30);
    assert_eq!(block["inserted"]["drv"], "qcow2");
    assert_eq!(query("query-cpus-fast")[0]["thread-id"], 1234);
    assert_eq!(query("query-kvm"), json!({ "enabled": false, "present": false }));
    assert_eq!(
        query("query-pci")[0]["devices"][0]["id"],
        json!({ "device": 0x1041, "vendor": 0x1af4, "subsystem": 0, "subsystem-vendor": 0 })
    );
    assert_eq!(query("query-memory-size-summary")["base-memory"], 1u64 << 30);
    assert_eq!(query("query-chardev")[0]["label"], "serial0");
}

#[test]
fn an_event_is_one_line_with_a_time_and_qemu_s_names() {
    let at = std::time::Duration::new(5, 7000);
    let reset = event(MachineEvent::Reset(Cause::HostReset), at);
    let expected = "{\"timestamp\": {\"seconds\": 5, \"microseconds\": 7}, \"event\": \"RESET\", \
                    \"data\": {\"guest\": false, \"reason\": \"host-qmp-system-reset\"}}\r\n";
    assert_eq!(json::line(&reset, false), expected.as_bytes());
    let shutdown = event(MachineEvent::Shutdown(Cause::GuestShutdown), at);
    assert_eq!(shutdown["data"], json!({ "guest": true, "reason": "guest-shutdown" }));
    assert!(event(MachineEvent::Stopped, at).get("data").is_none());
}

#[test]
fn events_come_only_after_the_negotiation() {
    let machine = FakeMachine::new();
    let mut program = Person::at(Qmp::new(machine, false));
    program.hear("\n");
    program.session().event(MachineEvent::Stopped);
    program.say("{\"execute\": \"qmp_capabilities\"}");
    assert_eq!(hear(&mut program), json!({ "return": {} }));
    program.session().event(MachineEvent::Resumed);
    assert_eq!(hear(&mut program)["event"], "RESUME");
}

#[test]
fn an_io_error_is_told_in_qemu_s_words() {
    let error = IoError {
        operation: Operation::Flush,
        action: ErrorAction::Stop,
        no_space: true,
        reason: "No space left on device".to_owned(),
    };
    let disk = BlockNames { drive: "drive1".to_owned(), node: "#block000".to_owned() };
    let told = event(MachineEvent::BlockIoError { disk, error }, std::time::Duration::ZERO);
    assert_eq!(told["event"], "BLOCK_IO_ERROR");
    assert_eq!(
        told["data"],
        json!({
            "device": "drive1", "node-name": "#block000", "operation": "write", "action": "stop",
            "nospace": true, "reason": "No space left on device",
        })
    );
}

#[test]
fn a_machine_whose_guest_has_powered_off_goes_on_after_a_reset_only() {
    let machine = FakeMachine::new();
    *machine.running.lock().unwrap() = RunState::PoweredOff;
    let mut program = program(&machine);
    program.say(r#"{"execute": "cont"}{"execute": "query-status"}"#);
    assert_eq!(hear(&mut program)["error"]["desc"], "Resetting the Virtual Machine is required");
    assert_eq!(hear(&mut program)["return"], json!({ "status": "shutdown", "running": false }));
}

#[test]
fn a_disk_is_resized_by_either_name() {
    let resize = r#"{"execute": "block_resize", "arguments": {"device": "drive1", "size": 1048576}}"#;
    assert_eq!(answer(resize), (json!({ "return": {} }), vec!["resize drive1 1048576".to_owned()]));
    let (value, log) = answer(r#"{"execute": "block_resize", "arguments": {"node-name": "n", "size": 512}}"#);
    assert_eq!(
        (&value["error"]["class"], &log[..]),
        (&json!("GenericError"), &["resize n 512".to_owned()][..])
    );
    let wrong = r#"{"execute": "block_resize", "arguments": {"device": "drive1", "size": -1}}"#;
    assert_eq!(error(wrong).1, "Parameter 'size' expects a >0 size");
}

#[test]
fn disks_have_no_medium_to_take_out() {
    let eject = |name: &str| error(&json!({ "execute": "eject", "arguments": { "id": name } }).to_string());
    assert_eq!(eject("root").1, "Device 'drive1' is not removable");
    assert_eq!(eject("x").0, "DeviceNotFound");
    let change =
        r#"{"execute": "blockdev-change-medium", "arguments": {"device": "drive1", "filename": "/x"}}"#;
    assert_eq!(error(change), ("GenericError".to_owned(), "Device 'drive1' is not removable".to_owned()));
}

#[test]
fn a_balloon_is_asked_for_memory_and_tells_what_it_has() {
    assert_eq!(answer(r#"{"execute": "query-balloon"}"#).0["return"], json!({ "actual": 512 << 20 }));
    assert_eq!(answer(r#"{"execute": "balloon", "arguments": {"value": 1048576}}"#).1, ["balloon 1048576"]);
    assert_eq!(error(r#"{"execute": "balloon", "arguments": {"value": 0}}"#).0, "GenericError");
}

#[test]
fn character_devices_that_are_there_stay() {
    let remove =
        |id: &str| error(&json!({ "execute": "chardev-remove", "arguments": { "id": id } }).to_string()).1;
    assert_eq!(remove("serial0"), "Chardev 'serial0' is busy");
    assert_eq!(remove("x"), "Chardev 'x' not found");
    let send =
        |id: &str| answer(&json!({ "execute": "chardev-send-break", "arguments": { "id": id } }).to_string());
    assert_eq!(send("serial0").1, ["break"]);
    assert_eq!(send("x").0["error"]["desc"], "Chardev 'x' not found");
}

#[test]
fn what_needs_a_display_says_so() {
    let screendump = r#"{"execute": "screendump", "arguments": {"filename": "/tmp/x"}}"#;
    assert_eq!(error(screendump).1, "There is no console to take a screendump from");
    assert!(error(r#"{"execute": "send-key", "arguments": {"keys": []}}"#).1.contains("no keyboard"));
}

#[test]
fn objects_are_listed_and_have_a_type() {
    let list =
        |path: &str| answer(&json!({ "execute": "qom-list", "arguments": { "path": path } }).to_string()).0;
    assert_eq!(list("/machine")["return"][1], json!({ "name": "peripheral", "type": "child<container>" }));
    assert_eq!(list("/nowhere")["error"]["class"], "DeviceNotFound");
    let get = |property: &str| {
        let arguments = json!({ "path": "/machine", "property": property });
        answer(&json!({ "execute": "qom-get", "arguments": arguments }).to_string()).0
    };
    assert_eq!(get("type")["return"], "virt-9.2-machine");
    assert_eq!(get("x")["error"]["desc"], "Property 'virt-9.2-machine.x' not found");
}

#[test]
fn half_a_message_and_a_hang_up_do_nothing() {
    let machine = FakeMachine::new();
    let mut program = program(&machine);
    program.say(r#"{"execute": "stop""#);
    program.leave();
    assert!(machine.log().is_empty(), "{:?}", machine.log());
}

#[test]
fn pretty_answers_take_several_lines() {
    let mut program = Person::at(Qmp::new(FakeMachine::new(), true));
    assert!(program.hear("\n}\r\n").starts_with("{\n    \"QMP\": {\n"));
}

#[test]
fn a_message_of_ten_mib_is_refused_and_the_next_one_answered() {
    let mut program = program(&FakeMachine::new());
    program.say("{\"execute\": \"");
    let chunk = vec![b'a'; 1 << 20];
    for _ in 0..10 {
        program.say(&chunk);
    }
    program.say("\"}\n{\"execute\": \"query-status\"}\n");
    assert!(hear(&mut program)["error"]["desc"].as_str().unwrap().contains("too long"));
    assert_eq!(hear(&mut program)["return"]["running"], true);
}

#[test]
fn a_program_that_does_not_read_loses_events_and_no_answers() {
    let mut program = program(&FakeMachine::new());
    program.say("{\"execute\": \"query-uuid\"}");
    program.hear("\n");
    for _ in 0..100_000 {
        program.session().event(MachineEvent::Stopped);
    }
    program.say("{\"execute\": \"query-status\", \"id\": 1}\n");
    let mut events = 0;
    while hear(&mut program).get("event").is_some() {
        events += 1;
    }
    assert!((1..100_000).contains(&events), "{events}");
}
