//! Logs and reports, as commands ask for them.

use super::servers::{Run, file};
use super::*;
use crate::testing::server::{Server, answer};
use crate::{CacheReport, FoundLog, PingCaches, QueryLog};

async fn log(substituter: &Addr<Substituter>, path: &StorePath) -> Option<FoundLog> {
    let path = path.clone();
    substituter.send(QueryLog { path }).await.unwrap().unwrap()
}

/// A derivation that no fixture has.
fn drv() -> StorePath {
    "00000000000000000000000000000000-x.drv".parse().unwrap()
}

#[actix::test]
async fn a_log_is_that_of_the_first_cache_in_order_that_has_it() {
    let caches = [(); 3].map(|()| Copy::of("cache-none"));
    for (cache, priority) in caches.iter().zip([30, 20, 10]) {
        cache.write_info(&format!("StoreDir: /nix/store\nPriority: {priority}\n"));
    }
    let paths = caches.each_ref().map(|cache| cache.path.as_path());
    let substituter = start_caches(&paths);
    assert!(log(&substituter, &drv()).await.is_none());
    for cache in &caches[..2] {
        fs::create_dir(cache.path.join("log")).unwrap();
        let text = cache.path.to_string_lossy().into_owned();
        fs::write(cache.path.join(format!("log/{}", drv())), text).unwrap();
    }
    let found = log(&substituter, &drv()).await.unwrap();
    assert_eq!(found.contents, caches[1].path.to_string_lossy().as_bytes());
    assert!(
        found
            .cache_name
            .ends_with(&*caches[1].path.to_string_lossy())
    );
}

#[actix::test]
async fn the_derivation_of_an_output_is_found_in_the_caches_own_description() {
    let cache = Copy::of("cache-none");
    let substituter = start_caches(&[&cache.path]);
    let with_deriver = contents(&cache.path);
    let narinfo = with_deriver
        .iter()
        .find(|narinfo| narinfo.info.deriver.is_some())
        .unwrap();
    let (path, deriver) = (&narinfo.info.path, narinfo.info.deriver.clone().unwrap());
    assert!(log(&substituter, path).await.is_none());
    fs::create_dir(cache.path.join("log")).unwrap();
    fs::write(
        cache.path.join(format!("log/{deriver}")),
        b"\x1b[1mbytes\xff",
    )
    .unwrap();
    // Nobody needs to have signed what is not believed.
    let text = fs::read_to_string(cache.narinfo_file(path)).unwrap();
    let unsigned = text.split_inclusive('\n');
    let unsigned: String = unsigned.filter(|line| !line.starts_with("Sig")).collect();
    fs::write(cache.narinfo_file(path), unsigned).unwrap();
    let found = log(&substituter, path).await.unwrap();
    assert_eq!(&*found.contents, b"\x1b[1mbytes\xff");
}

#[actix::test]
async fn a_log_that_a_server_packed_is_unpacked_and_one_without_end_is_none() {
    let packed = zstd::encode_all(&b"a log\n"[..], 1).unwrap();
    let root = fixtures().join("cache-none");
    let server = Server::start(move |request| match request.target.as_str() {
        "/log/00000000000000000000000000000000-x.drv" => {
            answer(200, &[("Content-Encoding", "zstd")], &packed)
        }
        "/log/11111111111111111111111111111111-x.drv" => {
            // What says that it is so long is not read.
            answer(200, &[], &vec![0; (64 << 20) + 1])
        }
        _ => file(&root, request),
    });
    let run = Run::new();
    let substituter = run.start(&settings(&[server.url("")]));
    assert_eq!(log(&substituter, &drv()).await.unwrap().contents, "a log\n");
    let endless = "11111111111111111111111111111111-x.drv".parse().unwrap();
    assert!(log(&substituter, &endless).await.is_none());
}

#[actix::test]
async fn a_ping_tells_what_each_cache_says_or_why_it_is_none() {
    let good = Copy::of("cache-none");
    good.write_info("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n");
    let foreign = Copy::of("cache-none");
    foreign.write_info("StoreDir: /elsewhere\n");
    let url = |cache: &Copy| format!("file://{}", cache.path.display());
    let settings = settings(&[
        url(&good),
        url(&foreign),
        "file:///no/such/cache?trusted=1".to_owned(),
    ]);
    let substituter = start_with(&settings);
    let reports = substituter.send(PingCaches).await.unwrap().unwrap();
    let [good, foreign, missing]: [CacheReport; 3] = reports.try_into().unwrap();
    let info = good.info.unwrap();
    assert_eq!((info.priority, info.want_mass_query), (Some(7), true));
    assert!(good.needs_signatures && !missing.needs_signatures);
    let reason = foreign.info.unwrap_err();
    assert!(reason.contains("'/elsewhere'"), "{reason}");
    assert!(missing.info.is_err());
}
