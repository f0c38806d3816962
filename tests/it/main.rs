//! End-to-end tests: the real programs, in a fresh store each.

mod harness;
