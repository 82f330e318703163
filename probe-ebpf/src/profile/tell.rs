//! Tells user space of what is over.

use aya_ebpf::{macros::map, maps::RingBuf};
use probe_ebpf::trace::{AnswerSpan, NamedSpan, SPAN_CUT, Span, Thread};

use super::{calls::leave, state::count_lost};
use crate::{kernel::read_user_text, opens::wake_up_for};

/// What is over; user space sets the size.
#[map]
pub static SPANS: RingBuf = RingBuf::with_byte_size(1 << 26, 0);

pub fn span(kind: u32, tid: u32, thread: &Thread, start_ns: u64, end_ns: u64) -> Span {
    Span {
        kind,
        flags: 0,
        tgid: thread.tgid,
        tid,
        start_ns,
        end_ns,
        woken_ns: 0,
        waker: 0,
        class: 0,
        number: thread.number,
        device: 0,
        inode: 0,
        result: 0,
        argument: 0,
    }
}

pub fn tell(span: Span) {
    let Some(mut entry) = SPANS.reserve::<Span>(0) else {
        count_lost();
        return;
    };
    entry.write(span);
    entry.submit(wake_up());
}

/// Tells of a system call, which ends now.
pub fn tell_call(mut span: Span, thread: &mut Thread) {
    let Some(mut entry) = SPANS.reserve::<Span>(0) else {
        count_lost();
        return;
    };
    span.end_ns = leave(thread);
    entry.write(span);
    entry.submit(wake_up());
}

/// Tells of a system call with a text of the process' memory, `len` bytes long or, if that is 0, up to a
/// NUL.
pub fn tell_named(span: Span, thread: &mut Thread, address: u64, len: u64) {
    let Some(mut entry) = SPANS.reserve::<NamedSpan>(0) else {
        count_lost();
        return;
    };
    // SAFETY: the reserved bytes are ours until submitted, and every field is written; of the name, as much
    // as its length says.
    let named = unsafe {
        let named = entry.as_mut_ptr();
        (*named).span = span;
        &mut *named
    };
    let (copied, is_cut) = read_user_text(address, len, &mut named.name);
    named.name_len = copied;
    if is_cut {
        named.span.flags |= SPAN_CUT;
    }
    named.span.end_ns = leave(thread);
    entry.submit(wake_up());
}

/// Tells of a system call that has read the answer of a name server, which is `len` bytes long.
pub fn tell_answer(span: Span, thread: &mut Thread, address: u64, len: u64) {
    let Some(mut entry) = SPANS.reserve::<AnswerSpan>(0) else {
        count_lost();
        return;
    };
    // SAFETY: as above.
    let answered = unsafe {
        let answered = entry.as_mut_ptr();
        (*answered).span = span;
        &mut *answered
    };
    (answered.answer_len, _) = read_user_text(address, len, &mut answered.answer);
    answered.span.end_ns = leave(thread);
    entry.submit(wake_up());
}

/// How a span is handed over.
pub fn wake_up() -> u64 {
    wake_up_for(&SPANS, 1 << 25)
}
