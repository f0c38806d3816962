//! What all builds of one supervisor share, and the way from a request to a [`SandboxSpec`].

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use store_model::derivation::BoolAttribute;
use store_model::settings::{SandboxMode, SandboxPath, StoreLayout};
use store_model::{Derivation, Settings, StorePath};

use crate::environment::{
    Circumstances, Environment, HostEnvironment, environment, scratch_output_path,
};
use crate::host_paths::HostPaths;
use crate::init::Profile;
use crate::launch::find_launcher;
use crate::plan::plan;
use crate::redirect::{FAKE_HOME, Redirections, redirect, refuse_home};
use crate::spec::{
    Identity, Isolation, Kvm, NestedNamespaces, Network, Predecessors, SandboxSpec, SandboxView,
    Switch,
};
use crate::user_pool::{BuildUser, Origin, UserPool, Withdrawal};
use crate::wire::{Builder, Launch};
use crate::workspace::{Owner, Places, Reuse, ScratchPlace, Workspace};
use crate::{Error, StartBuild, builtin, pre_build_hook};

/// What all builds share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) layout: StoreLayout,
    pub(crate) places: Arc<Places>,
    /// Where builders get users of their own: only root can give them any.
    pub(crate) users: Option<UserPool>,
    environment: HostEnvironment,
    pub(crate) launcher: PathBuf,
    n_cores: usize,
}

/// A build that only has to be launched.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) workspace: Workspace,
    pub(crate) launch: Launch,
    /// What a built-in builder is told.
    pub(crate) builtin: Option<OwnedFd>,
}

/// How far a build is kept from the host, before anything is made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confinement {
    Sandboxed,
    Unsandboxed,
}

impl Host {
    /// Opens everything that all builds need.
    ///
    /// # Errors
    /// A directory cannot be made or is not safe, or there is no launcher.
    pub(crate) fn open(
        layout: StoreLayout,
        settings: &Settings,
        environment: HostEnvironment,
    ) -> Result<Self, Error> {
        let places = Places::open(&layout, settings.build_dir.as_deref())?;
        let users = is_privileged(settings)
            .then(|| UserPool::open(&layout.state_dir, settings))
            .transpose()?;
        Ok(Self {
            places: Arc::new(places),
            users,
            environment,
            launcher: find_launcher(settings)?,
            n_cores: thread::available_parallelism().map_or(1, usize::from),
            layout,
        })
    }

    /// Returns which launcher runs builds of this kind.
    pub(crate) fn profile(&self, confinement: Confinement) -> Profile {
        match (&self.users, confinement) {
            (Some(_), _) => Profile::Privileged,
            (None, Confinement::Sandboxed) => Profile::Unprivileged,
            (None, Confinement::Unsandboxed) => Profile::Bare,
        }
    }

    /// Decides whether a build is sandboxed.
    ///
    /// # Errors
    /// The derivation and the settings contradict each other.
    pub(crate) fn confinement(
        &self,
        derivation: &Derivation,
        settings: &Settings,
    ) -> Result<Confinement, Error> {
        let wants_out = || {
            let attributes = derivation.attributes().map_err(Error::attributes)?;
            let wants_out = attributes.flag("__noChroot", BoolAttribute::False);
            wants_out.map_err(Error::attributes)
        };
        let unsandboxed = match settings.sandbox {
            SandboxMode::Always if wants_out()? => return Err(Error::SandboxRequired),
            SandboxMode::Always => false,
            SandboxMode::Relaxed => wants_out()?,
            SandboxMode::Never => true,
        };
        // Without the sandbox the builder would look for its inputs where they are not.
        if unsandboxed && !self.layout.is_relocated() {
            Ok(Confinement::Unsandboxed)
        } else {
            Ok(Confinement::Sandboxed)
        }
    }

