//! The built-in builders, with genuine Nix beside: what they make and how they fail.

use std::fs;
use std::io::Write as _;

use it::snapshot::Snapshot;
use it::web::{Answer, WebServer};
use it::{Finished, Invocation, Profile, TestStore, debris, requirement};
use store_model::nar::Tree;
use store_model::{Hash, HashAlgorithm};

mod trust;

/// Builds the same derivations by each program in a store of its own, and compares how that ends
/// and what is in the stores then; returns what goalctl said, and its store.
fn assert_alike(
    profile: Profile,
    expression: &str,
    tell: impl Fn(Invocation) -> Invocation,
) -> (Finished, TestStore) {
    let [by_nix, by_goalctl] = [TestStore::of(profile), TestStore::of(profile)];
    let drvs = by_nix.instantiate(expression);
    assert_eq!(drvs, by_goalctl.instantiate(expression));
    let nix = tell(by_nix.nix_store(["--realise"]).args(&drvs)).run();
    let goalctl = tell(by_goalctl.goalctl(["build"]).args(&drvs)).run();
    assert_eq!(goalctl.code(), nix.code(), "{goalctl}\nand with Nix\n{nix}");
    Snapshot::of(&by_nix).assert_same_as(&Snapshot::of(&by_goalctl));
    debris::assert_verifies(&by_goalctl);
    debris::assert_clean(&by_goalctl);
    (goalctl, by_goalctl)
}

fn sha256(bytes: &[u8]) -> String {
    Hash::digest(HashAlgorithm::Sha256, bytes).to_base32()
}

/// An expression that downloads a file.
fn fetch(name: &str, url: &str, content: &[u8], attributes: &str) -> String {
    let hash = sha256(content);
    format!(
        "(import <nix/fetchurl.nix> {{ name = \"{name}\"; url = \"{url}\"; sha256 = \"{hash}\"; \
         {attributes} }})"
    )
}

/// Builds one download by goalctl alone.
fn download(store: &TestStore, url: &str, content: &[u8]) -> Invocation {
    let drv = store.instantiate_one(&fetch("fetched", url, content, ""));
    store.goalctl(["build", &drv])
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}

/// Bytes that no two positions share.
fn large() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn what_is_downloaded_is_what_nix_downloads() {
    if !requirement::genuine_nix() {
        return;
    }
    let tree = Tree::directory([
        ("bin", Tree::directory([("run", Tree::executable("run"))])),
        ("link", Tree::symlink("bin/run")),
    ]);
    let archive = tree.to_nar().expect("the tree can be archived");
    let script = Tree::executable("#!/bin/sh\n").to_nar();
    let script = script.expect("a file can be archived");
    let compressed = xz(&archive);
    let plain = archive.clone();
    let server = WebServer::start(move |request| match request.path.as_str() {
        "/empty" => Answer::file(""),
        "/large" => Answer::part(request, &large()),
        "/script" => Answer::file("#!/bin/sh\n"),
        "/tree.nar" => Answer::file(plain.clone()),
        "/tree.nar.xz" => Answer::file(compressed.clone()),
        "/a%20b?c=d" => Answer::file("query"),
        "/moved" => Answer::redirect(301, "/dir/again"),
        "/dir/again" => Answer::redirect(302, "../dir/third"),
        "/dir/third" => Answer::redirect(307, "script"),
        "/dir/script" => Answer::file("moved"),
        _ => Answer::error(404),
    });
    let fetches = [
        fetch("empty", &server.url("/empty"), b"", ""),
        fetch("large", &server.url_by_number("/large"), &large(), ""),
        fetch(
            "script",
            &server.url("/script"),
            &script,
            "executable = true;",
        ),
        fetch("tree", &server.url("/tree.nar"), &archive, "unpack = true;"),
        fetch(
            "tree-xz",
            &server.url("/tree.nar.xz"),
            &archive,
            "unpack = true;",
        ),
        fetch("query", &server.url("/a%20b?c=d"), b"query", ""),
        fetch("moved", &server.url("/moved"), b"moved", ""),
        fetch(
            "file",
            "file://${builtins.toFile \"a\" \"text\"}",
            b"text",
            "",
        ),
    ];
    for profile in Profile::all() {
        let expression = format!("[ {} ]", fetches.join(" "));
        let (finished, _) = assert_alike(profile, &expression, |invocation| invocation);
        finished.expect_status(0);
    }
}

