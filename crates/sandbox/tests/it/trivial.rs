//! The simplest things that can be built.

use sandbox::{Disposition, StopSandbox};

use crate::lab::{Lab, dispose, in_both_profiles};

in_both_profiles! {
    a_builder_writes_its_output_into_the_scratch_directory => super::writes_output;
}

async fn writes_output(lab: Lab) {
    let supervisor = lab.start();
    let derivation = lab.script("echo hello; mkdir $out; echo content > $out/file");
    let built = lab.build(&supervisor, 1, derivation).finish().await;
    built.assert_success();
    assert_eq!(built.log, "hello\n");
    assert_eq!(built.exited.log_tail, ["hello"]);
    let content = std::fs::read_to_string(built.output().join("file")).unwrap();
    assert_eq!(content, "content\n");
    assert_eq!(dispose(&supervisor, 1, Disposition::Delete).await, None);
    supervisor.send(StopSandbox).await.unwrap();
    lab.assert_clean();
}
