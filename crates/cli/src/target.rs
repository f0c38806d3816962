//! What the words of a command line name: derivations, paths in the store, goals of a file.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use store_model::StorePath;
use store_model::settings::StoreLayout;
use store_model::store_path::DERIVATION_SUFFIX;
use store_model::wanted_outputs::WantedOutputs;

use crate::environment::Environment;
use crate::failure::{Failure, Result};

/// How many links are followed before a path counts as going in circles, as the kernel does.
const MAX_LINKS: usize = 40;

/// The name of a file of goals where none is given.
const GOALS_FILE: &str = "goals.toml";

/// What one word names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Outputs of a derivation.
    Outputs {
        /// The derivation.
        drv_path: StorePath,
        /// Which of its outputs.
        outputs: WantedOutputs,
    },
    /// A path that is no derivation.
    Path(StorePath),
    /// Goals of a `goals.toml`.
    Goals {
        /// The file.
        file: PathBuf,
        /// One goal, or all of them.
        goal: Option<String>,
        /// Which of their outputs.
        outputs: WantedOutputs,
    },
}

/// Finds what words name, in one store and from one directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finder<'a> {
    /// Where the store is.
    pub(crate) layout: &'a StoreLayout,
    /// Where relative paths begin.
    pub(crate) environment: &'a Environment,
}

impl Finder<'_> {
    /// Finds what a word of `build` names.
    ///
    /// # Errors
    /// It names nothing that can be built.
    pub(crate) fn target(&self, word: &str) -> Result<Target> {
        if word.is_empty() {
            return Err(Failure::message("an empty word names nothing to build"));
        }
        if self.within_store(Path::new(word)).is_none()
            && let Some(goals) = self.goals(word)?
        {
            return Ok(goals);
        }
        if let Some((drv, outputs)) = split_outputs(word)? {
            let drv_path = self.store_path(drv)?;
            return Ok(Target::Outputs { drv_path, outputs });
        }
        let path = self.store_path(word)?;
        Ok(if path.is_derivation() {
            Target::Outputs {
                drv_path: path,
                outputs: WantedOutputs::All,
            }
        } else {
            Target::Path(path)
        })
    }

    /// Finds the goals that a word of `instantiate` names; `None` if it names something else.
    ///
    /// # Errors
    /// The outputs after `^` are not names.
    pub(crate) fn goals(&self, word: &str) -> Result<Option<Target>> {
        let (file, goal) = match word.rsplit_once('#') {
            Some((file, goal)) => (file, Some(goal)),
            None => (word, None),
        };
        let path = Path::new(if file.is_empty() { GOALS_FILE } else { file });
        let is_goals_file = goal.is_some() || path.extension().is_some_and(|ext| ext == "toml");
        if !is_goals_file {
            return Ok(None);
        }
        let (goal, outputs) = match goal.map(|goal| goal.split_once('^').ok_or(goal)) {
            Some(Ok((goal, outputs))) => (Some(goal), parse_outputs(outputs)?),
            Some(Err(goal)) => (Some(goal), WantedOutputs::All),
            None => (None, WantedOutputs::All),
        };
        let file = self.environment.absolute(path);
        Ok(Some(Target::Goals {
            file: if file.is_dir() {
                file.join(GOALS_FILE)
            } else {
                file
            },
            goal: goal.filter(|goal| !goal.is_empty()).map(str::to_owned),
            outputs,
        }))
    }

    /// Finds the path in the store that a word names: by its full path, by the path of its file, by
    /// something inside it, or through links such as `result`.
    ///
    /// # Errors
    /// It is not in the store.
    pub(crate) fn store_path(&self, word: &str) -> Result<StorePath> {
        let mut path = self.environment.absolute(Path::new(word));
        for _ in 0..MAX_LINKS {
            if let Some(found) = self.within_store(&path) {
                return found;
            }
            // Links may point to the logical store, where nothing need be: each is read by itself.
            let Ok(target) = path.read_link() else { break };
            path = match path.parent() {
                Some(parent) => parent.join(target),
                None => target,
            };
        }
        // A directory on the way may be a link too.
        if let Ok(real) = path.canonicalize()
            && let Some(found) = self.within_store(&real)
        {
            return found;
        }
        Err(self.not_in_store(word))
    }

    /// Reads a path below the store directory, logical or real; `None` if it lies elsewhere.
    fn within_store(&self, path: &Path) -> Option<Result<StorePath>> {
        let logical = Path::new(self.layout.store_dir.as_str());
        let below = path
            .strip_prefix(logical)
            .or_else(|_| path.strip_prefix(&self.layout.real_store_dir))
            .ok()?;
        let mut components = below.components();
        let Some(Component::Normal(base_name)) = components.next() else {
            return None;
        };
        if components.any(|part| part == Component::ParentDir) {
            return None;
        }
        Some(base_name.to_string_lossy().parse().map_err(|_| {
            Failure::message(format!("'{}' is not a valid store path", path.display()))
        }))
    }

    fn not_in_store(&self, word: &str) -> Failure {
        let store_dir = &self.layout.store_dir;
        let is_there = self.environment.absolute(Path::new(word)).exists();
        if is_there && word.ends_with(DERIVATION_SUFFIX) {
            return Failure::message(format!(
                "'{word}' is a derivation outside the store '{store_dir}'"
            ))
            .advise(format!(
                "put it into the store with 'goalctl add {word}', and build the path that this \
                 prints; its inputs must be there first"
            ));
        }
        if is_there {
            return Failure::message(format!("'{word}' is not in the store '{store_dir}'"))
                .advise(format!("put it into the store with 'goalctl add {word}'"));
        }
        Failure::message(format!(
            "there is no '{word}', and it is not a path in the store '{store_dir}'"
        ))
    }
}

