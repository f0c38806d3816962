//! Caches that are written.

use std::collections::BTreeSet;

use store_model::nar::{FileHeader, Tree};
use store_model::{NarHash, PathInfo};

use super::*;
use crate::testing::server::{Request, Server, Step, answer};
use crate::{
    CacheWriter, ContentsError, PrepareCache, QueryPresent, StopWriter, TellContents, UploadError,
    UploadPath, Uploaded, start_writer,
};

/// A path of a pretended store.
#[derive(Clone)]
struct Goods {
    info: PathInfo,
    tree: Tree,
}

impl Goods {
    fn new(number: u8, references: &[&Self]) -> Self {
        let tree = Tree::directory([("file", Tree::file(vec![number; 5000]))]);
        let archive = tree.to_nar().unwrap();
        let hash = Hash::digest(HashAlgorithm::Sha256, &archive);
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.as_bytes());
        let references = references.iter().map(|goods| goods.info.path.clone());
        Self {
            info: PathInfo {
                path: StorePath::from_digest(&[number; 20], &format!("p{number}")).unwrap(),
                nar_hash: NarHash::from_sha256(digest),
                nar_size_bytes: u64::try_from(archive.len()).unwrap(),
                references: references.collect(),
                deriver: None,
                registration_time: 0,
                ultimate: false,
                signatures: BTreeSet::new(),
                content_address: None,
            },
            tree,
        }
    }

    fn contents(&self) -> TellContents {
        let tree = self.tree.clone();
        Box::new(move |mut visitor| Ok(tree.tell(None, &mut visitor)?))
    }

    fn narinfo_file(&self) -> String {
        format!("{}.narinfo", self.info.path.hash_part())
    }
}

fn begin(address: &str) -> Addr<CacheWriter> {
    let settings = Settings {
        connect_timeout: Some(std::time::Duration::from_secs(5)),
        ..Settings::default()
    };
    let spool_dir = std::env::temp_dir();
    let dir = StoreDir::default();
    start_writer(address, &settings, dir, spool_dir, &|_| None).unwrap()
}

async fn upload(writer: &Addr<CacheWriter>, goods: &Goods) -> Result<Uploaded, UploadError> {
    let request = UploadPath {
        info: goods.info.clone(),
        contents: goods.contents(),
    };
    writer.send(request).await.unwrap()
}

async fn prepare(writer: &Addr<CacheWriter>) {
    writer.send(PrepareCache).await.unwrap().unwrap();
}

fn chained(error: &UploadError) -> String {
    crate::error::chain(error)
}

/// Files by name, with a slash before each, in the order in which they came.
type Files = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A server that takes files, and remembers what it was sent.
struct Depot {
    server: Server,
    files: Files,
}

impl Depot {
    /// `refuse` may answer a request in its own way.
    fn start(refuse: impl Fn(&Request) -> Option<Vec<Step>> + Send + Sync + 'static) -> Self {
        let files = Files::default();
        let shelf = Arc::clone(&files);
        let server = Server::start(move |request| {
            if let Some(steps) = refuse(request) {
                return steps;
            }
            let mut files = shelf.lock().unwrap();
            let known = files.iter().find(|(name, _)| *name == request.target);
            match (request.method.as_str(), known) {
                ("PUT", _) => {
                    files.push((request.target.clone(), request.body.clone()));
                    answer(200, &[], b"")
                }
                ("HEAD", Some(_)) => answer(200, &[], b""),
                ("HEAD", None) => answer(404, &[], b""),
                (_, Some((_, contents))) => answer(200, &[], contents),
                (_, None) => answer(404, &[], b"no"),
            }
        });
        Self { server, files }
    }

    /// The names of the files that it has taken, in order.
    fn names(&self) -> Vec<String> {
        let files = self.files.lock().unwrap();
        files.iter().map(|(name, _)| name[1..].to_owned()).collect()
    }

    fn n_requests(&self, method: &str, file: &str) -> usize {
        let requests = self.server.requests();
        let is_meant = |request: &&Request| request.method == method && request.target == file;
        requests.iter().filter(is_meant).count()
    }
}

fn is_put_of_archive(request: &Request) -> bool {
    request.method == "PUT" && request.target.starts_with("/nar/")
}