    /// Makes a build's directories and decides everything that the launcher must know. Runs the
    /// user's hook, which is ended when `given_up` becomes readable.
    ///
    /// # Errors
    /// A directory cannot be made, the derivation asks for something that is not allowed, or the
    /// hook failed.
    pub(crate) fn prepare(
        &self,
        request: &StartBuild,
        confinement: Confinement,
        user: Option<BuildUser>,
        given_up: BorrowedFd<'_>,
    ) -> Result<Prepared, Error> {
        let (derivation, settings) = (&*request.derivation, &*request.settings);
        let attributes = derivation.attributes().map_err(Error::attributes)?;
        let mut host_paths = match confinement {
            Confinement::Sandboxed => HostPaths::of(&self.layout, request, &attributes)?,
            Confinement::Unsandboxed => HostPaths::none(&self.layout, request),
        };
        let (owner, identity) = self.identity(user.as_ref());
        let place = match (confinement, user.is_some()) {
            (Confinement::Sandboxed, _) => {
                ScratchPlace::InStore(self.reuse(derivation, &host_paths))
            }
            (Confinement::Unsandboxed, true) => ScratchPlace::BesideBuild,
            (Confinement::Unsandboxed, false) => ScratchPlace::StoreItself,
        };
        let outputs = self.scratch_outputs(request);
        let redirected = match confinement {
            Confinement::Sandboxed => Redirections::new(),
            Confinement::Unsandboxed => self.redirect(request, &outputs)?,
        };
        let inputs = request.input_paths.iter().map(StorePath::base_name);
        let (places, drv_path) = (&self.places, &request.drv_path);
        let mut workspace = Workspace::create(places, drv_path, inputs, place, owner, user)?;
        workspace.await_outputs(&outputs, redirected)?;
        host_paths.add(self.run_hook(request, &workspace, given_up)?);
        workspace.limit_reuse(self.reuse(derivation, &host_paths));

        let build_dir_inside = match confinement {
            Confinement::Sandboxed => settings.sandbox_build_dir.clone(),
            Confinement::Unsandboxed => workspace.build_dir(),
        };
        let circumstances = Circumstances {
            drv_path,
            store_dir: &self.layout.store_dir,
            settings,
            build_dir: &build_dir_inside,
            host_environment: &self.environment,
            n_cores: self.n_cores,
            graphs: &request.graphs,
            redirected: &workspace.scratch().redirected,
        };
        let Environment { program, files } = environment(&attributes, &circumstances)?;
        workspace.write_files(&files)?;
        let builtin = builtin::seal(derivation, &circumstances)?;
        let spec = SandboxSpec {
            isolation: self.isolation(request, place, &workspace, host_paths),
            identity,
            build_dir: workspace.build_dir(),
            build_dir_inside,
            impersonate_linux_26: settings.impersonate_linux_26,
            thirty_two_bit: derivation.system == "i686-linux" && cfg!(target_arch = "x86_64"),
        };
        let launch = Launch {
            build_id: request.build_id.0,
            plan: plan(&spec),
            builder: match &builtin {
                Some(_) => Builder::Builtin,
                None => Builder::Program(program),
            },
        };
        Ok(Prepared {
            workspace,
            launch,
            builtin,
        })
    }

    /// Runs the user's hook, if there is one; returns what else it shows to the builder.
    fn run_hook(
        &self,
        request: &StartBuild,
        workspace: &Workspace,
        given_up: BorrowedFd<'_>,
    ) -> Result<Vec<SandboxPath>, Error> {
        let Some(program) = &request.settings.pre_build_hook else {
            return Ok(Vec::new());
        };
        let drv_path = self.layout.store_dir.print(&request.drv_path);
        let mut args = vec![PathBuf::from(drv_path)];
        args.extend(workspace.chroot_dir().map(Path::to_owned));
        pre_build_hook::run(program, &args, &self.environment, given_up)
    }

    fn isolation(
        &self,
        request: &StartBuild,
        place: ScratchPlace,
        workspace: &Workspace,
        host_paths: HostPaths<'_>,
    ) -> Isolation {
        match place {
            ScratchPlace::InStore(_) => {
                let host_paths = host_paths.into_paths();
                Isolation::Sandbox(Box::new(self.view(request, workspace, host_paths)))
            }
            ScratchPlace::BesideBuild => Isolation::OverlaidStore {
                store_dir: self.layout.real_store_dir.clone(),
                scratch_store: workspace.scratch().path.clone(),
                overlay_work: workspace.overlay_work(),
                outer_build_dir: workspace.outer_build_dir().to_owned(),
            },
            ScratchPlace::StoreItself => Isolation::Bare,
        }
    }

    /// Takes a user for a builder, where builders have users of their own. Waits until one is free,
    /// after saying so through `wait`.
    ///
    /// # Errors
    /// A lock file cannot be opened; the build was given up.
    pub(crate) fn acquire_user(
        &self,
        withdrawal: &Withdrawal,
        wait: impl FnOnce(),
    ) -> Result<Option<BuildUser>, Error> {
        let users = self.users.as_ref();
        users
            .map(|users| users.acquire(withdrawal, wait))
            .transpose()
    }