/// A download that fails.
struct Hopeless {
    expression: String,
    /// What goalctl says of it.
    words: &'static str,
    /// What is asked for, and how often.
    path: &'static str,
    n_requests: usize,
}

/// Downloads that the server refuses or answers with something else.
fn hopeless_servers(server: &WebServer) -> Vec<Hopeless> {
    [
        ("/none", "HTTP error 404", 1, ""),
        ("/forbidden", "HTTP error 403", 1, ""),
        ("/other", "hash mismatch", 1, ""),
        ("/circle", "too many redirects", 11, ""),
        ("/file", "redirects to a file", 1, ""),
        ("/no-archive", "unpacking what", 1, "unpack = true;"),
    ]
    .into_iter()
    .map(|(path, words, n_requests, attributes)| Hopeless {
        expression: fetch("x", &server.url(path), b"x", attributes),
        words,
        path,
        n_requests,
    })
    .collect()
}

/// Derivations for which no server is asked.
fn hopeless_derivations() -> Vec<Hopeless> {
    let builtin = |builder: &str, attributes: &str| {
        format!(
            "derivation {{ name = \"x\"; system = \"builtin\"; builder = \"{builder}\"; \
             outputHashAlgo = \"sha256\"; outputHash = \"{}\"; {attributes} }}",
            sha256(b"x")
        )
    };
    let url = "url = \"http://localhost/\";";
    [
        (
            fetch("x", "file:///no/such/file", b"x", ""),
            "reading the file",
        ),
        (fetch("x", "gopher://localhost/x", b"x", ""), "scheme"),
        (builtin("builtin:fetchurl", ""), "attribute 'url' missing"),
        (
            builtin("builtin:fetchurl", url),
            "attribute 'outputHashMode' missing",
        ),
        (
            builtin("builtin:other", url),
            "unsupported builtin builder 'other'",
        ),
        (builtin("builtin:", url), "unsupported builtin builder ''"),
    ]
    .into_iter()
    .map(|(expression, words)| Hopeless {
        expression,
        words,
        path: "",
        n_requests: 0,
    })
    .collect()
}

#[test]
fn what_cannot_be_downloaded_fails_as_with_nix_and_is_asked_for_once() {
    if !requirement::genuine_nix() {
        return;
    }
    let server = WebServer::start(|request| match request.path.as_str() {
        "/forbidden" => Answer::error(403),
        "/other" => Answer::file("something else"),
        "/circle" => Answer::redirect(302, "/circle"),
        "/no-archive" => Answer::file("no archive"),
        "/file" => Answer::redirect(302, "file:///etc/passwd"),
        _ => Answer::error(404),
    });
    for hopeless in hopeless_servers(&server)
        .into_iter()
        .chain(hopeless_derivations())
    {
        let n_asked_before = std::cell::Cell::new(0);
        let (finished, _) = assert_alike(Profile::native(), &hopeless.expression, |invocation| {
            // Nix comes first, so the last time that this is set it is goalctl's turn.
            n_asked_before.set(server.n_requests(hopeless.path));
            invocation
                .option("connect-timeout", "5")
                .option("download-attempts", "3")
        });
        assert_ne!(finished.code(), 0, "{finished}");
        finished.expect_error(hopeless.words);
        let n_asked = server.n_requests(hopeless.path) - n_asked_before.get();
        assert_eq!(n_asked, hopeless.n_requests, "{finished}");
    }
}

#[test]
fn a_server_that_has_a_bad_moment_is_asked_again_and_one_that_always_has_is_given_up() {
    if !requirement::genuine_nix() {
        return;
    }
    let server = WebServer::start(
        |request| match (request.path.as_str(), request.n_before % 2) {
            ("/recovers" | "/nix-recovers", 0) => Answer::error(503),
            ("/recovers" | "/nix-recovers", _) => Answer::file("better"),
            _ => Answer::error(500),
        },
    );
    let expression = format!(
        "[ {} ]",
        fetch("recovers", &server.url("/recovers"), b"better", "")
    );
    let (finished, _) = assert_alike(Profile::native(), &expression, |invocation| invocation);
    finished
        .expect_error("HTTP error 503")
        .expect_error("retrying in");
    assert_eq!(server.n_requests("/recovers"), 4);

    let expression = fetch("never", &server.url("/never"), b"x", "");
    let (finished, _) = assert_alike(Profile::native(), &expression, |invocation| {
        invocation.option("download-attempts", "2")
    });
    finished.expect_error("HTTP error 500");
    assert_eq!(server.n_requests("/never"), 4);
}

