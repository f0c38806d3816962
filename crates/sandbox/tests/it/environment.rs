//! What a builder is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use sandbox::{BuildVerdict, SetupFault};
use store_model::PathInfo;
use store_model::derivation::reference_graphs::GraphInfos;

use crate::lab::{Lab, in_both_profiles, shared_fixtures, store_path};

in_both_profiles! {
    the_variables_are_those_of_nix => super::variables;
    the_first_argument_is_the_builders_base_name => super::argv0;
    attributes_passed_as_files_are_files => super::pass_as_file;
    placeholders_are_replaced_everywhere => super::placeholders;
    only_fixed_outputs_get_impure_variables => super::impure_variables;
    zero_cores_means_all => super::cores;
    structured_attributes_are_files_that_variables_name => super::structured;
    graphs_of_references_are_files => super::graph_files;
    what_is_not_supported_is_refused => super::refusals;
}

async fn variables(lab: Lab) {
    let mut lab = lab;
    lab.settings.cores = 1;
    let recorded = std::fs::read_to_string(shared_fixtures().join("nix-2.8/env/sandbox.txt"));
    let recorded = recorded.unwrap();
    let mut derivation = lab.script("");
    derivation.env.clear();
    let builder = derivation.builder.clone();
    for (name, value) in [
        (
            "builder",
            "/nix/store/00m136c3cljch0g7amj4q8yqgn0bpw60-tinybuild",
        ),
        ("name", "builder-env"),
        (
            "out",
            "/nix/store/1qh787v58rvbssi9lfyhx5miqnah2gga-builder-env",
        ),
        ("system", "x86_64-linux"),
    ] {
        derivation.env.insert(name.into(), value.into());
    }
    let busybox = builder.to_string().replace("/sh", "/busybox");
    derivation.builder = busybox.into();
    derivation.args = vec!["env".into()];
    let built = lab.run_derivation(derivation).await;
    built.assert_success();
    let mut lines: Vec<&str> = built.log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, recorded.lines().collect::<Vec<_>>());
}

async fn argv0(lab: Lab) {
    let mut derivation = lab.script("");
    derivation.args = vec![
        "-c".into(),
        "tr '\\0' ' ' < /proc/self/cmdline; echo; echo $0".into(),
    ];
    let built = lab.run_derivation(derivation).await;
    built.assert_success();
    assert!(built.log.ends_with("\nsh\n"), "{}", built.log);
}

async fn pass_as_file(lab: Lab) {
    let mut derivation = lab.script(
        "echo $textPath; cat $textPath; echo; stat -c '%u %g' $textPath; echo ${text-unset}; \
         echo changed > $textPath",
    );
    derivation
        .env
        .insert("passAsFile".into(), " text\n absent".into());
    derivation.env.insert("text".into(), "some\ntext".into());
    let built = lab.run_derivation(derivation).await;
    built.assert_success();
    let hash = store_model::Hash::digest(store_model::HashAlgorithm::Sha256, b"text");
    let path = format!("/build/.attr-{}", hash.to_base32());
    assert_eq!(built.log, format!("{path}\nsome\ntext\n1000 100\nunset\n"));
}

async fn placeholders(lab: Lab) {
    // What builtins.placeholder "out" evaluates to.
    let placeholder = "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9";
    let mut derivation = lab.script("echo $shown; cat $filePath; echo; echo \"$1\"; echo $out");
    derivation.args.extend(["sh".into(), placeholder.into()]);
    derivation
        .env
        .insert("shown".into(), format!("<{placeholder}>").into());
    derivation.env.insert("passAsFile".into(), "file".into());
    derivation.env.insert("file".into(), placeholder.into());
    let built = lab.run_derivation(derivation).await;
    built.assert_success();
    let out = built.log.lines().last().unwrap();
    assert_eq!(built.log, format!("<{out}>\n{out}\n{out}\n{out}\n"));
    assert!(out.starts_with("/nix/store/"), "{out}");
}

async fn impure_variables(lab: Lab) {
    let mut lab = lab;
    lab.host_environment
        .insert("http_proxy".into(), "http://proxy".into());
    let script = "echo \"${http_proxy-unset} ${absent-unset} ${NIX_OUTPUT_CHECKED-unset}\"";
    let names = ("impureEnvVars".into(), "http_proxy absent".into());
    let mut derivation = lab.fixed_script(script);
    derivation.env.extend([names.clone()]);
    let built = lab.run_derivation(derivation).await;
    assert_eq!(built.assert_success().log, "http://proxy  1\n");
    let mut derivation = lab.script(script);
    derivation.env.extend([names]);
    let built = lab.run_derivation(derivation).await;
    assert_eq!(built.assert_success().log, "unset unset unset\n");
}

