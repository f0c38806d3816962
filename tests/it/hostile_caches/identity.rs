//! What caches say of themselves (SECURITY N11).

use it::web::Answer;

use super::lie::{File, Lie};
use super::scene::{Found, Row};

/// A cache that says this of itself.
fn saying(text: &'static str) -> Lie {
    Lie::of(text, File::Info, move |_| Answer::file(text))
}

#[test]
fn a_cache_for_another_store_or_none_at_all_is_not_used_and_told_once() {
    let lies = [
        saying("StoreDir: /gnu/store\n"),
        saying("StoreDir: /nix/store/..\n"),
        saying("StoreDir: nix/store\n"),
        saying("StoreDir: /nix/store\nPriority: -1\n"),
        saying("StoreDir: /nix/store\nPriority: 4294967296\n"),
        saying("StoreDir: /nix/store\nPriority: first\n"),
        saying("Welcome\n"),
        Lie::of("none", File::Info, |_| Answer::error(404)),
        Lie::of("a page", File::Info, |_| Answer::welcome_page()),
        Lie::of("no text", File::Info, |_| Answer::file(b"\xff: 1\n")),
        Lie::of("endless", File::Info, |_| {
            Answer::file("StoreDir: /nix/store\n".repeat(1000)).endless()
        }),
        Lie::of("a gigabyte", File::Info, |honest| {
            honest.claiming(1 << 30).stalling_after(20)
        }),
    ];
    Row::of(lies).assert_found(Found::InWhatItIs);
}

#[test]
fn a_cache_that_says_little_of_itself_is_used() {
    let lies = [
        saying("\n"),
        saying("StoreDir: /nix/store"),
        saying("WantMassQuery: perhaps\nPriority: 0\nMood: good\n"),
    ];
    Row::of(lies).assert_harmless();
}
