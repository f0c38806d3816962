//! What a built-in builder is told. It sees nothing of the host, so what it needs of it, such as
//! certificates and passwords, is read here, for downloads only.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use builtins::{Provisions, Request};
use store_model::{Derivation, ProxyVariables, Settings};

use crate::environment::{Circumstances, HostEnvironment, builtin_attributes};
use crate::{Error, wire};

/// All certificates of a distribution take a fifth of a megabyte.
const MAX_FILE_LEN: u64 = 16 << 20;

/// How often a download tells how far it is, unless it must sooner.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Seals what a built-in builder is told; `None` for another builder.
///
/// # Errors
/// An output's path is not known, or there is no memory.
pub(crate) fn seal(
    derivation: &Derivation,
    circumstances: &Circumstances<'_>,
) -> Result<Option<OwnedFd>, Error> {
    let builder = derivation.builder.to_string();
    let Some(name) = builder.strip_prefix("builtin:") else {
        return Ok(None);
    };
    let attributes = builtin_attributes(derivation, circumstances)?;
    let provisions = if builtins::downloads(name) {
        provisions(derivation, circumstances)?
    } else {
        Provisions::default()
    };
    let request = Request {
        name: name.to_owned(),
        attributes,
        provisions,
    };
    let sealed = wire::seal_builtin(&request);
    sealed.map(Some).map_err(|source| Error::Builtin { source })
}

fn provisions(
    derivation: &Derivation,
    circumstances: &Circumstances<'_>,
) -> Result<Provisions, Error> {
    let (settings, environment) = (circumstances.settings, circumstances.host_environment);
    let attributes = derivation.attributes().map_err(Error::attributes)?;
    let allowed = attributes.words("impureEnvVars");
    let allowed = allowed.map_err(Error::attributes)?.unwrap_or_default();
    let silence = settings.max_silent_time;
    Ok(Provisions {
        certificates: certificates(settings, environment),
        netrc: read(&settings.netrc_file).unwrap_or_default(),
        hashed_mirrors: settings.hashed_mirrors.clone(),
        n_attempts: settings.download_attempts,
        connect_limit: settings.connect_timeout,
        stall_limit: settings.stalled_download_timeout,
        progress_interval: silence
            .map_or(PROGRESS_INTERVAL, |limit| PROGRESS_INTERVAL.min(limit / 4)),
        proxies: ProxyVariables::read(|name| {
            let is_allowed = allowed.iter().any(|allowed| allowed == name);
            is_allowed.then(|| variable(environment, name)).flatten()
        }),
    })
}

/// Reads the certificates that the user names, or those of the distribution.
fn certificates(settings: &Settings, environment: &HostEnvironment) -> Vec<u8> {
    let setting = settings.ssl_cert_file.as_deref();
    let files = store_model::certificates::files(setting, |name| variable(environment, name));
    let content = files.iter().find_map(|file| read(file));
    // What cannot be read vouches for nobody; the builder says that there are none.
    content.unwrap_or_default()
}

fn variable(environment: &HostEnvironment, name: &str) -> Option<String> {
    let value = environment.get(name.as_bytes())?;
    String::from_utf8(value.to_vec()).ok()
}

/// Reads a file that need not be there.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_FILE_LEN).read_to_end(&mut content).ok()?;
    Some(content)
}
