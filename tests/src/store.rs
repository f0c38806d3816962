//! A store of a test's own, with everything that programs need to work on it.
//!
//! ```text
//! DIR/root/nix/{store,var}   the store; paths in it are named /nix/store/…
//! DIR/conf/nix.conf          read by goalctl and by genuine Nix alike
//! DIR/home  DIR/tmp          HOME and TMPDIR
//! DIR/machine                an empty directory, see `machine`
//! DIR/tools/bin              busybox under its names: what builders run
//! DIR/signals                see `signals`; builders see it as /signals
//! ```

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binaries;
use crate::invocation::Invocation;
use crate::machine::Machine;
use crate::profile::Profile;
use crate::requirement;
use crate::signals::Signals;
use crate::snapshot;

/// What both programs are told; genuine Nix's own defaults differ from goalctl's.
const CONFIGURATION: &str = "\
build-users-group =
sandbox = true
substituters =
max-jobs = 2
cores = 1
experimental-features = nix-command
";

/// The definitions that every expression of a test can use.
const PRELUDE: &str = r#"
let
  tools = builtins.path { name = "tools"; path = @TOOLS@; };
  # A derivation whose builder is a shell script.
  mk = name: script: extra: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "${tools}/bin/sh";
    args = [ "-ec" ("export PATH=${tools}/bin\n" + script) ];
  } // extra);
in
"#;

/// Names of busybox that builders use.
const APPLETS: &[&str] = &[
    "awk", "basename", "cat", "chgrp", "chmod", "chown", "chroot", "cp", "cut", "date", "dd",
    "echo", "env", "expr", "false", "find", "grep", "head", "hostname", "id", "ifconfig", "kill",
    "ln", "ls", "mkdir", "mkfifo", "mknod", "mount", "mv", "nc", "nohup", "od", "printf", "ps",
    "pwd", "readlink", "rm", "sed", "seq", "setsid", "sh", "sleep", "sort", "stat", "tail", "tee",
    "test", "timeout", "touch", "tr", "true", "tty", "umount", "uname", "unshare", "wc", "xargs",
    "yes",
];

/// A fresh store and its surroundings, removed at the end.
#[derive(Debug)]
pub struct TestStore {
    dir: PathBuf,
    profile: Profile,
    signals: Signals,
}

