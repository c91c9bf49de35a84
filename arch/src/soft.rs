//! The software CPU as a backend: `hvrun-soft` behind the trap-level seam. Not the CPU itself; that is the crate `soft/`.
