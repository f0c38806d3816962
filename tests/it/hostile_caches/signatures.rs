//! Signatures that are none (SECURITY N04).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use it::publication::{Narinfo, SigningKey};

use super::lie::{Lie, Truth};
use super::scene::{Found, Row, key};

/// The order of the curve's group, the last byte first: a signature to which it is added is good in the
/// eyes of whoever does not look.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// Puts something in the place of the signature, which is given.
fn instead(name: &str, signature: fn(&Truth, [u8; 64]) -> String) -> Lie {
    Lie::narinfo(name, move |truth| {
        let narinfo = truth.path.narinfo();
        let good = truth.key.signature(&narinfo.fingerprint());
        narinfo.and("Sig", &signature(truth, good)).to_string()
    })
}

/// Names a key beside a signature.
fn by(key: &str, signature: impl AsRef<[u8]>) -> String {
    format!("{key}:{}", STANDARD.encode(signature))
}

/// Adds the group's order to the second half of a signature.
fn malleated(signature: [u8; 64]) -> [u8; 64] {
    let mut carry = 0;
    let mut other = signature;
    for (digit, added) in other[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*digit) + u16::from(added) + carry;
        [*digit, _] = sum.to_le_bytes();
        carry = sum >> 8;
    }
    assert_eq!(
        carry, 0,
        "both are less than half of what there is room for"
    );
    other
}

#[test]
fn nothing_but_the_one_signature_by_a_trusted_key_is_a_signature() {
    let lies = [
        instead("rewritten", |truth, good| {
            by(truth.key.name(), malleated(good))
        }),
        instead("by a key of the same name", |truth, _| {
            let key = SigningKey::new(truth.key.name(), 8);
            key.sign(&truth.path.narinfo().fingerprint())
        }),
        instead("under another name", |_, good| by("nobody-1", good)),
        instead("under no name", |_, good| by("", good)),
        instead("of another path", |truth, _| {
            truth.key.sign(&truth.other.narinfo().fingerprint())
        }),
        instead("empty", |truth, _| by(truth.key.name(), [])),
        instead("short", |truth, good| by(truth.key.name(), &good[..63])),
        instead("long", |truth, good| {
            by(truth.key.name(), [&good[..], &[0]].concat())
        }),
        instead("zeros", |truth, _| by(truth.key.name(), [0; 64])),
        instead("unpadded", |truth, good| {
            format!("{}:{}", truth.key.name(), STANDARD_NO_PAD.encode(good))
        }),
        instead("with bits that mean nothing", |truth, good| {
            // The last digit before the padding has four bits that belong to no byte.
            let text = by(truth.key.name(), good);
            let digits = text.trim_end_matches('=');
            let last = digits.chars().last().expect("there are 86");
            let next = char::from_u32(u32::from(last) + 1).expect("it is a small one");
            format!("{}{next}==", &digits[..digits.len() - 1])
        }),
        instead("without a name", |_, good| STANDARD.encode(good)),
    ];
    Row::of(lies).assert_found(Found::InAnswer);
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let others = |narinfo: Narinfo| {
        let good = narinfo.value("Sig").to_owned();
        let other = SigningKey::new("somebody-1", 9).sign(&narinfo.fingerprint());
        let same_name = SigningKey::new(key().name(), 9).sign(&narinfo.fingerprint());
        let narinfo = narinfo.with("Sig", &other).and("Sig", &same_name);
        narinfo.and("Sig", &good)
    };
    Row::of([Lie::in_the_middle("others", others)]).assert_harmless();
}
