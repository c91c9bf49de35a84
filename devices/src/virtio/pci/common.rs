//! The common configuration structure (virtio 1.2, 4.1.4.3): where each register lies. What they mean is in
//! [`super::super::transport`].

use super::signal::Signal;
use crate::virtio::doorbells::Doorbells;
use crate::virtio::transport::{QueueRegisters, Registers};

/// Bytes of the structure, up to `queue_device`: the fields behind it belong to features that are not offered.
pub(super) const SIZE: usize = 0x38;

/// A register of the structure: offset and size in bytes.
type Field = (usize, usize);

const DEVICE_FEATURE_SELECT: Field = (0x00, 4);
const DEVICE_FEATURE: Field = (0x04, 4);
const DRIVER_FEATURE_SELECT: Field = (0x08, 4);
const DRIVER_FEATURE: Field = (0x0c, 4);
const CONFIG_MSIX_VECTOR: Field = (0x10, 2);
const NUM_QUEUES: Field = (0x12, 2);
const DEVICE_STATUS: Field = (0x14, 1);
const CONFIG_GENERATION: Field = (0x15, 1);
const QUEUE_SELECT: Field = (0x16, 2);
const QUEUE_SIZE: Field = (0x18, 2);
const QUEUE_MSIX_VECTOR: Field = (0x1a, 2);
const QUEUE_ENABLE: Field = (0x1c, 2);
const QUEUE_NOTIFY_OFF: Field = (0x1e, 2);
const QUEUE_DESC: Field = (0x20, 8);
const QUEUE_DRIVER: Field = (0x28, 8);
const QUEUE_DEVICE: Field = (0x30, 8);

/// The registers that can be written, by offset. The 64-bit ones are two of 32 bits, which is how a driver writes them (4.1.3.1).
const WRITABLE: [Field; 15] = [
    DEVICE_FEATURE_SELECT,
    DRIVER_FEATURE_SELECT,
    DRIVER_FEATURE,
    CONFIG_MSIX_VECTOR,
    DEVICE_STATUS,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_MSIX_VECTOR,
    QUEUE_ENABLE,
    low(QUEUE_DESC),
    high(QUEUE_DESC),
    low(QUEUE_DRIVER),
    high(QUEUE_DRIVER),
    low(QUEUE_DEVICE),
    high(QUEUE_DEVICE),
];

const fn low(field: Field) -> Field {
    (field.0, 4)
}

const fn high(field: Field) -> Field {
    (field.0 + 4, 4)
}

