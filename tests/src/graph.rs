//! Graphs of derivations for scheduling: many small ones that depend on each other in layers.

use std::fmt::Write;

/// A graph in layers, where each derivation uses a few of the layer before.
#[derive(Debug, Clone, Copy)]
pub struct LayeredGraph {
    /// How many layers.
    pub n_layers: usize,
    /// How many derivations in each.
    pub width: usize,
    /// How many inputs each one has in the layer before.
    pub n_inputs: usize,
    /// What the choice of inputs follows from: equal seeds make equal graphs.
    pub seed: u64,
}

impl LayeredGraph {
    /// Returns how many derivations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n_layers * self.width
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns an expression for [`TestStore::instantiate`](crate::TestStore::instantiate): a list
    /// of all derivations, layer after layer.
    ///
    /// Each output is a folder with a file, an executable and a link into its first input, and
    /// mentions only some of its inputs, so that references differ from inputs.
    /// `before` is put in front of each builder's script.
    #[must_use]
    pub fn expression(&self, before: &str) -> String {
        let mut random = Choice(self.seed);
        let mut text = format!(
            "let node = name: inputs: mk name ''\n{before}\n{SCRIPT}'' {{ inherit inputs; }};\nin rec {{\n"
        );
        for layer in 0..self.n_layers {
            for idx in 0..self.width {
                let mut inputs = String::new();
                for _ in 0..if layer == 0 { 0 } else { self.n_inputs } {
                    let chosen = random.below(self.width);
                    write!(inputs, " {}", attribute(layer - 1, chosen))
                        .expect("a string takes all text");
                }
                let name = attribute(layer, idx);
                writeln!(text, "  {name} = node \"{name}\" [{inputs} ];")
                    .expect("a string takes all text");
            }
        }
        text + "}"
    }
}

/// What each builder of the graph does.
const SCRIPT: &str = r"
mkdir $out
echo $name > $out/name
n=0
for input in $inputs; do
  n=$((n + 1))
  cat $input/name >> $out/below
  if [ $n = 1 ]; then ln -s $input $out/first; fi
done
printf '#!/bin/sh\necho %s\n' $name > $out/run
chmod 755 $out/run
";

fn attribute(layer: usize, idx: usize) -> String {
    format!("layer-{layer:02}-{idx:03}")
}

/// A sequence of numbers that looks random enough (Knuth's MMIX constants).
#[derive(Debug)]
struct Choice(u64);

impl Choice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The high bits are the good ones; 31 of them fit every index type.
        usize::try_from(self.0 >> 33).expect("31 bits fit") % limit
    }
}