#[actix::test]
async fn narinfos_come_after_archives_and_after_those_of_references() {
    let depot = Depot::start(|_| None);
    let low = Goods::new(1, &[]);
    let high = Goods::new(2, &[&low]);
    let writer = begin(&depot.server.url("/?compression=none"));
    prepare(&writer).await;
    let (first, second) = tokio::join!(upload(&writer, &low), upload(&writer, &high));
    assert_eq!(first.unwrap().nar_size_bytes, low.info.nar_size_bytes);
    second.unwrap();
    writer.send(StopWriter).await.unwrap().unwrap();
    let names = depot.names();
    assert_eq!(names[0], "nix-cache-info");
    let position = |file: &str| names.iter().position(|name| name == file).unwrap();
    let archives = names.iter().filter(|name| name.starts_with("nar/"));
    assert_eq!(archives.count(), 2);
    assert!(position(&low.narinfo_file()) < position(&high.narinfo_file()));
    assert_eq!(names.last(), Some(&high.narinfo_file()));
    let files = depot.files.lock().unwrap();
    for (goods, archive) in [(&low, low.tree.to_nar()), (&high, high.tree.to_nar())] {
        let find = |file: &str| {
            let mut files = files.iter();
            &files.find(|(name, _)| name[1..] == *file).unwrap().1
        };
        let text = find(&goods.narinfo_file());
        let narinfo = NarInfo::parse(text, &StoreDir::default()).unwrap();
        assert_eq!(narinfo.info, goods.info);
        assert_eq!(*find(&narinfo.url), archive.unwrap());
    }
}

#[actix::test]
async fn a_busy_server_is_asked_again_and_one_that_refuses_is_not() {
    let low = Goods::new(1, &[]);
    for (status, is_good) in [(429, true), (503, true), (403, false), (405, false)] {
        let depot = Depot::start(move |request| {
            // The first is asked for by HEAD, and the one after that is the first that is sent.
            let is_early = request.n_before < 4;
            let refused = is_put_of_archive(request) && (is_early || !is_good);
            refused.then(|| answer(status, &[], b"sorry"))
        });
        let writer = begin(&depot.server.url("/?compression=none"));
        prepare(&writer).await;
        let uploaded = upload(&writer, &low).await;
        let puts = depot.server.requests();
        let n_puts = puts
            .iter()
            .filter(|request| is_put_of_archive(request))
            .count();
        if is_good {
            uploaded.unwrap();
            assert_eq!(n_puts, 2, "{status}");
        } else {
            let error = uploaded.unwrap_err();
            assert!(error.is_the_caches());
            let told = chained(&error);
            assert!(told.contains("cannot write 'http://localhost"), "{told}");
            assert!(told.contains(&format!("HTTP status {status}")), "{told}");
            assert_eq!(n_puts, 1, "{status}");
        }
        writer.send(StopWriter).await.unwrap().unwrap();
    }
}

#[actix::test]
async fn an_archive_that_the_server_has_is_not_sent_again() {
    let low = Goods::new(1, &[]);
    let narinfo = format!("/{}", low.narinfo_file());
    let refused = narinfo.clone();
    let is_open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gate = Arc::clone(&is_open);
    let depot = Depot::start(move |request| {
        let is_shut = !gate.load(std::sync::atomic::Ordering::SeqCst);
        let refused = request.method == "PUT" && request.target == refused && is_shut;
        refused.then(|| answer(403, &[], b"not yet"))
    });
    let address = depot.server.url("/?compression=zstd");
    for is_good in [false, true] {
        is_open.store(is_good, std::sync::atomic::Ordering::SeqCst);
        let writer = begin(&address);
        prepare(&writer).await;
        let paths = BTreeSet::from([low.info.path.clone()]);
        let question = QueryPresent { paths };
        let present = writer.send(question).await.unwrap().unwrap();
        assert!(present.is_empty());
        assert_eq!(upload(&writer, &low).await.is_ok(), is_good);
        writer.send(StopWriter).await.unwrap().unwrap();
    }
    assert_eq!(depot.n_requests("PUT", &narinfo), 2);
    let names = depot.names();
    let archives = names.iter().filter(|name| name.starts_with("nar/"));
    assert_eq!(archives.count(), 1);
}

#[actix::test]
async fn an_upload_that_breaks_off_is_begun_again_from_its_beginning() {
    let low = Goods::new(1, &[]);
    let depot = Depot::start(|request| {
        (is_put_of_archive(request) && request.n_before < 4).then(|| vec![Step::Reset])
    });
    let writer = begin(&depot.server.url("/?compression=none"));
    prepare(&writer).await;
    upload(&writer, &low).await.unwrap();
    writer.send(StopWriter).await.unwrap().unwrap();
    let files = depot.files.lock().unwrap();
    let archive = files.iter().find(|(name, _)| name.starts_with("/nar/"));
    assert_eq!(archive.unwrap().1, low.tree.to_nar().unwrap());
}

