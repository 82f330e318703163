//! Pages as a browser shows them: that they work without a network, that what a person does has an
//! effect, and that no text of a stranger is run.

mod browser;
mod start_up;

use std::path::PathBuf;

use serde_json::json;
use warmimg::report::profile::html;

use self::browser::Browser;
use crate::support::Workspace;

const SHOWN: &str = "document.getElementById('shown').textContent";
const MATCHES: &str = "document.getElementById('matches').textContent";
const ROWS: &str = "#rows";

/// A digest of what a canvas shows.
fn drawing(selector: &str) -> String {
    format!("document.querySelector({selector:?}).toDataURL()")
}

fn page(workspace: &Workspace) -> PathBuf {
    let html = html::render(&start_up::profile());
    workspace.write("start-up.html", &html).into()
}

/// Runs a test on the page, which must have caused no complaint at its end.
fn on_page(test: impl FnOnce(&mut Browser)) {
    let workspace = Workspace::new();
    let page = page(&workspace);
    let mut browser = Browser::start(&workspace);
    browser.open(&page);
    test(&mut browser);
    assert_eq!(
        browser.eval("document.documentElement.id"),
        "",
        "a text of the profile was run"
    );
    assert_eq!(browser.complaints, [""; 0]);
    drop(browser);
    workspace.assert_clean();
}

#[test]
fn a_profile_of_100_000_slices_is_drawn_soon() {
    on_page(|browser| {
        let slices = browser.text("document.querySelector('#figures').textContent");
        assert!(slices.contains(" slices"), "{slices}");
        let first = browser.eval("performance.getEntriesByName('first-drawing')[0].duration");
        let first = first.as_f64().unwrap();
        println!("first drawing after {first:.0} ms");
        assert!(first < 5000.0, "the first drawing took {first} ms");
        // A canvas without a drawing has one colour.
        for canvas in ["#rows", "#axis", "#overview", "#flame"] {
            let colours = browser.eval(&format!(
                "(() => {{ const canvas = document.querySelector({canvas:?}); \
                 const pixels = new Uint32Array(canvas.getContext('2d') \
                 .getImageData(0, 0, canvas.width, canvas.height).data.buffer); \
                 return new Set(pixels).size; }})()"
            ));
            assert!(
                colours.as_u64().unwrap() > 3,
                "{canvas} has {colours} colours"
            );
        }
        // As often as it is asked to.
        let frames = "(async () => { const start = performance.now(); \
             for (let n = 0; n < 20; n += 1) { \
             document.getElementById(n % 2 ? 'zoom-out' : 'zoom-in').click(); \
             await new Promise(requestAnimationFrame); } \
             window.frameTime = (performance.now() - start) / 20; })(); true";
        browser.eval(frames);
        browser.wait_for("typeof window.frameTime === 'number'");
        let frame = browser.eval("window.frameTime").as_f64().unwrap();
        println!("{frame:.1} ms for a frame");
        assert!(frame < 500.0, "a frame takes {frame} ms");
    });
}

#[test]
fn wheel_keys_and_drags_change_what_is_shown() {
    on_page(|browser| {
        let all = browser.text(SHOWN);
        assert!(all.starts_with("all, "), "{all}");
        let picture = browser.text(&drawing(ROWS));
        browser.wheel(ROWS, [0.5, 0.5], -400.0);
        let zoomed = browser.wait_for_change(SHOWN, &all);
        browser.wait_for_change(&drawing(ROWS), &picture);
        browser.eval("document.querySelector('#rows').focus()");
        browser.press("w");
        let closer = browser.wait_for_change(SHOWN, &zoomed);
        browser.press("d");
        let moved = browser.wait_for_change(SHOWN, &closer);
        browser.press("ArrowLeft");
        browser.wait_for_change(SHOWN, &moved);
        browser.drag(ROWS, [0.3, 0.5], [0.6, 0.5], 0);
        browser.wait_for_change(SHOWN, &closer);
        browser.press("0");
        browser.wait_for(&format!("{SHOWN}.startsWith('all, ')"));
        // The strip above, and a double click on a slice: the migration.
        browser.drag("#overview", [0.5, 0.5], [0.75, 0.5], 0);
        let part = browser.wait_for_change(SHOWN, &all);
        browser.press("Home");
        browser.wait_for_change(SHOWN, &part);
        browser.double_click(ROWS, [0.18, 3.5 / 23.0]);
        browser.wait_for_change(SHOWN, &all);
        let details = browser.text("document.getElementById('details').textContent");
        assert!(details.contains("recvfrom 10.0.3.7:5432"), "{details}");
        // The keys go on from there.
        browser.eval("document.querySelector('#rows').focus()");
        browser.press(".");
        browser.wait_for("document.getElementById('details').textContent.includes('own code')");
        browser.hover(ROWS, [0.5, 3.5 / 23.0]);
        browser.wait_for("!document.getElementById('tooltip').hidden");
        browser.press("?");
        browser.wait_for("document.getElementById('keys').open");
        browser.press("Escape");
        browser.wait_for("!document.getElementById('keys').open");
    });
}

#[test]
fn search_counts_and_shows_what_matches() {
    on_page(|browser| {
        let picture = browser.text(&drawing(ROWS));
        browser.press("/");
        browser.wait_for("document.activeElement.id === 'search'");
        browser.type_text("openat part17.class");
        browser.wait_for(&format!("{MATCHES}.includes(' matches, ')"));
        let some = browser.text(MATCHES);
        browser.wait_for_change(&drawing(ROWS), &picture);
        browser.press("Enter");
        let first = browser.wait_for_change(MATCHES, &some);
        assert!(first.starts_with("1 of "), "{first}");
        browser.wait_for("document.getElementById('details').textContent.includes('Part17.class')");
        browser.press("Escape");
        browser.wait_for(&format!("{MATCHES} === ''"));
        // One class alone.
        let picture = browser.text(&drawing(ROWS));
        browser.click("#legend [data-class=network]", [0.5, 0.5]);
        browser.wait_for_change(&drawing(ROWS), &picture);
    });
}

