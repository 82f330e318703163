//! The servers that must work, each captured, restored several times and asked.

use std::fs;

use crate::support::{Workspace, ask::Client, fixture, free_port, server::Server};

#[test]
fn express() {
    let workspace = Workspace::new();
    let port = free_port();
    express_on(port).check(&workspace);
}

fn express_on(port: u16) -> Server {
    Server::new(Client::Http(port), ["node", &fixture("express/app.js")])
        .environment("PORT", port.to_string())
        .environment("NODE_PATH", crate::support::prepared("express/node_modules"))
}

#[test]
fn fastapi_on_uvicorn() {
    let workspace = Workspace::new();
    let port = free_port();
    let command = ["/usr/bin/uvicorn", "--app-dir", &fixture("fastapi"), "app:app", "--port"];
    Server::new(Client::Http(port), command.into_iter().chain([port.to_string().as_str()]))
        .check(&workspace);
}

#[test]
fn a_server_on_a_unix_socket() {
    let workspace = Workspace::new();
    let path = workspace.path().join("server.sock");
    let command = ["/usr/bin/uvicorn", "--app-dir", &fixture("fastapi"), "app:app", "--uds"];
    let client = Client::HttpOverUnix(path.clone());
    Server::new(client, command.into_iter().chain([path.to_str().unwrap()])).check(&workspace);
}

#[test]
fn django_on_gunicorn_with_two_workers() {
    let workspace = Workspace::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let chdir = fixture("django");
    let command =
        ["/usr/bin/gunicorn", "-w", "2", "-b", &address, "--chdir", &chdir, "app:application"];
    Server::new(Client::Http(port), command).check(&workspace);
}

#[test]
fn rails_on_puma() {
    let workspace = Workspace::new();
    let port = free_port();
    let address = format!("tcp://127.0.0.1:{port}");
    let app = fixture("rails/config.ru");
    let command = ["/usr/bin/puma", "-C", "/dev/null", "-e", "production", "-b", &address, &app];
    Server::new(Client::Http(port), command).check(&workspace);
}

#[test]
fn tomcat() {
    let workspace = Workspace::new();
    let port = free_port();
    tomcat_in(&workspace, port).check(&workspace);
}

/// A Tomcat with a base folder of its own, made from the distribution's configuration.
fn tomcat_in(workspace: &Workspace, port: u16) -> Server {
    let base = workspace.path().join("tomcat");
    for folder in ["conf", "logs", "temp", "work", "webapps/ROOT"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    for file in ["web.xml", "context.xml", "catalina.properties", "logging.properties"] {
        fs::copy(format!("/etc/tomcat10/{file}"), base.join("conf").join(file)).unwrap();
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
    fs::copy(fixture("tomcat/index.jsp"), base.join("webapps/ROOT/index.jsp")).unwrap();
    Server::new(Client::Http(port), ["/usr/share/tomcat10/bin/catalina.sh", "run"])
        .environment("CATALINA_HOME", "/usr/share/tomcat10")
        .environment("CATALINA_BASE", base.to_str().unwrap())
}

#[test]
fn caddy() {
    let workspace = Workspace::new();
    let port = free_port();
    let configuration = workspace.write(
        "Caddyfile",
        &format!(
            "{{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}}\n\
             http://127.0.0.1:{port} {{\n\trespond \"Hello from Caddy\"\n}}\n"
        ),
    );
    let home = workspace.path().join("home").display().to_string();
    let command = ["caddy", "run", "--adapter", "caddyfile", "--config", &configuration];
    Server::new(Client::Http(port), command)
        .environment("XDG_DATA_HOME", home.clone())
        .environment("XDG_CONFIG_HOME", home)
        .check(&workspace);
}

#[test]
fn nginx_with_two_workers() {
    let workspace = Workspace::new();
    let port = free_port();
    nginx_in(&workspace, port).user("www-data").check(&workspace);
}

/// A master and two workers, everything they write being in the workspace.
pub fn nginx_in(workspace: &Workspace, port: u16) -> Server {
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
    Server::new(Client::Http(port), ["/usr/sbin/nginx", "-c", &configuration, "-e", &errors])
}

#[test]
fn apache_prefork_with_mod_php() {
    let workspace = Workspace::new();
    let port = free_port();
    let place = workspace.path().display();
    let php = fixture("php");
    let module = |name: &str, file: &str| format!("LoadModule {name} /usr/lib/apache2/modules/{file}\n");
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
    let command = ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", &configuration];
    Server::new(Client::Http(port), command).user("www-data").check(&workspace);
}

#[test]
fn php_fpm() {
    let workspace = Workspace::new();
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
    let command = ["/usr/sbin/php-fpm8.2", "-n", "-F", "-y", &configuration];
    Server::new(client, command).user("www-data").check(&workspace);
}
