//! Why outputs are not accepted, in full: a person should not have to build once for each fault.

use std::fmt;

use bstr::BString;

use super::Rule;
use crate::{StoreDir, StorePath};

/// Outputs do not meet the demands of their derivation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Rejection {
    /// For printing paths.
    pub store_dir: StoreDir,
    /// At least one, in order of the outputs' names.
    pub violations: Vec<Violation>,
}

/// One thing that is wrong with an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The output's path.
    pub output: StorePath,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A list of paths has an element that is neither a store path nor an output's name, so what
    /// it allows or forbids is not known.
    IllegalSpecifier {
        /// The list.
        rule: Rule,
        /// The element.
        specifier: BString,
    },
    /// The output is larger than allowed.
    TooLarge {
        /// Its size.
        nar_size_bytes: u64,
        /// The size that is allowed.
        limit_bytes: u64,
    },
    /// The output and all that it needs are larger than allowed.
    ClosureTooLarge {
        /// The size of all paths together.
        nar_size_bytes: u64,
        /// The size that is allowed.
        limit_bytes: u64,
        /// The largest path and its size.
        largest: Option<(StorePath, u64)>,
    },
    /// The output leads to paths that it must not lead to.
    Forbidden {
        /// The rule that is broken.
        rule: Rule,
        /// The offending paths, sorted.
        paths: Vec<ForbiddenPath>,
    },
}

/// A path that an output must not lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForbiddenPath {
    /// The offending path.
    pub path: StorePath,
    /// Through which paths a shortest way leads there, from the output on; empty if the output
    /// itself refers to the path.
    pub through: Vec<StorePath>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, violation) in self.violations.iter().enumerate() {
            f.write_str(if idx == 0 { "" } else { "\n" })?;
            self.print(violation, f)?;
        }
        Ok(())
    }
}

impl Rejection {
    fn print(&self, violation: &Violation, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.store_dir.print(&violation.output);
        match &violation.fault {
            Fault::IllegalSpecifier { rule, specifier } => write!(
                f,
                "derivation contains an illegal reference specifier '{specifier}' in '{}' of \
                 output '{output}': it is neither a store path nor the name of an output",
                rule.attribute()
            ),
            Fault::TooLarge {
                nar_size_bytes,
                limit_bytes,
            } => write!(
                f,
                "path '{output}' is too large at {nar_size_bytes} bytes; limit is {limit_bytes} \
                 bytes"
            ),
            Fault::ClosureTooLarge {
                nar_size_bytes,
                limit_bytes,
                largest,
            } => {
                write!(
                    f,
                    "closure of path '{output}' is too large at {nar_size_bytes} bytes; limit is \
                     {limit_bytes} bytes"
                )?;
                largest.iter().try_for_each(|(path, size_bytes)| {
                    let path = self.store_dir.print(path);
                    write!(f, "; largest in it is '{path}' at {size_bytes} bytes")
                })
            }
            Fault::Forbidden { rule, paths } => {
                write!(
                    f,
                    "output '{output}' is not allowed to refer to the following paths by its '{}':",
                    rule.attribute()
                )?;
                paths.iter().try_for_each(|forbidden| {
                    write!(f, "\n  {}", self.store_dir.print(&forbidden.path))?;
                    for (idx, path) in forbidden.through.iter().enumerate() {
                        let joint = if idx == 0 { ", through" } else { " ->" };
                        write!(f, "{joint} {}", self.store_dir.print(path))?;
                    }
                    Ok(())
                })
            }
        }
    }
}
