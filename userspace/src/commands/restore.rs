//! `warmimg restore`

use super::{
    prepare,
    supervise::{Signals, supervise},
};
use crate::{
    cli,
    error::Error,
    report::Report,
    restore::{self, RestoreError},
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Restore,
    report: &Report,
) -> Result<u8, Error> {
    let (store, criu) = prepare(global)?;
    let image = store.find(arguments.image.as_deref())?;
    let mut signals = Signals::catch()?;
    let mut restored = tokio::select! {
        restored = restore::restore(&store, &criu, &image, arguments.detach) => restored?,
        () = signals.overdue() => return Err(RestoreError::Interrupted.into()),
    };
    report.restored(&restored)?;
    if arguments.detach {
        restored.detach().await?;
        return Ok(0);
    }
    let code = supervise(
        &mut restored.sandbox,
        restored.output.as_mut(),
        &mut signals,
    )
    .await?;
    Ok(code)
}
