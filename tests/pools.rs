//! Servers with connections to real databases: refused, or restored with the connections closed,
//! which their pools make anew.

use crate::support::{
    Workspace,
    ask::Client,
    databases::{self, Database},
    expect, fixture, free_port, prepared,
    server::Server,
};

/// A server that tells how many visits its database counts.
struct App {
    server: Server,
    /// The name of the process that is connected.
    process: &'static str,
}

fn django_on_gunicorn() -> App {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let folder = fixture("pools");
    let command = [
        "/usr/bin/gunicorn",
        "-w",
        "2",
        "-b",
        &address,
        "--chdir",
        &folder,
    ];
    let command = command.into_iter().chain(["app:application"]);
    App {
        server: Server::new(Client::Http(port), command),
        process: "gunicorn",
    }
}

fn rails_on_puma() -> App {
    let port = free_port();
    let address = format!("tcp://127.0.0.1:{port}");
    let app = fixture("pools/config.ru");
    let command = [
        "/usr/bin/puma",
        "-C",
        "/dev/null",
        "-e",
        "production",
        "-b",
        &address,
        &app,
    ];
    App {
        server: Server::new(Client::Http(port), command),
        process: "puma",
    }
}

fn node() -> App {
    let port = free_port();
    let server = Server::new(Client::Http(port), ["node", &fixture("pools/app.js")])
        .environment("PORT", port.to_string())
        .environment("NODE_PATH", prepared("redis/node_modules"));
    App {
        server,
        process: "node",
    }
}

/// Tells a server where the database is.
fn connect(server: Server, database: &Database) -> Server {
    let environment = database.environment.iter().cloned();
    environment.fold(server, |server, (name, value)| {
        server.environment(name, value)
    })
}

/// The round: refused, then captured at `points` with the connections closed, and restored, at last
/// with a database that has been started anew.
fn check(workspace: &Workspace, database: &mut Database, app: App, points: &[&str]) {
    let server = connect(app.server, database);
    let (_, error) = expect(116, &mut server.capture(workspace, &[]));
    assert_names(
        &error,
        app.process,
        &format!("tcp:127.0.0.1:{}", database.port),
    );
    for point in points {
        let options = ["--tcp-close", "--at", point, "--name", "pool"];
        expect(0, &mut server.capture(workspace, &options));
        database.wait_until_left();
        for is_restarted in [false, false, true] {
            if is_restarted {
                database.restart();
            }
            workspace.run(["restore", "-d", "pool"]);
            // Some for each worker; none fails, not even the first.
            for _ in 0..6 {
                let expected = format!("200 {} visits", database.visit());
                assert_eq!(server.client.ask().unwrap(), expected);
            }
            workspace.run(["stop", "--all"]);
            server.wait_for_silence();
        }
    }
}

/// Asserts that an error tells of a process's connection to a peer.
fn assert_names(error: &str, process: &str, peer: &str) {
    let is_named = |line: &str| {
        let line = line.trim();
        line.starts_with(&format!("{process} (pid ")) && line.ends_with(&format!(" to {peer}"))
    };
    assert!(
        error.lines().any(is_named),
        "no {process} to {peer}: {error}"
    );
}

#[test]
fn a_django_app_connects_to_postgresql_again() {
    let workspace = Workspace::new();
    let mut database = databases::postgresql(&workspace);
    check(&workspace, &mut database, django_on_gunicorn(), &["ready"]);
    drop(database);
    workspace.assert_clean();
}

#[test]
fn a_rails_app_connects_to_postgresql_again() {
    let workspace = Workspace::new();
    let mut database = databases::postgresql(&workspace);
    check(
        &workspace,
        &mut database,
        rails_on_puma(),
        &["ready", "warm"],
    );
    drop(database);
    workspace.assert_clean();
}

#[test]
fn a_node_app_connects_to_redis_again() {
    let workspace = Workspace::new();
    let mut database = databases::redis(&workspace);
    check(&workspace, &mut database, node(), &["ready"]);
    drop(database);
    workspace.assert_clean();
}
