//! Virtio devices (virtio 1.2): the device trait, queues, the transports that carry them, and one file or folder a device.
//!
//! A device knows no transport: it is handed its queues and an interrupt when the driver is ready ([`VirtioDevice::activate`]) and
//! hears doorbells ([`VirtioDevice::notify`]) until it is reset.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod device;
mod doorbells;
pub mod fs9p;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod vhost_user;
pub mod worker;

pub use chain::{Chain, ChainReader, ChainWriter};
pub use device::{Activation, DeviceType, Interrupt, VirtioDevice};
pub use queue::Virtqueue;

/// Reads `config`, a configuration space that is all there in bytes, at `offset`. What lies behind it is left as it is: zeros.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
