//! Reads a `.drv` file: one `ATerm`, `Derive([outputs],[inputs],[sources],system,builder,[args],[env])`.
//!
//! Nix reads more than it writes: unsorted lists, unknown escapes, bytes after the end.
//! This reader takes only what printing would give back byte for byte, because a derivation is
//! known by the hash of its file: two spellings of one recipe would be two derivations, and a
//! derivation checked in one spelling could be built in another.
//!
//! Nothing recurses, so nesting cannot exhaust the stack, and every error tells the offset of the
//! byte that it is about.

use std::collections::{BTreeMap, BTreeSet};

use bstr::{BStr, BString, ByteSlice as _};

use super::IngestionMethod;
use crate::{Derivation, DerivationOutput, Error, Hash, OutputName, StoreDir, StorePath};

impl Derivation {
    /// Reads the contents of a `.drv` file; `name` is the file's name without hash part and
    /// `.drv`.
    ///
    /// # Errors
    /// The bytes are not a derivation, not in the one form that [`Derivation::to_aterm`] gives
    /// back, or their outputs are not of one kind (see [`Derivation::kind`]).
    pub fn parse(bytes: &[u8], name: &str, store_dir: &StoreDir) -> Result<Self, Error> {
        let mut cursor = Cursor {
            bytes,
            position: 0,
            store_dir,
        };
        if bytes.starts_with(b"DrvWithVersion(") {
            return Err(cursor.error("derivations with a version are not supported"));
        }
        let derivation = cursor.derivation(name)?;
        if cursor.position != bytes.len() {
            return Err(cursor.error("the derivation ends here, but the file goes on"));
        }
        derivation.kind()?;
        Ok(derivation)
    }
}

/// A place in a file.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    store_dir: &'a StoreDir,
}

impl<'a> Cursor<'a> {
    fn derivation(&mut self, name: &str) -> Result<Derivation, Error> {
        self.expect("Derive(")?;
        let outputs = self.sorted(Self::output, |(name, _)| name)?;
        self.expect(",")?;
        let input_derivations = self.sorted(Self::input_derivation, |(path, _)| path)?;
        self.expect(",")?;
        let input_sources = self.sorted(Self::store_path, |path| path)?;
        self.expect(",")?;
        let system = self.verbatim()?.to_owned();
        self.expect(",")?;
        let builder = self.string()?;
        self.expect(",")?;
        let args = self.list(Self::string)?;
        self.expect(",")?;
        let env = self.sorted(Self::variable, |(name, _)| name)?;
        self.expect(")")?;
        Ok(Derivation {
            name: name.to_owned(),
            outputs: outputs.into_iter().collect::<BTreeMap<_, _>>(),
            input_derivations: input_derivations.into_iter().collect(),
            input_sources: input_sources.into_iter().collect(),
            system,
            builder,
            args,
            env: env.into_iter().collect(),
        })
    }

    /// Reads `("name","path","algorithm","hash")`.
    fn output(&mut self) -> Result<(OutputName, DerivationOutput), Error> {
        self.expect("(")?;
        let name = self.output_name()?;
        self.expect(",")?;
        let start = self.position;
        let path = self.verbatim()?;
        self.expect(",")?;
        let algorithm = self.verbatim()?;
        self.expect(",")?;
        let hash = self.verbatim()?;
        self.expect(")")?;
        let output = self
            .addressing(path, algorithm, hash)
            .map_err(|reason| malformed(start, format!("output '{name}': {reason}")))?;
        Ok((name, output))
    }

    fn addressing(
        &self,
        path: &BStr,
        algorithm: &BStr,
        hash: &BStr,
    ) -> Result<DerivationOutput, String> {
        if algorithm.is_empty() {
            return match (path.is_empty(), hash.is_empty()) {
                (_, false) => Err("a hash without an algorithm".to_owned()),
                (true, true) => Ok(DerivationOutput::Deferred),
                (false, true) => Ok(DerivationOutput::InputAddressed(self.path(path)?)),
            };
        }
        let algorithm = algorithm
            .to_str()
            .map_err(|_| "the hash algorithm is not text")?;
        let (method, algorithm) = IngestionMethod::split_prefix(algorithm);
        let algorithm = algorithm
            .parse()
            .map_err(|error: Error| error.to_string())?;
        if hash == "impure" {
            return Err("impure outputs are not supported".to_owned());
        }
        if hash.is_empty() {
            return if path.is_empty() {
                Ok(DerivationOutput::Floating { method, algorithm })
            } else {
                Err("a path though it is known only after the build".to_owned())
            };
        }
        let digest = hash.to_str().map_err(|_| "the hash is not text")?;
        let hash = Hash::parse_digest(algorithm, digest).map_err(|error| error.to_string())?;
        if hash.to_base16() != digest {
            return Err("the hash is not in lower-case base-16".to_owned());
        }
        Ok(DerivationOutput::Fixed {
            method,
            hash,
            path: self.path(path)?,
        })
    }

