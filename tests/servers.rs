//! The servers that must work, each captured, restored several times and asked.

use crate::support::{Workspace, servers};

#[test]
fn express() {
    servers::express().check(&Workspace::new());
}

#[test]
fn fastapi_on_uvicorn() {
    servers::fastapi_on_uvicorn().check(&Workspace::new());
}

#[test]
fn a_server_on_a_unix_socket() {
    let workspace = Workspace::new();
    servers::uvicorn_on_a_unix_socket(&workspace).check(&workspace);
}

#[test]
fn django_on_gunicorn_with_two_workers() {
    servers::django_on_gunicorn().check(&Workspace::new());
}

#[test]
fn rails_on_puma() {
    servers::rails_on_puma().check(&Workspace::new());
}

#[test]
fn tomcat() {
    let workspace = Workspace::new();
    servers::tomcat(&workspace).check(&workspace);
}

#[test]
fn caddy() {
    let workspace = Workspace::new();
    servers::caddy(&workspace).check(&workspace);
}

#[test]
fn nginx_with_two_workers() {
    let workspace = Workspace::new();
    servers::nginx(&workspace).check(&workspace);
}

#[test]
fn apache_prefork_with_mod_php() {
    let workspace = Workspace::new();
    servers::apache_prefork_with_mod_php(&workspace).check(&workspace);
}

#[test]
fn php_fpm() {
    let workspace = Workspace::new();
    servers::php_fpm(&workspace).check(&workspace);
}
