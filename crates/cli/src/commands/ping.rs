//! `store ping`: whether a cache or a store can be used, and what it says of itself.

use std::time::Duration;

use store_model::narinfo::CacheInfo;
use store_model::settings::StoreLayout;
use store_model::{Settings, StoreDir};
use substituter::{CacheReport, PingCaches};
use tokio::time::Instant;

use crate::commands::Session;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Asks a cache, or another store of this machine, past all that is remembered of it.
pub(super) async fn cache(session: &Session, url: &str, output: &mut Output) -> Result<()> {
    substituter::start::check_address(url).map_err(Failure::message)?;
    let store_dir = session.layout()?.store_dir;
    let settings = Settings {
        substitute: true,
        substituters: vec![url.to_owned()],
        ..session.settings()?
    };
    let substituter = session.substituter(store_dir.clone(), &settings)?;
    let reports = substituter.send(PingCaches).await;
    let reports = reports.map_err(|_| Failure::message("the substituter has stopped"))?;
    let Some(report) = reports.map_err(Failure::new)?.pop() else {
        return Err(Failure::message("no cache was asked"));
    };
    match &report.info {
        Ok(info) => print(&report, info, &store_dir, output),
        Err(reason) => Err(Failure::message(format!(
            "cannot use '{}': {reason}",
            report.cache_name
        ))),
    }
}

fn print(
    report: &CacheReport,
    info: &CacheInfo,
    store_dir: &StoreDir,
    output: &mut Output,
) -> Result<()> {
    output.line(format_args!("Store URL: {}", report.cache_name))?;
    // One for another directory could not be used.
    output.line(format_args!(
        "Store directory: {}",
        info.store_dir.as_ref().unwrap_or(store_dir)
    ))?;
    let priority = info.priority.unwrap_or(CacheInfo::DEFAULT_PRIORITY);
    output.line(format_args!("Priority: {priority}"))?;
    let mass_queries = yes_or_no(info.want_mass_query);
    output.line(format_args!("Wants mass queries: {mass_queries}"))?;
    let signatures = yes_or_no(report.needs_signatures);
    output.line(format_args!("Signatures asked for: {signatures}"))?;
    answered_in(report.took, output)
}

/// Tells about the store that goalctl works on, which has just been opened.
pub(super) fn own_store(
    layout: &StoreLayout,
    settings: &Settings,
    begun: Instant,
    output: &mut Output,
) -> Result<()> {
    output.line("Store URL: local")?;
    output.line(format_args!("Version: {}", env!("CARGO_PKG_VERSION")))?;
    output.line(format_args!("Store directory: {}", layout.store_dir))?;
    output.line(format_args!("Objects: {}", layout.real_store_dir.display()))?;
    output.line(format_args!("State: {}", layout.state_dir.display()))?;
    let signatures = yes_or_no(settings.require_sigs);
    output.line(format_args!("Signatures asked for: {signatures}"))?;
    answered_in(begun.elapsed(), output)
}

fn answered_in(took: Duration, output: &mut Output) -> Result<()> {
    output.line(format_args!("Answered in: {} ms", took.as_millis()))
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