#[test]
fn flame_graphs_zoom_and_follow_the_time_line() {
    on_page(|browser| {
        let note = "document.getElementById('flame-note').textContent";
        let whole = browser.text(&drawing("#flame"));
        let height = "document.getElementById('flame').clientHeight";
        let rows = browser.eval(height).as_f64().unwrap() / 19.0;
        browser.click("#flame", [0.1, 4.5 / rows]);
        browser.wait_for("!document.getElementById('flame-reset').disabled");
        let zoomed = browser.wait_for_change(&drawing("#flame"), &whole);
        let current = browser.text("document.getElementById('flame-current').textContent");
        assert!(current.contains("in itself"), "{current}");
        browser.click("#flame-reset", [0.5, 0.5]);
        browser.wait_for_change(&drawing("#flame"), &zoomed);
        // The share of what is searched for.
        browser.eval("document.getElementById('flame-search').focus()");
        browser.type_text("springframework");
        browser.wait_for("document.getElementById('flame-matches').textContent.includes(' %')");
        // Only what is in a range of the time line.
        let all = browser.text(note);
        browser.drag(ROWS, [0.4, 0.5], [0.6, 0.5], 8);
        browser.wait_for("!document.getElementById('range-line').hidden");
        let part = browser.wait_for_change(note, &all);
        assert!(part.contains(" from "), "{part}");
        // The same by a key: what is shown, until it is let go of.
        browser.eval("document.querySelector('#rows').focus()");
        browser.press("Escape");
        browser.wait_for_change(note, &part);
        browser.press("w");
        browser.press("r");
        let part = browser.wait_for_change(note, &all);
        browser.click("input[value=off]", [0.5, 0.5]);
        let waits = browser.wait_for_change(note, &part);
        assert!(waits.contains("waiting"), "{waits}");
        browser.eval("document.querySelector('.functions summary').click()");
        browser.wait_for("document.querySelectorAll('#functions tbody tr').length > 5");
    });
}

#[test]
fn tables_sort_and_filter() {
    on_page(|browser| {
        browser.click("#tab-calls", [0.5, 0.5]);
        let first = "document.querySelector('#panel-calls tbody tr').textContent";
        let rows = "document.querySelectorAll('#panel-calls tbody tr').length";
        let sorted = "document.querySelector('#panel-calls th[aria-sort]').textContent";
        assert_eq!(browser.eval(rows), 25);
        assert_eq!(browser.text(sorted), "total");
        let greatest = browser.text(first);
        browser.click("#panel-calls th:nth-child(3) button", [0.5, 0.5]);
        let most = browser.wait_for_change(first, &greatest);
        assert_eq!(browser.text(sorted), "count");
        // By the keyboard, and the other way round.
        browser.press("Enter");
        browser.wait_for_change(first, &most);
        browser.wait_for("document.querySelector('#panel-calls th:nth-child(3)').getAttribute('aria-sort') === 'ascending'");
        browser.click("#panel-calls .more button", [0.5, 0.5]);
        browser.wait_for(&format!("{rows} === 60"));
        browser.click("#panel-calls input", [0.5, 0.5]);
        browser.type_text("openat");
        browser.wait_for(&format!("{rows} === 6"));
        for tab in [
            "path",
            "files",
            "look-ups",
            "connections",
            "faults",
            "processes",
        ] {
            browser.click(&format!("#tab-{tab}"), [0.5, 0.5]);
            browser.wait_for(&format!(
                "document.querySelectorAll('#panel-{tab} tbody tr').length > 0"
            ));
        }
        assert_eq!(browser.eval("document.querySelectorAll('img').length"), 0);
    });
}

#[test]
fn pages_are_light_dark_and_narrow() {
    on_page(|browser| {
        let back = "getComputedStyle(document.body).backgroundColor";
        let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
        let (light, picture) = (browser.text(back), browser.text(&drawing(ROWS)));
        browser.ask("Emulation.setEmulatedMedia", dark);
        let dark = browser.wait_for_change(back, &light);
        let dark_picture = browser.wait_for_change(&drawing(ROWS), &picture);
        // What a person chooses comes before what the system has.
        browser.click("#theme", [0.5, 0.5]);
        assert_eq!(browser.wait_for_change(back, &dark), light);
        browser.wait_for_change(&drawing(ROWS), &dark_picture);
        for width in [360, 400, 700] {
            let narrow =
                json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
            browser.ask("Emulation.setDeviceMetricsOverride", narrow);
            browser.wait_for(&format!("innerWidth === {width}"));
            let over = browser.eval("document.documentElement.scrollWidth - innerWidth");
            assert!(
                over.as_i64().unwrap() <= 0,
                "at {width} it is {over} too wide"
            );
        }
    });
}

#[test]
fn an_empty_profile_is_a_page_too() {
    let workspace = Workspace::new();
    let mut profile = start_up::profile();
    profile.processes.clear();
    profile.critical_path.clear();
    profile.milestones.clear();
    profile.findings.clear();
    profile.connections.clear();
    profile.calls.clear();
    profile.stacks = warmimg::profile::Stacks::default();
    profile.length_ns = 0;
    let page = workspace.write("empty.html", &html::render(&profile));
    let mut browser = Browser::start(&workspace);
    browser.open(page.as_ref());
    browser.wait_for("document.getElementById('flame-frame').hidden");
    assert_eq!(browser.complaints, [""; 0]);
    drop(browser);
    workspace.assert_clean();
}
