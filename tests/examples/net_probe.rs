//! The measurements of [`hvrun_tests::probe`] as a program, for guests: `net_probe serve ADDRESS`, `net_probe exchanges ADDRESS SECONDS`
//! and `net_probe connections ADDRESS SECONDS`, which print a rate.
#![allow(clippy::print_stdout, reason = "this is a program")]

use anyhow::{Context, Result, bail};
use hvrun_tests::probe;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let address = |text: &str| text.parse::<SocketAddr>().with_context(|| format!("no address: '{text}'"));
    let seconds =
        |text: &str| text.parse().map(Duration::from_secs).with_context(|| format!("no number: '{text}'"));
    let rate = match words.as_slice() {
        ["serve", at] => {
            let listener =
                TcpListener::bind(address(at)?).with_context(|| format!("cannot listen at {at}"))?;
            return Ok(probe::serve(&listener)?);
        }
        ["exchanges", at, time] => probe::exchanges(address(at)?, seconds(time)?),
        ["connections", at, time] => probe::connections(address(at)?, seconds(time)?),
        _ => bail!("net_probe serve ADDRESS, or exchanges or connections ADDRESS SECONDS"),
    };
    println!("{:.1}", rate?);
    Ok(())
}
