//! What is written can be read, and what cannot be read is told with its line.

use super::*;
use crate::{profile::Profile, report::profile::synthetic};

fn written(profile: &Profile) -> String {
    let mut bytes = Vec::new();
    write(profile, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// What is said of a file that cannot be read.
fn refusal(text: &str) -> String {
    read(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_profile_comes_back_as_it_was() {
    let profile = synthetic::profile();
    assert_eq!(read(written(&profile).as_bytes()).unwrap(), profile);
}

/// A file of schema 1 that was stored: it must stay readable.
#[test]
fn a_stored_file_is_what_is_written() {
    const STORED: &str = include_str!("../../../../../tests/profiles/synthetic.jsonl");
    assert_eq!(written(&synthetic::profile()), STORED);
}

#[test]
fn a_file_holds_several() {
    let profile = synthetic::profile();
    let text = written(&profile).repeat(2);
    assert_eq!(
        read_all(text.as_bytes()).unwrap(),
        [&profile, &profile].map(Clone::clone)
    );
    assert_eq!(
        refusal(&text),
        "there are 2 profiles in it, and one is asked for"
    );
}

#[test]
fn each_line_has_its_type_and_schema() {
    for line in written(&synthetic::profile()).lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value["type"].is_string() && value["schema"] == 1, "{line}");
    }
}

#[test]
fn classes_and_texts_are_named() {
    let text = written(&synthetic::profile());
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
    let thread: serde_json::Value =
        serde_json::from_str(line(r#"{"type":"thread","schema":1,"pid":301"#)).unwrap();
    assert_eq!(thread["times_ns"]["disk"], 29_000_000);
    assert!(text.contains(r#""class":"disk","text":"read /srv/app.js","text_id":0,"#));
}

#[test]
fn unknown_records_are_skipped_and_others_can_be_taken_out() {
    let profile = synthetic::profile();
    let more = written(&profile).replace(
        "{\"type\":\"calls\"",
        "{\"type\":\"novelty\",\"schema\":1,\"x\":[1]}\n\n{\"type\":\"calls\"",
    );
    assert_eq!(read(more.as_bytes()).unwrap(), profile);
    let less: String = written(&profile)
        .split_inclusive('\n')
        .filter(|line| !line.contains(r#""type":"slice""#))
        .collect();
    let less = read(less.as_bytes()).unwrap();
    assert_eq!(less.texts[3], "read db.internal:5432");
    assert_eq!(less.calls, profile.calls);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let text = written(&synthetic::profile());
    let changed = |from: &str, to: &str| refusal(&text.replacen(from, to, 1));
    assert_eq!(refusal(""), "there is no profile in it");
    assert_eq!(
        refusal("hello\n"),
        "line 1 is not a record, which has a `type` and a `schema`: expected value, at column 1"
    );
    assert_eq!(
        changed(r#""schema":1"#, r#""schema":7"#),
        "line 1 is of schema 7; this warmimg reads up to 1"
    );
    assert_eq!(
        changed(r#""class":"child""#, r#""class":"childish""#)
            .split(", expected one of")
            .next(),
        Some("line 7, a `slice` record, is not as it has to be: unknown variant `childish`")
    );
    assert_eq!(
        changed(
            r#""pid":301,"tid":301,"start_ns""#,
            r#""pid":1,"tid":301,"start_ns""#
        ),
        "line 10, a `slice` record, does not stand behind the record of its thread, or another \
         slice of it"
    );
    assert_eq!(
        changed(r#""node":1}"#, r#""node":9}"#),
        "line 37, a `sample` record, does not stand behind its node"
    );
    let (first, rest) = text.split_once('\n').unwrap();
    assert_eq!(
        refusal(rest),
        "line 1, a `milestone` record, does not stand behind a `profile` record"
    );
    assert_eq!(
        refusal(&format!("{first}\n{text}")),
        "the profile that begins at line 1 has no `lost` record at its end"
    );
}

#[test]
fn a_later_schema_has_a_hint() {
    let error = read(&br#"{"type":"profile","schema":2}"#[..]).unwrap_err();
    assert!(error.hint().unwrap().contains("newer one"));
}

/// What a fuzzer found: its length would have been computed as if it went forwards.
#[test]
fn what_ends_before_it_starts_is_refused() {
    let text = written(&synthetic::profile());
    let step = text
        .lines()
        .find(|line| line.contains("\"type\":\"step\""))
        .unwrap();
    let mut turned: serde_json::Value = serde_json::from_str(step).unwrap();
    (turned["start_ns"], turned["end_ns"]) = (5.into(), 4.into());
    let told = refusal(&text.replacen(step, &turned.to_string(), 1));
    assert!(
        told.ends_with("is not as it has to be: it is from 5 to 4 ns"),
        "{told}"
    );
}
