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
    let (process, peer) = (app.process, &database.peer);
    let (_, error) = expect(116, &mut server.capture(workspace, &[]));
    let is_named = |line: &str| {
        let line = line.trim();
        line.starts_with(&format!("{process} (pid ")) && line.ends_with(&format!(" to {peer}"))
    };
    assert!(
        error.lines().any(is_named) && error.contains("--tcp-close"),
        "no {process} to {peer}: {error}"
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

#[test]
fn a_django_app_connects_to_postgresql_again_by_a_unix_socket() {
    let workspace = Workspace::new();
    let mut database = databases::postgresql(&workspace);
    // A path is, to libpq, the folder of the socket.
    let folder = workspace.path().display().to_string();
    database.peer = format!("unix:{folder}/.s.PGSQL.{}", database.port);
    database.environment.push(("PGHOST", folder));
    check(&workspace, &mut database, django_on_gunicorn(), &["ready"]);
    drop(database);
    workspace.assert_clean();
}
