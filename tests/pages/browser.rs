//! A browser without a window, driven by the DevTools protocol over a pair of pipes: messages are
//! JSON, each ended by a zero byte.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Instant,
};

use serde_json::{Value, json};

use crate::support::{Killed, LIMIT, Workspace, wait_until};

pub struct Browser {
    process: Killed,
    commands: ChildStdin,
    messages: Receiver<Value>,
    session: String,
    last: u64,
    /// The address of the page: all that may be asked for.
    page: String,
    /// What the page said on its console, threw, or asked a network for.
    pub complaints: Vec<String>,
}

impl Browser {
    /// Starts a browser whose profile is in the folder of the test.
    pub fn start(workspace: &Workspace) -> Self {
        let folder = workspace.path().join("browser");
        let mut command = Command::new("sh");
        // The pipes of the protocol are the descriptors 3 and 4.
        command.args([
            "-c",
            "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
            "sh",
        ]);
        command.args([
            "chromium",
            "--headless",
            "--remote-debugging-pipe",
            // Chromium refuses to run as root with its sandbox; the page is our own.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--window-size=1280,900",
        ]);
        command.arg(format!("--user-data-dir={}", folder.display()));
        command.env("HOME", &folder).env("TMPDIR", workspace.path());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        workspace.mark(&mut command);
        let mut process = Killed(command.spawn().unwrap());
        let commands = process.0.stdin.take().unwrap();
        let answers = process.0.stdout.take().unwrap();
        let (sender, messages) = channel();
        // Ends with the browser, whose end of the pipe it reads.
        thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else {
                    return;
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            commands,
            messages,
            session: String::new(),
            last: 0,
            page: String::new(),
            complaints: Vec::new(),
        };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let target = target["targetId"].as_str().unwrap().to_owned();
        let attach = json!({ "targetId": target, "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        self.commands
            .write_all(format!("{message}\0").as_bytes())
            .unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match self.messages.recv_timeout(left) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {method}"),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the browser ended; is it installed? `cargo xtask setup --tests`")
                }
            };
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    /// Keeps an event that a good page does not cause.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let is_complaint = match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" => true,
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                url != self.page && !url.starts_with("data:")
            }
            "Page.javascriptDialogOpening" => true,
            _ => false,
        };
        if is_complaint {
            self.complaints.push(event.to_string());
        }
    }

    /// Opens a file and waits until it has been drawn first.
    pub fn open(&mut self, page: &Path) {
        self.page = format!("file://{}", page.display());
        let url = self.page.clone();
        self.ask("Page.navigate", json!({ "url": url }));
        self.wait_for("performance.getEntriesByName('first-drawing').length === 1");
    }

    /// The value of an expression of JavaScript.
    pub fn eval(&mut self, expression: &str) -> Value {
        let result = self.ask(
            "Runtime.evaluate",
            json!({ "expression": expression, "returnByValue": true }),
        );
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {}",
            result["exceptionDetails"]
        );
        result["result"]["value"].clone()
    }

    pub fn text(&mut self, expression: &str) -> String {
        self.eval(expression)
            .as_str()
            .unwrap_or_else(|| panic!("{expression} is no text"))
            .to_owned()
    }

    /// Polls until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        wait_until(expression, || match self.eval(expression) {
            Value::Bool(true) => Ok(()),
            other => Err(other.to_string()),
        });
    }

    /// Polls until an expression has another value than `old`; returns that.
    pub fn wait_for_change(&mut self, expression: &str, old: &str) -> String {
        let mut new = String::new();
        wait_until(expression, || {
            new = self.text(expression);
            if new == old {
                Err(format!("it is still {old:?}"))
            } else {
                Ok(())
            }
        });
        new
    }

    /// Presses and releases a key, named as in `KeyboardEvent.key`.
    pub fn press(&mut self, key: &str) {
        // What the browser itself does with a key goes by its number and its text.
        let (number, text) = match key {
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            _ if key.chars().count() == 1 => (0, key),
            _ => (0, ""),
        };
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let event = json!({
                "type": kind,
                "key": key,
                "text": text,
                "windowsVirtualKeyCode": number,
            });
            self.ask("Input.dispatchKeyEvent", event);
        }
    }

    /// Types a text into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.ask("Input.insertText", json!({ "text": text }));
    }

    /// Where on the screen a part of an element is, in shares of its size; scrolls it into sight.
    fn place(&mut self, selector: &str, [x, y]: [f64; 2]) -> [f64; 2] {
        let place = self.eval(&format!(
            "(() => {{ const element = document.querySelector({selector:?}); \
             element.scrollIntoView({{ block: 'center', behavior: 'instant' }}); \
             const box = element.getBoundingClientRect(); \
             return [box.left + box.width * {x}, box.top + box.height * {y}]; }})()"
        ));
        [0, 1].map(|at: usize| place[at].as_f64().unwrap())
    }

    fn mouse(&mut self, kind: &str, [x, y]: [f64; 2], more: Value) {
        let mut event = json!({ "type": kind, "x": x, "y": y });
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        self.ask("Input.dispatchMouseEvent", event);
    }

    pub fn click(&mut self, selector: &str, share: [f64; 2]) {
        let place = self.place(selector, share);
        self.mouse("mouseMoved", place, json!({}));
        let button = json!({ "button": "left", "clickCount": 1 });
        self.mouse("mousePressed", place, button.clone());
        self.mouse("mouseReleased", place, button);
    }

    pub fn double_click(&mut self, selector: &str, share: [f64; 2]) {
        self.click(selector, share);
        let place = self.place(selector, share);
        let button = json!({ "button": "left", "clickCount": 2 });
        self.mouse("mousePressed", place, button.clone());
        self.mouse("mouseReleased", place, button);
    }

    pub fn hover(&mut self, selector: &str, share: [f64; 2]) {
        let place = self.place(selector, share);
        self.mouse("mouseMoved", place, json!({}));
    }

    /// Drags with the left button; `modifiers` as in the protocol: 8 is Shift.
    pub fn drag(&mut self, selector: &str, from: [f64; 2], to: [f64; 2], modifiers: u32) {
        let (from, to) = (self.place(selector, from), self.place(selector, to));
        let held =
            json!({ "button": "left", "buttons": 1, "clickCount": 1, "modifiers": modifiers });
        self.mouse("mouseMoved", from, json!({}));
        self.mouse("mousePressed", from, held.clone());
        self.mouse(
            "mouseMoved",
            [f64::midpoint(from[0], to[0]), from[1]],
            held.clone(),
        );
        self.mouse("mouseMoved", to, held.clone());
        self.mouse("mouseReleased", to, held);
    }

    /// Turns the wheel; less than 0 is away from the user.
    pub fn wheel(&mut self, selector: &str, share: [f64; 2], delta: f64) {
        let place = self.place(selector, share);
        self.mouse("mouseWheel", place, json!({ "deltaX": 0, "deltaY": delta }));
    }
}

impl Drop for Browser {
    /// Its processes are one group, and those that left it are found by the mark of the test.
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.process.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    }
}