/// Splits `DRV^out,dev` and `DRV!out`; `None` if no outputs are named.
fn split_outputs(word: &str) -> Result<Option<(&str, WantedOutputs)>> {
    let Some((drv, outputs)) = word.rsplit_once(['^', '!']) else {
        return Ok(None);
    };
    if !drv.ends_with(DERIVATION_SUFFIX) {
        return Err(Failure::message(format!(
            "'{word}' names outputs, but '{drv}' is not a derivation"
        )));
    }
    Ok(Some((drv, parse_outputs(outputs)?)))
}

fn parse_outputs(text: &str) -> Result<WantedOutputs> {
    if text == "*" {
        return Ok(WantedOutputs::All);
    }
    let names = text
        .split(',')
        .map(str::parse)
        .collect::<std::result::Result<BTreeSet<_>, _>>()?;
    Ok(WantedOutputs::These(names))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::render::Style;

    const DRV: &str = "y9l3yib9djbzl56n3397rf7b63ciki14-diamond-top.drv";
    const OUT: &str = "l6bcrn7136a8mxanqvnyvrzv3m9xkq6i-diamond-top";

    struct World {
        dir: tempfile::TempDir,
        layout: StoreLayout,
        environment: Environment,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap();
            let layout = StoreLayout::under_root(&root.join("root"));
            std::fs::create_dir_all(&layout.real_store_dir).unwrap();
            Self {
                dir,
                layout,
                environment: Environment::default(),
            }
        }

        fn target(&self, word: &str) -> Result<Target> {
            Finder {
                layout: &self.layout,
                environment: &self.environment,
            }
            .target(word)
        }

        fn outputs(&self, word: &str) -> Vec<String> {
            match self.target(word).unwrap() {
                Target::Outputs { drv_path, outputs } => {
                    assert_eq!(drv_path.base_name(), DRV);
                    match outputs {
                        WantedOutputs::All => vec!["*".to_owned()],
                        WantedOutputs::These(names) => {
                            names.iter().map(ToString::to_string).collect()
                        }
                    }
                }
                other @ (Target::Path(_) | Target::Goals { .. }) => panic!("{other:?}"),
            }
        }

        fn refusal(&self, word: &str) -> String {
            self.target(word).unwrap_err().render(Style::Plain)
        }
    }

    #[test]
    fn a_derivation_may_name_the_outputs_that_are_wanted() {
        let world = World::new();
        assert_eq!(world.outputs(&format!("/nix/store/{DRV}")), ["*"]);
        assert_eq!(world.outputs(&format!("/nix/store/{DRV}!out")), ["out"]);
        assert_eq!(
            world.outputs(&format!("/nix/store/{DRV}^out,dev")),
            ["dev", "out"]
        );
        assert_eq!(world.outputs(&format!("/nix/store/{DRV}^*")), ["*"]);
        for word in [
            format!("/nix/store/{DRV}^"),
            format!("/nix/store/{DRV}!a,,b"),
            format!("/nix/store/{DRV}^a/b"),
            format!("/nix/store/{OUT}^out"),
        ] {
            assert!(world.target(&word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_store_path_is_found_by_its_file_its_inside_and_its_links() {
        let world = World::new();
        let real = world.layout.real_store_dir.join(OUT);
        std::fs::create_dir_all(real.join("bin")).unwrap();
        let dir = world.dir.path();
        symlink(format!("/nix/store/{OUT}"), dir.join("logical")).unwrap();
        symlink("logical", dir.join("twice")).unwrap();
        symlink(&world.layout.real_store_dir, dir.join("store")).unwrap();
        for word in [
            format!("/nix/store/{OUT}"),
            format!("/nix/store/{OUT}/bin/x"),
            real.display().to_string(),
            dir.join("logical").display().to_string(),
            dir.join("twice").display().to_string(),
            dir.join("store")
                .join(OUT)
                .join("bin")
                .display()
                .to_string(),
        ] {
            let target = world.target(&word).unwrap();
            assert_eq!(target, Target::Path(OUT.parse().unwrap()), "{word}");
        }
    }

    #[test]
    fn what_is_not_in_the_store_is_told_apart() {
        let world = World::new();
        let drv = world.dir.path().join("x.drv");
        std::fs::write(&drv, "Derive(").unwrap();
        let drv = drv.display().to_string();
        assert!(world.refusal(&drv).contains(&format!("goalctl add {drv}")));
        assert!(
            world
                .refusal("/etc/passwd")
                .contains("is not in the store '/nix/store'")
        );
        assert!(
            world
                .refusal("/no/such/file")
                .contains("there is no '/no/such/file'")
        );
        assert!(
            world
                .refusal("/nix/store/bad")
                .contains("not a valid store path")
        );
        assert!(world.refusal("/nix/store/").contains("is not"));
        assert!(
            world
                .refusal(&format!("/nix/store/{OUT}/../x"))
                .contains("error:")
        );
        assert!(world.target("").is_err());
        let circle = world.dir.path().join("circle");
        symlink(&circle, &circle).unwrap();
        assert!(world.target(circle.to_str().unwrap()).is_err());
    }

    #[test]
    fn goals_are_named_by_file_and_name() {
        let world = World::new();
        let goals = |word: &str| match world.target(word).unwrap() {
            Target::Goals {
                file,
                goal,
                outputs,
            } => (
                file.display().to_string(),
                goal,
                outputs == WantedOutputs::All,
            ),
            other @ (Target::Path(_) | Target::Outputs { .. }) => panic!("{other:?}"),
        };
        assert_eq!(goals("/p/goals.toml"), ("/p/goals.toml".into(), None, true));
        assert_eq!(
            goals("/p/x.toml#a"),
            ("/p/x.toml".into(), Some("a".into()), true)
        );
        assert_eq!(
            goals("/p/x#a^dev"),
            ("/p/x".into(), Some("a".into()), false)
        );
        assert!(goals("#a").0.ends_with("goals.toml"));
        let dir = world.dir.path().display().to_string();
        assert_eq!(goals(&format!("{dir}#a")).0, format!("{dir}/goals.toml"));
    }
}
