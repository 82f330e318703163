//! The proxy gives up all rights before it reads a byte from the network: whoever takes it over can
//! talk to the sites, and use the sockets and the certificates that it was given, and nothing else.

use std::io;

use nix::unistd::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// The user without rights, `nobody`, and its group.
const NOBODY: u32 = 65534;

/// Drops all capabilities of this process for good; if it runs as root, it becomes `nobody`. To be
/// called while it has one thread.
///
/// # Errors
/// What the kernel says. The process must end then.
pub fn drop_all() -> io::Result<()> {
    if rustix::process::getuid().is_root() {
        for capability in CapabilitySet::all() {
            // Those above what this kernel knows are refused, and nobody can have them.
            let _ = remove_capability_from_bounding_set(capability);
        }
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
    }
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    // Its memory has the keys of certificates.
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(not_dumpable)?;
    Ok(())
}
