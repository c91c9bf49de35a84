//! Fuzz targets: functions that take any bytes as what a guest, a file or a user says, and must neither panic, hang nor use memory
//! without bound. Each has valid inputs to begin with ([`Target::corpus`]), which [`mutate`] damages. Nothing here judges answers but
//! where a rule is simple: no share lets anything out, no BAR leaves its window, no option string changes its meaning by being written,
//! no frame opens a socket under `restrict`.
//!
//! `cargo xtask test unit` runs every target on its corpus and on a fixed number of mutations of it. To soak one for longer:
//!
//! ```text
//! cargo run --release -p hvrun-fuzz -- virtio-pci --iterations 1000000 --seed 7
//! cargo run --release -p hvrun-fuzz -- virtio-pci failure-virtio-pci-1234      # once more what has failed
//! ```
//!
//! The targets are what libFuzzer and others that watch coverage take, too. In a package of its own outside of this workspace, since
//! these tools want a nightly compiler (`cargo +nightly fuzz init` makes one):
//!
//! ```text
//! #![no_main]
//! libfuzzer_sys::fuzz_target!(|data: &[u8]| hvrun_fuzz::virtio::pci(data));
//! ```
//!
//! `cargo run -p hvrun-fuzz -- virtio-pci --corpus DIR` writes the valid inputs to files for them.

pub mod image;
pub mod image_tool;
pub mod memory;
pub mod mutate;
pub mod nat;
pub mod ninep;
pub mod options;
pub mod pci;
pub mod runner;
pub mod stream;
pub mod virtio;

mod guest;
mod input;
mod parts;
mod ring;

pub use mutate::Mutator;
pub use runner::Failure;

/// The longest input in bytes: long enough for a few hundred operations, and a bound on the time that one takes.
pub const MAX_INPUT: usize = 4096;

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What the bytes are.
    pub about: &'static str,
    /// Takes any bytes. It may panic, which is a finding.
    pub run: fn(&[u8]),
    /// Valid inputs, which reach what is behind the first checks.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// Bytes that belong together in an input: mutations move multiples of it.
    pub unit: usize,
    /// How many mutations a test tries: a few seconds' worth.
    pub iterations: u64,
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "virtio-mmio",
        about: "register accesses, rings and buffers of a driver over virtio-mmio, for each device",
        run: virtio::mmio,
        corpus: virtio::corpus,
        unit: input::RECORD,
        iterations: 1000,
    },
    Target {
        name: "virtio-pci",
        about: "the same over virtio-pci, with accesses to configuration space among them",
        run: virtio::pci,
        corpus: virtio::corpus,
        unit: input::RECORD,
        iterations: 1000,
    },
    Target {
        name: "pci",
        about: "accesses to configuration spaces through the ECAM window, and to wherever BARs are then",
        run: pci::run,
        corpus: pci::corpus,
        unit: input::RECORD,
        iterations: 3000,
    },
    Target {
        name: "9p",
        about: "messages of a client to a 9P session on a small share",
        run: ninep::run,
        corpus: ninep::corpus,
        unit: 1,
        iterations: 4000,
    },
    Target {
        name: "nat",
        about: "frames of a guest to the user-mode network under restrict, the host's answers, a clock that jumps",
        run: nat::run,
        corpus: nat::corpus,
        unit: input::RECORD,
        iterations: 1000,
    },
    Target {
        name: "net-stream",
        about: "what the peer of --net socket:stream sends",
        run: stream::run,
        corpus: stream::corpus,
        unit: 1,
        iterations: 3000,
    },
    Target {
        name: "image",
        about: "a disk image, opened, read and written",
        run: image::run,
        corpus: image::corpus,
        unit: 1,
        iterations: 4000,
    },
    Target {
        name: "image-tool",
        about: "a disk image, as qemu-img examines, copies and repairs it",
        run: image_tool::run,
        corpus: image::corpus,
        unit: 1,
        iterations: 800,
    },
    Target {
        name: "options",
        about: "the text of --disk, --share, --console, --port, --rng, --balloon",
        run: options::run,
        corpus: options::corpus,
        unit: 1,
        iterations: 20_000,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
