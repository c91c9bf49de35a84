//! Debian's arm64 kernel on the software CPU: what a Linux guest sees and does. A boot takes seconds, so several facts that need the
//! same machine are checked in one.

use anyhow::{Context, Result, ensure};
use hvrun_tests::{Hvrun, Running, process};
use rustix::process::Signal;
use std::time::{Duration, Instant, SystemTime};

/// The guest as it has come up with `cpus` CPUs: as many as asked for, each with timer interrupts.
fn boot_and_check_cpus(cpus: usize) -> Result<Running> {
    let mut guest = Hvrun::linux(cpus as u32)?.start()?;
    guest.ready()?;
    let count = guest.sh("nproc")?;
    ensure!(count.trim() == cpus.to_string(), "nproc says {count}");

    let before = timer_interrupts(&mut guest)?;
    // Something to do on each CPU, so that none of them has its tick stopped.
    guest.sh(&busy_on_each_cpu(5_000))?;
    let after = timer_interrupts(&mut guest)?;
    ensure!(after.len() == cpus, "one column a CPU, but {after:?}");
    ensure!(
        before.iter().zip(&after).all(|(before, after)| after > before),
        "ticks went from {before:?} to {after:?}"
    );
    Ok(guest)
}

/// A shell command that counts to `count` on each CPU at once.
fn busy_on_each_cpu(count: u32) -> String {
    format!(
        "for i in $(seq $(nproc)); do taskset -c $((i - 1)) sh -c 'i=0; while [ $i -lt {count} ]; do i=$((i+1)); done' & done; wait"
    )
}

/// How many interrupts of the virtual timer each CPU has had.
fn timer_interrupts(guest: &mut Running) -> Result<Vec<u64>> {
    let line = guest.sh("grep arch_timer /proc/interrupts")?;
    Ok(line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect())
}

#[test]
fn linux_boots_with_1_cpu_and_powers_off_with_0() -> Result<()> {
    let guest = boot_and_check_cpus(1)?;
    let outcome = guest.poweroff()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn linux_boots_with_2_cpus_and_powers_off_with_0() -> Result<()> {
    let guest = boot_and_check_cpus(2)?;
    let outcome = guest.poweroff()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn linux_boots_with_4_cpus_and_uses_more_than_one_host_core() -> Result<()> {
    let mut guest = boot_and_check_cpus(4)?;
    // CPUs that took turns could never use more than one core, and the monitor's other threads sleep meanwhile. Whatever else
    // runs on the host takes its share, so the best of a few rounds counts; a host of one core cannot show it.
    const MORE_THAN_ONE: f64 = 1.05;
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        let cpu_before = process::cpu_time(guest.pid())?;
        let wall_before = Instant::now();
        guest.sh(&busy_on_each_cpu(20_000))?;
        let used = process::cpu_time(guest.pid())?.saturating_sub(cpu_before);
        best = best.max(used.as_secs_f64() / wall_before.elapsed().as_secs_f64());
        if best > MORE_THAN_ONE {
            break;
        }
    }
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores < 2 || best > MORE_THAN_ONE, "four busy CPUs used {best:.2} host cores");
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn guest_reset_reboots_in_place_twice() -> Result<()> {
    let mut guest = Hvrun::linux(2)?.start()?;
    for boot in 0..3 {
        guest.ready().with_context(|| format!("boot {boot}"))?;
        let uptime = guest.sh("cut -d. -f1 /proc/uptime; [ ! -e /tmp/mark ] && touch /tmp/mark /mark")?;
        ensure!(uptime.trim().parse::<u64>()? < 60, "uptime {uptime}");
        if boot < 2 {
            guest.send(b"reboot\n")?;
        }
    }
    let outcome = guest.poweroff()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn linux_reboot_ends_with_0_under_no_reboot() -> Result<()> {
    let mut guest = Hvrun::linux(1)?.arg("--no-reboot").start()?;
    guest.ready()?;
    guest.send(b"reboot\n")?;
    let outcome = guest.wait()?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn guest_clocks_agree_with_the_host() -> Result<()> {
    let mut guest = Hvrun::linux(1)?.start()?;
    guest.ready()?;

    let guest_date: i64 = guest.sh("date +%s")?.trim().parse()?;
    let host_date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() as i64;
    ensure!((guest_date - host_date).abs() <= 2, "guest {guest_date}, host {host_date}");

    let second = 0.8..=1.2;
    let started = Instant::now();
    let uptimes = guest.sh("read a b < /proc/uptime; sleep 1; read c d < /proc/uptime; echo $a $c")?;
    let on_host = started.elapsed().as_secs_f64();
    let (before, after) = uptimes.trim().split_once(' ').context("two uptimes")?;
    let in_guest = after.parse::<f64>()? - before.parse::<f64>()?;
    ensure!(second.contains(&in_guest), "sleep 1 took {in_guest} s in the guest's clock");
    ensure!(second.contains(&on_host), "sleep 1 took {on_host} s in the host's clock");
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

/// Text of which no two lines are equal, so that a lost, doubled or swapped part changes its checksum.
fn pasted_text(length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 64);
    let mut number = 0_u64;
    while text.len() < length {
        text.extend(
            format!("{number:08} {:016x} the quick brown fox\n", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
                .bytes(),
        );
        number += 1;
    }
    text.truncate(length);
    text
}

#[test]
fn a_mebibyte_pasted_into_the_console_arrives_intact() -> Result<()> {
    let mut guest = Hvrun::linux(1)?.start()?;
    guest.ready()?;
    let text = pasted_text(1 << 20);
    let command = "stty raw -echo; echo GO; head -c 1048576 > /tmp/pasted; stty cooked -opost -echo; sha256sum < /tmp/pasted";
    guest.send(format!("{command}\n").as_bytes())?;
    guest.expect("GO")?;
    guest.send(&text)?;
    let checksum = guest.done(command)?;

    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, &text)?;
    let expected = std::process::Command::new("sha256sum").stdin(file.reopen()?).output()?.stdout;
    let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(word(&checksum), word(&String::from_utf8_lossy(&expected)));
    assert_eq!(guest.poweroff()?.code, Some(0));
    Ok(())
}

#[test]
fn sigterm_ends_a_running_linux_promptly() -> Result<()> {
    let mut guest = Hvrun::linux(2)?.start()?;
    guest.ready()?;
    guest.signal(Signal::TERM)?;
    let asked = Instant::now();
    guest.wait()?;
    // The watchdog would end it after more than a minute.
    ensure!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    Ok(())
}
