//! Finds the sources of a goal, which lie below the directory of its file.

use std::path::{Component, Path, PathBuf};

use store_model::store_path::check_name;

/// A file or directory that is to be copied into the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    /// Where it is, absolute, its parent directory without links.
    pub(super) path: PathBuf,
    /// What it is called in the store.
    pub(super) name: String,
}

/// Finds `text` below `root`, which is a real path.
///
/// A file of somebody else's must not be able to publish what lies elsewhere, so neither `..` nor
/// a link on the way leads out; a link at the end is copied as a link.
pub(super) fn find(root: &Path, text: &str) -> Result<Source, String> {
    let relative = Path::new(text);
    if text.is_empty() || relative.is_absolute() {
        return Err(format!(
            "'{text}' is not a path relative to the file's directory"
        ));
    }
    if relative
        .components()
        .any(|part| part == Component::ParentDir)
    {
        return Err(format!("'{text}' leads out of the file's directory"));
    }
    let absolute: PathBuf = root.join(relative).components().collect();
    let (Some(parent), Some(file_name)) = (absolute.parent(), absolute.file_name()) else {
        return Err("the root directory cannot be a source".to_owned());
    };
    let name = file_name.to_string_lossy().into_owned();
    check_name(&name).map_err(|error| format!("it cannot be in a store: {error}"))?;
    if absolute == root {
        return Ok(Source {
            path: absolute,
            name,
        });
    }
    let parent = parent
        .canonicalize()
        .map_err(|error| format!("'{text}': {error}"))?;
    if !parent.starts_with(root) {
        return Err(format!(
            "'{text}' leads out of the file's directory through a link"
        ));
    }
    let path = parent.join(file_name);
    path.symlink_metadata()
        .map_err(|error| format!("'{text}': {error}"))?;
    Ok(Source { path, name })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_source_lies_below_the_files_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("project");
        std::fs::create_dir_all(root.join("src")).unwrap();
        std::fs::write(root.join("src/main.c"), "").unwrap();
        std::fs::write(root.join("src/a b"), "").unwrap();
        symlink("/etc", root.join("out")).unwrap();
        symlink("src", root.join("inside")).unwrap();
        let source = |text: &str| find(&root, text);

        assert_eq!(source("src/main.c").unwrap().path, root.join("src/main.c"));
        assert_eq!(source("./src/").unwrap().name, "src");
        assert_eq!(
            source(".").unwrap(),
            Source {
                path: root.clone(),
                name: "project".into()
            }
        );
        assert_eq!(
            source("inside/main.c").unwrap().path,
            root.join("src/main.c")
        );
        // The link itself is copied, not what it points to.
        assert_eq!(source("out").unwrap().path, root.join("out"));
        for text in [
            "",
            "/etc/passwd",
            "../x",
            "src/../../x",
            "out/passwd",
            "src/none",
            "src/a b",
        ] {
            assert!(source(text).is_err(), "{text}");
        }
    }
}
