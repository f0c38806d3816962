//! Which of four kinds a derivation is: its outputs must all be found in one way.

use crate::{Derivation, DerivationOutput, Error};

/// How the outputs of a derivation get their paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DerivationKind {
    /// From the derivation, before the build.
    InputAddressed,
    /// One output `out`, from a hash that is known before the build.
    Fixed,
    /// From the contents, after the build.
    Floating,
    /// From the derivation, as soon as its floating inputs are built.
    Deferred,
}

impl Derivation {
    /// Returns the kind of all outputs.
    ///
    /// # Errors
    /// There is no output, the outputs are of several kinds, floating outputs differ in their
    /// hash algorithm, or a fixed output is not the only one or not called `out`.
    pub fn kind(&self) -> Result<DerivationKind, Error> {
        let refuse = |reason: &str| Error::InvalidDerivation {
            drv_name: self.name.clone(),
            reason: reason.to_owned(),
        };
        let mut outputs = self.outputs.values();
        let first = outputs.next().ok_or_else(|| refuse("it has no outputs"))?;
        if !outputs.all(|output| is_like(output, first)) {
            return Err(refuse("its outputs are of several kinds"));
        }
        match first {
            DerivationOutput::InputAddressed(_) => Ok(DerivationKind::InputAddressed),
            DerivationOutput::Deferred => Ok(DerivationKind::Deferred),
            DerivationOutput::Floating { .. } => Ok(DerivationKind::Floating),
            DerivationOutput::Fixed { .. } => {
                if self.outputs.len() == 1 && self.outputs.contains_key("out") {
                    Ok(DerivationKind::Fixed)
                } else {
                    Err(refuse(
                        "a fixed output must be the only one and be called 'out'",
                    ))
                }
            }
        }
    }
}

fn is_like(output: &DerivationOutput, first: &DerivationOutput) -> bool {
    match (output, first) {
        (
            DerivationOutput::Floating { algorithm, .. },
            DerivationOutput::Floating {
                algorithm: algorithm_of_first,
                ..
            },
        ) => algorithm == algorithm_of_first,
        _ => std::mem::discriminant(output) == std::mem::discriminant(first),
    }
}