#[test]
fn a_transfer_that_breaks_off_is_taken_up_where_it_was_or_from_the_beginning() {
    let archive = Tree::file(large())
        .to_nar()
        .expect("a file can be archived");
    let (plain, compressed) = (archive.clone(), xz(&archive));
    let half = compressed.len() / 2;
    let server = WebServer::start(move |request| {
        let whole = large();
        match (request.path.as_str(), request.n_before) {
            ("/parts", 0) => Answer::file(whole)
                .with("ETag", "\"v1\"")
                .hanging_up_after(300_000),
            ("/parts", 1) => Answer::part(request, &whole).hanging_up_after(10),
            ("/parts", _) => Answer::part(request, &whole),
            ("/wholes", 0 | 1) => Answer::file(whole).hanging_up_after(300_001),
            ("/wholes", _) => Answer::file(whole),
            ("/tree.nar.xz", 0) => Answer::file(compressed.clone()).hanging_up_after(half),
            ("/tree.nar.xz", _) => Answer::part(request, &compressed),
            ("/lies", 0) => Answer::file(whole).hanging_up_after(1000),
            ("/lies", _) => Answer::range("bytes 7-9/10", b"789"),
            _ => Answer::file(plain.clone()).hanging_up_after(5),
        }
    });
    let store = TestStore::new();
    download(&store, &server.url("/parts"), &large())
        .succeed()
        .expect_error("retrying from offset 300000 in");
    let parts = server.requests();
    let header = |idx: usize, name: &str| parts[idx].headers.get(name).cloned();
    assert_eq!(header(0, "range"), None);
    assert_eq!(header(1, "range").as_deref(), Some("bytes=300000-"));
    assert_eq!(header(1, "if-range").as_deref(), Some("\"v1\""));
    assert_eq!(header(2, "range").as_deref(), Some("bytes=300010-"));

    let store = TestStore::new();
    download(&store, &server.url("/wholes"), &large()).succeed();
    assert_eq!(server.n_requests("/wholes"), 3);

    let store = TestStore::new();
    let expression = fetch("x", &server.url("/tree.nar.xz"), &archive, "unpack = true;");
    let drv = store.instantiate_one(&expression);
    store.goalctl(["build", &drv]).succeed();
    let made = fs::read(store.real(&store.output_of(&drv, "out")));
    assert_eq!(made.expect("it was made"), large());

    download(&store, &server.url("/always"), b"x")
        .option("download-attempts", "2")
        .run()
        .expect_status(1)
        .expect_error("retrying from offset 5 in");
    download(&store, &server.url("/lies"), b"y")
        .run()
        .expect_status(1)
        .expect_error("another part of the file");
    debris::assert_clean(&store);
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let server = WebServer::start(|request| match (request.path.as_str(), request.n_before) {
        ("/recovers", 0) => Answer::file("whole").stalling_after(2),
        ("/recovers", _) => Answer::part(request, b"whole"),
        _ => Answer::file("whole").stalling_after(0),
    });
    let store = TestStore::new();
    let patience = |invocation: Invocation| invocation.option("stalled-download-timeout", "1");
    patience(download(&store, &server.url("/recovers"), b"whole"))
        .succeed()
        .expect_error("silent for too long; retrying from offset 2");
    patience(download(&store, &server.url("/never"), b"never"))
        .option("download-attempts", "1")
        .run()
        .expect_status(1)
        .expect_error("silent for too long");
    debris::assert_clean(&store);
}

