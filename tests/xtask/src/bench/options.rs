//! What the person asked `cargo xtask bench` for.

use anyhow::{Context, Result, bail, ensure};

/// The benchmarks there are.
pub const BENCHES: &[&str] = &["boot", "disk", "9p", "net", "driver", "lab"];

/// One side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This project's monitor.
    Hvrun,
    /// QEMU.
    Qemu,
}

impl Side {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Side::Hvrun => "hvrun",
            Side::Qemu => "QEMU (tcg)",
        }
    }
}

/// The options of all benchmarks; each takes some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How often each side runs.
    pub rounds: Option<usize>,
    /// The guest's memory.
    pub memory: String,
    /// The guest's CPUs.
    pub cpus: Option<u32>,
    /// Shorter runs, whose numbers are rougher.
    pub quick: bool,
    /// A qcow2 image in the place of a raw one.
    pub qcow2: bool,
    /// hvrun's transport of virtio.
    pub transport: Option<String>,
    /// Only this side is measured.
    pub only: Option<Side>,
    /// Only what needs no guest.
    pub host: bool,
    /// Virtio devices in the place of boots.
    pub virtio: bool,
    /// Network cards in the place of boots.
    pub net: bool,
    /// A NixOS test's scenario in the place of boots.
    pub driver: bool,
    /// Only what is behind this kind of network.
    pub network: Option<String>,
}

impl Options {
    /// How often each side runs, `default` if nothing was said.
    pub fn rounds(&self, default: usize) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { default })
    }

    /// The sides to measure.
    pub fn sides(&self) -> &[Side] {
        match self.only {
            None => &[Side::Hvrun, Side::Qemu],
            Some(Side::Hvrun) => &[Side::Hvrun],
            Some(Side::Qemu) => &[Side::Qemu],
        }
    }
}

/// Reads the words behind `bench`: which one, and its options.
pub fn parse(words: &[String]) -> Result<(&str, Options)> {
    let list = || BENCHES.iter().map(|name| format!("bench {name}")).collect::<Vec<_>>().join(", ");
    let (first, rest) = words.split_first().with_context(|| format!("bench what? There are: {}", list()))?;
    ensure!(BENCHES.contains(&first.as_str()), "there is no bench '{first}'; there are: {}", list());
    let mut options = Options {
        rounds: None,
        memory: "1G".into(),
        cpus: None,
        quick: false,
        qcow2: false,
        transport: None,
        only: None,
        host: false,
        virtio: false,
        net: false,
        driver: false,
        network: None,
    };
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{word} wants a value"));
        let number = |text: &String| {
            let number = text.parse::<u32>().ok().filter(|number| *number > 0);
            number.with_context(|| format!("{word} wants a number of 1 or more, not '{text}'"))
        };
        match (first.as_str(), word.as_str()) {
            (_, "--rounds") => options.rounds = Some(number(value()?)? as usize),
            ("boot" | "disk" | "9p" | "net", "--memory") => options.memory = value()?.clone(),
            ("disk" | "9p" | "net", "--cpus") => options.cpus = Some(number(value()?)?),
            ("disk" | "9p" | "net" | "driver", "--quick") => options.quick = true,
            ("disk" | "9p" | "net", "--transport") => options.transport = Some(value()?.clone()),
            ("disk" | "9p" | "net" | "driver", "--only") => {
                options.only = Some(match value()?.as_str() {
                    "hvrun" => Side::Hvrun,
                    "qemu" => Side::Qemu,
                    other => bail!("--only wants hvrun or qemu, not '{other}'"),
                });
            }
            ("disk", "--qcow2") => options.qcow2 = true,
            ("9p" | "net", "--host") => options.host = true,
            ("lab", "--virtio") => options.virtio = true,
            ("lab", "--net") => options.net = true,
            ("lab", "--driver") => options.driver = true,
            ("net", "--network") => {
                options.network = Some(match value()?.as_str() {
                    name @ ("user" | "vde") => name.to_owned(),
                    other => bail!("--network wants user or vde, not '{other}'"),
                });
            }
            _ => bail!("bench {first} does not know '{word}'"),
        }
    }
    Ok((first, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, Options)> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        parse(&words).map(|(name, options)| (name.to_owned(), options))
    }

    #[test]
    fn option_of_another_bench_is_refused_by_name() {
        let error = parsed("boot --qcow2").expect_err("boot has no disk");
        assert!(error.to_string().contains("bench boot does not know '--qcow2'"), "{error}");
    }

    #[test]
    fn zero_rounds_are_refused() {
        assert!(parsed("disk --rounds 0").is_err());
    }

    #[test]
    fn rounds_that_were_asked_for_win_over_quick() -> Result<()> {
        let (_, options) = parsed("disk --quick --rounds 4")?;
        assert_eq!(options.rounds(3), 4);
        Ok(())
    }

    #[test]
    fn only_one_side_is_measured_when_asked() -> Result<()> {
        assert_eq!(parsed("9p --only qemu")?.1.sides(), [Side::Qemu]);
        Ok(())
    }
}