    /// Reads `("path",["output",…])`.
    fn input_derivation(&mut self) -> Result<(StorePath, BTreeSet<OutputName>), Error> {
        self.expect("(")?;
        let start = self.position;
        let path = self.store_path()?;
        if !path.is_derivation() {
            return Err(malformed(
                start,
                "an input derivation's name ends in '.drv'",
            ));
        }
        self.expect(",")?;
        let outputs = self.sorted(Self::output_name, |name| name)?;
        self.expect(")")?;
        Ok((path, outputs.into_iter().collect()))
    }

    /// Reads `("name","value")`.
    fn variable(&mut self) -> Result<(BString, BString), Error> {
        self.expect("(")?;
        let name = self.string()?;
        self.expect(",")?;
        let value = self.string()?;
        self.expect(")")?;
        Ok((name, value))
    }

    fn output_name(&mut self) -> Result<OutputName, Error> {
        let start = self.position;
        let text = self.verbatim()?;
        text.to_str_lossy()
            .parse()
            .map_err(|error: Error| malformed(start, error.to_string()))
    }

    fn store_path(&mut self) -> Result<StorePath, Error> {
        let start = self.position;
        let text = self.verbatim()?;
        self.path(text).map_err(|reason| malformed(start, reason))
    }

    fn path(&self, text: &BStr) -> Result<StorePath, String> {
        self.store_dir
            .parse_bytes(text)
            .map_err(|error| error.to_string())
    }

    /// Reads `[a,b,…]` whose elements stand in strictly increasing order of their keys.
    fn sorted<T, K: Ord>(
        &mut self,
        element: impl Fn(&mut Self) -> Result<T, Error>,
        key: impl Fn(&T) -> &K,
    ) -> Result<Vec<T>, Error> {
        let mut elements: Vec<T> = Vec::new();
        self.elements(|cursor| {
            let start = cursor.position;
            let next = element(cursor)?;
            if elements.last().is_some_and(|last| key(last) >= key(&next)) {
                return Err(malformed(start, "out of order, or twice the same"));
            }
            elements.push(next);
            Ok(())
        })?;
        Ok(elements)
    }

