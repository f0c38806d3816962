//! Where the certificates are of those who vouch for servers.

use std::path::{Path, PathBuf};

/// Where distributions keep them.
const USUAL_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt",
];

/// Returns the files to look for, in that order: the first that can be read is the one.
///
/// That is `setting` (`ssl-cert-file`) and nothing else, or what a variable names, or else what
/// distributions have: somebody who names a file trusts nobody else.
#[must_use]
pub fn files(setting: Option<&Path>, get: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = setting.map(Path::to_path_buf).or_else(|| {
        let names = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"].into_iter();
        let mut files = names.filter_map(get);
        files.find(|file| !file.is_empty()).map(PathBuf::from)
    });
    match named {
        Some(file) => vec![file],
        None => USUAL_FILES.iter().map(PathBuf::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_a_file_trusts_nobody_else() {
        let get = |name: &str| match name {
            "NIX_SSL_CERT_FILE" => Some(String::new()),
            "SSL_CERT_FILE" => Some("/variable".to_owned()),
            _ => None,
        };
        let setting = Some(Path::new("/setting"));
        assert_eq!(files(setting, get), [Path::new("/setting")]);
        assert_eq!(files(None, get), [Path::new("/variable")]);
        assert_eq!(files(None, |_| None).len(), USUAL_FILES.len());
    }
}
