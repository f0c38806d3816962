//! Whether the rest of a file is the rest of the same file.
//!
//! ```text
//! what is here   what the server answers        what is made of it
//! nothing        200                            the file
//! n bytes        206 from n on, same version    the rest
//! n bytes        200, surely same version       the file, whose first n bytes are passed over
//! n bytes        anything else                  the contents changed
//! ```

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};

use super::HttpError;

/// What a server calls the contents that it sends, as far as it says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Version {
    /// With its quotes, and `W/` before them if it is a weak one.
    tag: Option<String>,
    modified: Option<String>,
    /// Of the whole file.
    n_bytes: Option<u64>,
}

/// What an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// What follows on what is here.
    Rest,
    /// The whole file.
    Whole,
}

impl Version {
    /// Reads what the headers of a whole file say.
    pub(super) fn of_whole(headers: &HeaderMap) -> Self {
        Self {
            tag: text(headers, ETAG),
            modified: text(headers, LAST_MODIFIED),
            n_bytes: text(headers, CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        }
    }

    /// Returns what a server has to be told so that it sends a part of no other version. A weak tag
    /// will not do: other bytes may have the same.
    pub(super) fn if_range(&self) -> Option<&str> {
        let strong = self.tag.as_deref().filter(|tag| tag.starts_with('"'));
        strong.or(self.modified.as_deref())
    }

    /// Judges the answer of a server that was asked for everything from `position` on.
    ///
    /// # Errors
    /// The contents changed, or may have.
    pub(super) fn judge(
        &self,
        position: u64,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Contents, HttpError> {
        if status == StatusCode::PARTIAL_CONTENT {
            let range = headers.get(CONTENT_RANGE);
            let range = range.and_then(|range| Range::parse(range.to_str().ok()?));
            let range = range.filter(|range| range.start == position);
            let range = range.ok_or(HttpError::Misbehaved {
                what: "sent another part of the file than it was asked for",
            })?;
            let new = Self {
                n_bytes: range.n_bytes,
                ..Self::of_whole(headers)
            };
            return match self.compare(&new) {
                Some(true) => Ok(Contents::Rest),
                // Nobody says which version it is. The length is the same at least, and the reader's
                // hash has the last word.
                None if self.n_bytes.is_some() && self.n_bytes == new.n_bytes => Ok(Contents::Rest),
                None | Some(false) => Err(HttpError::Changed),
            };
        }
        match self.compare(&Self::of_whole(headers)) {
            Some(true) => Ok(Contents::Whole),
            None | Some(false) => Err(HttpError::Changed),
        }
    }

    /// Returns the tag, whether it is a strong or a weak one.
    fn bare_tag(&self) -> Option<&str> {
        let tag = self.tag.as_deref()?;
        Some(tag.strip_prefix("W/").unwrap_or(tag))
    }

    /// Returns whether two versions are the same; `None` if there is nothing to tell.
    fn compare(&self, other: &Self) -> Option<bool> {
        fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<bool> {
            Some(one? != other?)
        }
        if differ(self.n_bytes, other.n_bytes) == Some(true) {
            return Some(false);
        }
        let by_tag = differ(self.bare_tag(), other.bare_tag());
        let by_date = || differ(self.modified.as_deref(), other.modified.as_deref());
        by_tag.or_else(by_date).map(|differs| !differs)
    }
}

/// A part of a file, as `Content-Range` names it.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    /// Of the whole file, if the server knows.
    n_bytes: Option<u64>,
}

impl Range {
    /// Reads a part that goes up to the end of the file.
    fn parse(text: &str) -> Option<Self> {
        let (range, length) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.trim().split_once('-')?;
        let start: u64 = start.parse().ok()?;
        let last: u64 = last.parse().ok()?;
        let n_bytes = match length.trim() {
            "*" => None,
            length => Some(length.parse::<u64>().ok()?),
        };
        let goes_to_the_end = n_bytes.is_none_or(|n_bytes| last.checked_add(1) == Some(n_bytes));
        (start <= last && goes_to_the_end).then_some(Self { start, n_bytes })
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    /// Asks for what follows on five bytes of ten.
    fn judge(
        known: &[(HeaderName, &str)],
        status: u16,
        answer: &[(HeaderName, &str)],
    ) -> Result<Contents, String> {
        let known = Version::of_whole(&headers(known));
        let status = StatusCode::from_u16(status).unwrap();
        let judged = known.judge(5, status, &headers(answer));
        judged.map_err(|error| error.to_string())
    }

    #[test]
    fn the_rest_of_the_same_version_follows() {
        let tagged = [(ETAG, "\"a\""), (CONTENT_LENGTH, "10")];
        let dated = [(LAST_MODIFIED, DATE), (CONTENT_LENGTH, "10")];
        let bare = [(CONTENT_LENGTH, "10")];
        for range in ["bytes 5-9/10", "bytes 5-9/*"] {
            let tagged_rest = [(ETAG, "\"a\""), (CONTENT_RANGE, range)];
            assert_eq!(judge(&tagged, 206, &tagged_rest), Ok(Contents::Rest));
            let dated_rest = [(LAST_MODIFIED, DATE), (CONTENT_RANGE, range)];
            assert_eq!(judge(&dated, 206, &dated_rest), Ok(Contents::Rest));
        }
        let bare_rest = [(CONTENT_RANGE, "bytes 5-9/10")];
        assert_eq!(judge(&bare, 206, &bare_rest), Ok(Contents::Rest));
        // A part need not be tagged again: the server was told which version it is for.
        assert_eq!(judge(&tagged, 206, &bare_rest), Ok(Contents::Rest));
    }

    #[test]
    fn a_server_without_ranges_sends_the_same_version_again() {
        let tagged = [(ETAG, "W/\"a\""), (CONTENT_LENGTH, "10")];
        assert_eq!(judge(&tagged, 200, &tagged), Ok(Contents::Whole));
        let dated = [(LAST_MODIFIED, DATE)];
        assert_eq!(judge(&dated, 200, &dated), Ok(Contents::Whole));
    }

    #[test]
    fn what_may_be_another_version_is_refused() {
        let tagged = [(ETAG, "\"a\""), (CONTENT_LENGTH, "10")];
        let other = [(ETAG, "\"b\""), (CONTENT_LENGTH, "10")];
        let longer = [(ETAG, "\"a\""), (CONTENT_LENGTH, "11")];
        let bare = [(CONTENT_LENGTH, "10")];
        let changed = Err(HttpError::Changed.to_string());
        assert_eq!(judge(&tagged, 200, &other), changed);
        assert_eq!(judge(&tagged, 200, &longer), changed);
        assert_eq!(judge(&tagged, 200, &bare), changed);
        assert_eq!(judge(&bare, 200, &bare), changed);
        for (tag, range) in [("\"b\"", "bytes 5-9/10"), ("\"a\"", "bytes 5-10/11")] {
            let answer = [(ETAG, tag), (CONTENT_RANGE, range)];
            assert_eq!(judge(&tagged, 206, &answer), changed, "{tag} {range}");
        }
        let unknown_length = [(CONTENT_RANGE, "bytes 5-9/*")];
        assert_eq!(judge(&bare, 206, &unknown_length), changed);
        for range in [
            "bytes 4-9/10",
            "bytes 6-9/10",
            "bytes 5-8/10",
            "bytes 5-4/5",
            "bytes */10",
            "items 5-9/10",
            "",
        ] {
            let answer = [(ETAG, "\"a\""), (CONTENT_RANGE, range)];
            let refused = judge(&tagged, 206, &answer).unwrap_err();
            assert!(refused.contains("another part"), "{range}: {refused}");
        }
    }

    #[test]
    fn only_what_names_the_very_bytes_is_a_condition() {
        let condition = |fields: &[(HeaderName, &str)]| {
            let version = Version::of_whole(&headers(fields));
            version.if_range().map(str::to_owned)
        };
        let strong = [(ETAG, "\"a\""), (LAST_MODIFIED, DATE)];
        assert_eq!(condition(&strong).as_deref(), Some("\"a\""));
        let weak = [(ETAG, "W/\"a\""), (LAST_MODIFIED, DATE)];
        assert_eq!(condition(&weak).as_deref(), Some(DATE));
        assert_eq!(condition(&[(ETAG, "W/\"a\"")]), None);
    }
}
