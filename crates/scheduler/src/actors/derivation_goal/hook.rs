//! How a goal has its `post-build-hook` run.

use std::collections::BTreeSet;

use actix::Context;
use tokio::sync::oneshot;

use super::DerivationGoal;
use crate::goal::derivation::Event;
use crate::hook::HookRun;

impl DerivationGoal {
    /// Has the hook run beside everything else.
    pub(super) fn run_hook(&mut self, ctx: &mut Context<Self>) {
        let Some(program) = self.settings.post_build_hook.clone() else {
            return self.advance(Event::HookEnded { failure: None }, ctx);
        };
        let store_dir = &self.ports.store_dir;
        let out_paths: BTreeSet<_> = match &self.found {
            Some(found) => BTreeSet::from([found.clone()]),
            None => self.output_paths().into_values().collect(),
        };
        let run = HookRun {
            goal: self.id,
            program,
            drv_path: self.facts.printed_path.clone(),
            out_paths: out_paths.iter().map(|path| store_dir.print(path)).collect(),
            log_lines: self.settings.log_lines,
            news: self.ports.upward.news.clone(),
        };
        let (cancel, cancelled) = oneshot::channel();
        self.hook = Some(cancel);
        self.ask(self.ports.hooks.clone().run(run, cancelled), ctx);
    }
}
