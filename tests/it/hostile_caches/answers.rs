//! What caches say of paths, before anything is fetched (SECURITY N01, N02, N03, P09).

use it::publication::{Narinfo, base_name};

use super::lie::{Lie, Truth};
use super::scene::{Found, Row};

#[test]
fn a_description_of_another_path_is_no_answer_though_it_is_signed() {
    let lies = [Lie::narinfo("another path", |truth| {
        let narinfo = truth.other.narinfo().signed_by(&truth.key);
        narinfo.to_string()
    })];
    Row::of(lies).assert_found(Found::InAnswer);
}

#[test]
fn what_is_signed_cannot_be_changed_on_the_way() {
    let hash = "sha256:0000000000000000000000000000000000000000000000000000";
    let reference = "00000000000000000000000000000000-else";
    let lies = [
        Lie::in_the_middle("hash", move |narinfo| narinfo.with("NarHash", hash)),
        Lie::in_the_middle("size", |narinfo| narinfo.with("NarSize", "1")),
        Lie::in_the_middle("references", move |narinfo| {
            narinfo.with("References", reference)
        }),
        Lie::in_the_middle("itself", |narinfo| {
            let itself = base_name(narinfo.value("StorePath")).to_owned();
            narinfo.with("References", &itself)
        }),
        Lie::in_the_middle("no signature", |narinfo| narinfo.without("Sig")),
        Lie::in_the_middle("a content address", |narinfo| {
            let address = format!("fixed:r:{}", narinfo.value("NarHash"));
            narinfo.without("Sig").with("CA", &address)
        }),
    ];
    Row::of(lies).assert_found(Found::InAnswer);
}

#[test]
fn what_is_not_signed_and_does_not_matter_may_be_changed_on_the_way() {
    let deriver = "00000000000000000000000000000000-else.drv";
    let lies = [
        Lie::in_the_middle("deriver", move |narinfo| narinfo.with("Deriver", deriver)),
        Lie::in_the_middle("no deriver", |narinfo| narinfo.without("Deriver")),
        Lie::in_the_middle("system", |narinfo| narinfo.with("System", "pdp11")),
        Lie::in_the_middle("no file", |narinfo: Narinfo| {
            narinfo.without("FileHash").without("FileSize")
        }),
        Lie::in_the_middle("what nobody knows", |narinfo| narinfo.and("Mood", "good")),
        Lie::in_the_middle("signatures", |narinfo| {
            let good = narinfo.value("Sig").to_owned();
            let narinfo = narinfo.with("Sig", "other-1:AAAA");
            narinfo.and("Sig", &good).and("Sig", "z:")
        }),
    ];
    Row::of(lies).assert_harmless();
}

/// Changes the text of a description that is signed.
fn garbled(name: &str, garble: impl Fn(String) -> String + Send + Sync + 'static) -> Lie {
    Lie::narinfo(name, move |truth: &Truth| {
        garble(truth.narinfo().to_string())
    })
}

#[test]
fn what_two_readers_could_understand_differently_is_no_answer() {
    let lies = [
        Lie::in_the_middle("two paths", |narinfo| {
            let other = "/nix/store/00000000000000000000000000000000-else";
            narinfo.and("StorePath", other)
        }),
        Lie::in_the_middle("two hashes", |narinfo| {
            let hash = narinfo.value("NarHash").to_owned();
            narinfo.and("NarHash", &hash)
        }),
        Lie::in_the_middle("references twice", |narinfo| narinfo.and("References", "")),
        garbled("ends of lines", |text| text.replace('\n', "\r\n")),
        garbled("a blank", |text| text.replacen('\n', " \n", 1)),
        garbled("no end", |text| text.trim_end().to_owned()),
        garbled("a zero", |text| text + "Mood: \0\n"),
        garbled("no colon", |text| text + "good\n"),
        garbled("nothing", |_| String::new()),
        garbled("a page", |_| "<html>Not here</html>\n".to_owned()),
        Lie::narinfo("no text", |truth| {
            [truth.narinfo().to_string().as_bytes(), b"Mood: \xff\n"].concat()
        }),
    ];
    Row::of(lies).assert_found(Found::InAnswer);
}

#[test]
fn what_is_too_large_to_be_meant_is_no_answer() {
    let lies = [
        garbled("ten megabytes", |text| {
            text + &"Mood: good\n".repeat(1_000_000)
        }),
        Lie::signed("twenty thousand references", |narinfo| {
            let names = (0..20_000_u32).map(|idx| format!("{idx:032}-x"));
            narinfo.with("References", &names.collect::<Vec<_>>().join(" "))
        }),
        Lie::in_the_middle("a thousand signatures", |narinfo| {
            let signatures = (0..1_000).map(|idx| format!("other-{idx}:AAAA"));
            signatures.fold(narinfo, |narinfo, signature| narinfo.and("Sig", &signature))
        }),
        Lie::signed("2^64 bytes", |narinfo| {
            narinfo.with("NarSize", "18446744073709551616")
        }),
        Lie::signed("no bytes", |narinfo| narinfo.with("NarSize", "0")),
        Lie::signed("less than nothing", |narinfo| narinfo.with("NarSize", "-1")),
        Lie::in_the_middle("a file of 2^64 bytes", |narinfo| {
            narinfo.with("FileSize", "18446744073709551616")
        }),
    ];
    Row::of(lies).assert_found(Found::InAnswer);
}

#[test]
fn names_that_no_path_can_have_are_no_answer() {
    let hash = "0c0000000000000000000000000000000";
    let names = [
        format!("{}Xname", &hash[..32]),
        format!("{}name", &hash[..32]),
        format!("{}-name", &hash[..31]),
        format!("{hash}-name"),
        format!("e{}-name", &hash[..31]),
        format!("{}-", &hash[..32]),
        format!("{}-.", &hash[..32]),
        format!("{}-..", &hash[..32]),
        format!("{}-.-x", &hash[..32]),
        format!("{}-{}", &hash[..32], "n".repeat(212)),
        format!("{}-a/b", &hash[..32]),
        format!("{}-\u{e9}", &hash[..32]),
    ];
    let in_references = names.iter().cloned().map(|name| {
        Lie::signed(format!("refers to {name}"), move |narinfo| {
            narinfo.with("References", &name)
        })
    });
    let in_deriver = names[..2].iter().cloned().map(|name| {
        Lie::in_the_middle(format!("made by {name}"), move |narinfo| {
            narinfo.with("Deriver", &name)
        })
    });
    let as_itself = ["", "/", "/../../etc"].map(|end| {
        Lie::signed(format!("is called ...{end}"), move |narinfo| {
            let path = format!("{}{end}", narinfo.value("StorePath"));
            let path = if end.is_empty() { "" } else { &path };
            narinfo.with("StorePath", path)
        })
    });
    let lies = in_references.chain(in_deriver).chain(as_itself);
    Row::of(lies).assert_found(Found::InAnswer);
}
