//! Which proxy a server is reached through, as curl reads the variables.

use serde::{Deserialize, Serialize};

/// The variables that matter, where they are set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProxyVariables {
    /// `http_proxy`.
    pub http: Option<String>,
    /// `https_proxy` or `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `all_proxy` or `ALL_PROXY`.
    pub all: Option<String>,
    /// `no_proxy` or `NO_PROXY`.
    pub none: Option<String>,
}

impl ProxyVariables {
    /// Reads variables; what is empty counts as not set.
    #[must_use]
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&str; 2]| {
            let mut values = names.into_iter().filter_map(&get);
            values.find(|value| !value.is_empty())
        };
        Self {
            // Not the one in capitals: a web server sets that to what its client says.
            http: get("http_proxy").filter(|value| !value.is_empty()),
            https: first(["https_proxy", "HTTPS_PROXY"]),
            all: first(["all_proxy", "ALL_PROXY"]),
            none: first(["no_proxy", "NO_PROXY"]),
        }
    }

    /// Returns the proxy for a host that is reached by `scheme`, both in small letters.
    #[must_use]
    pub fn proxy_for(&self, scheme: &str, host: &str) -> Option<&str> {
        let own = match scheme {
            "http" => &self.http,
            "https" => &self.https,
            _ => return None,
        };
        let proxy = own.as_ref().or(self.all.as_ref())?;
        (!self.is_exempt(host)).then_some(proxy)
    }

    fn is_exempt(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']);
        let names = self.none.as_deref().unwrap_or_default();
        names
            .split([',', ' '])
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .any(|name| {
                let name = name.trim_start_matches('.').to_ascii_lowercase();
                let is_below = || {
                    let rest = host.strip_suffix(name.as_str());
                    rest.is_some_and(|rest| rest.ends_with('.'))
                };
                name == "*" || host == name.trim_matches(['[', ']']) || is_below()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_decides_and_exempted_hosts_are_reached_directly() {
        let variables = ProxyVariables::read(|name| {
            let value = match name {
                "http_proxy" => "http://plain:1",
                "https_proxy" => "",
                "HTTPS_PROXY" => "http://secure:2",
                "NO_PROXY" => "localhost, .internal.example,10.0.0.1,[::1]",
                _ => return None,
            };
            Some(value.to_owned())
        });
        let proxy = |scheme, host| variables.proxy_for(scheme, host);
        assert_eq!(proxy("http", "example.org"), Some("http://plain:1"));
        assert_eq!(proxy("https", "example.org"), Some("http://secure:2"));
        assert_eq!(proxy("https", "notlocalhost"), Some("http://secure:2"));
        for (scheme, host) in [
            ("http", "localhost"),
            ("http", "internal.example"),
            ("https", "a.internal.example"),
            ("http", "10.0.0.1"),
            ("http", "[::1]"),
            ("file", "example.org"),
        ] {
            assert_eq!(proxy(scheme, host), None, "{scheme} {host}");
        }
    }

    #[test]
    fn the_proxy_for_all_is_for_those_without_their_own() {
        let read = |set: &'static [(&str, &str)]| {
            ProxyVariables::read(|name| {
                let set = set.iter().find(|(known, _)| *known == name);
                set.map(|(_, value)| (*value).to_owned())
            })
        };
        let proxy_of = |variables: &ProxyVariables| {
            let proxy = variables.proxy_for("http", "h");
            proxy.map(str::to_owned)
        };
        let all = read(&[
            ("all_proxy", "socks5h://s:1"),
            ("HTTP_PROXY", "http://no:1"),
        ]);
        assert_eq!(proxy_of(&all).as_deref(), Some("socks5h://s:1"));
        let none = read(&[("all_proxy", "socks5h://s:1"), ("no_proxy", "*")]);
        assert_eq!(proxy_of(&none), None);
        assert_eq!(proxy_of(&ProxyVariables::default()), None);
    }
}