#[actix::test]
async fn what_is_corrupt_or_cannot_be_read_fails_with_all_that_refer_to_it() {
    let cache = tempfile::tempdir().unwrap();
    let writer = begin(&format!("file://{}", cache.path().display()));
    prepare(&writer).await;
    let mut low = Goods::new(1, &[]);
    let high = Goods::new(2, &[&low]);
    let other = Goods::new(3, &[]);
    low.tree = Goods::new(9, &[]).tree;
    let (first, second, third) = tokio::join!(
        upload(&writer, &low),
        upload(&writer, &high),
        upload(&writer, &other)
    );
    let told = first.unwrap_err().to_string();
    let path = StoreDir::default().print(&low.info.path);
    assert!(
        told.starts_with(&format!("path '{path}' is corrupt")),
        "{told}"
    );
    let error = second.unwrap_err();
    assert!(matches!(error, UploadError::ReferenceMissing { .. }));
    assert!(!error.is_the_caches());
    third.unwrap();
    let request = UploadPath {
        info: Goods::new(4, &[]).info,
        contents: Box::new(|_| Err(ContentsError::Unreadable("a bad disk".into()))),
    };
    let error = writer.send(request).await.unwrap().unwrap_err();
    assert!(chained(&error).ends_with("a bad disk"), "{error}");
    // What is not announced and not known to be there is missing.
    let stray = Goods::new(5, &[&Goods::new(6, &[])]);
    let error = upload(&writer, &stray).await.unwrap_err();
    assert!(matches!(error, UploadError::ReferenceMissing { .. }));
    writer.send(StopWriter).await.unwrap().unwrap();
    let narinfos = contents(cache.path());
    let paths: Vec<_> = narinfos.iter().map(|narinfo| &narinfo.info.path).collect();
    assert_eq!(paths, [&other.info.path]);
}

#[actix::test]
async fn a_description_that_nobody_can_read_is_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let goods = Goods::new(1, &[]);
    let file = cache.path().join(goods.narinfo_file());
    fs::write(&file, "").unwrap();
    let writer = begin(&format!("file://{}", cache.path().display()));
    prepare(&writer).await;
    let ask = QueryPresent {
        paths: BTreeSet::from([goods.info.path.clone()]),
    };
    assert!(writer.send(ask).await.unwrap().unwrap().is_empty());
    upload(&writer, &goods).await.unwrap();
    let ask = QueryPresent {
        paths: BTreeSet::from([goods.info.path.clone()]),
    };
    assert_eq!(writer.send(ask).await.unwrap().unwrap().len(), 1);
    writer.send(StopWriter).await.unwrap().unwrap();
}

#[actix::test]
async fn a_copy_that_is_given_up_leaves_nothing_of_its_own() {
    let cache = tempfile::tempdir().unwrap();
    let writer = begin(&format!("file://{}", cache.path().display()));
    prepare(&writer).await;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let request = UploadPath {
        info: Goods::new(1, &[]).info,
        contents: Box::new(move |visitor| {
            let header = FileHeader {
                is_executable: false,
                size_bytes: u64::MAX / 2,
            };
            visitor.begin_file(None, header)?;
            begun.send(()).unwrap();
            let chunk = vec![0; 1 << 16];
            loop {
                visitor.file_contents(&chunk)?;
            }
        }),
    };
    let uploading = writer.send(request);
    let stopping = async {
        has_begun.await.unwrap();
        writer.send(StopWriter).await.unwrap().unwrap();
    };
    let (uploaded, ()) = tokio::join!(uploading, stopping);
    assert!(matches!(uploaded.unwrap(), Err(UploadError::Stopped)));
    let names = fs::read_dir(cache.path()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["log", "nar", "nix-cache-info", "realisations"]);
    assert_eq!(fs::read_dir(cache.path().join("nar")).unwrap().count(), 0);
}

#[actix::test]
async fn no_link_in_a_cache_decides_where_archives_go() {
    let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(elsewhere.path(), cache.path().join("nar")).unwrap();
    let writer = begin(&format!("file://{}", cache.path().display()));
    prepare(&writer).await;
    let error = upload(&writer, &Goods::new(1, &[])).await.unwrap_err();
    assert!(chained(&error).contains("/nar'"), "{}", chained(&error));
    writer.send(StopWriter).await.unwrap().unwrap();
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert!(contents(cache.path()).is_empty());
}
