//! The records that are not the types of the model as they are: what nests there is flat here, and
//! what is a number there has its name here.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::{
    profile::{Class, Execution, Frame, Times},
    watch::CapturePoint,
};

/// What each record begins with.
#[derive(Deserialize)]
pub struct Head<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    pub schema: u32,
}

/// `profile`.
#[derive(Serialize, Deserialize)]
pub struct Header<'a> {
    pub command: Cow<'a, [String]>,
    pub started_ms: u64,
    pub point: CapturePoint,
    pub length_ns: u64,
}

/// `process`, without its threads.
#[derive(Serialize, Deserialize)]
pub struct Process<'a> {
    pub pid: i32,
    pub parent: Option<i32>,
    pub name: Cow<'a, str>,
    pub start_ns: u64,
    pub end_ns: Option<u64>,
    pub wait_status: Option<i32>,
    pub executions: Cow<'a, [Execution]>,
}

/// `thread`, without its slices.
#[derive(Serialize, Deserialize)]
pub struct Thread<'a> {
    pub pid: i32,
    pub tid: i32,
    pub name: Cow<'a, str>,
    pub start_ns: u64,
    pub end_ns: u64,
    pub times_ns: BTreeMap<Class, u64>,
}

/// `slice`. Its text is there with its number in the profile, for those who only read.
#[derive(Serialize, Deserialize)]
pub struct Slice<'a> {
    pub pid: i32,
    pub tid: i32,
    pub start_ns: u64,
    pub end_ns: u64,
    pub class: Class,
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
    pub text_id: Option<u32>,
    pub waker: Option<i32>,
}

/// `step`.
#[derive(Serialize, Deserialize)]
pub struct Step<'a> {
    pub start_ns: u64,
    pub end_ns: u64,
    pub pid: i32,
    pub tid: i32,
    pub class: Class,
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
    pub text_id: Option<u32>,
}

/// `text`: what a slice or step could say, of those that none says.
#[derive(Serialize, Deserialize)]
pub struct Text<'a> {
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
    pub text_id: Option<u32>,
}

/// `frame`, whose number the nodes have.
#[derive(Serialize, Deserialize)]
pub struct NumberedFrame<'a> {
    pub id: u32,
    #[serde(flatten)]
    pub frame: Cow<'a, Frame>,
}

/// `node`, whose number its callees and the samples have.
#[derive(Serialize, Deserialize)]
pub struct Node {
    pub id: u32,
    pub parent: Option<u32>,
    pub frame: u32,
}

/// The times of all classes, by name.
pub fn named(times: &Times) -> BTreeMap<Class, u64> {
    Class::ALL
        .into_iter()
        .map(|class| (class, times.of(class)))
        .collect()
}

/// Those that are not named are nothing.
pub fn unnamed(named: &BTreeMap<Class, u64>) -> Times {
    let mut times = Times::default();
    for (&class, &nanoseconds) in named {
        times.add(class, nanoseconds);
    }
    times
}
