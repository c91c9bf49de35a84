//! End-to-end tests on real kernels.