    /// Returns who owns a builder's files, and who the builder is.
    fn identity(&self, user: Option<&BuildUser>) -> (Owner, Identity) {
        let Some(user) = user else {
            let owner = Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            };
            // The unprivileged launcher is user 0 of a namespace that has no other user.
            let identity = Identity {
                uid: 0,
                gid: 0,
                supplementary_gids: Vec::new(),
                switch: Switch::Stay,
                predecessors: Predecessors::None,
            };
            return (owner, identity);
        };
        let owner = Owner {
            uid: user.uid,
            gid: user.gid,
        };
        let origin = self.users.as_ref().map(|users| users.origin);
        let identity = Identity {
            uid: user.uid,
            gid: user.gid,
            supplementary_gids: user.supplementary_gids.clone(),
            switch: Switch::Become,
            predecessors: match origin {
                Some(Origin::Group) => Predecessors::Possible,
                Some(Origin::Range) | None => Predecessors::None,
            },
        };
        (owner, identity)
    }

    /// Returns which of a build's directories further builds may have.
    fn reuse(&self, derivation: &Derivation, host_paths: &HostPaths<'_>) -> Reuse {
        if derivation.is_fixed_output() {
            return Reuse::Nothing;
        }
        let shares_group = self
            .users
            .as_ref()
            .is_some_and(|users| users.origin == Origin::Group);
        if host_paths.are_harmless() {
            Reuse::Everything
        } else if shares_group {
            // Another builder may write what the group may.
            Reuse::Nothing
        } else {
            Reuse::Private
        }
    }

    /// Returns where a build's outputs are in its scratch directory.
    pub(crate) fn scratch_outputs(&self, request: &StartBuild) -> Vec<StorePath> {
        let (store_dir, drv_path) = (&self.layout.store_dir, &request.drv_path);
        let derivation = &*request.derivation;
        derivation
            .outputs
            .iter()
            .filter_map(|(name, output)| {
                scratch_output_path(store_dir, drv_path, derivation, name, output).ok()
            })
            .collect()
    }

    /// Finds other places for outputs that a builder without a sandbox would work on: those that are
    /// not valid were removed before.
    fn redirect(&self, request: &StartBuild, outputs: &[StorePath]) -> Result<Redirections, Error> {
        refuse_home(Path::new(FAKE_HOME))?;
        let StoreLayout {
            store_dir,
            real_store_dir,
            ..
        } = &self.layout;
        redirect(store_dir, real_store_dir, &request.drv_path, outputs)
    }

    fn view(
        &self,
        request: &StartBuild,
        workspace: &Workspace,
        host_paths: Vec<SandboxPath>,
    ) -> SandboxView {
        let (derivation, settings) = (&*request.derivation, &*request.settings);
        SandboxView {
            root_mount_point: self.places.root_mount_point.clone(),
            store_dir: PathBuf::from(self.layout.store_dir.as_str()),
            real_store_dir: self.layout.real_store_dir.clone(),
            scratch_store: workspace.scratch().path.clone(),
            inputs: workspace.inputs().clone(),
            tmp_dir: workspace.tmp_dir(),
            host_paths,
            shm_size: settings.sandbox_dev_shm_size.clone(),
            kvm: if settings.system_features.contains("kvm") && Path::new("/dev/kvm").exists() {
                Kvm::Offered
            } else {
                Kvm::Hidden
            },
            network: if derivation.is_fixed_output() {
                Network::Host
            } else {
                Network::Loopback
            },
            nested_namespaces: if settings.allow_nested_userns {
                NestedNamespaces::Allowed
            } else {
                NestedNamespaces::Denied
            },
        }
    }
}

/// Returns whether this is a root that has other users to give: one in a user namespace without
/// them is treated as anybody else.
fn is_privileged(settings: &Settings) -> bool {
    let last = settings.start_id.saturating_add(settings.id_count);
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
            map.lines().any(|line| {
                let mut numbers = line.split_whitespace().map(str::parse::<u64>);
                match (numbers.next(), numbers.next(), numbers.next()) {
                    (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) => {
                        first <= settings.start_id.into() && first + count > last.into()
                    }
                    _ => false,
                }
            })
        })
}
