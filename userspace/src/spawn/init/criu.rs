//! Starts CRIU, and the guard of the memory that it maps.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::unistd::{Gid, Pid, Uid};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{
    super::protocol::{Notice, Step, receive_descriptor, send_descriptor},
    GUARD_FILE, Init, STDERR, STDOUT, WORK, errno_of, open_file,
};
use crate::{
    guard::{Guard, Guarded, filter},
    sys,
    watch::interruptions::Interruptions,
};

impl Init<'_> {
    /// Starts `criu swrk`. Init makes the socket, as CRIU looks for its folders in the process
    /// at the other end by the pid it had when the socket was made.
    pub(super) fn start_criu(&mut self, uid: u32, gid: u32) -> Result<(u32, OwnedFd), Notice> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Notice::Failed {
            step: Step::Fork,
            errno: e.raw_os_error() as u32,
        })?;
        match sys::fork(sys::ForkOptions::default()) {
            Ok(sys::Fork::Child) => {
                let error = self.become_criu(uid, gid, &theirs);
                // Seen by the supervisor in the file that is CRIU's stderr.
                eprintln!("cannot start CRIU: {error}");
                sys::exit_now(127)
            }
            Ok(sys::Fork::Parent { pid, .. }) => {
                self.criu = Some(Pid::from_raw(pid));
                // If it ends early, there is nobody at the other end.
                drop(theirs);
                self.guard_memory(ours.as_fd())?;
                Ok((pid as u32, ours))
            }
            Err(error) => Err(Notice::Failed {
                step: Step::Fork,
                errno: errno_of(&error),
            }),
        }
    }

    /// While CRIU gets ready; it restores only when it is asked to, after this.
    ///
    /// The supervisor is told of CRIU after this, although it could go on before: with two processors it
    /// would do so on the one that CRIU needs.
    fn guard_memory(&mut self, criu: BorrowedFd<'_>) -> Result<(), Notice> {
        if let Some(guarded) = &self.plan.guarded {
            let guard = self.receive_guard(criu, guarded);
            self.guard = Some(guard.map_err(|error| Notice::Failed {
                step: Step::Guard,
                errno: errno_of(&error),
            })?);
        }
        Ok(())
    }

    /// The guard by the filter that CRIU has put on itself, and so on all that it restores.
    fn receive_guard(
        &self,
        socket: BorrowedFd<'_>,
        guarded: &Guarded,
    ) -> io::Result<(Guard, fs::File)> {
        let interruptions = Interruptions::watch()?;
        let listener = receive_descriptor(socket)?;
        let files: Vec<_> = self.plan.memory().map(sys::permanent).collect();
        let guard = Guard::new(listener, interruptions, &files, guarded.traits.clone())?;
        Ok((guard, open_file(WORK, GUARD_FILE)?))
    }

    fn become_criu(&self, uid: u32, gid: u32, socket: &OwnedFd) -> io::Error {
        let criu_socket = self.plan.shared().end;
        let prepared = || -> io::Result<()> {
            if let Some(guarded) = &self.plan.guarded {
                let listener = sys::seccomp::listen(&filter::program(guarded))?;
                send_descriptor(socket.as_fd(), listener.as_fd())?;
            }
            sys::place(socket.as_raw_fd(), criu_socket)?;
            (STDOUT..=STDERR).try_for_each(sys::inherit)?;
            let (handed, memory) = (self.plan.handed(), self.plan.memory());
            let files = handed.chain(memory).chain(self.plan.shared());
            files.into_iter().try_for_each(sys::inherit)?;
            let errors = rustix::fs::openat(
                sys::permanent(WORK),
                crate::criu::STDERR_FILE,
                rustix::fs::OFlags::CREATE
                    | rustix::fs::OFlags::APPEND
                    | rustix::fs::OFlags::WRONLY,
                rustix::fs::Mode::from_raw_mode(0o600),
            )?;
            sys::place(errors.as_raw_fd(), 1)?;
            sys::place(errors.as_raw_fd(), 2)?;
            // What it writes is for its owner alone; those that it restores have their own.
            rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            if uid != 0 {
                drop_to(uid, gid)?;
            }
            sys::reset_signals();
            Ok(())
        };
        if let Err(error) = prepared() {
            return error;
        }
        let socket = criu_socket.to_string();
        let arguments = [c"criu".to_owned(), c"swrk".to_owned(), text(&socket)];
        let kerndat = format!("XDG_RUNTIME_DIR={}", self.plan.kerndat.display());
        let environment = [
            text(&kerndat),
            c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            // Nothing is sent to a page server: saves half a millisecond of CRIU's start.
            c"GNUTLS_NO_IMPLICIT_INIT=1".to_owned(),
            // `FI_NO_BREAKPOINTS` of its criu/include/fault-injection.h: threads are caught at the end
            // of the restore by their system calls. A hardware breakpoint for each takes a virtual
            // machine longer.
            c"CRIU_FAULT=130".to_owned(),
        ];
        sys::exec(&self.plan.criu, &arguments, &environment)
    }
}

fn text(text: &str) -> CString {
    CString::new(text).expect("paths and numbers of ours hold no NUL")
}

/// Becomes another user and keeps what CRIU needs.
fn drop_to(uid: u32, gid: u32) -> io::Result<()> {
    use rustix::thread::{
        CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
        set_keep_capabilities,
    };
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setgroups(&[gid])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    let kept = capabilities(None)?.permitted - crate::criu::WITHHELD;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: kept,
    };
    set_capabilities(None, sets)?;
    for capability in kept {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