    /// Reads `[a,b,…]` in any order.
    fn list<T>(
        &mut self,
        element: impl Fn(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut elements = Vec::new();
        self.elements(|cursor| {
            elements.push(element(cursor)?);
            Ok(())
        })?;
        Ok(elements)
    }

    fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.expect("[")?;
        if self.skip(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if self.skip(b']') {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    /// Reads a string in which nothing is escaped, because Nix prints such strings as they are:
    /// paths, hashes, the system.
    fn verbatim(&mut self) -> Result<&'a BStr, Error> {
        self.expect("\"")?;
        let start = self.position;
        let rest = &self.bytes[start..];
        match memchr::memchr2(b'"', b'\\', rest) {
            Some(len) if rest[len] == b'"' => {
                self.position = start + len + 1;
                Ok(rest[..len].as_bstr())
            }
            Some(len) => Err(malformed(start + len, "no escapes are used in this string")),
            None => Err(malformed(self.bytes.len(), "unterminated string")),
        }
    }

    /// Reads a string with the escapes `\"`, `\\`, `\n`, `\r` and `\t`.
    fn string(&mut self) -> Result<BString, Error> {
        self.expect("\"")?;
        let mut text = BString::default();
        loop {
            let rest = &self.bytes[self.position..];
            let len = memchr::memchr2(b'"', b'\\', rest)
                .ok_or_else(|| malformed(self.bytes.len(), "unterminated string"))?;
            let plain = &rest[..len];
            if let Some(offset) = memchr::memchr3(b'\n', b'\r', b'\t', plain) {
                let position = self.position + offset;
                return Err(malformed(position, "this character must be escaped"));
            }
            text.extend_from_slice(plain);
            self.position += len + 1;
            if rest[len] == b'"' {
                return Ok(text);
            }
            let unescaped = match self.bytes.get(self.position) {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(byte @ (b'"' | b'\\')) => *byte,
                Some(_) => return Err(self.error("unknown escape")),
                None => return Err(self.error("unterminated string")),
            };
            text.push(unescaped);
            self.position += 1;
        }
    }

    fn skip(&mut self, byte: u8) -> bool {
        let found = self.bytes.get(self.position) == Some(&byte);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, literal: &str) -> Result<(), Error> {
        if self.bytes[self.position..].starts_with(literal.as_bytes()) {
            self.position += literal.len();
            return Ok(());
        }
        Err(self.error(format!("expected '{literal}'")))
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        malformed(self.position, reason)
    }
}

fn malformed(position: usize, reason: impl Into<String>) -> Error {
    Error::Derivation {
        position,
        reason: reason.into(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::derivation::tests::any_derivation;

    /// A small derivation with every part: two kinds of input, escapes, bytes that are no text.
    const SMALL: &[u8] = b"Derive([\
        (\"dev\",\"/nix/store/xs37bg88p8b98qhn77059kcck4sxmxpm-lib-dev\",\"\",\"\"),\
        (\"out\",\"/nix/store/d3p8sj88z8slb7xkhqzpbq0p33kzca41-lib\",\"\",\"\")],[\
        (\"/nix/store/2cm9nkywyymkd6mw5nyzkp079v5im4s3-src.drv\",[\"dev\",\"out\"]),\
        (\"/nix/store/va30ri3im2j4fm42n6sjh7i6y29k2phx-src.drv\",[])],[\
        \"/nix/store/2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-a\",\
        \"/nix/store/d3p8sj88z8slb7xkhqzpbq0p33kzca41-b\"],\
        \"x86_64-linux\",\"/b\\\\\\\"\",[\"\\n\",\"\xe9\"],[\
        (\"\",\"\\r\"),(\"a\",\"\xff\\t\")])";

    fn parse(bytes: &[u8]) -> Result<Derivation, Error> {
        Derivation::parse(bytes, "lib", &StoreDir::default())
    }

    /// Returns the small derivation with `from` replaced by `to`, once.
    fn changed(from: &str, to: &str) -> Vec<u8> {
        let start = memchr::memmem::find(SMALL, from.as_bytes()).unwrap();
        [&SMALL[..start], to.as_bytes(), &SMALL[start + from.len()..]].concat()
    }

    fn with_output(output: &str) -> Vec<u8> {
        format!(r#"Derive([{output}],[],[],"","",[],[])"#).into_bytes()
    }

    #[test]
    fn bytes_that_are_not_text_survive() {
        let derivation = parse(SMALL).unwrap();
        assert_eq!(derivation.args, [BString::from("\n"), b"\xe9".into()]);
        assert_eq!(derivation.env[b"a".as_bstr()], b"\xff\t");
        assert_eq!(derivation.builder, "/b\\\"");
        assert_eq!(derivation.to_aterm(&StoreDir::default()).as_bstr(), SMALL);
    }

    #[test]
    fn every_prefix_of_a_derivation_is_refused() {
        for len in 0..SMALL.len() {
            assert!(parse(&SMALL[..len]).is_err(), "cut to {len} bytes");
        }
    }

    #[test]
    fn every_single_byte_mutation_is_refused_or_printed_as_it_was_and_never_panics() {
        let store_dir = StoreDir::default();
        let mut mutated = SMALL.to_vec();
        for position in 0..SMALL.len() {
            for byte in 0..=u8::MAX {
                mutated[position] = byte;
                if let Ok(derivation) = parse(&mutated) {
                    assert_eq!(derivation.to_aterm(&store_dir).as_bstr(), mutated.as_bstr());
                }
            }
            mutated[position] = SMALL[position];
        }
    }

    #[test]
    fn an_error_tells_the_offset_of_the_byte_that_it_is_about() {
        let position = |bytes: &[u8]| match parse(bytes) {
            Err(Error::Derivation { position, .. }) => position,
            other => panic!("{other:?}"),
        };
        assert_eq!(position(b"Derive[]"), 0);
        assert_eq!(position(&[SMALL, b"\n"].concat()), SMALL.len());
        assert_eq!(position(b"Derive([(\"out"), 13);
        let raw_line_feed = changed("\\\\\\\"", "b\n");
        let expected = raw_line_feed
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap();
        assert_eq!(position(&raw_line_feed), expected);
        let unsorted = changed("dev\",\"out\"", "out\",\"dev\"");
        let expected = memchr::memmem::find(&unsorted, b"\"dev\"])").unwrap();
        assert_eq!(position(&unsorted), expected);
    }

    #[test]
    fn what_would_print_differently_is_refused() {
        for (from, to) in [
            ("(\"dev\",", "(\"out\","),
            ("(\"out\",", "(\"dev\","),
            ("\"dev\",\"out\"]", "\"out\",\"dev\"]"),
            ("\"dev\",\"out\"]", "\"out\",\"out\"]"),
            ("va30", "1a30"),
            ("2qgp", "zqgp"),
            ("(\"a\"", "(\"\""),
            ("\\r", "\\a"),
            ("\\r", "\r"),
            ("\\t", "\t"),
            ("\\n", "\n"),
            ("x86_64-linux", "x86_64\\tlinux"),
            ("-src.drv", "-src"),
            ("Derive(", "Derive( "),
            ("Derive(", "derive("),
            (",[]", ",()"),
            ("/nix/store/2", "/gnu/store/2"),
            ("/nix/store/2", "/nix/store//2"),
        ] {
            assert!(parse(&changed(from, to)).is_err(), "{from} -> {to}");
        }
        assert!(parse(&[SMALL, b" "].concat()).is_err());
        assert!(parse(&[SMALL, SMALL].concat()).is_err());
    }

    #[test]
    fn outputs_of_every_kind_are_told_apart() {
        let zeros = "0".repeat(64);
        let path = "/nix/store/2qgpd47jrm1g5pyj4s1dacj3hnkrfzvw-lib";
        for output in [
            format!(r#"("out","{path}","","")"#),
            r#"("out","","","")"#.to_owned(),
            r#"("out","","sha1","")"#.to_owned(),
            r#"("out","","r:sha256","")"#.to_owned(),
            r#"("out","","text:sha256","")"#.to_owned(),
            r#"("dev","","r:sha256",""),("out","","r:sha256","")"#.to_owned(),
            format!(r#"("out","{path}","sha256","{zeros}")"#),
            format!(r#"("out","{path}","r:sha256","{zeros}")"#),
        ] {
            let bytes = with_output(&output);
            let derivation = parse(&bytes).unwrap_or_else(|error| panic!("{output}: {error}"));
            assert_eq!(
                derivation.to_aterm(&StoreDir::default()).as_bstr(),
                bytes.as_bstr()
            );
        }
        for output in [
            String::new(),
            format!(r#"("out","{path}","","{zeros}")"#),
            format!(r#"("out","","","{zeros}")"#),
            format!(r#"("out","","sha256","{zeros}")"#),
            format!(r#"("out","{path}","sha256","")"#),
            format!(r#"("out","{path}","sha1","{zeros}")"#),
            format!(r#"("out","{path}","sha256","{}")"#, "A".repeat(64)),
            format!(r#"("out","{path}","sha256","{}")"#, "0".repeat(52)),
            format!(r#"("out","{path}","sha3","{zeros}")"#),
            format!(r#"("out","{path}","r:r:sha256","{zeros}")"#),
            format!(r#"("dev","{path}","sha256","{zeros}")"#),
            r#"("out","","r:sha256","impure")"#.to_owned(),
            r#"("dev","","sha1",""),("out","","r:sha256","")"#.to_owned(),
            format!(r#"("dev","","",""),("out","{path}","","")"#),
            r#"("..","","","")"#.to_owned(),
            r#"("a/b","","","")"#.to_owned(),
            r#"("","","","")"#.to_owned(),
        ] {
            assert!(parse(&with_output(&output)).is_err(), "{output}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        for opening in [
            "Derive(",
            "DrvWithVersion(",
            "[",
            "(",
            "Derive([(",
            "DrvWithVersion(\"\",",
        ] {
            assert!(parse(opening.repeat(1_000_000).as_bytes()).is_err());
        }
    }

    proptest! {
        #[test]
        fn parsing_undoes_printing(derivation in any_derivation()) {
            let aterm = derivation.to_aterm(&StoreDir::default());
            prop_assert_eq!(parse(&aterm), Ok(derivation));
        }
    }
}
