//! Passwords for hosts, in the format of `~/.netrc`.

use bstr::{BStr, ByteSlice as _};

/// A name and a password for a host.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Who logs in; may be empty.
    pub name: String,
    /// What only that user knows; may be empty.
    pub password: String,
}

impl Login {
    /// Returns the value of an `Authorization` header that tells both to a server.
    #[must_use]
    pub fn to_basic(&self) -> String {
        use base64::Engine as _;
        let text = format!("{}:{}", self.name, self.password);
        let encoded = base64::engine::general_purpose::STANDARD.encode(text);
        format!("Basic {encoded}")
    }
}

/// Without the password.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Finds the login for a host, and for a user if one is named: the first that fits, or what stands
/// after `default`.
#[must_use]
pub fn find(netrc: &BStr, host: &str, user: Option<&str>) -> Option<Login> {
    let mut words = words(netrc).into_iter();
    let mut entry: Option<Entry> = None;
    while let Some(word) = words.next() {
        let begun = match word.as_str() {
            "machine" => Some(Entry::of(words.next()?.eq_ignore_ascii_case(host))),
            "default" => Some(Entry::of(true)),
            "login" => {
                set(&mut entry, |entry| &mut entry.name, words.next());
                None
            }
            "password" => {
                set(&mut entry, |entry| &mut entry.password, words.next());
                None
            }
            "account" => {
                words.next();
                None
            }
            _ => None,
        };
        if let Some(begun) = begun
            && let Some(login) = entry.replace(begun).and_then(|entry| entry.login(user))
        {
            return Some(login);
        }
    }
    entry.and_then(|entry| entry.login(user))
}

#[derive(Default)]
struct Entry {
    is_for_host: bool,
    name: Option<String>,
    password: Option<String>,
}

impl Entry {
    fn of(is_for_host: bool) -> Self {
        Self {
            is_for_host,
            ..Self::default()
        }
    }

    fn login(self, user: Option<&str>) -> Option<Login> {
        let name = self.name.unwrap_or_default();
        let fits = self.is_for_host && user.is_none_or(|user| user == name);
        fits.then(|| Login {
            name,
            password: self.password.unwrap_or_default(),
        })
    }
}

fn set(
    entry: &mut Option<Entry>,
    field: fn(&mut Entry) -> &mut Option<String>,
    word: Option<String>,
) {
    if let Some(entry) = entry {
        *field(entry) = word;
    }
}

/// Returns the words of a file without comments and macros. A word in quotes may hold spaces.
fn words(netrc: &BStr) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_macro = false;
    for line in netrc.lines() {
        let line = line.to_str_lossy();
        if in_macro {
            // It ends with an empty line.
            in_macro = !line.trim().is_empty();
            continue;
        }
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next_if(|_| true) {
            let mut word = String::new();
            match letter {
                '#' => break,
                '"' => {
                    while let Some(letter) = letters.next().filter(|letter| *letter != '"') {
                        word.push(match letter {
                            '\\' => match letters.next() {
                                Some('n') => '\n',
                                Some('r') => '\r',
                                Some('t') => '\t',
                                Some(letter) => letter,
                                None => break,
                            },
                            letter => letter,
                        });
                    }
                }
                letter if letter.is_whitespace() => continue,
                letter => {
                    word.push(letter);
                    while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace()) {
                        word.push(letter);
                    }
                }
            }
            if word == "macdef" {
                in_macro = true;
                break;
            }
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETRC: &str = "# machine commented login no password no\n\
        machine one.example login me password a#b\n\
        machine two.example\n\tlogin you\n\tpassword \"with \\\"quotes\\\" and spaces\"\n\
        macdef login\n machine two.example login macro password macro\n\n\
        machine two.example login other account x password second\n\
        machine three.example password alone\n";

    fn find_in(netrc: &str, host: &str, user: Option<&str>) -> Option<(String, String)> {
        let login = find(netrc.into(), host, user)?;
        Some((login.name, login.password))
    }

    #[test]
    fn a_host_gets_its_own_password_and_no_other() {
        let find = |host, user| find_in(NETRC, host, user);
        let login = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(find("one.example", None), login("me", "a#b"));
        assert_eq!(find("ONE.example", None), login("me", "a#b"));
        let quoted = "with \"quotes\" and spaces";
        assert_eq!(find("two.example", None), login("you", quoted));
        assert_eq!(find("two.example", Some("other")), login("other", "second"));
        assert_eq!(find("two.example", Some("nobody")), None);
        assert_eq!(find("three.example", None), login("", "alone"));
        for host in [
            "example",
            "a.one.example",
            "one.example.org",
            "commented",
            "",
        ] {
            assert_eq!(find(host, None), None, "{host}");
        }
    }

    #[test]
    fn who_is_not_named_gets_what_stands_after_default() {
        let netrc = "machine one login me password x\ndefault login anybody password y";
        let find = |host| find_in(netrc, host, None).map(|(name, _)| name);
        assert_eq!(find("one").as_deref(), Some("me"));
        assert_eq!(find("two").as_deref(), Some("anybody"));
    }

    #[test]
    fn a_broken_file_has_no_passwords() {
        for netrc in [
            "",
            "machine",
            "login x password y",
            "machine other \"",
            "default",
        ] {
            let login = find_in(netrc, "host", None);
            assert!(login.is_none() || netrc == "default", "{netrc}: {login:?}");
        }
    }
}
