//! Whole files, against paths that genuine Nix 2.8 gave to the same recipes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use store_model::OutputName;

use super::*;
use crate::render::Style;

const FILE: &str = r#"
[defaults]
builder = "/bin/sh"
system = "x86_64-linux"

[goal.lib]
name = "lib-1.0"
args = ["-e", "${source:main}"]
outputs = ["out", "dev"]
sources = { main = "p/main.c" }
env = { CFLAGS = "-O2" }

[goal.app]
args = ["-c", "cc -I${lib.dev} -L${lib} -o ${output:out} $${x}"]
env = { LANG = "C" }

[goal.fetched]
name = "data.txt"
system = "i686-linux"
builder = "${app}/bin/fetch"
fixed = { hash = "sha256-ycPsABrAYxVdm2eKg9TnkFLVaCZTUgefBrESz9BCH3k=" }

[goal.use]
env = { data = "${fetched}" }
"#;

fn goals(text: &str, goal: Option<&str>) -> std::result::Result<Goals, Error> {
    let path = PathBuf::from("goals.toml");
    let file = GoalsFile::parse(text.as_bytes(), &path)?;
    Goals::select(path, PathBuf::from("/project"), file, goal)
}

/// Makes every goal, as if each source were the one that Nix had.
fn made(text: &str) -> Result<BTreeMap<String, Instantiated>> {
    let goals = goals(text, None).map_err(Failure::new)?;
    let settings = Settings {
        system: "x86_64-linux".to_owned(),
        ..Settings::default()
    };
    let mut workshop = Workshop::new(StoreDir::default(), &settings);
    for name in &goals.ordered {
        let sources = goals.file.goals[name]
            .sources
            .keys()
            .map(|called| {
                let path = "n056yqank27r4wh9dkalivppy03wpki7-main.c".parse().unwrap();
                (called.clone(), path)
            })
            .collect();
        goals.make(name, &sources, &mut workshop)?;
    }
    Ok(workshop.made)
}

fn refusal(text: &str) -> String {
    made(text).unwrap_err().render(Style::Plain)
}

#[test]
fn a_goal_gets_the_path_that_nix_gives_to_the_same_derivation() {
    let made = made(FILE).unwrap();
    for (goal, drv_path, out) in [
        (
            "lib",
            "qvxa2iwh67vs5qf957ki7yxb6yqz7vlk-lib-1.0.drv",
            "3ixlk9gbcqx9f7i562nil6gv56iakml3-lib-1.0",
        ),
        (
            "app",
            "73ika2n0gswifwgp06ar3a4brq5qbz1l-app.drv",
            "qsh7rh9nk560jwvcf163ijck71sb8bwz-app",
        ),
        (
            "fetched",
            "3y87v4sbx4bga1c4d0lvr4wb6k9gla7a-data.txt.drv",
            "wjzgp0m3sr2rjv0pm5qq2bvijm1ccaf1-data.txt",
        ),
        (
            "use",
            "5dw72bwz8k91n8j68v2j7c1433f6m0gz-use.drv",
            "dscd1pipd77d4lfb0z1x54dh1vdmh977-use",
        ),
    ] {
        assert_eq!(made[goal].drv_path.base_name(), drv_path);
        assert_eq!(base_name(&made[goal].outputs[0]), out);
    }
    let dev = &made["lib"].outputs[1];
    assert_eq!(
        base_name(dev),
        "x8n61yg0rjq46zmfg9axf5ggd24dbw3z-lib-1.0-dev"
    );
}

fn base_name(output: &(OutputName, Option<StorePath>)) -> &str {
    output.1.as_ref().unwrap().base_name()
}

#[test]
fn a_selected_goal_brings_what_it_needs_and_nothing_else() {
    let selected = goals(FILE, Some("app")).unwrap();
    assert_eq!(selected.ordered, ["lib", "app"]);
    assert_eq!(selected.selected, ["app"]);
    let error = goals(FILE, Some("none")).unwrap_err().to_string();
    assert!(
        error.contains("no goal 'none'; it has 'app', 'fetched', 'lib', 'use'"),
        "{error}"
    );
}

