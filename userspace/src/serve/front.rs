//! The HTTP proxy in front of sites that share a port: a process of its own, without rights, that the
//! gateway starts and tells what to do.
//!
//! The proxy connects to a site's socket as any client does; so what wakes a site is the same with and
//! without it.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    time::Duration,
};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::oneshot;

use super::socket::Socket;
use crate::{
    listener::Listener,
    proxy::{
        control::{Control, ControlError},
        plan::{MOST_SOCKETS, Notice, Order, Plan, State, Stats},
    },
    sys,
};

/// How long the proxy may take to be ready, or to refuse a plan.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take to finish what is in flight when the gateway ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no proxy, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    #[error("cannot start the proxy")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the proxy has ended")]
    Gone,
    #[error("the proxy was not ready within {} s", READY_LIMIT.as_secs())]
    Timeout,
    #[error("{0}")]
    Refused(String),
}

/// The proxy's process. It is ended when this is dropped.
pub struct Front {
    pid: i32,
    pidfd: OwnedFd,
    control: Control,
    /// The numbers that its sockets have.
    numbers: BTreeMap<Listener, u32>,
    next: u32,
    /// Those who wait for its figures, in the order in which it was asked.
    asked: VecDeque<oneshot::Sender<Stats>>,
}

impl Front {
    /// Starts it.
    ///
    /// # Errors
    /// [`FrontError::Start`].
    pub fn start() -> Result<Self, FrontError> {
        let (ours, theirs) = UnixStream::pair().map_err(FrontError::Start)?;
        let forked = sys::fork(sys::ForkOptions::default()).map_err(FrontError::Start)?;
        let (pid, pidfd) = match forked {
            sys::Fork::Child => become_proxy(theirs.as_raw_fd()),
            sys::Fork::Parent { pid, pidfd } => (pid, pidfd),
        };
        Ok(Self {
            pid,
            pidfd,
            control: Control::new(ours.into()).map_err(FrontError::Start)?,
            numbers: BTreeMap::new(),
            next: 0,
            asked: VecDeque::new(),
        })
    }

    /// Has it carry out a plan, whose listeners are numbered in the order of these sockets.
    ///
    /// # Errors
    /// See [`FrontError`]; the plan before is carried out further then.
    pub async fn configure(
        &mut self,
        mut plan: Plan,
        sockets: &[Rc<Socket>],
    ) -> Result<(), FrontError> {
        let new = sockets
            .iter()
            .filter(|socket| !self.numbers.contains_key(&socket.listener));
        let new: Vec<_> = new.cloned().collect();
        for some in new.chunks(MOST_SOCKETS) {
            let numbers: Vec<u32> = (self.next..).take(some.len()).collect();
            self.next += some.len() as u32;
            let named = some
                .iter()
                .map(|socket| socket.listener.clone())
                .zip(numbers.clone());
            self.numbers.extend(named);
            let descriptors: Vec<_> = some
                .iter()
                .map(|socket| socket.descriptor.as_fd())
                .collect();
            self.control
                .send(&Order::Sockets { numbers }, &descriptors)
                .await?;
        }
        let kept = |listener: &Listener| sockets.iter().any(|socket| socket.listener == *listener);
        self.numbers.retain(|listener, _| kept(listener));
        for listener in &mut plan.listeners {
            let socket = sockets.get(listener.socket as usize);
            let number = socket.and_then(|socket| self.numbers.get(&socket.listener));
            listener.socket = number.copied().ok_or(FrontError::Gone)?;
        }
        self.control.send(&Order::Plan(Box::new(plan)), &[]).await?;
        let answer = async {
            loop {
                match self.notice().await? {
                    None => return Err(FrontError::Gone),
                    Some(Notice::Ready) => return Ok(()),
                    Some(Notice::Refused { reason }) => return Err(FrontError::Refused(reason)),
                    Some(_) => {}
                }
            }
        };
        let answered = tokio::time::timeout(READY_LIMIT, answer).await;
        answered.unwrap_or(Err(FrontError::Timeout))
    }

    /// Tells how a site is.
    ///
    /// # Errors
    /// [`FrontError::Control`].
    pub async fn tell(&self, site: String, state: State) -> Result<(), FrontError> {
        Ok(self
            .control
            .send(&Order::State { site, state }, &[])
            .await?)
    }

    /// Asks for its figures.
    ///
    /// # Errors
    /// [`FrontError::Control`].
    pub async fn ask(&mut self, answer: oneshot::Sender<Stats>) -> Result<(), FrontError> {
        self.control.send(&Order::Stats, &[]).await?;
        self.asked.push_back(answer);
        Ok(())
    }

    /// Passes on its figures until it has ended. Can be cancelled.
    pub async fn ended(&mut self) {
        while let Ok(Some(_)) = self.notice().await {}
    }

    /// The next that it tells; its figures go to who has asked for them.
    async fn notice(&mut self) -> Result<Option<Notice>, ControlError> {
        loop {
            match self.control.receive().await? {
                Some(Notice::Stats(stats)) => {
                    let answer = self.asked.pop_front();
                    // He may have gone away.
                    let _ = answer.map(|answer| answer.send(*stats));
                }
                notice => return Ok(notice),
            }
        }
    }

    /// Lets it finish what is in flight, and ends it.
    pub async fn leave(mut self) {
        let limit_ms = DRAIN_LIMIT.as_millis() as u64;
        if self
            .control
            .send(&Order::Drain { limit_ms }, &[])
            .await
            .is_ok()
        {
            let _ = tokio::time::timeout(DRAIN_LIMIT, self.ended()).await;
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let pid = nix::unistd::Pid::from_raw(self.pid);
        while nix::sys::wait::waitpid(pid, None) == Err(nix::Error::EINTR) {}
    }
}

fn become_proxy(control: i32) -> ! {
    /// Where the proxy expects its control socket, and `keep_only` puts it.
    const CONTROL: i32 = 3;
    let kept = sys::keep_only(&[control]).and_then(|()| sys::inherit(CONTROL));
    if kept.is_ok() {
        sys::reset_signals();
        let arguments = [c"warmimg".to_owned(), c"proxy".to_owned()];
        sys::exec(&c"/proc/self/exe".to_owned(), &arguments, &[]);
    }
    sys::exit_now(127)
}
