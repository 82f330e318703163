//! Timers of timerfd_create(2) that are restored otherwise than they were.
//!
//! The kernel shows no time left for a timer that has rung and waits to be read, and CRIU sets it
//! to that: a periodic one would ring no more. And where the time was absolute, CRIU adds none
//! left to the time of the restore, at which even a timer rings that was not set.

use std::path::Path;

use super::{
    file_entry,
    image::{EditError, Image, Kind},
    wire::Message,
};

mod timerfd_entry {
    pub const SETTIME_FLAGS: u32 = 6;
    pub const VSEC: u32 = 7;
    pub const VNSEC: u32 = 8;
    pub const ISEC: u32 = 9;
    pub const INSEC: u32 = 10;
}

/// Lets periodic timers go on, and those that are not set be.
pub fn set_anew(images: &Path) -> Result<(), EditError> {
    let mut image = Image::read(&images.join("files.img"), Kind::Files)?;
    for entry in &mut image.entries {
        entry.edit(file_entry::TFD, set);
    }
    image.write()
}

fn set(timer: &mut Message) {
    use timerfd_entry::{INSEC, ISEC, SETTIME_FLAGS, VNSEC, VSEC};
    if timer.number(VSEC) != Some(0) || timer.number(VNSEC) != Some(0) {
        return;
    }
    timer.replace_number(SETTIME_FLAGS, 0);
    for (value, interval) in [(VSEC, ISEC), (VNSEC, INSEC)] {
        timer.replace_number(value, timer.number(interval).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::wire::{Field, Value};

    /// `settime_flags`, `vsec`, `vnsec`, `isec` and `insec` after the edit.
    fn edited(numbers: [u64; 5]) -> [u64; 5] {
        let field = |(number, n)| Field {
            number,
            value: Value::Varint(n),
        };
        let mut timer = Message((6..).zip(numbers).map(field).collect());
        set(&mut timer);
        [6, 7, 8, 9, 10].map(|number| timer.number(number).unwrap())
    }

    #[test]
    fn only_timers_with_no_time_left_are_changed() {
        assert_eq!(edited([0, 0, 0, 2, 5]), [0, 2, 5, 2, 5]);
        assert_eq!(edited([1, 0, 0, 0, 0]), [0, 0, 0, 0, 0]);
        assert_eq!(edited([1, 0, 7, 2, 5]), [1, 0, 7, 2, 5]);
    }
}
