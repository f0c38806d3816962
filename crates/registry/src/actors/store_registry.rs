//! Answers what is valid, and makes things valid.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{Actor, Context, Handler, ResponseFuture};
use store_model::derivation::reference_graphs::GraphInfos;
use store_model::{Derivation, DrvOutput, PathInfo, Realisation, StorePath};
use tokio::sync::oneshot;

use crate::db::{Database, query};
use crate::messages::{
    AddIndirectRoot, AddNar, AddPath, AddSignatures, AddTempRoots, AddText, Added,
    AdoptRealisations, CompareOutputs, Compared, ContentAddressed, DiscardInvalidPaths,
    ForgetContents, NoteRealisations, QueryAllValidPaths, QueryClosure, QueryDerivation,
    QueryGoodPaths, QueryGraphs, QueryPathFromHashPart, QueryPathInfo, QueryRealisationInfos,
    QueryRealisations, QueryReferrers, QueryValidDerivers, QueryValidPaths, RealisedOutputs,
    RegisterByContents, RegisterError, RegisterFloatingOutputs, RegisterOutputs, RegisterPresent,
    RegisterRestored, RegisteredFloating, RestoreError, RestoreNar, RestoredPath, RootsLease,
    StopRegistry,
};
use crate::services::{Pools, Queues};
use crate::{Error, archives, present, realise, roots, tasks, workers};

/// The store's memory: one writer, several readers, and the threads that make objects.
#[derive(Debug)]
pub struct StoreRegistry {
    /// `None` once stopped.
    services: Option<(Queues, Pools)>,
}

impl StoreRegistry {
    pub(crate) fn new(queues: Queues, pools: Pools) -> Self {
        Self {
            services: Some((queues, pools)),
        }
    }

    /// Answers with what an asynchronous task returns.
    pub(crate) fn run<T, E, F>(
        &self,
        task: impl FnOnce(Queues) -> F,
    ) -> ResponseFuture<Result<T, E>>
    where
        F: Future<Output = Result<T, E>> + 'static,
        T: 'static,
        E: From<Error> + 'static,
    {
        match &self.services {
            Some((queues, _)) => Box::pin(task(queues.clone())),
            None => Box::pin(async { Err(Error::Stopped.into()) }),
        }
    }

    /// Answers with what a reader finds in the database.
    fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> ResponseFuture<Result<T, Error>> {
        self.run(|queues| async move { queues.read(question).await })
    }
}

impl Actor for StoreRegistry {
    type Context = Context<Self>;
}

type Answer<T, E = Error> = ResponseFuture<Result<T, E>>;

impl Handler<QueryPathInfo> for StoreRegistry {
    type Result = Answer<Option<PathInfo>>;

    fn handle(&mut self, question: QueryPathInfo, _: &mut Context<Self>) -> Self::Result {
        self.read(move |database| query::path_info(database, &question.path))
    }
}

impl Handler<QueryValidPaths> for StoreRegistry {
    type Result = Answer<BTreeSet<StorePath>>;

    fn handle(&mut self, question: QueryValidPaths, _: &mut Context<Self>) -> Self::Result {
        self.read(move |database| query::valid_paths(database, question.paths))
    }
}

impl Handler<QueryClosure> for StoreRegistry {
    type Result = Answer<BTreeSet<StorePath>>;

    fn handle(&mut self, question: QueryClosure, _: &mut Context<Self>) -> Self::Result {
        self.read(move |database| query::closure(database, question.roots))
    }
}

impl Handler<QueryGraphs> for StoreRegistry {
    type Result = Answer<GraphInfos>;

    fn handle(&mut self, question: QueryGraphs, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::graphs(queues, question.graphs))
    }
}

impl Handler<QueryDerivation> for StoreRegistry {
    type Result = Answer<Arc<Derivation>>;

    fn handle(&mut self, question: QueryDerivation, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| async move {
            queues
                .derivations
                .run(move |derivations| derivations.get(&question.drv_path))
                .await
        })
    }
}

impl Handler<QueryGoodPaths> for StoreRegistry {
    type Result = Answer<BTreeSet<StorePath>>;

    fn handle(&mut self, question: QueryGoodPaths, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::good_paths(queues, question.paths))
    }
}

impl Handler<ForgetContents> for StoreRegistry {
    type Result = ();

    fn handle(&mut self, _: ForgetContents, _: &mut Context<Self>) {
        if let Some((queues, _)) = &self.services {
            queues.good_paths.forget();
        }
    }
}

impl Handler<AddTempRoots> for StoreRegistry {
    type Result = Answer<RootsLease>;

    fn handle(&mut self, request: AddTempRoots, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| async move { queues.lend_roots(request.paths).await })
    }
}

impl Handler<DiscardInvalidPaths> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: DiscardInvalidPaths, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::discard_invalid(queues, request.paths))
    }
}

impl Handler<RegisterOutputs> for StoreRegistry {
    type Result = Answer<Vec<PathInfo>, RegisterError>;

    fn handle(&mut self, request: RegisterOutputs, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::register_outputs(queues, request))
    }
}