#[test]
fn environments_are_those_of_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let packages = r#"
      let
        pkg = name: script: mk name "mkdir -p $out/bin; cd $out; ${script}" { };
        a = pkg "a" "echo a > bin/a; mkdir -p share/doc; echo > share/doc/a; echo > bin/common;
          mkdir -p nix-support; echo ${c} > nix-support/propagated-user-env-packages";
        b = mk "b" "mkdir -p $out/bin $out/share/doc $man/share/man; echo b > $out/bin/b;
          echo > $out/share/doc/b; echo > $out/bin/common; echo > $man/share/man/b;
          ln -s nowhere $out/dangling; ln -s $man/share $out/linked" { outputs = [ "out" "man" ]; };
        c = pkg "c" "echo c > bin/c; mkdir -p lib/deep/er; echo > lib/deep/er/c; echo > .hidden;
          echo > log; mkdir linked; echo > linked/c";
        d = pkg "d" "mkdir -p bin/common/x";
        e = mk "e" "echo no directory > $out" { };
        use = package: priority: outputs: { inherit package priority outputs; };
        env = packages: derivation {
          name = "user-environment";
          system = "builtin";
          builder = "builtin:buildenv";
          manifest = builtins.toFile "manifest" "[ ]";
          derivations = map (package:
            [ "true" package.priority (builtins.length package.outputs) ]
            ++ map (name: package.package.${name}) package.outputs) packages;
        };
      in
    "#;
    for profile in Profile::all() {
        for (environment, words) in [
            (
                "[ (use a 5 [ \"out\" ]) (use b 6 [ \"out\" \"man\" ]) (use e 5 [ \"out\" ]) ]",
                None,
            ),
            ("[ (use b 4 [ \"out\" ]) (use a 5 [ \"out\" ]) ]", None),
            ("[ ]", None),
            (
                "[ (use a 5 [ \"out\" ]) (use b 5 [ \"out\" ]) ]",
                Some("have the same priority 5"),
            ),
            (
                "[ (use a 5 [ \"out\" ]) (use d 6 [ \"out\" ]) ]",
                Some("and non-directory"),
            ),
        ] {
            let expression = format!("{packages} env {environment}");
            let (finished, _) = assert_alike(profile, &expression, |invocation| invocation);
            match words {
                None => finished.expect_status(0),
                Some(words) => finished.expect_status(100).expect_error(words),
            };
        }
    }
}

/// A tarball with a header that git writes and the members that are named.
fn tarball(members: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XGlobalHeader);
    header.set_size(0);
    builder
        .append_data(&mut header, "pax_global_header", std::io::empty())
        .expect("memory can be written");
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(if member.ends_with("run") {
            0o755
        } else {
            0o644
        });
        header.set_size(member.len() as u64);
        builder
            .append_data(&mut header, member, member.as_bytes())
            .expect("memory can be written");
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "top/link", "run")
        .expect("memory can be written");
    builder.into_inner().expect("memory can be written")
}

#[test]
fn channels_are_unpacked_as_by_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let one = tarball(&["top/default.nix", "top/bin/run"]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&one).expect("memory can be written");
    let gzip = gzip.finish().expect("memory can be written");
    let two = tarball(&["top/default.nix", "second/file"]);
    let out = tarball(&["top/default.nix"]);
    let out: Vec<u8> = {
        // The name leads out of the folder; its checksum is made right again.
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..9].copy_from_slice(b"../escape");
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        [header.as_bytes().as_slice(), &out].concat()
    };
    let cut = xz(&one);
    let cut = cut[..cut.len() / 2].to_vec();
    let server_files = tempfile::tempdir().expect("a folder can be made");
    for profile in Profile::all() {
        for (name, bytes, words) in [
            ("plain.tar", &one, None),
            ("channel.tar.xz", &xz(&one), None),
            ("channel.tar.gz", &gzip, None),
            ("two.tar", &two, Some("contains more than one file")),
            ("out.tar", &out, Some("leads out of its directory")),
            ("cut.tar.xz", &cut, Some("unpacking the channel tarball")),
        ] {
            let file = server_files.path().join(name);
            fs::write(&file, bytes).expect("the folder is ours");
            let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(server_files.path(), everybody).expect("the folder is ours");
            let expression = format!(
                "derivation {{ name = \"channel\"; channelName = \"named\"; system = \"builtin\"; \
                 builder = \"builtin:unpack-channel\"; src = builtins.path {{ name = \"{name}\"; path = {}; }}; }}",
                file.display()
            );
            let (finished, store) = assert_alike(profile, &expression, |invocation| invocation);
            match words {
                None => finished.expect_status(0),
                Some(words) => finished.expect_status(100).expect_error(words),
            };
            assert!(!store.dir().join("root/nix/store/escape").exists());
        }
    }
}