async fn cores(lab: Lab) {
    let mut lab = lab;
    let n_cores = std::thread::available_parallelism().unwrap();
    let built = lab.run("echo $NIX_BUILD_CORES").await;
    assert_eq!(built.log, format!("{n_cores}\n"));
    lab.settings.cores = 7;
    assert_eq!(lab.run("echo $NIX_BUILD_CORES").await.log, "7\n");
}

async fn structured(lab: Lab) {
    let json = r#"{"outputs":["out"],"list":["a b",1],"passAsFile":["list"],"sub":{"k":"v"}}"#;
    let mut lab = lab;
    lab.graphs = graphs();
    let mut derivation = lab.script(
        "echo $NIX_ATTRS_JSON_FILE $NIX_ATTRS_SH_FILE ${__json-unset} ${out-unset}; \
         /nix/store/*-busybox/bin/cat $NIX_ATTRS_JSON_FILE; echo; \
         /nix/store/*-busybox/bin/cat $NIX_ATTRS_SH_FILE; \
         /nix/store/*-busybox/bin/stat -c '%u %g %a' .attrs.json",
    );
    derivation.env = [("__json".into(), json.into())].into();
    let built = lab.run_derivation(derivation).await;
    built.assert_success();
    let out = lab.layout.store_dir.print(&store_path("test"));
    let path = lab.layout.store_dir.print(&store_path("a"));
    let hash = format!("sha256:{}", "0".repeat(52));
    let graph = format!(
        r#"[{{"closureSize":7,"narHash":"{hash}","narSize":7,"path":"{path}","references":[]}}]"#
    );
    let expected = [
        "/build/.attrs.json /build/.attrs.sh unset unset".to_owned(),
        format!(
            r#"{{"graph":{graph},"list":["a b",1],"outputs":{{"out":"{out}"}},"passAsFile":["list"],"sub":{{"k":"v"}}}}"#
        ),
        "declare -a list=('a b' 1 )".to_owned(),
        format!("declare -A outputs=(['out']='{out}' )"),
        "declare -a passAsFile=('list' )".to_owned(),
        "declare -A sub=(['k']='v' )".to_owned(),
        "1000 100 644".to_owned(),
    ];
    assert_eq!(built.log.lines().collect::<Vec<_>>(), expected);
}

async fn graph_files(lab: Lab) {
    let mut lab = lab;
    lab.graphs = graphs();
    let built = lab.run("cat /build/graph; stat -c '%u %g' graph").await;
    built.assert_success();
    let path = lab.layout.store_dir.print(&store_path("a"));
    assert_eq!(built.log, format!("{path}\n\n0\n1000 100\n"));
}

/// A graph of one path.
fn graphs() -> Arc<GraphInfos> {
    let path = store_path("a");
    let info = PathInfo {
        path: path.clone(),
        nar_hash: format!("sha256:{}", "0".repeat(52)).parse().unwrap(),
        nar_size_bytes: 7,
        references: BTreeSet::new(),
        deriver: None,
        registration_time: 1,
        ultimate: false,
        signatures: BTreeSet::new(),
        content_address: None,
    };
    Arc::new([("graph".to_owned(), [(path, info)].into())].into())
}

async fn refusals(lab: Lab) {
    let with = |name: &str, value: &str| {
        let mut derivation = lab.script("true");
        derivation.env.insert(name.into(), value.into());
        derivation
    };
    let forbidden = "'__noChroot' is set, but that is not allowed when 'sandbox' is 'true'";
    let impure = "'__impureHostDeps' asks for '/etc/shadow', which 'allowed-impure-host-deps' \
                  does not allow";
    let cases = [
        (
            with("bad", "a\0b"),
            "the variable 'bad' holds a NUL byte, which no process can be given",
            SetupFault::Lasting,
        ),
        (with("__noChroot", "1"), forbidden, SetupFault::Refused),
        (
            with("__json", r#"{"__noChroot":true}"#),
            forbidden,
            SetupFault::Refused,
        ),
        (
            with("__impureHostDeps", "/etc/shadow"),
            impure,
            SetupFault::Refused,
        ),
        (
            with("__json", r#"{"__impureHostDeps":["/etc/shadow"]}"#),
            impure,
            SetupFault::Refused,
        ),
        (
            with("__json", r#"{"__noChroot":1}"#),
            "reading the derivation's attributes: attribute '__noChroot' of derivation 'test' must \
             be a Boolean",
            SetupFault::Refused,
        ),
    ];
    for (derivation, message, fault) in cases {
        let built = lab.run_derivation(derivation).await;
        let expected = BuildVerdict::SetupFailed {
            message: message.to_owned(),
            fault,
        };
        assert_eq!(built.exited.verdict, expected);
    }
    lab.assert_clean();
}
