//! Rewinds an image by a system call: the restored process performs it again, itself.

use std::path::Path;

use super::{
    EditError, core_entry, cores, file_entry,
    image::{Image, Kind},
    inet_sk_entry,
    listeners::{tcp_listener, unix_listener},
    thread_info_x86, unix_sk_entry, user_x86_regs_entry,
    wire::{Message, Value},
};
use crate::listener::Listener;

/// Takes a listener back to the bound socket it was before listen(2), and the thread that called
/// it to the call.
///
/// # Errors
/// See [`EditError`]; [`EditError::NotInListen`] if no thread is on its way back from listen(2),
/// as with io_uring.
pub fn before_listen(images: &Path, listener: &Listener) -> Result<(), EditError> {
    let mut rewound = 0;
    for path in cores(images)? {
        let mut image = Image::read(&path, Kind::Core)?;
        for entry in &mut image.entries {
            entry.edit(core_entry::THREAD_INFO, |thread| {
                thread.edit(thread_info_x86::GPREGS, |registers| {
                    rewound += usize::from(rewind(registers));
                });
            });
        }
        image.write()?;
    }
    if rewound != 1 {
        return Err(EditError::NotInListen);
    }
    unlisten(images, listener)
}

/// Takes the registers of a thread back to the listen(2) that it returns from, successfully;
/// returns whether it does. The arguments are where they were: of all registers the kernel changes
/// only the one of the result (and rcx and r11, which are the program's to lose).
fn rewind(registers: &mut Message) -> bool {
    /// The length of the instruction `syscall`.
    const SYSCALL: u64 = 2;
    let is_back = registers.number(user_x86_regs_entry::ORIG_AX) == Some(libc::SYS_listen as u64)
        && registers.number(user_x86_regs_entry::AX) == Some(0);
    let behind = registers.number(user_x86_regs_entry::IP);
    let Some(ip) = behind.and_then(|behind| behind.checked_sub(SYSCALL)) else {
        return false;
    };
    if is_back {
        registers.replace_number(user_x86_regs_entry::AX, libc::SYS_listen as u64);
        registers.replace_number(user_x86_regs_entry::IP, ip);
    }
    is_back
}

fn unlisten(images: &Path, listener: &Listener) -> Result<(), EditError> {
    let mut image = Image::read(&images.join("files.img"), Kind::Files)?;
    let close = || [Value::Varint(inet_sk_entry::CLOSE)];
    for entry in &mut image.entries {
        entry.edit(file_entry::ISK, |socket| {
            let address = tcp_listener(socket);
            if address.is_some_and(|address| *listener == Listener::Tcp { address }) {
                socket.set(inet_sk_entry::STATE, close());
            }
        });
        entry.edit(file_entry::USK, |socket| {
            if unix_listener(socket).as_ref() == Some(listener) {
                socket.set(unix_sk_entry::STATE, close());
            }
        });
    }
    image.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_that_returns_from_listen_is_taken_back() {
        let registers = |orig_ax: i64, ax: i64| {
            let mut registers = Message::default();
            for (field, number) in [
                (user_x86_regs_entry::AX, ax),
                (user_x86_regs_entry::ORIG_AX, orig_ax),
                (user_x86_regs_entry::IP, 0x1002),
            ] {
                registers.set(field, [Value::Varint(number as u64)]);
            }
            registers
        };
        let mut listens = registers(libc::SYS_listen, 0);
        assert!(rewind(&mut listens));
        assert_eq!(listens.number(user_x86_regs_entry::IP), Some(0x1000));
        assert_eq!(
            listens.number(user_x86_regs_entry::AX),
            Some(libc::SYS_listen as u64)
        );
        assert!(!rewind(&mut registers(libc::SYS_listen, -98)));
        assert!(!rewind(&mut registers(libc::SYS_bind, 0)));
        let mut nowhere = registers(libc::SYS_listen, 0);
        nowhere.replace_number(user_x86_regs_entry::IP, 1);
        assert!(!rewind(&mut nowhere));
    }
}
