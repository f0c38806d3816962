//! Events and the report as JSON lines, for programs. `docs/json-lines.md` lists every field.

use std::time::{SystemTime, UNIX_EPOCH};

use scheduler::{
    BuildMode, Event, EventKind, GoalKey, LockOwner, Outcome, PathMode, Status, WaitReason,
};
use serde_json::{Map, Value, json};
use store_model::{StoreDir, StorePath};

/// Returns one event; `path` is that of its goal.
#[must_use]
pub(crate) fn event(event: &Event, path: Option<&StorePath>, store_dir: &StoreDir) -> Value {
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| line.insert(name.to_owned(), value);
    put("event", json!(event_type(&event.kind)));
    put("sequence", json!(event.sequence));
    put("atMs", json!(milliseconds(event.at)));
    put("goalId", json!(event.goal.to_string()));
    let path = match &event.kind {
        EventKind::Created { key, .. } => Some(key.path()),
        EventKind::Waiting { .. }
        | EventKind::Started { .. }
        | EventKind::Fetching { .. }
        | EventKind::Fetched { .. }
        | EventKind::Logged(_)
        | EventKind::HookLogged(_)
        | EventKind::Finished(_) => path,
    };
    if let Some(path) = path {
        put("goal", json!(store_dir.print(path)));
    }
    let details = match &event.kind {
        EventKind::Created { key, request } => match key {
            GoalKey::Derivation(_, mode) => {
                json!({"request": request.to_string(), "mode": build_mode(*mode)})
            }
            GoalKey::Path(_, PathMode::Ensure | PathMode::EnsureAgain) => {
                json!({"request": request.to_string()})
            }
            GoalKey::Path(_, PathMode::Repair) => {
                json!({"request": request.to_string(), "mode": build_mode(BuildMode::Repair)})
            }
        },
        EventKind::Waiting { reason } => wait_reason(reason, store_dir),
        EventKind::Started { pid, uid, round } => json!({
            "pid": pid,
            "uid": uid,
            "round": round.number,
            "rounds": round.of,
        }),
        EventKind::Fetching {
            cache,
            n_expected,
            nar_size_bytes,
        } => json!({
            "substituter": &**cache,
            "expectedBytes": n_expected,
            "narSize": nar_size_bytes,
        }),
        EventKind::Fetched {
            n_bytes,
            n_expected,
        } => json!({"bytes": n_bytes, "expectedBytes": n_expected}),
        EventKind::Logged(lines) | EventKind::HookLogged(lines) => json!({
            "lines": lines
                .text
                .split(|byte| *byte == b'\n')
                .map(String::from_utf8_lossy)
                .collect::<Vec<_>>()
        }),
        EventKind::Finished(outcome) => self::outcome(outcome, store_dir),
    };
    if let Value::Object(details) = details {
        line.extend(details);
    }
    Value::Object(line)
}

fn event_type(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Created { .. } => "created",
        EventKind::Waiting { .. } => "waiting",
        EventKind::Started { .. } => "started",
        EventKind::Fetching { .. } => "fetching",
        EventKind::Fetched { .. } => "fetched",
        EventKind::Logged(_) => "logged",
        EventKind::HookLogged(_) => "hookLogged",
        EventKind::Finished(_) => "finished",
    }
}

fn build_mode(mode: BuildMode) -> &'static str {
    match mode {
        BuildMode::Normal => "normal",
        BuildMode::Check => "check",
        BuildMode::Repair => "repair",
        BuildMode::Hash => "hash",
    }
}

fn wait_reason(reason: &WaitReason, store_dir: &StoreDir) -> Value {
    match reason {
        WaitReason::Inputs { n_pending } => json!({"for": "inputs", "pending": n_pending}),
        WaitReason::Substitutes { n_pending } => {
            json!({"for": "substitutes", "pending": n_pending})
        }
        WaitReason::Cache { cache } => json!({"for": "cache", "cache": &**cache}),
        WaitReason::Contents => json!({"for": "contents"}),
        WaitReason::Resolved { drv_path } => {
            json!({"for": "resolved", "resolvedTo": store_dir.print(drv_path)})
        }
        WaitReason::Slot => json!({"for": "slot"}),
        WaitReason::BuildUser => json!({"for": "buildUser"}),
        WaitReason::Registration => json!({"for": "registration"}),
        WaitReason::PostBuildHook => json!({"for": "postBuildHook"}),
        WaitReason::Lock { path, holder } => {
            let lock = store_dir.print(path);
            match holder {
                LockOwner::Goal => json!({"for": "lock", "lock": lock, "holder": "goal"}),
                LockOwner::Process(pid) => {
                    json!({"for": "lock", "lock": lock, "holder": "process", "holderPid": pid})
                }
                LockOwner::Unknown => json!({"for": "lock", "lock": lock, "holder": "unknown"}),
            }
        }
    }
}

/// Returns how a goal ended.
#[must_use]
pub(crate) fn outcome(outcome: &Outcome, store_dir: &StoreDir) -> Value {
    let outputs: Map<String, Value> = outcome
        .outputs
        .iter()
        .map(|(name, path)| (name.to_string(), json!(store_dir.print(path))))
        .collect();
    let mut value = json!({
        "success": outcome.status.is_success(),
        "status": status(outcome.status),
        "statusNumber": outcome.status.wire_number(),
        "outputs": outputs,
        "rounds": outcome.n_rounds,
    });
    let mut put = |name: &str, detail: Value| value[name] = detail;
    if !outcome.message.is_empty() {
        put("message", json!(outcome.message));
    }
    if let Some(drv_path) = &outcome.resolved_to {
        put("resolvedTo", json!(store_dir.print(drv_path)));
    }
    if let Some(times) = outcome.build_times {
        put("startedAtMs", json!(milliseconds(times.started_at)));
        put("stoppedAtMs", json!(milliseconds(times.stopped_at)));
    }
    if let Some(kept) = &outcome.kept_build_dir {
        put("keptBuildDir", json!(kept.display().to_string()));
    }
    if !outcome.root_causes.is_empty() {
        let causes = outcome.root_causes.iter().map(|path| store_dir.print(path));
        put("rootCauses", json!(causes.collect::<Vec<_>>()));
    }
    value
}

/// Returns the name of an ending, as SPEC A8 spells it.
#[must_use]
pub(crate) fn status(status: Status) -> String {
    // The derived name of a variant without fields is the variant's own.
    format!("{status:?}")
}

fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
