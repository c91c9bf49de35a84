//! What stands behind a device on the host. It knows no guest and no registers.

pub mod chardev;
pub mod disk;
pub mod net;
pub mod ninep;
mod socket_file;

pub use socket_file::BindError;
