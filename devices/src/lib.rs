//! Everything the guest sees behind an address.
