//! A binary cache in a directory, written by genuine Nix.

use std::fs;
use std::path::{Path, PathBuf};

use crate::invocation::Invocation;
use crate::requirement;
use crate::store::TestStore;

/// A cache below a store's surroundings, and the key that signs it.
#[derive(Debug)]
pub struct BinaryCache {
    dir: PathBuf,
    secret_key: PathBuf,
    public_key: String,
}

impl BinaryCache {
    /// Makes an empty cache beside a store, with a key of its own.
    #[must_use]
    pub fn beside(store: &TestStore) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cache-")
            .tempdir_in(store.dir())
            .expect("the store's surroundings are ours")
            .keep();
        let profile = store.profile();
        if let Some(id) = profile.foreign_id() {
            std::os::unix::fs::chown(&folder, Some(id), Some(id)).expect("the folder is ours");
        }
        // Of two keys of one name only the first would be trusted.
        let key_name = folder.file_name().expect("a fresh folder has a name");
        let key_name = format!("{}-1", key_name.to_string_lossy());
        let secret_key = folder.join("secret");
        let public_key = folder.join("public");
        store
            .nix_store(["--generate-binary-cache-key", &key_name])
            .args([&secret_key, &public_key])
            .succeed();
        Self {
            dir: folder.join("cache"),
            secret_key,
            public_key: fs::read_to_string(public_key)
                .expect("Nix has written it")
                .trim()
                .to_owned(),
        }
    }

    /// Returns the directory with `nix-cache-info`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the cache's address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("file://{}", self.dir.display())
    }

    /// Returns the key that verifies what is in the cache, `name:base64`.
    #[must_use]
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// Returns the file with the key that signs.
    #[must_use]
    pub fn secret_key(&self) -> &Path {
        &self.secret_key
    }

    /// Has genuine Nix copy paths of a store with their closures into the cache, signed.
    pub fn fill<A: AsRef<str>>(&self, from: &TestStore, paths: impl IntoIterator<Item = A>) {
        self.fill_with(from, "", paths);
    }

    /// The same with further parameters of the address, such as `&compression=xz`.
    pub fn fill_with<A: AsRef<str>>(
        &self,
        from: &TestStore,
        parameters: &str,
        paths: impl IntoIterator<Item = A>,
    ) {
        let url = format!(
            "{}?secret-key={}{parameters}",
            self.url(),
            self.secret_key.display()
        );
        let nix = requirement::find_program("nix").expect("it comes with Nix");
        let paths = paths.into_iter().map(|path| path.as_ref().to_owned());
        let (derivations, others): (Vec<String>, Vec<String>) =
            paths.partition(|path| Path::new(path).extension().is_some_and(|end| end == "drv"));
        // Without the flag Nix would copy what a derivation makes.
        for (flag, paths) in [(Some("--derivation"), derivations), (None, others)] {
            if !paths.is_empty() {
                from.program(&nix)
                    .args(["copy", "--to", &url, "--store"])
                    .arg(from.root())
                    .args(flag)
                    .args(paths)
                    .succeed();
            }
        }
    }

    /// Has a program ask this cache and trust its key.
    #[must_use]
    pub fn used_by(&self, invocation: Invocation) -> Invocation {
        invocation
            .option("substituters", self.url())
            .option("trusted-public-keys", &self.public_key)
    }

    /// Returns the file that describes a path.
    #[must_use]
    pub fn narinfo(&self, path: &str) -> PathBuf {
        self.dir.join(format!("{}.narinfo", hash_part(path)))
    }

    /// Returns the archive of a path.
    #[must_use]
    pub fn archive(&self, path: &str) -> PathBuf {
        let text = fs::read_to_string(self.narinfo(path)).expect("the cache has the path");
        let mut lines = text.lines();
        let url = lines.find_map(|line| line.strip_prefix("URL: "));
        self.dir.join(url.expect("a narinfo has an address"))
    }

    /// Changes a description by text; the signature stays.
    pub fn edit(&self, path: &str, change: impl FnOnce(&str) -> String) {
        let file = self.narinfo(path);
        let text = fs::read_to_string(&file).expect("the cache has the path");
        fs::write(&file, change(&text)).expect("the cache is ours");
    }

    /// Takes the signatures off a description.
    pub fn strip_signatures(&self, path: &str) {
        self.edit(path, |text| {
            let lines = text.split_inclusive('\n');
            lines.filter(|line| !line.starts_with("Sig: ")).collect()
        });
    }

    /// Forgets a path.
    pub fn remove(&self, path: &str) {
        fs::remove_file(self.narinfo(path)).expect("the cache has the path");
    }
}

/// Returns the 32 digits of a full path.
#[must_use]
pub fn hash_part(path: &str) -> &str {
    let base_name = path.rsplit('/').next().unwrap_or(path);
    base_name.split('-').next().unwrap_or(base_name)
}
