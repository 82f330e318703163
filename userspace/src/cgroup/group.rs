//! The control group of an instance, by which what it uses is limited and counted.
//!
//! It is in every hierarchy that limits something. Until an instance's record tells of it, a
//! [`Reservation`] owns it; what runs in it is ended by others.

use std::{
    collections::HashSet,
    fs, io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    files::{self, create, enter},
    hierarchy::{Controller, Place, Places, Version},
    limits::{Limits, Memory, State},
    name, processes, remove, sweep,
};
use crate::tree::{self, HostPid};

/// The group at the top of a hierarchy below which those of instances are, unless another is named.
const DEFAULT_PARENT: &str = "warmimg";

/// How long processes may go on starting others outside of the group they are put into.
const GATHER_LIMIT: Duration = Duration::from_secs(10);

/// Why a group cannot be made or limited.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    #[error("no hierarchy of control groups has the controller {}", .0.name())]
    NoController(Controller),
    #[error("there is no control group {}", .0.display())]
    NoParent(PathBuf),
    #[error("cannot make the control group {}", .path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot enable controllers in {}", .path.display())]
    Enable { path: PathBuf, source: io::Error },
    #[error("cannot put process {pid} into {}", .path.display())]
    Enter {
        pid: HostPid,
        path: PathBuf,
        source: io::Error,
    },
    #[error("processes start too fast to put them all into {}", .0.display())]
    Restless(PathBuf),
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{used} of memory are in use, more than the limit of {wanted}")]
    InUse { used: Memory, wanted: Memory },
}

/// What group an instance is to have.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The group to be below, from the top of the hierarchy.
    pub parent: Option<PathBuf>,
    pub limits: Limits,
}

/// The group of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Group(Places);

/// A group to be, and then one that is removed when this is dropped, unless kept.
#[derive(Debug)]
pub struct Reservation {
    parent: Places,
    limits: Limits,
    made: Option<Group>,
}

impl Reservation {
    /// Prepares the group that others are made below, and removes what is left in it of instances
    /// that have ended.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn new(request: &Request) -> Result<Self, CgroupError> {
        let tops = Places::find()?;
        let Limits { cpus, memory } = request.limits;
        let asked = [
            (Controller::Cpu, cpus.is_some()),
            (Controller::Memory, memory.is_some()),
        ];
        let is_missing = |&(controller, is_asked): &(Controller, bool)| {
            // A group that no controller has would be none.
            tops.of(controller).is_none() && (is_asked || tops.each().next().is_none())
        };
        if let Some((controller, _)) = asked.into_iter().find(is_missing) {
            return Err(CgroupError::NoController(controller));
        }
        let below = request.parent.as_deref();
        let parent = tops.join(relative(below.unwrap_or(Path::new(DEFAULT_PARENT))));
        for place in parent.each() {
            match below {
                None => create(&place.path)?,
                Some(_) if place.path.is_dir() => {}
                Some(_) => return Err(CgroupError::NoParent(place.path.clone())),
            }
        }
        files::enable(&tops, &parent)?;
        for place in parent.each() {
            // The owner may be gone and the instance not: then the kernel refuses.
            sweep(&place.path, |group| drop(fs::remove_dir(group)));
        }
        Ok(Self {
            parent,
            limits: request.limits,
            made: None,
        })
    }

    /// Makes the group of an instance that this process restores, to be [born](Group::born_in) in.
    /// The limit on memory holds from now on, that on processors not yet: it would slow down the
    /// restore.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn make(&mut self, id: &str) -> Result<&Group, CgroupError> {
        let limits = Limits {
            cpus: None,
            ..self.limits
        };
        let group = self.create(HostPid(std::process::id() as i32), id)?;
        group.set(&limits)?;
        Ok(group)
    }

    /// Makes the group of an instance that runs, and puts all its processes in.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn gather(&mut self, init: HostPid, id: &str) -> Result<&Group, CgroupError> {
        // The kernel leaves what they have to the group they were in, and could not refuse.
        let used = tree::anonymous_bytes(&tree::descendants(init));
        if let Some(wanted) = self.limits.memory
            && wanted.0.is_some_and(|bytes| bytes < used)
        {
            let used = Memory(Some(used));
            return Err(CgroupError::InUse { used, wanted });
        }
        let group = self.create(init, id)?;
        group.0.each().try_for_each(|place| gather(place, init))?;
        Ok(group)
    }

    /// Lets the limit on processors hold, now that the server is back.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn complete(&self) -> Result<(), CgroupError> {
        let limits = Limits {
            memory: None,
            ..self.limits
        };
        self.made
            .as_ref()
            .map_or(Ok(()), |group| group.set(&limits))
    }

    /// The limit on memory, if something was killed because of it.
    pub fn exhausted(&self) -> Option<Memory> {
        let place = self.made.as_ref()?.0.memory.as_ref()?;
        self.limits.memory.filter(|_| files::has_killed(place))
    }

    /// Leaves the group to those who end the instance.
    pub fn keep(mut self) {
        self.made = None;
    }

    fn create(&mut self, owner: HostPid, id: &str) -> Result<&Group, CgroupError> {
        let name = format!("{}.{id}", name(owner));
        // Owned before it is there, so that a part of it is removed as well.
        let group = self.made.insert(Group(self.parent.join(name)));
        for place in group.0.each() {
            create(&place.path)?;
        }
        Ok(group)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(group) = &self.made {
            group.remove();
        }
    }
}

