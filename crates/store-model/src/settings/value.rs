//! The spellings of values in a `nix.conf`, both ways.

use std::time::Duration;

/// Reads `true`, `yes`, `1` or `false`, `no`, `0`.
pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("it is either 'true' or 'false'".to_owned()),
    }
}

/// Reads a count, with `K`, `M`, `G` or `T` for powers of 1,024.
pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    // `u64::from_str` would take a plus sign, which Nix does not.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it is a whole number, such as 4 or 16M".to_owned());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(1 << shift))
        .ok_or_else(|| "the number is too large".to_owned())
}

/// Reads a number of seconds of which 0 means no limit.
pub(super) fn parse_limit_seconds(text: &str) -> Result<Option<Duration>, String> {
    let seconds = parse_count(text)?;
    // Deadlines are computed by adding to a clock; a century is for ever, and cannot overflow it.
    let century = 100 * 365 * 24 * 60 * 60;
    if seconds > century {
        return Err("the number of seconds is too large; 0 means no limit".to_owned());
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

/// Reads an absolute path.
pub(super) fn parse_absolute_path(text: &str) -> Result<std::path::PathBuf, String> {
    if text.starts_with('/') {
        Ok(text.into())
    } else {
        Err("it is an absolute path".to_owned())
    }
}

/// Prints a limit in seconds, 0 for none.
pub(super) fn print_limit_seconds(limit: Option<Duration>) -> String {
    limit.map_or(0, |limit| limit.as_secs()).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_switch_has_six_spellings_and_no_more() {
        for text in ["true", "yes", "1"] {
            assert_eq!(parse_switch(text), Ok(true));
        }
        for text in ["false", "no", "0"] {
            assert_eq!(parse_switch(text), Ok(false));
        }
        for text in ["", "True", "on", "2", "true true"] {
            assert!(parse_switch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_count_takes_powers_of_1024_and_never_wraps() {
        assert_eq!(parse_count("0"), Ok(0));
        assert_eq!(parse_count("2K"), Ok(2048));
        assert_eq!(parse_count("1T"), Ok(1 << 40));
        assert_eq!(parse_count("18446744073709551615"), Ok(u64::MAX));
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5",
            "0x10",
            "1KK",
            "18446744073709551616",
            "99999999999T",
            "é",
        ] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn zero_seconds_mean_no_limit_and_absurd_ones_are_refused() {
        assert_eq!(parse_limit_seconds("0"), Ok(None));
        assert_eq!(parse_limit_seconds("90"), Ok(Some(Duration::from_secs(90))));
        assert!(parse_limit_seconds("18446744073709551615").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,24}") {
            let _outcome = (parse_switch(&text), parse_count(&text), parse_limit_seconds(&text));
        }

        #[test]
        fn a_limit_reads_back(seconds in 0_u64..3_000_000_000) {
            let limit = parse_limit_seconds(&seconds.to_string()).ok().flatten();
            prop_assert_eq!(print_limit_seconds(limit), seconds.to_string());
        }
    }
}
