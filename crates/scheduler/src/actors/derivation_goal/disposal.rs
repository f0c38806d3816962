//! What becomes of a build's directories.

use std::sync::Arc;

use actix::prelude::*;
use sandbox::{DisposeBuild, Disposition};

use super::DerivationGoal;
use crate::error::chain;
use crate::goal::derivation::Event;

impl DerivationGoal {
    pub(super) fn delete_build(&mut self) {
        if let Some(build) = self.build.take() {
            self.ports.dispose_build.do_send(DisposeBuild {
                build_id: build.id,
                disposition: Disposition::Delete,
            });
        }
    }

    pub(super) fn keep_build(&mut self, ctx: &mut Context<Self>) {
        let Some(build) = self.build.take() else {
            return self.advance(Event::BuildKept { path: None }, ctx);
        };
        let ports = Arc::clone(&self.ports);
        let question = async move {
            let dispose = DisposeBuild {
                build_id: build.id,
                disposition: Disposition::Keep,
            };
            match ports.dispose_build.send(dispose).await {
                Ok(Ok(path)) => Ok(Event::BuildKept { path }),
                // The build's failure is the news, not that its directory is lost.
                Ok(Err(error)) => {
                    tracing::warn!("keeping the build directory: {}", chain(&error));
                    Ok(Event::BuildKept { path: None })
                }
                Err(error) => Err(chain(&error)),
            }
        };
        self.ask(question, ctx);
    }
}