impl Handler<RegisterByContents> for StoreRegistry {
    type Result = Answer<ContentAddressed, RegisterError>;

    fn handle(&mut self, request: RegisterByContents, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::register_by_contents(queues, request.candidate))
    }
}

impl Handler<RegisterFloatingOutputs> for StoreRegistry {
    type Result = Answer<RegisteredFloating, RegisterError>;

    fn handle(&mut self, request: RegisterFloatingOutputs, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| realise::register_floating(queues, request))
    }
}

impl Handler<QueryRealisations> for StoreRegistry {
    type Result = Answer<RealisedOutputs>;

    fn handle(&mut self, question: QueryRealisations, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| realise::realised_outputs(queues, question.derivation))
    }
}

impl Handler<QueryRealisationInfos> for StoreRegistry {
    type Result = Answer<BTreeMap<DrvOutput, Realisation>>;

    fn handle(&mut self, question: QueryRealisationInfos, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| realise::realisation_infos(queues, question.outputs))
    }
}

impl Handler<NoteRealisations> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: NoteRealisations, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| realise::note(queues, request.outputs))
    }
}

impl Handler<AdoptRealisations> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: AdoptRealisations, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| realise::adopt(queues, request))
    }
}

impl Handler<CompareOutputs> for StoreRegistry {
    type Result = Answer<Compared, RegisterError>;

    fn handle(&mut self, request: CompareOutputs, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::compare_outputs(queues, request))
    }
}

impl Handler<RestoreNar> for StoreRegistry {
    type Result = Answer<RestoredPath, RestoreError>;

    fn handle(&mut self, request: RestoreNar, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| archives::restore(queues, request))
    }
}

impl Handler<RegisterRestored> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: RegisterRestored, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| archives::register_restored(queues, request))
    }
}

impl Handler<AddNar> for StoreRegistry {
    type Result = Answer<Added, RestoreError>;

    fn handle(&mut self, request: AddNar, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| archives::add_nar(queues, request.nar))
    }
}

impl Handler<RegisterPresent> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: RegisterPresent, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| present::register_present(queues, request))
    }
}

impl Handler<AddSignatures> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: AddSignatures, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| async move {
            let (reply, answer) = oneshot::channel();
            queues
                .ingest
                .submit(move |ingest| ingest.add_signatures(request.signatures, reply))
                .await?;
            answer.await.unwrap_or_else(|_| Err(tasks::lost()))
        })
    }
}

impl Handler<AddText> for StoreRegistry {
    type Result = Answer<Added>;

    fn handle(&mut self, request: AddText, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::add_text(queues, request))
    }
}

impl Handler<AddPath> for StoreRegistry {
    type Result = Answer<Added>;

    fn handle(&mut self, request: AddPath, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| tasks::add_path(queues, request))
    }
}

impl Handler<QueryReferrers> for StoreRegistry {
    type Result = Answer<BTreeSet<StorePath>>;

    fn handle(&mut self, question: QueryReferrers, _: &mut Context<Self>) -> Self::Result {
        self.read(move |database| query::referrers(database, &question.path))
    }
}

impl Handler<QueryValidDerivers> for StoreRegistry {
    type Result = Answer<BTreeSet<StorePath>>;

    fn handle(&mut self, question: QueryValidDerivers, _: &mut Context<Self>) -> Self::Result {
        self.read(move |database| query::valid_derivers(database, &question.path))
    }
}

impl Handler<QueryAllValidPaths> for StoreRegistry {
    type Result = Answer<BTreeSet<StorePath>>;

    fn handle(&mut self, _: QueryAllValidPaths, _: &mut Context<Self>) -> Self::Result {
        self.read(query::all_valid_paths)
    }
}

impl Handler<QueryPathFromHashPart> for StoreRegistry {
    type Result = Answer<Option<StorePath>>;

    fn handle(&mut self, question: QueryPathFromHashPart, _: &mut Context<Self>) -> Self::Result {
        self.read(move |database| query::path_from_hash_part(database, &question.hash_part))
    }
}

impl Handler<AddIndirectRoot> for StoreRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, request: AddIndirectRoot, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| async move {
            let layout = Arc::clone(&queues.layout);
            let roots = queues.roots.downgrade();
            queues
                .roots
                .run(move |temp_roots| {
                    let made = roots::add_indirect_root(&layout, &request.link, &request.target);
                    temp_roots.settle(&roots);
                    made
                })
                .await
        })
    }
}

impl Handler<StopRegistry> for StoreRegistry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopRegistry, _: &mut Context<Self>) -> Self::Result {
        let Some((queues, pools)) = self.services.take() else {
            return Box::pin(async {});
        };
        // The threads end when nobody can send to them any more.
        drop(queues);
        let (reply, answer) = oneshot::channel();
        let joining = workers::spawn("stop", move || {
            pools.join();
            let _listener_gone = reply.send(());
        });
        if let Err(error) = joining {
            tracing::warn!("{error}: not waiting for the registry's threads");
        }
        Box::pin(async move {
            // Without an answer the threads are gone, or beyond our reach.
            let _ended = answer.await;
        })
    }
}
