//! Path metadata as JSON: what `nix path-info --json` of Nix 2.8 prints.

use crate::json_text::{JsonText, Layout};
use crate::{PathInfo, StoreDir, StorePath};

/// What is printed of one path.
#[derive(Debug, Clone, Copy)]
pub struct PathInfoJson<'a> {
    /// The path that was asked about.
    pub path: &'a StorePath,
    /// What the store knows of it; nothing if the path is not valid.
    pub info: Option<&'a PathInfo>,
    /// The sum of the NAR sizes of the path's closure, if asked for.
    pub closure_size_bytes: Option<u64>,
}

/// Returns a JSON list of paths, without any space and without a final line feed, as Nix does.
#[must_use]
pub fn path_infos_to_json<'a>(
    paths: impl IntoIterator<Item = PathInfoJson<'a>>,
    store_dir: &StoreDir,
) -> Vec<u8> {
    let mut json = JsonText::new(Layout::Compact);
    json.list(paths, |json, path| {
        json.object(|json| {
            json.key("path");
            json.string(store_dir.print(path.path));
            if let Some(info) = path.info {
                print(info, path.closure_size_bytes, store_dir, json);
            } else {
                json.key("valid");
                json.literal(false);
            }
        });
    });
    json.into_bytes()
}

fn print(
    info: &PathInfo,
    closure_size_bytes: Option<u64>,
    store_dir: &StoreDir,
    json: &mut JsonText,
) {
    json.key("narHash");
    json.string(info.nar_hash.to_hash().to_sri());
    json.key("narSize");
    json.literal(info.nar_size_bytes);
    json.key("references");
    json.list(&info.references, |json, path| {
        json.string(store_dir.print(path));
    });
    if let Some(address) = &info.content_address {
        json.key("ca");
        json.string(address);
    }
    if let Some(size_bytes) = closure_size_bytes {
        json.key("closureSize");
        json.literal(size_bytes);
    }
    if let Some(deriver) = &info.deriver {
        json.key("deriver");
        json.string(store_dir.print(deriver));
    }
    // 0 stands for an unknown time.
    if info.registration_time != 0 {
        json.key("registrationTime");
        json.literal(info.registration_time);
    }
    if info.ultimate {
        json.key("ultimate");
        json.literal(true);
    }
    if !info.signatures.is_empty() {
        json.key("signatures");
        json.list(&info.signatures, JsonText::string);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn members_stand_in_nix_s_order_and_absent_ones_are_left_out() {
        let store_dir = StoreDir::default();
        let path: StorePath = "xp0dpr9yz5h0fk5c5lpj7zzqjbdh3w8c-f".parse().unwrap();
        let nar_hash = "sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM="
            .parse()
            .unwrap();
        let content_address = "fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw";
        let info = PathInfo {
            path: path.clone(),
            nar_hash,
            nar_size_bytes: 120,
            references: [path.clone()].into(),
            deriver: None,
            registration_time: 1_795_369_875,
            ultimate: false,
            signatures: ["k:s".to_owned()].into(),
            content_address: Some(content_address.to_owned()),
        };
        let entry = |info| PathInfoJson {
            path: &path,
            info,
            closure_size_bytes: None,
        };
        let printed = path_infos_to_json([entry(Some(&info)), entry(None)], &store_dir);
        let expected = format!(
            "[{{\"path\":\"/nix/store/{path}\",\
             \"narHash\":\"sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM=\",\
             \"narSize\":120,\"references\":[\"/nix/store/{path}\"],\"ca\":\"{content_address}\",\
             \"registrationTime\":1795369875,\"signatures\":[\"k:s\"]}},\
             {{\"path\":\"/nix/store/{path}\",\"valid\":false}}]"
        );
        assert_eq!(String::from_utf8(printed).unwrap(), expected);
    }
}
