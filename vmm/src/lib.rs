//! The library: a machine description, a machine, a running virtual machine.
