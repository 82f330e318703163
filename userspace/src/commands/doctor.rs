//! `warmimg doctor`

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use super::supervise::Signals;
use crate::{
    capture::{self, Options},
    cli,
    criu::Program,
    doctor::{self, Facts, Severity},
    elsewhere::Elsewhere,
    error::{Error, ExitCode},
    listener::Listener,
    report::Report,
    restore,
    spawn::Command,
    store::Store,
    watch::CapturePoint,
};

/// What the server of the self-test answers.
const GREETING: &[u8] = b"warmimg self-test\n";

/// How long each step of the self-test may take.
const LIMIT: Duration = Duration::from_secs(20);

pub async fn run(global: &cli::Global, report: &Report) -> Result<u8, Error> {
    let store = Store::open(&global.store)?;
    let facts = Facts::read(global.criu.as_deref(), &store.kerndat());
    let mut findings = doctor::examine(&facts);
    let may_work = findings
        .iter()
        .all(|finding| finding.severity != Severity::Broken);
    if may_work {
        let mut signals = Signals::catch()?;
        let outcome = tokio::select! {
            outcome = self_test(global.criu.as_deref(), &store) => outcome,
            () = signals.ended() => return Err(restore::RestoreError::Interrupted.into()),
        };
        findings.push(doctor::self_test(outcome.map_err(|error| {
            let details = error
                .details()
                .into_iter()
                .flat_map(|(_, lines)| lines)
                .collect();
            (doctor::chain(&error), details)
        })));
    }
    report.findings(&findings)?;
    let works = findings
        .iter()
        .all(|finding| finding.severity != Severity::Broken);
    Ok(if works { 0 } else { ExitCode::Unfit as u8 })
}

/// Captures this program as a small server, restores it, and asks it.
async fn self_test(criu: Option<&Path>, store: &Store) -> Result<Duration, Error> {
    let store = store.temporary()?;
    let program = std::env::current_exe().map_err(Error::Runtime)?;
    let words: [OsString; 2] = [program.into(), "self-test-server".into()];
    let options = Options {
        command: Command::resolve(&words, None)?,
        point: CapturePoint::Ready,
        limit: LIMIT,
        name: "self-test".into(),
        how: capture::How::default(),
        leave_running: false,
        profiled: None,
        elsewhere: Elsewhere::default(),
    };
    let criu = Program::find(criu)?;
    let never = std::future::pending();
    let image = capture::capture(&store, &criu, &options, never, |_| ())
        .await?
        .image;
    // The first fills the cache of CRIU's kernel data, the second is the one that is timed.
    let mut time = Duration::ZERO;
    let detached = restore::Options {
        detached: true,
        ..restore::Options::default()
    };
    for _ in 0..2 {
        let restored = restore::restore(&store, &criu, &image, &detached).await?;
        for listener in &restored.record.listeners {
            if let Listener::Tcp { address } = listener {
                ask(*address).map_err(Error::Output)?;
            }
        }
        time = restored.timings.total;
    }
    Ok(time)
}

fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer == GREETING {
        Ok(())
    } else {
        Err(io::Error::other("not the answer expected"))
    }
}

/// The server of the self-test: greets whoever connects.
pub fn serve() -> Result<u8, Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::Runtime)?;
    loop {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(GREETING);
        }
    }
}