impl Group {
    /// The folder on version 2 for a fork to be born in, if it is there.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn born_in(&self) -> io::Result<Option<fs::File>> {
        let mut places = self.0.each();
        let place = places.find(|place| place.version == Version::V2);
        place.map(|place| fs::File::open(&place.path)).transpose()
    }

    /// Puts the caller, who has a single thread, into the group on version 1, where no fork can be
    /// born. Moving a process by its pid would make the kernel wait for all processors (RCU): 4 to
    /// 15 ms instead of 0.1.
    ///
    /// # Errors
    /// What open(2) and write(2) say.
    pub fn enter(&self) -> io::Result<()> {
        let mut places = self.0.each().filter(|place| place.version == Version::V1);
        places.try_for_each(|place| fs::write(place.path.join("tasks"), "0"))
    }

    /// Sets limits, at once. Memory comes first: it is what can be refused.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] if more memory is in use than is to be allowed: nothing is changed
    /// then. [`CgroupError::NoController`] or [`CgroupError::Write`].
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        let place = |controller| {
            let place = self.0.of(controller);
            place.ok_or(CgroupError::NoController(controller))
        };
        if let Some(memory) = limits.memory {
            files::set_memory(place(Controller::Memory)?, memory)?;
        }
        if let Some(cpus) = limits.cpus {
            files::set_cpus(place(Controller::Cpu)?, cpus)?;
        }
        Ok(())
    }

    /// Reads what is set and used.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn state(&self) -> Result<State, CgroupError> {
        let mut state = State::UNLIMITED;
        if let Some(place) = &self.0.cpu {
            state.cpus = files::cpus(place)?;
        }
        if let Some(place) = &self.0.memory {
            state.memory = files::memory(place)?;
            state.memory_used = files::memory_used(place)?.0;
        }
        Ok(state)
    }

    /// Removes it once its processes have ended.
    pub fn remove(&self) {
        for place in self.0.each() {
            remove(&place.path);
        }
    }
}

/// The path below the top: neither the top itself nor a way out of it.
fn relative(path: &Path) -> PathBuf {
    let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
    path.components().filter(is_name).collect()
}

/// Puts a process and all under it into a group, until none is outside: what is started in the
/// meantime by one that is still outside is outside too.
fn gather(place: &Place, init: HostPid) -> Result<(), CgroupError> {
    let deadline = Instant::now() + GATHER_LIMIT;
    loop {
        let inside: HashSet<_> = processes(&place.path).into_iter().collect();
        let mut all = tree::descendants(init);
        all.push(init);
        all.retain(|pid| !inside.contains(pid));
        if all.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(CgroupError::Restless(place.path.clone()));
        }
        for pid in all {
            match enter(place, pid) {
                Err(CgroupError::Enter { source, .. })
                    if pid != init && source.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
}