impl TestStore {
    /// Makes an empty store for the user who runs the tests.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Profile::native())
    }

    /// Makes an empty store that belongs to a profile's user.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        Self::beneath(&std::env::temp_dir(), profile)
    }

    /// Makes an empty store below a folder of the caller's choice.
    #[must_use]
    pub fn beneath(parent: &Path, profile: Profile) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("goal-it-")
            .tempdir_in(parent)
            .expect("a temporary folder can be made")
            .keep();
        let at = |name: &str| dir.join(name);
        for name in ["conf", "home", "machine", "tmp", "tools", "tools/bin"] {
            std::fs::create_dir(at(name)).expect("a fresh folder can be made");
        }
        std::fs::write(at("conf/nix.conf"), CONFIGURATION).expect("a fresh file can be written");
        let busybox = requirement::find_program("busybox")
            .expect("builders need busybox, of the package busybox-static");
        std::fs::copy(busybox, at("tools/bin/busybox")).expect("busybox can be copied");
        for applet in APPLETS {
            symlink("busybox", at("tools/bin").join(applet)).expect("a fresh link can be made");
        }
        let signals = Signals::create(&at("signals"));
        let store = Self {
            dir,
            profile,
            signals,
        };
        std::fs::set_permissions(store.dir(), std::fs::Permissions::from_mode(0o755))
            .expect("one's own folder can be opened to others");
        if let Some(id) = profile.foreign_id() {
            for name in [".", "conf", "home", "tmp"] {
                chown(store.dir().join(name), Some(id), Some(id))
                    .expect("root can give folders away");
            }
        }
        store
    }

    /// Returns the folder that holds everything.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns what `--store` is given.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir().join("root")
    }

    /// Returns the folder with the store's objects.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.root().join("nix/store")
    }

    /// Returns the folder with the store's state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root().join("nix/var/nix")
    }

    /// Returns TMPDIR.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.dir().join("tmp")
    }

    /// Returns the database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state().join("db/db.sqlite")
    }

    /// Returns as whom programs run.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Returns the folder that builders may see as `/signals`.
    #[must_use]
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Returns where an object named `/nix/store/…` really lies.
    #[must_use]
    pub fn real(&self, path: &str) -> PathBuf {
        let relative = path.strip_prefix('/').expect("store paths are absolute");
        self.root().join(relative)
    }

    /// Prepares goalctl on this store.
    #[must_use]
    pub fn goalctl<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        self.program(&self.reachable(binaries::goalctl()))
            .arg("--store")
            .arg(self.root())
            .args(args)
    }

    /// Prepares `goalctl build` with the builders seeing `/signals`.
    #[must_use]
    pub fn build_with_signals(&self, drv: &str) -> Invocation {
        let path = format!("/signals={}:rw", self.signals.dir().display());
        self.goalctl(["build", drv]).option("sandbox-paths", path)
    }

    /// Prepares genuine `nix-store` on this store.
    #[must_use]
    pub fn nix_store<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        self.nix_program("nix-store").args(args)
    }

    /// Prepares `nix-store --realise` with the builders seeing `/signals`.
    #[must_use]
    pub fn realise_with_signals(&self, drv: &str) -> Invocation {
        let path = format!("/signals={}", self.signals.dir().display());
        self.nix_store(["--realise", drv])
            .option("sandbox-paths", path)
    }

    /// Prepares goalctl in a mount namespace in which this store is where its paths say, so that
    /// builders need no sandbox.
    #[must_use]
    pub fn goalctl_in_place<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        self.goalctl_on(&Machine::default(), args)
    }

    /// Prepares genuine `nix-store` in the same way.
    #[must_use]
    pub fn nix_store_in_place<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        self.nix_store_on(&Machine::default(), args)
    }

    /// Prepares goalctl on another machine, where this store is where its paths say.
    #[must_use]
    pub fn goalctl_on<A: AsRef<std::ffi::OsStr>>(
        &self,
        machine: &Machine,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        let goalctl = self.reachable(binaries::goalctl());
        self.on(machine, &goalctl).args(args)
    }

    /// Prepares genuine `nix-store` in the same way.
    #[must_use]
    pub fn nix_store_on<A: AsRef<std::ffi::OsStr>>(
        &self,
        machine: &Machine,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        let nix_store = requirement::find_program("nix-store").expect("it comes with Nix");
        self.on(machine, &nix_store).args(args)
    }

    fn on(&self, machine: &Machine, program: &Path) -> Invocation {
        let wrapper = machine.wrapper(
            self.profile,
            &self.dir().join("machine"),
            &self.root().join("nix"),
        );
        self.program(program).under(wrapper)
    }

    /// Has genuine Nix write the derivations of an expression into the store; returns their paths.
    ///
    /// The expression may use `mk NAME SCRIPT ATTRIBUTES` and `tools`; its value is a derivation,
    /// or a list or set of them.
    #[must_use]
    pub fn instantiate(&self, expression: &str) -> Vec<String> {
        let prelude = PRELUDE.replace("@TOOLS@", &self.dir().join("tools").to_string_lossy());
        self.nix_program("nix-instantiate")
            .arg("--expr")
            .arg(prelude + expression)
            .succeed()
            .output_lines()
            .iter()
            .map(|line| line.split('!').next().unwrap_or(line).to_owned())
            .collect()
    }

    /// Instantiates an expression that is one derivation.
    #[must_use]
    pub fn instantiate_one(&self, expression: &str) -> String {
        let [drv] = self
            .instantiate(expression)
            .try_into()
            .expect("the expression is one derivation");
        drv
    }

    /// Writes a derivation whose builder is a shell script, in which `${tools}` is a folder of
    /// programs.
    #[must_use]
    pub fn script(&self, name: &str, script: &str) -> String {
        // A quoted string of Nix: `${tools}` is replaced, everything else is the script's own.
        let quoted = script.replace('\\', "\\\\").replace('"', "\\\"");
        self.instantiate_one(&format!("mk \"{name}\" \"{quoted}\" {{ }}"))
    }

    /// Puts a text file into the store under the path that follows from it, valid, though no
    /// program would take it: what a broken or hostile writer leaves. Returns its path.
    #[must_use]
    pub fn smuggle(&self, name: &str, text: &str) -> String {
        let file = self.dir().join("smuggled");
        std::fs::write(&file, text).expect("a fresh file can be written");
        // Nix, evaluating only, works out the path and writes nothing.
        let expression = format!(
            "builtins.toFile \"{name}\" (builtins.readFile {})",
            file.display()
        );
        let path = self
            .nix_program("nix-instantiate")
            .args(["--eval", "--expr", &expression])
            .succeed()
            .output()
            .trim()
            .trim_matches('"')
            .to_owned();
        let real = self.real(&path);
        std::fs::rename(&file, &real).expect("both are in the same file system");
        self.make_canonical(&real);
        self.register(&path, &real);
        path
    }

    /// Gives a file the metadata that every file of a store has.
    fn make_canonical(&self, file: &Path) {
        let id = self.profile.foreign_id();
        chown(file, id, id).expect("the file is ours");
        let opened = std::fs::File::open(file).expect("the file is there");
        let one_second = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
        opened
            .set_modified(one_second)
            .expect("one's own file can be dated");
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o444))
            .expect("one's own file can be closed");
    }

    /// Writes a row for a path without references, past every check.
    fn register(&self, path: &str, real: &Path) {
        let nix_hash = requirement::find_program("nix-hash").expect("it comes with Nix");
        let hash = self
            .program(&nix_hash)
            .args(["--type", "sha256"])
            .arg(real)
            .succeed()
            .output();
        // Everything of a NAR of one plain file but its contents is 112 bytes long.
        let size = real.metadata().expect("the file is there").len();
        let nar_size = 112 + size.next_multiple_of(8);
        snapshot::open(&self.database())
            .execute(
                "insert or ignore into ValidPaths (path, hash, registrationTime, narSize) \
                 values (?1, ?2, 1, ?3)",
                (
                    path,
                    format!("sha256:{}", hash.trim()),
                    i64::try_from(nar_size).ok(),
                ),
            )
            .expect("the database has Nix's tables");
    }

    /// Has genuine Nix delete what nothing keeps.
    pub fn collect_garbage(&self) {
        // Nix's collector reads what every process has open, and gives up on the directories, too
        // deep to have a name, that other tests hold: it gets processes of its own to look at.
        let mut alone = Command::new("unshare");
        alone.args(["--fork", "--pid", "--mount-proc"]);
        if !nix::unistd::geteuid().is_root() {
            alone.arg("--map-root-user");
        }
        self.nix_store(["--gc"]).under(alone).succeed();
    }

    /// Returns the output path named `output` that a derivation of this store promises.
    #[must_use]
    pub fn output_of(&self, drv: &str, output: &str) -> String {
        self.nix_store(["--query", "--binding", output, drv])
            .succeed()
            .output()
            .trim()
            .to_owned()
    }

    /// Puts a program of this workspace, with the libraries that it needs, into `${tools}/lib`;
    /// builders run it by `lib/loader --library-path lib lib/NAME`.
    ///
    /// The libraries are those of the running test, which was built alike.
    pub fn provide_with_libraries(&self, program: &Path) {
        let lib = self.dir().join("tools/lib");
        std::fs::create_dir(&lib).expect("a fresh folder can be made");
        let name = program.file_name().expect("a program has a name");
        std::fs::copy(program, lib.join(name)).expect("a program can be copied");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is there");
        for library in maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
        {
            let library = Path::new(library);
            let name = library
                .file_name()
                .map_or("".into(), |name| name.to_string_lossy());
            if name.starts_with("ld-linux") {
                std::fs::copy(library, lib.join("loader")).expect("the loader can be copied");
            }
            if name.contains(".so") {
                std::fs::copy(library, lib.join(&*name)).expect("a library can be copied");
            }
        }
    }

    /// Prepares any program in this store's surroundings, as the profile's user.
    #[must_use]
    pub fn program(&self, path: &Path) -> Invocation {
        let search_path = requirement::environment("PATH").expect("there is a search path");
        Invocation::new(self.profile.command(path))
            .env("PATH", search_path)
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.dir().join("home"))
            .env("TMPDIR", self.temporary())
            .env("NIX_CONF_DIR", self.dir().join("conf"))
            .env("NIX_PATH", "")
            .current_dir(self.dir())
    }

    /// Prepares a program of genuine Nix on this store.
    #[must_use]
    pub fn nix_program(&self, name: &str) -> Invocation {
        let path =
            requirement::find_program(name).unwrap_or_else(|| panic!("there is no program {name}"));
        self.program(&path).arg("--store").arg(self.root())
    }

    /// Returns a path to a program that the profile's user can reach: its own, or that of a copy
    /// made in the store's surroundings, as a checkout below `/root` is closed to everybody else.
    fn reachable(&self, program: &Path) -> PathBuf {
        let is_closed = |folder: &Path| {
            std::fs::metadata(folder).is_ok_and(|facts| facts.permissions().mode() & 0o001 == 0)
        };
        if self.profile.foreign_id().is_none() || !program.ancestors().skip(1).any(is_closed) {
            return program.to_owned();
        }
        let bin = self.dir().join("bin");
        if std::fs::create_dir(&bin).is_ok() {
            for original in [program.to_owned(), binaries::sandbox_init()] {
                let name = original.file_name().expect("a program has a name");
                std::fs::copy(&original, bin.join(name)).expect("a program can be copied");
            }
        }
        bin.join(program.file_name().expect("a program has a name"))
    }
}

impl Default for TestStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        // Folders of a store are read-only, which stops everybody but root from emptying them, and
        // some tests nest them deeper than a path is long, which chmod and rm can follow.
        let mut chmod = Command::new("chmod");
        requirement::succeeds(chmod.args(["-R", "u+rwX"]).arg(&self.dir));
        requirement::succeeds(Command::new("rm").arg("-rf").arg(&self.dir));
    }
}
