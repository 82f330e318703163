//! `warmimg serve`

use tokio::task::LocalSet;

use super::{prepare, supervise::Signals};
use crate::{
    cli,
    error::Error,
    report::Report,
    serve::{Config, Gateway},
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Serve,
    report: &Report,
) -> Result<u8, Error> {
    let config = Config::read(&arguments.config)?;
    let (store, criu) = prepare(global)?;
    if arguments.check {
        Gateway::check(&store, &config)?;
        report.serve_checked(&arguments.config, &config)?;
        return Ok(0);
    }
    let mut signals = Signals::catch()?;
    let report = report.clone();
    let journal = Box::new(move |event: &_| {
        // Nobody reads it any more: that is no reason to serve no more.
        let _ = report.serve_event(event);
    });
    let serving = async {
        let mut gateway = Gateway::start(store, criu, &config, journal)?;
        let outcome = tokio::select! {
            outcome = gateway.pass_on() => outcome,
            () = signals.ended() => Ok(()),
        };
        gateway.leave(false).await;
        Ok(outcome?)
    };
    LocalSet::new().run_until(serving).await.map(|()| 0)
}
