//! What stands behind a device on the host.

pub mod chardev;
