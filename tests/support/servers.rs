//! The servers that must work, as a person would start them. Everything they write is in the
//! workspace; those that start as root and change to another user run as that user at once.

use std::fs;

use super::{Workspace, ask::Client, fixture, free_port, prepared, server::Server};

/// The server of tests/servers/plain, which waits for connections as it is told.
pub fn plain(wait: &str, port: u16) -> Server {
    let script = fixture("plain/server.py");
    Server::new(
        Client::Http(port),
        ["/usr/bin/python3", &script, wait, &port.to_string()],
    )
}

/// Compiles a server; returns its path.
pub fn compile(workspace: &Workspace, source: &str) -> String {
    let program = workspace.path().join("server").display().to_string();
    let options = ["-O2", "-static", "-pthread", "-o"];
    let compiled = std::process::Command::new("cc")
        .args(options)
        .args([&program, &fixture(source)])
        .status();
    assert!(compiled.unwrap().success());
    program
}

/// The smallest server, with costs as its source tells: `busy=MS` and the like.
pub fn accept_loop(workspace: &Workspace, costs: &[&str]) -> Server {
    let program = compile(workspace, "accept/server.c");
    let port = free_port();
    let port_text = port.to_string();
    let words = [program.as_str(), &port_text];
    Server::new(Client::Http(port), words.iter().chain(costs).copied())
}

pub fn express() -> Server {
    let port = free_port();
    Server::new(Client::Http(port), ["node", &fixture("express/app.js")])
        .environment("PORT", port.to_string())
        .environment("NODE_PATH", prepared("express/node_modules"))
}

pub fn fastapi_on_uvicorn() -> Server {
    let port = free_port();
    let command = [
        "/usr/bin/uvicorn",
        "--app-dir",
        &fixture("fastapi"),
        "app:app",
        "--port",
    ];
    Server::new(
        Client::Http(port),
        command.into_iter().chain([port.to_string().as_str()]),
    )
}

pub fn uvicorn_on_a_unix_socket(workspace: &Workspace) -> Server {
    let path = workspace.path().join("server.sock");
    let command = [
        "/usr/bin/uvicorn",
        "--app-dir",
        &fixture("fastapi"),
        "app:app",
        "--uds",
    ];
    let client = Client::HttpOverUnix(path.clone());
    Server::new(client, command.into_iter().chain([path.to_str().unwrap()]))
}

/// It gives its socket a mode and an owner.
pub fn gunicorn_on_a_unix_socket(workspace: &Workspace) -> Server {
    let path = workspace.path().join("server.sock");
    let address = format!("unix:{}", path.display());
    let chdir = fixture("django");
    let command = [
        "/usr/bin/gunicorn",
        "--umask",
        "7",
        "-b",
        &address,
        "--chdir",
        &chdir,
        "app:application",
    ];
    Server::new(Client::HttpOverUnix(path), command).user("www-data")
}

pub fn django_on_gunicorn() -> Server {
    django_on_gunicorn_with(&[])
}

/// The same with the application loaded before the workers are forked.
pub fn django_on_gunicorn_preloaded() -> Server {
    django_on_gunicorn_with(&["--preload"])
}

fn django_on_gunicorn_with(options: &[&str]) -> Server {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let chdir = fixture("django");
    let command = [
        &["/usr/bin/gunicorn", "-w", "2", "-b", &address][..],
        options,
        &["--chdir", &chdir, "app:application"],
    ];
    Server::new(Client::Http(port), command.concat())
}

pub fn rails_on_puma() -> Server {
    let port = free_port();
    let address = format!("tcp://127.0.0.1:{port}");
    let app = fixture("rails/config.ru");
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
    Server::new(Client::Http(port), command)
}