/// The whole structure, as the driver reads it at this moment.
fn image(registers: &Registers, signal: &Signal) -> [u8; SIZE] {
    let mut image = [0; SIZE];
    let mut put = |(offset, size): Field, value: u64| {
        image[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    };
    put(DEVICE_FEATURE_SELECT, registers.device_feature_select.into());
    put(DEVICE_FEATURE, registers.selected_device_features().into());
    put(DRIVER_FEATURE_SELECT, registers.driver_feature_select.into());
    put(DRIVER_FEATURE, registers.selected_driver_features().into());
    put(CONFIG_MSIX_VECTOR, signal.config_vector().into());
    put(NUM_QUEUES, registers.queue_count().into());
    put(DEVICE_STATUS, registers.status().into());
    put(CONFIG_GENERATION, signal.generation().into());
    put(QUEUE_SELECT, registers.queue_select.into());
    put(QUEUE_MSIX_VECTOR, signal.queue_vector(registers.queue_select).into());
    // A queue that does not exist has the size 0 (4.1.4.3).
    if let Some(queue) = registers.queue() {
        put(QUEUE_SIZE, queue.size.into());
        put(QUEUE_ENABLE, queue.ready.into());
        put(QUEUE_NOTIFY_OFF, registers.queue_select.into());
        put(QUEUE_DESC, queue.desc);
        put(QUEUE_DRIVER, queue.avail);
        put(QUEUE_DEVICE, queue.used);
    }
    image
}

/// The driver reads, in any width and at any place; behind the structure there are zeros.
pub(super) fn read(registers: &Registers, signal: &Signal, offset: u64, data: &mut [u8]) {
    let image = image(registers, signal);
    let start = usize::try_from(offset).unwrap_or(SIZE).min(SIZE);
    for (byte, register) in data.iter_mut().zip(&image[start..]) {
        *byte = *register;
    }
}

/// The driver writes, in any width and at any place: each register that is touched gets the bytes that are written, and keeps the
/// others.
pub(super) fn write(
    registers: &mut Registers,
    signal: &Signal,
    doorbells: &Doorbells,
    offset: u64,
    data: &[u8],
) {
    let start = usize::try_from(offset).unwrap_or(SIZE);
    let end = start.saturating_add(data.len());
    for field @ (at, size) in WRITABLE {
        if at >= end || at + size <= start {
            continue;
        }
        let mut bytes = [0; 4];
        // Only a write in part needs the old value.
        if start > at || end < at + size {
            bytes[..size].copy_from_slice(&image(registers, signal)[at..at + size]);
        }
        for (index, byte) in bytes.iter_mut().take(size).enumerate() {
            if let Some(new) = (at + index).checked_sub(start).and_then(|index| data.get(index)) {
                *byte = *new;
            }
        }
        set(registers, signal, doorbells, field, u32::from_le_bytes(bytes));
    }
}

/// The driver gives one register a value, which fits into the register.
fn set(registers: &mut Registers, signal: &Signal, doorbells: &Doorbells, field: Field, value: u32) {
    match field {
        DEVICE_FEATURE_SELECT => registers.device_feature_select = value,
        DRIVER_FEATURE_SELECT => registers.driver_feature_select = value,
        DRIVER_FEATURE => registers.set_driver_features(value),
        CONFIG_MSIX_VECTOR => signal.set_config_vector(value as u16),
        DEVICE_STATUS => set_status(registers, signal, doorbells, value as u8),
        QUEUE_SELECT => registers.queue_select = value as u16,
        QUEUE_MSIX_VECTOR => signal.set_queue_vector(registers.queue_select, value as u16),
        _ => {
            // What a driver changes in a queue that it has enabled changes nothing: all of it was to be written before
            // (4.1.4.3.2).
            if let Some(queue) = registers.queue_mut().filter(|queue| !queue.ready) {
                set_queue(queue, field, value);
            }
        }
    }
}

fn set_status(registers: &mut Registers, signal: &Signal, doorbells: &Doorbells, value: u8) {
    if value == 0 {
        doorbells.set_running(false);
        registers.set_status(0);
        signal.reset_device();
        return;
    }
    registers.set_status(value);
    doorbells.set_running(registers.is_running());
}

fn set_queue(queue: &mut QueueRegisters, field: Field, value: u32) {
    let value = u64::from(value);
    let set_low = |old: &mut u64| *old = *old >> 32 << 32 | value;
    let set_high = |old: &mut u64| *old = *old & u64::from(u32::MAX) | value << 32;
    match field {
        QUEUE_SIZE => queue.size = value as u16,
        // Writing 0 is no way to take a queue back (4.1.4.3.2).
        QUEUE_ENABLE => queue.ready = value == 1,
        _ if field == low(QUEUE_DESC) => set_low(&mut queue.desc),
        _ if field == high(QUEUE_DESC) => set_high(&mut queue.desc),
        _ if field == low(QUEUE_DRIVER) => set_low(&mut queue.avail),
        _ if field == high(QUEUE_DRIVER) => set_high(&mut queue.avail),
        _ if field == low(QUEUE_DEVICE) => set_low(&mut queue.used),
        _ if field == high(QUEUE_DEVICE) => set_high(&mut queue.used),
        _ => {}
    }
}
