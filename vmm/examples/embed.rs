//! Embeds a virtual machine: boots a kernel, reads what the guest prints until a marker, and powers it off.
//!
//! `cargo run --example embed -- KERNEL INITRD MARKER`, where MARKER is something that the guest prints when it is up.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use hvrun_vmm::serial::Stream;
use hvrun_vmm::{MachineBuilder, MachineConfig};

/// How long the guest may take to shut down once its power button is pressed.
const SHUTDOWN: Duration = Duration::from_secs(20);
/// How often a wait for output looks whether the guest still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The host's end of the serial port: sends all output into a channel.
struct SerialOutput(Sender<Vec<u8>>);

impl Write for SerialOutput {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // Once nobody listens any more, output vanishes.
        let _ = self.0.send(data.to_vec());
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, marker] = args.as_slice() else { bail!("usage: embed KERNEL INITRD MARKER") };

    let mut config = MachineConfig::new(kernel);
    config.initrd = Some(initrd.into());
    config.memory = "512M".parse()?;
    config.cmdline = "console=ttyAMA0 quiet".to_owned();

    let (sender, output) = channel();
    let serial = Stream::to_writer("embed", Box::new(SerialOutput(sender)))?;
    let machine = MachineBuilder::new(config).serial(Arc::new(serial)).build()?;
    let control = machine.control();
    let running = machine.start()?;

    let mut seen = Vec::new();
    while !contains(&seen, marker.as_bytes()) {
        match output.recv_timeout(LOOK_AGAIN) {
            Ok(data) => seen.extend(data),
            Err(_) if control.has_ended() => {
                running.wait()?;
                bail!(
                    "the guest ended before it printed {marker:?}; it printed {:?}",
                    String::from_utf8_lossy(&seen)
                );
            }
            Err(_) => {}
        }
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", String::from_utf8_lossy(&seen))?;

    // A guest that listens to its power button shuts down by itself; one that does not is stopped.
    control.power_button();
    thread::spawn(move || {
        thread::sleep(SHUTDOWN);
        control.stop();
    });
    let outcome = running.wait()?;
    writeln!(stdout, "the machine has ended: {outcome:?}")?;
    Ok(())
}

fn contains(text: &[u8], marker: &[u8]) -> bool {
    !marker.is_empty() && text.windows(marker.len()).any(|part| part == marker)
}