/// A Tomcat with a base folder of its own, made from the distribution's configuration.
pub fn tomcat(workspace: &Workspace) -> Server {
    let port = free_port();
    let base = workspace.path().join("tomcat");
    for folder in ["conf", "logs", "temp", "work", "webapps/ROOT"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    for file in [
        "web.xml",
        "context.xml",
        "catalina.properties",
        "logging.properties",
    ] {
        fs::copy(
            format!("/etc/tomcat10/{file}"),
            base.join("conf").join(file),
        )
        .unwrap();
    }
    let configuration = format!(
        r#"<Server port="-1"><Service name="Catalina">
  <Connector port="{port}" address="127.0.0.1" protocol="HTTP/1.1"/>
  <Engine name="Catalina" defaultHost="localhost">
    <Host name="localhost" appBase="webapps"/>
  </Engine>
</Service></Server>"#
    );
    fs::write(base.join("conf/server.xml"), configuration).unwrap();
    fs::copy(
        fixture("tomcat/index.jsp"),
        base.join("webapps/ROOT/index.jsp"),
    )
    .unwrap();
    Server::new(
        Client::Http(port),
        ["/usr/share/tomcat10/bin/catalina.sh", "run"],
    )
    .environment("CATALINA_HOME", "/usr/share/tomcat10")
    .environment("CATALINA_BASE", base.to_str().unwrap())
}

pub fn caddy(workspace: &Workspace) -> Server {
    let port = free_port();
    let configuration = workspace.write(
        "Caddyfile",
        &format!(
            "{{\n\tadmin off\n\tauto_https off\n}}\n\
             http://127.0.0.1:{port}, http://localhost:{port} {{\n\trespond \"Hello from Caddy\"\n}}\n"
        ),
    );
    let home = workspace.path().join("home").display().to_string();
    let command = [
        "caddy",
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        &configuration,
    ];
    Server::new(Client::Http(port), command)
        .environment("XDG_DATA_HOME", home.clone())
        .environment("XDG_CONFIG_HOME", home)
}

pub fn apache_prefork_with_mod_php(workspace: &Workspace) -> Server {
    let port = free_port();
    let place = workspace.path().display();
    let php = fixture("php");
    let module =
        |name: &str, file: &str| format!("LoadModule {name} /usr/lib/apache2/modules/{file}\n");
    let modules = [
        module("mpm_prefork_module", "mod_mpm_prefork.so"),
        module("authz_core_module", "mod_authz_core.so"),
        module("dir_module", "mod_dir.so"),
        module("mime_module", "mod_mime.so"),
        module("php_module", "libphp8.2.so"),
    ]
    .concat();
    let configuration = workspace.write(
        "apache.conf",
        &format!(
            "{modules}ServerName localhost\nListen 127.0.0.1:{port}\nPidFile {place}/apache.pid\n\
             DefaultRuntimeDir {place}\nErrorLog {place}/error.log\nDocumentRoot {php}\n\
             StartServers 5\nDirectoryIndex index.php\nTypesConfig /etc/mime.types\n\
             <FilesMatch \\.php$>\nSetHandler application/x-httpd-php\n</FilesMatch>\n\
             <Directory {php}>\nRequire all granted\n</Directory>\n"
        ),
    );
    let command = [
        "/usr/sbin/apache2",
        "-D",
        "FOREGROUND",
        "-f",
        &configuration,
    ];
    Server::new(Client::Http(port), command).user("www-data")
}

pub fn php_fpm(workspace: &Workspace) -> Server {
    let port = free_port();
    let place = workspace.path().display();
    let configuration = workspace.write(
        "php-fpm.conf",
        &format!(
            "[global]\ndaemonize = no\nerror_log = {place}/fpm.log\n\
             [www]\nlisten = 127.0.0.1:{port}\npm = static\npm.max_children = 2\n"
        ),
    );
    let client = Client::FastCgi(port, fixture("php/index.php"));
    let command = ["/usr/sbin/php-fpm8.2", "-F", "-y", &configuration];
    Server::new(client, command).user("www-data")
}

/// A master and two workers.
pub fn nginx(workspace: &Workspace) -> Server {
    let port = free_port();
    let place = workspace.path().display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {place}/{kind};\n"))
        .concat();
    let configuration = workspace.write(
        "nginx.conf",
        &format!(
            "daemon off;\nworker_processes 2;\npid {place}/nginx.pid;\nerror_log {place}/error.log;\n\
             events {{}}\nhttp {{\n{temporary}access_log {place}/access.log;\n\
             server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"Hello from nginx\\n\"; }} }}\n}}\n"
        ),
    );
    let errors = format!("{place}/error.log");
    Server::new(
        Client::Http(port),
        ["/usr/sbin/nginx", "-c", &configuration, "-e", &errors],
    )
    .user("www-data")
}
