//! Instances that are restored before anybody asks.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::Served;
use crate::support::{ask, wait_until};

#[test]
fn an_instance_that_stands_by_goes_on() {
    let mut served = Served::new();
    served.start("standby = 1\nidle = '200ms'");
    for round in 1..=3 {
        served.wait_for_standby();
        assert_eq!(served.ask(), "200 1");
        let woken = served.wait_for("woken", round);
        assert_eq!(woken[round - 1]["how"], "standby");
        served.wait_for("ended", round);
    }
    served.wait_for_standby();
    let gateway = served.gateway.as_ref().unwrap().0.id();
    wait_until("none but the keeper and the instance", || {
        let children = fs::read_to_string(format!("/proc/{gateway}/task/{gateway}/children"));
        let children = children.unwrap();
        match children.split_whitespace().count() {
            2 => Ok(()),
            _ => Err(children),
        }
    });
    served.end();
}

#[test]
fn no_more_instances_serve_than_may_although_one_is_to_stand_by() {
    let mut served = Served::new();
    served.start("standby = 1\nidle = 'never'");
    let (port, is_over) = (served.port, AtomicBool::new(false));
    let mut found = vec![];
    thread::scope(|scope| {
        let ask = || {
            while !is_over.load(Ordering::Relaxed) {
                ask::get(port, "/").unwrap();
            }
        };
        for _ in 0..8 {
            scope.spawn(ask);
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            found.push(served.status());
        }
        is_over.store(true, Ordering::Relaxed);
    });
    for status in found {
        let count = |kind: &str| status[kind].as_array().unwrap().len();
        assert!(count("serving") <= 1 && count("leaving") <= 1, "{status}");
    }
    assert_eq!(served.events("woken").len(), 1);
    served.end();
}
