//! Runs single A64 instructions under qemu-aarch64 to compare the software CPU with.
