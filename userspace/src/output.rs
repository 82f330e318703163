//! What the server writes: read from its pipes all the time, so that it never blocks on them.

use std::{
    collections::VecDeque,
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe::Receiver,
    task::JoinHandle,
};

/// How many lines are remembered for error messages.
const REMEMBERED: usize = 20;

/// Which of the two.
#[derive(Clone, Copy, Debug)]
enum Stream {
    Stdout,
    Stderr,
}

/// The reading ends of a server's standard output and error.
pub struct Output {
    state: Arc<Mutex<State>>,
    readers: [JoinHandle<()>; 2],
    names: [String; 2],
}

#[derive(Default)]
struct State {
    /// Pass everything on to our own standard output and error.
    forward: bool,
    lines: VecDeque<String>,
    /// The last line of each stream, as long as its end has not come.
    partial: [String; 2],
}

impl Output {
    /// Makes the two pipes. The writing ends are for the server.
    ///
    /// # Errors
    /// What pipe(2) says.
    pub fn new(forward: bool) -> io::Result<(Self, [PipeWriter; 2])> {
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let names = [pipe_name(&stdout)?, pipe_name(&stderr)?];
        let state = Arc::new(Mutex::new(State {
            forward,
            ..State::default()
        }));
        let reader = |pipe: PipeReader, stream| -> io::Result<JoinHandle<()>> {
            let receiver = Receiver::from_owned_fd(OwnedFd::from(pipe))?;
            Ok(tokio::spawn(pump(receiver, stream, Arc::clone(&state))))
        };
        let readers = [
            reader(stdout, Stream::Stdout)?,
            reader(stderr, Stream::Stderr)?,
        ];
        Ok((
            Self {
                state,
                readers,
                names,
            },
            [stdout_writer, stderr_writer],
        ))
    }

    /// CRIU's names of the pipes: standard output, then standard error.
    pub fn names(&self) -> &[String; 2] {
        &self.names
    }

    /// From now on, passes on what the server writes.
    pub fn forward(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forward = true;
    }

    /// The last lines that the server wrote.
    pub fn last_lines(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let partial = state.partial.iter().filter(|line| !line.is_empty());
        let lines: Vec<String> = state.lines.iter().chain(partial).cloned().collect();
        lines[lines.len().saturating_sub(REMEMBERED)..].to_vec()
    }

    /// Waits until everything was read, for at most a second: a process that left the tree's
    /// pid namespace could still hold a pipe.
    pub async fn drained(&mut self) {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(1);
        let all = async {
            // One that has been waited for must not be again.
            for reader in self
                .readers
                .iter_mut()
                .filter(|reader| !reader.is_finished())
            {
                let _ = reader.await;
            }
        };
        let _ = tokio::time::timeout(LIMIT, all).await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(count);
    lines[skip..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

/// How /proc and CRIU call a pipe.
fn pipe_name(pipe: &PipeReader) -> io::Result<String> {
    Ok(format!(
        "pipe:[{}]",
        rustix::fs::fstat(pipe.as_fd())?.st_ino
    ))
}

async fn pump(mut pipe: Receiver, stream: Stream, state: Arc<Mutex<State>>) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let len = match pipe.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(len) => len,
        };
        let forward = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.remember(stream, &bytes[..len]);
            state.forward
        };
        if forward {
            // If our own reader is gone, the server goes on unheard, as under a supervisor.
            let _ = match stream {
                Stream::Stdout => write_all(tokio::io::stdout(), &bytes[..len]).await,
                Stream::Stderr => write_all(tokio::io::stderr(), &bytes[..len]).await,
            };
        }
    }
}

async fn write_all(mut to: impl tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

impl State {
    fn remember(&mut self, stream: Stream, bytes: &[u8]) {
        /// A line without an end is cut here.
        const LONGEST: usize = 4096;
        for part in String::from_utf8_lossy(bytes).split_inclusive('\n') {
            let partial = &mut self.partial[stream as usize];
            partial.push_str(part);
            if partial.ends_with('\n') || partial.len() > LONGEST {
                let line = std::mem::take(partial);
                self.lines.push_back(line.trim_end().to_owned());
                if self.lines.len() > REMEMBERED {
                    self.lines.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn the_last_lines_of_both_streams_are_remembered() {
        let (mut output, [mut stdout, mut stderr]) = Output::new(false).unwrap();
        for number in 0..30 {
            writeln!(stdout, "line {number}").unwrap();
        }
        write!(stderr, "no end of line").unwrap();
        drop((stdout, stderr));
        output.drained().await;
        let lines = output.last_lines();
        assert_eq!(lines.len(), REMEMBERED);
        assert_eq!(lines[18], "line 29");
        assert_eq!(lines[19], "no end of line");
    }
}
