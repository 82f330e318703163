//! The other end of the proxy's control socket, and raw clients and sites to put it between.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use assert_cmd::cargo::cargo_bin;
use tokio::{runtime::Runtime, time::timeout};
use warmimg::proxy::{
    control::Control,
    plan::{Listener, Notice, Order, Plan, Route, Site, State, Stats, Upstream},
};

use crate::support::{Killed, LIMIT, wait_until};

/// A running proxy.
pub struct Gateway {
    runtime: Runtime,
    control: Control,
    pub child: Killed,
    pub plan: Plan,
    pub address: SocketAddr,
    /// Kept open, as the gateway does.
    listener: TcpListener,
}

impl Gateway {
    /// Starts one with a listener, and with sites that have the whole of a host each.
    pub fn start(sites: &[(&str, Upstream)]) -> Self {
        Self::start_with(sites, |_| {})
    }

    /// As [`Gateway::start`], with a plan that is changed before it is sent.
    pub fn start_with(sites: &[(&str, Upstream)], change: impl FnOnce(&mut Plan)) -> Self {
        Self::start_writing(sites, Stdio::null(), change)
    }

    /// As [`Gateway::start`], with an access log.
    pub fn logging(sites: &[(&str, Upstream)]) -> Self {
        Self::start_writing(sites, Stdio::piped(), |plan| plan.access_log = true)
    }

    fn start_writing(
        sites: &[(&str, Upstream)],
        output: Stdio,
        change: impl FnOnce(&mut Plan),
    ) -> Self {
        let mut plan = plan(sites);
        change(&mut plan);
        let mut gateway = Self::bare(output);
        gateway.plan = plan;
        gateway.send_socket(1, &gateway.listener);
        assert_eq!(gateway.adopt(), Notice::Ready);
        gateway
    }

    /// Starts one that has no plan yet.
    pub fn bare(output: Stdio) -> Self {
        let (own, other) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$0\" proxy 3<&0 </dev/null"])
            .arg(cargo_bin!("warmimg"))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(other)))
            .stdout(output);
        let child = Killed(command.spawn().unwrap());
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        let control = runtime.block_on(async { Control::new(own.into()).unwrap() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            runtime,
            control,
            child,
            plan: Plan::default(),
            address: listener.local_addr().unwrap(),
            listener,
        }
    }

    pub fn send_socket(&self, number: u32, listener: &TcpListener) {
        let order = Order::Sockets {
            numbers: vec![number],
        };
        let descriptors = [listener.as_fd()];
        let sent = self.control.send(&order, &descriptors);
        self.runtime.block_on(sent).unwrap();
    }

    pub fn order(&self, order: &Order) {
        self.runtime
            .block_on(self.control.send(order, &[]))
            .unwrap();
    }

    /// Sends the plan; returns what the proxy says to it.
    pub fn adopt(&mut self) -> Notice {
        self.order(&Order::Plan(Box::new(self.plan.clone())));
        self.next()
    }

    pub fn set(&self, site: &str, state: State) {
        let site = site.to_owned();
        self.order(&Order::State { site, state });
        // What is asked after it is answered after it is done.
    }

    /// The next notice.
    pub fn next(&mut self) -> Notice {
        let Self {
            runtime, control, ..
        } = self;
        let receive = async { timeout(LIMIT, control.receive()).await };
        runtime
            .block_on(receive)
            .unwrap()
            .unwrap()
            .expect("the proxy is there")
    }

    pub fn stats(&mut self) -> Stats {
        self.order(&Order::Stats);
        loop {
            if let Notice::Stats(stats) = self.next() {
                return *stats;
            }
        }
    }

    /// Waits until so many requests are at a site.
    pub fn wait_in_flight(&mut self, site: &str, requests: u64) {
        wait_until("the requests in flight", || {
            match self.stats().sites[site].in_flight {
                seen if seen == requests => Ok(()),
                other => Err(other.to_string()),
            }
        });
    }

    /// Closes the control socket.
    pub fn hang_up(&mut self) {
        let (own, _) = UnixStream::pair().unwrap();
        let _inside = self.runtime.enter();
        self.control = Control::new(own.into()).unwrap();
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Sends bytes on a connection of their own; returns all that comes back until its end.
    pub fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.send(bytes);
        client.rest()
    }

    /// Asks for a path, as a host.
    pub fn get(&self, host: &str, path: &str) -> String {
        self.exchange(format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
    }
}

/// A plan with a route and a site for each host.
pub fn plan(sites: &[(&str, Upstream)]) -> Plan {
    let route = |(name, _): &(&str, Upstream)| Route {
        hosts: vec![(*name).to_owned()],
        path: "/".to_owned(),
        site: (*name).to_owned(),
        health: Default::default(),
    };
    let site = |(name, upstream): &(&str, Upstream)| {
        let site = Site {
            upstream: upstream.clone(),
            max_in_flight_waiting: 100,
            idle_connection_ms: 10_000,
            first_byte_timeout_ms: 10_000,
        };
        ((*name).to_owned(), site)
    };
    Plan {
        listeners: vec![Listener {
            socket: 1,
            tls: Vec::new(),
            pass_through: Vec::new(),
        }],
        routes: sites.iter().map(route).collect(),
        sites: sites.iter().map(site).collect::<BTreeMap<_, _>>(),
        ..Plan::default()
    }
}

/// A client that sends what it is told.
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads until what was read ends in this.
    pub fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let len = self.0.read(&mut byte).unwrap();
            let so_far = String::from_utf8_lossy(&text);
            assert_eq!(len, 1, "ended before {end:?}: {so_far}");
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    /// Reads to the end.
    pub fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn end_sending(&self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }
}

/// A site of which each connection is served by the same function; it is told of the number of the
/// connection.
pub struct RawSite {
    address: SocketAddr,
}

impl RawSite {
    pub fn start(serve: impl Fn(Client, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = std::sync::Arc::new(serve);
        // Ends with the process of the tests.
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let serve = serve.clone();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                thread::spawn(move || serve(Client(stream), number));
            }
        });
        Self { address }
    }

    /// One that answers each request with `ok`, and tells what it was sent.
    pub fn telling() -> (Self, mpsc::Receiver<String>) {
        let (tell, told) = mpsc::channel();
        let site = Self::start(move |mut client, _| {
            while let Some(head) = client.head() {
                let _ = tell.send(head);
                client.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        });
        (site, told)
    }

    pub fn upstream(&self) -> Upstream {
        Upstream::Tcp(self.address)
    }
}

impl Client {
    /// Reads a head; none at the end.
    pub fn head(&mut self) -> Option<String> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(1) => text.push(byte[0]),
                _ => return None,
            }
        }
        Some(String::from_utf8(text).unwrap())
    }
}

/// What was told, if anything is within a moment.
pub fn told(told: &mpsc::Receiver<String>) -> Option<String> {
    told.recv_timeout(Duration::from_millis(50)).ok()
}

/// A certificate for names with its key, made for this test.
pub fn certificate(folder: &Path, names: &[&str]) -> warmimg::proxy::plan::Certificate {
    let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
    let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "1", "-subj", "/CN=test", "-addext"])
        .arg(format!("subjectAltName={}", names.join(",")))
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&chain);
    let output = crate::support::finish(&mut openssl);
    assert!(
        output.status.success(),
        "{}",
        crate::support::describe(&output)
    );
    let read = |path| std::fs::read_to_string(path).unwrap();
    warmimg::proxy::plan::Certificate {
        chain_pem: read(&chain),
        key_pem: read(&key),
    }
}
