//! Help texts, manual pages and completions.

use crate::support::Workspace;

const COMMANDS: [&str; 22] = [
    "bench",
    "profile",
    "capture",
    "restore",
    "ps",
    "stop",
    "logs",
    "limit",
    "checkpoint",
    "images",
    "inspect",
    "verify",
    "diff",
    "open",
    "close",
    "export",
    "import",
    "rm",
    "prune",
    "doctor",
    "completions",
    "man",
];

#[test]
fn help_texts_are_as_reviewed() {
    let workspace = Workspace::new();
    let help = |command: &[&str]| {
        let mut warmimg = workspace.warmimg(command.iter().chain(&["--help"]));
        warmimg.env_remove("WARMIMG_STORE").env("COLUMNS", "100");
        let output = crate::support::finish(&mut warmimg);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("help", help(&[]));
        for command in COMMANDS {
            insta::assert_snapshot!(format!("help-{command}"), help(&[command]));
        }
    });
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let workspace = Workspace::new();
    assert!(workspace.run(["man"]).contains(".TH warmimg 1"));
    for command in COMMANDS {
        let page = workspace.run(["man", command]);
        assert!(
            page.contains(&format!(".TH warmimg-{command} 1")),
            "{command}"
        );
    }
    assert!(
        workspace
            .fail(2, ["man", "nothing"])
            .contains("no command is called \"nothing\"")
    );
}

#[test]
fn shells_get_completions() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            workspace.run(["completions", shell]).contains("capture"),
            "{shell}"
        );
    }
}
