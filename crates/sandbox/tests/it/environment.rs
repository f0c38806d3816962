//! What a builder is told.

use sandbox::{BuildVerdict, SetupFault};

use crate::lab::{Lab, in_both_profiles, shared_fixtures};

in_both_profiles! {
    the_variables_are_those_of_nix => super::variables;
    the_first_argument_is_the_builders_base_name => super::argv0;
    attributes_passed_as_files_are_files => super::pass_as_file;
    placeholders_are_replaced_everywhere => super::placeholders;
    only_fixed_outputs_get_impure_variables => super::impure_variables;
    zero_cores_means_all => super::cores;
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

async fn refusals(lab: Lab) {
    let mut structured = lab.script("true");
    structured.env.insert("__json".into(), "{}".into());
    let mut builtin = lab.script("true");
    builtin.builder = "builtin:fetchurl".into();
    let mut nul = lab.script("true");
    nul.env.insert("bad".into(), "a\0b".into());
    let mut unsandboxed = lab.script("true");
    unsandboxed.env.insert("__noChroot".into(), "1".into());
    let mut impure = lab.script("true");
    impure
        .env
        .insert("__impureHostDeps".into(), "/etc/shadow".into());
    let cases = [
        (structured, "structured attributes are not supported yet"),
        (
            builtin,
            "the built-in builder 'builtin:fetchurl' is not supported yet",
        ),
        (
            nul,
            "the variable 'bad' holds a NUL byte, which no process can be given",
        ),
        (
            unsandboxed,
            "'__noChroot' is set, but that is not allowed when 'sandbox' is 'true'",
        ),
        (
            impure,
            "'__impureHostDeps' asks for '/etc/shadow', which 'allowed-impure-host-deps' does not \
             allow",
        ),
    ];
    for (derivation, expected) in cases {
        let built = lab.run_derivation(derivation).await;
        let expected = BuildVerdict::SetupFailed {
            message: expected.to_owned(),
            fault: SetupFault::Lasting,
        };
        assert_eq!(built.exited.verdict, expected);
    }
    lab.assert_clean();
}
