//! Keeps the time of every followed thread by what it does, and tells of each thing that is over.
//!
//! A thread's state is written by the thread itself, at its system calls, page faults and switches,
//! so that each nanosecond is counted once; only `woken_ns` and `waker` are written by another.

mod calls;
mod faults;
mod known_calls;
mod sched;
mod state;
mod tell;
mod totals;
