//! Options that concern binary caches.

use super::super::field::Field;
use super::{SettingOption, implemented};

pub(super) const OPTIONS: &[SettingOption] = &[
    implemented(
        "always-allow-substitutes",
        &[],
        Field::Switch(|s| &mut s.always_allow_substitutes),
    ),
    implemented(
        "cache-answer-timeout",
        &[],
        Field::Seconds(|s| &mut s.cache_answer_timeout),
    ),
    implemented(
        "http-connections",
        &["binary-caches-parallel-connections"],
        Field::Count(|s| &mut s.http_connections),
    ),
    implemented("http2", &[], Field::Switch(|s| &mut s.http2)),
    implemented(
        "narinfo-cache-meta-ttl",
        &[],
        Field::Lifetime(|s| &mut s.narinfo_cache_meta_ttl),
    ),
    implemented(
        "narinfo-cache-negative-ttl",
        &[],
        Field::Lifetime(|s| &mut s.narinfo_cache_negative_ttl),
    ),
    implemented(
        "narinfo-cache-positive-ttl",
        &[],
        Field::Lifetime(|s| &mut s.narinfo_cache_positive_ttl),
    ),
    implemented("require-sigs", &[], Field::Switch(|s| &mut s.require_sigs)),
    implemented(
        "substituters",
        &["binary-caches"],
        Field::Sequence(|s| &mut s.substituters),
    ),
    implemented(
        "trusted-public-keys",
        &["binary-cache-public-keys"],
        Field::Sequence(|s| &mut s.trusted_public_keys),
    ),
    implemented(
        "trusted-substituters",
        &["trusted-binary-caches"],
        Field::Words(|s| &mut s.trusted_substituters),
    ),
    implemented(
        "user-agent-suffix",
        &[],
        Field::Text(|s| &mut s.user_agent_suffix),
    ),
];