#[test]
fn goals_that_need_each_other_are_refused_with_the_way_round() {
    let text = "[defaults]\nbuilder = 'x'\n[goal.a.env]\nX = '${b}'\n\
                [goal.b]\nargs = ['${c.dev}']\n[goal.c]\ninputs = ['a']\n";
    let error = goals(text, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "goals.toml: goals need each other in a circle: a -> b -> c -> a"
    );
}

#[test]
fn a_wrong_key_is_named_with_its_goal_and_file() {
    for (text, expected) in [
        ("[goal.a]", "goal 'a', key 'builder': it is missing"),
        (
            "[goal.a]\nbuilder = '${b}'",
            "goal 'a', key 'builder': there is no goal 'b'",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nargs = ['${']",
            "goal 'a', key 'args': a '${' is not closed",
        ),
        (
            "[goal.a]\nbuilder = 'x'\ninputs = ['b']",
            "goal 'a', key 'inputs': there is no goal 'b'",
        ),
        (
            "[goal.a]\nbuilder = 'x'\noutputs = []",
            "goal 'a', key 'outputs': there must be",
        ),
        (
            "[goal.a]\nbuilder = 'x'\noutputs = ['o', 'o']",
            "goal 'a', key 'outputs': 'o' is named twice",
        ),
        (
            "[goal.a]\nbuilder = 'x'\noutputs = ['a/b']",
            "goal 'a', key 'outputs'",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nname = 'a/b'",
            "goal 'a', key 'name'",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nname = 'a.drv'",
            "goal 'a', key 'name': 'a.drv' ends in",
        ),
        (
            "[goal.'a.b']\nbuilder = 'x'",
            "goal 'a.b': a goal is called by letters",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nenv = { out = '1' }",
            "goal 'a', key 'env.out': this variable",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nenv = { 'A=B' = '1' }",
            "goal 'a', key 'env.A=B'",
        ),
        (
            "[goal.a]\nbuilder = '${source:s}'",
            "goal 'a', key 'builder': '${source:s}' is not among",
        ),
        (
            "[goal.a]\nbuilder = '${output:s}'",
            "goal 'a', key 'builder': '${output:s}' is not among",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nfixed = { hash = 'md6-x' }",
            "goal 'a', key 'fixed.hash'",
        ),
        (
            "[goal.a]\nbuilder = 'x'\noutputs = ['o']\nfixed = { hash = 'sha256-x' }",
            "goal 'a', key 'outputs': a goal with a fixed hash",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nfloating = {}",
            "goal 'a', key 'floating': this needs 'ca-derivations'",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nfloating = {}\nfixed = { hash = 'sha256-x' }",
            "goal 'a', key 'floating': an output whose hash is fixed",
        ),
        (
            "[goal.a]\nbuilder = 'x'\nenv = { __contentAddressed = '1' }",
            "goal 'a', key 'env.__contentAddressed': this variable",
        ),
        (
            "[goal.a]\nbuilder = '${b.dev}'\n[goal.b]\nbuilder = 'x'",
            "goal 'a', key 'builder': goal 'b' has no output 'dev'",
        ),
    ] {
        let message = refusal(text);
        assert!(message.starts_with("error: goals.toml: "), "{message}");
        assert!(
            message.contains(expected),
            "{message} should contain {expected}"
        );
    }
}

#[test]
fn a_file_cannot_let_builders_write_on_the_host() {
    let settings = |words: &str| {
        goals(&format!("[settings]\nsandbox-paths = [{words}]"), None)
            .unwrap()
            .settings()
    };
    let accepted = settings("'/usr', '/bin/sh=/opt/sh?'").unwrap();
    assert_eq!(accepted[0].value, "/usr /bin/sh=/opt/sh?");
    for words in [
        "'/home:rw'",
        "'/home:rw?'",
        "'/a /b:rw'",
        "''",
        "'relative'",
        "'/a/../b'",
    ] {
        assert!(settings(words).is_err(), "{words}");
    }
}
