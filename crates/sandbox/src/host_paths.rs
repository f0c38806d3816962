//! What of the host a sandboxed builder sees beside its inputs, and who says so: the user, the
//! derivation as far as the user lets it, and the user's hook.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use bstr::ByteSlice as _;
use store_model::derivation::Attributes;
use store_model::settings::{SandboxPath, StoreLayout};
use store_model::{Settings, StorePath};

use crate::{Error, StartBuild};

/// Host paths by where the builder sees them, so that what contains another comes before it. Of
/// two for one place the later wins.
#[derive(Debug)]
pub(crate) struct HostPaths<'a> {
    layout: &'a StoreLayout,
    inputs: &'a BTreeSet<StorePath>,
    outputs: BTreeSet<&'a StorePath>,
    paths: BTreeMap<PathBuf, SandboxPath>,
}

impl<'a> HostPaths<'a> {
    /// Begins with none, which is what a builder without a sandbox needs.
    pub(crate) fn none(layout: &'a StoreLayout, request: &'a StartBuild) -> Self {
        let outputs = request.derivation.known_outputs();
        Self {
            layout,
            inputs: &request.input_paths,
            outputs: outputs.map(|(_, path)| path).collect(),
            paths: BTreeMap::new(),
        }
    }

    /// Begins with what the user and the derivation say.
    ///
    /// # Errors
    /// The derivation asks for more than the user allows.
    pub(crate) fn of(
        layout: &'a StoreLayout,
        request: &'a StartBuild,
        attributes: &Attributes<'_>,
    ) -> Result<Self, Error> {
        let mut paths = Self::none(layout, request);
        paths.add(request.settings.sandbox_paths.iter().cloned());
        paths.add(impure_paths(attributes, &request.settings)?);
        Ok(paths)
    }

    /// Adds paths. Those of store objects that the builder may see are taken from the store,
    /// wherever that really is.
    pub(crate) fn add(&mut self, paths: impl IntoIterator<Item = SandboxPath>) {
        for mut path in paths {
            // What is being made again must not be there already.
            let target_object = self.object_of(&path.target);
            if target_object.is_some_and(|object| self.outputs.contains(&object)) {
                continue;
            }
            let source_object = self.object_of(&path.source);
            if source_object.is_some_and(|object| self.inputs.contains(&object)) {
                if path.target == path.source {
                    // Shown as an input.
                    continue;
                }
                path.source = self.real(&path.source);
                // Not even the user may have a builder change what is valid.
                path.writable = false;
            }
            self.paths.insert(path.target.clone(), path);
        }
    }

    /// Returns whether nothing that is shown can lead to a socket of the host's: a file does not,
    /// and neither do the usual devices and the store.
    pub(crate) fn are_harmless(&self) -> bool {
        self.paths.values().all(|path| {
            path.source.is_file() || path.source.starts_with(&self.layout.real_store_dir)
        })
    }

    /// Returns the paths in order.
    pub(crate) fn into_paths(self) -> Vec<SandboxPath> {
        self.paths.into_values().collect()
    }

    fn object_of(&self, path: &Path) -> Option<StorePath> {
        let path = path.as_os_str().as_bytes();
        self.layout.store_dir.parse_inside(path).ok()
    }

    /// Returns where something in the store is on the host.
    fn real(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(self.layout.store_dir.as_str()) {
            Ok(below) => self.layout.real_store_dir.join(below),
            Err(_) => path.to_owned(),
        }
    }
}

/// Returns the host paths that a derivation asks for, if the user allows all of them.
fn impure_paths(
    attributes: &Attributes<'_>,
    settings: &Settings,
) -> Result<Vec<SandboxPath>, Error> {
    let asked_for = attributes.words("__impureHostDeps");
    let asked_for = asked_for.map_err(Error::attributes)?.unwrap_or_default();
    asked_for
        .iter()
        .map(|path| {
            let text = path.to_str_lossy().into_owned();
            let path = PathBuf::from(&text);
            let is_plain = path
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            let is_allowed = path.is_absolute()
                && is_plain
                && settings
                    .allowed_impure_host_deps
                    .iter()
                    .any(|allowed| path.starts_with(allowed));
            if !is_allowed {
                return Err(Error::ImpureHostPath { path: text });
            }
            Ok(SandboxPath {
                target: path.clone(),
                source: path,
                optional: true,
                writable: false,
            })
        })
        .collect()
}
