//! What lies in guest memory before the first instruction.
