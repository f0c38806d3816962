//! Running the user's program that shows how two outputs differ (`diff-hook`).

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::goal::derivation::Shown;

/// How much of what a hook writes is shown: it is to tell people, and of a large output it could
/// write more than anybody reads.
const MAX_REPORT_BYTES: u64 = 64 << 10;

/// The hook, and what it is told besides the outputs.
#[derive(Debug)]
pub(super) struct DiffHook {
    /// The program.
    pub(super) program: PathBuf,
    /// The derivation.
    pub(super) drv_path: String,
    /// Where its builder worked.
    pub(super) build_dir: PathBuf,
    /// Who runs it; `None` for the user that we are.
    pub(super) user: Option<HookUser>,
}

/// A user that a builder had.
#[derive(Debug, Clone, Copy)]
pub(super) struct HookUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Runs the hook once for each pair until `stop` is dropped, and returns what it wrote, in whole
/// lines. That it fails is only warned of: how the outputs differ has been told already.
pub(super) async fn run(hook: &DiffHook, shown: &[Shown], stop: oneshot::Receiver<()>) -> String {
    let mut report = String::new();
    let all = async {
        for pair in shown {
            match run_once(hook, pair).await {
                Ok((status, output)) => {
                    if !status.success() {
                        let program = hook.program.display();
                        tracing::warn!("diff hook execution failed: '{program}': {status}");
                    }
                    for line in output.lines() {
                        if !report.is_empty() {
                            report.push('\n');
                        }
                        report.push_str(line);
                    }
                }
                Err(error) => {
                    let program = hook.program.display();
                    tracing::warn!("diff hook execution failed: '{program}': {error}");
                }
            }
        }
    };
    tokio::select! {
        () = all => {}
        // Dropping the hook's future kills it.
        _ = stop => {}
    }
    report
}

async fn run_once(hook: &DiffHook, pair: &Shown) -> io::Result<(ExitStatus, String)> {
    let mut command = Command::new(&hook.program);
    command
        .args([&pair.earlier, &pair.later])
        .arg(&hook.drv_path)
        .arg(&hook.build_dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(user) = hook.user {
        // Our own groups go, too: the library drops them when root changes the user.
        command.gid(user.gid).uid(user.uid);
    }
    let mut child = command.spawn()?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let (output, errors, status) = tokio::join!(collect(output), collect(errors), child.wait());
    let mut report = output?;
    report.push_str(&errors?);
    Ok((status?, report))
}

/// Reads a stream to its end, and returns its beginning.
async fn collect(stream: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut stream) = stream else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    (&mut stream)
        .take(MAX_REPORT_BYTES)
        .read_to_end(&mut bytes)
        .await?;
    let n_more = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if n_more > 0 {
        text.push_str("[the rest is left out]\n");
    }
    Ok(text)
}
