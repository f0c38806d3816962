//! What a builder writes: from its pseudo-terminal to the observer and to the disk.

pub(crate) mod file;
pub(crate) mod lines;
pub(crate) mod reader;
pub(crate) mod terminal;
