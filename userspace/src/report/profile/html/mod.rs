//! A profile as a page that stands by itself: one file, which works without a network.
//!
//! A profile holds paths and arguments that strangers chose. They are in the page as JSON only,
//! with each `<` escaped, so that no text ends the element it is in; the scripts put them on the
//! page as text, never as HTML. Should both fail, the page's policy still runs only the scripts
//! that carry its nonce, and asks no other host for anything.

use serde_json::json;

use crate::profile::{Class, Profile};

const PAGE: &str = include_str!("page.html");

/// In the order of the page; each may use those above it.
const STYLES: [&str; 3] = [
    include_str!("style.css"),
    include_str!("sections.css"),
    include_str!("charts.css"),
];

/// In the order in which they run. Together they are one function, so that they share their names
/// with one another and with nothing else.
const SCRIPTS: [&str; 21] = [
    include_str!("js/units.js"),
    include_str!("js/dom.js"),
    include_str!("js/data.js"),
    include_str!("js/state.js"),
    include_str!("js/theme.js"),
    include_str!("js/canvas.js"),
    include_str!("js/head.js"),
    include_str!("js/bars.js"),
    include_str!("js/findings.js"),
    include_str!("js/rows.js"),
    include_str!("js/slices.js"),
    include_str!("js/timeline.js"),
    include_str!("js/overview.js"),
    include_str!("js/pointer.js"),
    include_str!("js/details.js"),
    include_str!("js/search.js"),
    include_str!("js/flame-tree.js"),
    include_str!("js/flame.js"),
    include_str!("js/table.js"),
    include_str!("js/tables.js"),
    include_str!("js/keys.js"),
];

/// Returns the whole page.
pub fn render(profile: &Profile) -> String {
    let data = data(profile);
    // What a text in the profile would have to contain to be run: its own digest.
    let nonce = blake3::hash(data.as_bytes()).to_hex();
    let parts = [
        ("{{nonce}}", nonce.to_string()),
        ("{{style}}", STYLES.concat()),
        ("{{script}}", SCRIPTS.concat()),
        ("{{data}}", data),
    ];
    fill(PAGE, &parts)
}

/// The profile, and what its classes are called, as JSON that can stand in a `script` element.
fn data(profile: &Profile) -> String {
    let classes: Vec<_> = Class::ALL
        .into_iter()
        .map(|class| json!({ "id": class, "title": class.title(), "runs": class.is_on_cpu() }))
        .collect();
    let point = profile.point.to_string();
    let data = json!({ "classes": classes, "point": point, "profile": profile });
    // In JSON, `<` is only ever within a text, where an escape stands for the same.
    data.to_string().replace('<', "\\u003c")
}

/// Puts each part where its mark is; what is put in is not looked at again.
fn fill(page: &str, parts: &[(&str, String)]) -> String {
    let mut filled = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once("{{") {
        filled += before;
        let part = parts
            .iter()
            .find_map(|(mark, text)| Some((text, after.strip_prefix(&mark[2..])?)));
        rest = match part {
            Some((text, behind)) => {
                filled += text;
                behind
            }
            None => {
                filled += "{{";
                after
            }
        };
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        profile::{Lost, SCHEMA, Stacks},
        watch::CapturePoint,
    };

    /// A profile whose command is all that it has.
    fn profile(command: &str) -> Profile {
        Profile {
            schema: SCHEMA,
            command: vec![command.to_owned()],
            started_ms: 0,
            point: CapturePoint::Ready,
            length_ns: 0,
            milestones: Vec::new(),
            processes: Vec::new(),
            calls: Vec::new(),
            files: Vec::new(),
            failed_lookups: Vec::new(),
            connections: Vec::new(),
            faults: Vec::new(),
            stacks: Stacks::default(),
            critical_path: Vec::new(),
            findings: Vec::new(),
            texts: Vec::new(),
            lost: Lost::default(),
        }
    }

    #[test]
    fn no_text_of_a_profile_is_html_or_a_mark() {
        let ends = |page: &str| page.matches("</script").count();
        let plain = render(&profile("server"));
        let nasty = render(&profile("</script><img src=x> {{nonce}} {{style}} <!--"));
        assert_eq!(ends(&plain), 2);
        assert_eq!(ends(&nasty), 2);
        assert!(!nasty.contains("<img"));
        assert!(nasty.contains("\\u003cimg src=x> {{nonce}} {{style}} \\u003c!--"));
    }

    #[test]
    fn the_data_are_the_profile_again() {
        let profile = profile("</script>");
        let page = render(&profile);
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = rest.split_once("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["profile"], json!(profile));
        assert_eq!(data["classes"].as_array().unwrap().len(), Class::COUNT);
    }

    #[test]
    fn every_mark_is_filled_and_each_class_has_a_colour() {
        let page = render(&profile("server"));
        assert!(!page.contains("{{"), "a mark is left");
        for class in Class::ALL {
            let id = json!(class);
            let id = id.as_str().unwrap();
            assert!(page.contains(&format!("--class-{id}: light-dark(")), "{id}");
            assert!(page.contains(&format!(".class-{id} {{")), "{id}");
        }
    }
}
