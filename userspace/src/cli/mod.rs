//! The command line.

mod bench;
mod encryption;
mod images;
mod instances;
mod profile;
mod restore;
mod run;
mod serve;

use std::{
    ffi::OsString,
    path::{Component, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};

pub use self::{
    bench::Bench,
    encryption::{Encrypt, Identities, Keys, Passphrase},
    images::{Close, Diff, Export, Import, Inspect, Open, Prune, Rm, Verify},
    instances::{Logs, Stop},
    profile::{Format, Profile, ProfileCommand, ProfileDiff},
    restore::{Back, Restore},
    run::Run,
    serve::{Serve, SiteName, Top},
};
use crate::{
    capture,
    cgroup::{Cpus, Limits, Memory, Request},
    criu::TcpConnections,
    error::Error,
    hook::Hook,
    listener::Wanted,
    warmup::Warmup,
    watch::CapturePoint,
};

/// The store of root, unless another is named.
pub const DEFAULT_STORE: &str = "/var/lib/warmimg";

/// The variable that names another.
pub const STORE_VARIABLE: &str = "WARMIMG_STORE";

/// Makes a slow-starting server start as if it had never stopped
///
/// Runs an unmodified server, watches its start-up with eBPF, freezes it the moment it waits for
/// its first connection, and makes an image of it with CRIU that is restored in milliseconds, as
/// often as wanted.
#[derive(Debug, Parser)]
#[command(
    name = "warmimg",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Folder of images and instances
    #[arg(long, global = true, env = STORE_VARIABLE, value_name = "FOLDER")]
    #[arg(default_value = DEFAULT_STORE)]
    pub store: PathBuf,
    /// CRIU to use instead of the one that is found
    #[arg(long, global = true, env = "WARMIMG_CRIU", value_name = "FILE")]
    pub criu: Option<PathBuf>,
    /// Print results as JSON Lines, each with its `type` and `schema`
    #[arg(long, global = true)]
    pub json: bool,
    /// Tell what goes on, the probe's own messages too; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

// The arguments of the others are not made: that takes longer than all else until the first line. What is said of
// a structure of arguments is no doc comment: it would take the place of the help of its command.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Start a server and make an image of it when it is ready
    Capture(Capture),
    /// Capture the server of an image again, started anew
    ///
    /// With the command, environment, folder, user and options that the image was captured with, as after
    /// an update. The server may run already: the one that is captured listens elsewhere until its image
    /// is made. The name of the image then points to the new one.
    Recapture(Recapture),
    /// Make an image of a server that runs already, and end it
    ///
    /// Of an instance, or of any process with all below it, also one that warmimg did not start,
    /// as long as it has no terminal and is in no container. Connections of clients are not part
    /// of the image.
    Checkpoint(Checkpoint),
    /// Bring a server back from its image
    ///
    /// In the foreground, the server's output streams, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1
    /// and SIGUSR2 reach it, and its exit status becomes that of warmimg.
    Restore(Restore),
    /// Restore a server if there is an image of it, or start it cold and make one
    ///
    /// For units and containers, in place of the server's own command: the server runs in the
    /// foreground, signals reach it, and its exit status becomes that of warmimg. Whatever goes wrong
    /// with its image, the server is started; standard error says why it was started cold. While its
    /// image is made, right after the server is ready, it stands still for as long as `capture` tells.
    #[command(after_long_help = run::AFTER_HELP)]
    Run(Box<Run>),
    /// Serve sites whose servers exist only while somebody asks
    ///
    /// Listens for each site of the configuration. When a connection waits, the server is restored from
    /// its image with this socket in place of its own, and accepts the connection itself: no byte passes
    /// through warmimg. When it has had no connection for a while it goes to sleep: it is ended, and the next
    /// connection restores it again.
    #[command(after_long_help = serve::AFTER_HELP)]
    Serve(Serve),
    /// Wake a site of `serve`
    Wake(SiteName),
    /// Have a site of `serve` go to sleep, if it has no connection
    Sleep(SiteName),
    /// Show how the sites of `serve` do, live on a terminal
    Top(Top),
    /// Find out what a restored server needs first, for faster restores
    ///
    /// The image is restored once, where nobody else asks it, and asked. The pages of memory that it
    /// has touched until it has answered are recorded: those written to are brought along by later
    /// restores, the others are read ahead if they are not in the page cache. An image that is
    /// captured warm has been rehearsed, unless it has hooks for after a restore, which run. The names of the image then point to the new one, and the
    /// old one is removed.
    Rehearse(Rehearse),
    /// List instances
    Ps,
    /// Stop instances, and remove what ended ones left
    Stop(Stop),
    /// Print what a detached instance wrote
    Logs(Logs),
    /// Limit what a running instance may use, or print its limits
    ///
    /// The limits hold at once. Without any to set, those that are set are printed, and what is
    /// used of them.
    Limit(Limit),
    /// List images, newest first
    Images,
    /// Show what an image holds
    ///
    /// Also what may be secret in it, or should not be the same in all copies: variables and private
    /// keys, by their names, and generators of random numbers that were seeded before the freeze. With
    /// --json, the values of all variables are shown as well.
    Inspect(Inspect),
    /// Check that images are still what was captured, fit this host, and are not stale
    ///
    /// Compares each file with the digest that was made when it was stored, and reads CRIU's images
    /// to their ends. A restore refuses an image whose files have been replaced, be it by the same, as
    /// when the store has been copied: if its content is still what was captured, it can be restored
    /// again from then on.
    ///
    /// Compares the image with this host: what can break a restored server, which a restore refuses
    /// (processor, kernel, CRIU, executables and libraries), and what the server may go on with although
    /// it is no longer so, of which a restore warns (files that it read, environment, name of the host,
    /// processors, memory).
    ///
    /// Exits with 108 if an image is damaged, else with 113 if one can break, else with 120 if one may be
    /// stale.
    Verify(Verify),
    /// Show what differs between two images
    ///
    /// Their settings, processes, files, and the pages of their memory, compared where they are
    /// the same: addresses differ from start to start.
    Diff(Diff),
    /// Open an encrypted image: from then on, it can be restored without a key
    ///
    /// Every command that is given the key of an encrypted image opens it, as `restore --identity`. An open
    /// image is in memory, and never on disk. It is open until it is closed or the machine restarts.
    Open(Open),
    /// Close encrypted images: what they have in memory is removed
    ///
    /// None that a running instance uses is closed.
    Close(Close),
    /// Write an image to a file that can be sent
    ///
    /// The file is a tar stream, compressed with zstd: an OCI image layout, which checkpointctl can
    /// show as well. It holds the memory and the environment of the server: whoever has it has
    /// their secrets. An image that is encrypted is written as it is: age(1) decrypts it to such a file.
    Export(Export),
    /// Take an image from a file that `export` wrote
    ///
    /// All of it is compared with its digests; a file that is not what it says is refused, and
    /// leaves nothing behind. An image is a program: import those only that you would run. For one that is
    /// encrypted, its key is needed; it stays encrypted, and is open then.
    Import(Import),
    /// Remove images
    ///
    /// None that a running instance uses is removed.
    Rm(Rm),
    /// Remove old images
    ///
    /// The rules are combined: what is older than --older-than goes, then the oldest until the rest
    /// fits into --max-size, and the newest of --keep stay in any case. Images that a running instance uses
    /// stay as well, and those with a name unless --all is given. (An image loses its name to the
    /// next one that is captured under it.) What was kept of imports that were cut short goes too.
    Prune(Prune),
    /// Measure the start-up of a server, cold and restored in turn
    ///
    /// Each run starts the server in a control group of its own, asks it from outside until it
    /// answers, and ends it. Times are from the start of the process.
    #[command(after_long_help = bench::AFTER_HELP)]
    Bench(Box<Bench>),
    /// Tell where the time of a server's start-up goes
    ///
    /// Runs the server until it is ready, watches what each of its threads does, and shows what took
    /// the time, what the end waited for, and what is worth acting on.
    Profile(Box<Profile>),
    /// Check whether capture and restore work on this host, and tell what to do if not
    Doctor,
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual page in roff format
    Man(Man),
    /// A server that does nothing but answer, for the self-test of `doctor`
    #[command(name = "self-test-server", hide = true)]
    SelfTestServer,
    /// The part of `serve` that faces the network; its control socket is descriptor 3
    #[command(name = "proxy", hide = true)]
    Proxy,
}

#[derive(Debug, Args)]
pub struct Capture {
    /// Name of the image [default: the command's]
    #[arg(long)]
    pub name: Option<String>,
    /// When to freeze the server
    #[arg(long, value_enum, default_value_t, value_name = "POINT")]
    pub at: At,
    /// How long the server may take to get there, in seconds
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
    #[command(flatten)]
    pub how: How,
    /// Run the server as this user (name or number)
    #[arg(long)]
    pub user: Option<String>,
    /// Go on running the server once its image is made
    #[arg(long)]
    pub leave_running: bool,
    #[command(flatten)]
    pub encrypt: Encrypt,
    /// Write a profile of the start-up to this file, as `warmimg profile -o` does
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Only tell what stands in the way of an image: the server is started, frozen, looked at and
    /// ended, and nothing is stored; exits with 111 if anything does
    #[arg(long, conflicts_with_all = ["name", "leave_running", "profile"])]
    pub check: bool,
    /// The server and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Recapture {
    /// Name or digest of the image [default: the newest]
    pub image: Option<String>,
    #[command(flatten)]
    pub encrypt: Encrypt,
}

/// A capture point, or the choice of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Point(CapturePoint),
    Auto,
}

impl Default for At {
    fn default() -> Self {
        Self::Point(CapturePoint::default())
    }
}

impl ValueEnum for At {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<At>> = LazyLock::new(|| {
            let points = CapturePoint::value_variants().iter().copied();
            points.map(At::Point).chain([At::Auto]).collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Point(point) => point.to_possible_value(),
            Self::Auto => Some(PossibleValue::new("auto").help(
                "The best of those that apply: each is restored several times, and the image that \
                 is fastest to a first response is kept; of those as fast, the smallest",
            )),
        }
    }
}

// What more there is to say about a capture.
#[derive(Debug, Args)]
pub struct How {
    /// The listener that counts: PORT, ADDRESS:PORT, or the path of a Unix socket [default: any]
    #[arg(long, value_name = "LISTENER")]
    pub listener: Option<Wanted>,
    /// What to ask before --at warm: URL|PATH[,count=N][,concurrency=N][,status=CODE], or
    /// tcp://HOST:PORT[,send=TEXT] for another protocol; several one after the other [default: /,count=20,concurrency=1]
    #[arg(long, value_name = "SPEC")]
    pub warmup: Vec<Warmup>,
    /// Do this when the server is ready or warm, while it still runs: a command, signal:NAME for
    /// the root of the tree, or get:URL|PATH or post:URL|PATH for the server itself; can be given
    /// several times
    #[arg(long, value_name = "HOOK")]
    pub before_freeze: Vec<Hook>,
    /// Do this after each restore of the image, in the same ways
    #[arg(long, value_name = "HOOK")]
    pub after_restore: Vec<Hook>,
    /// How long each hook may take, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub hook_timeout: Duration,
    #[command(flatten)]
    pub connections: Connections,
}

impl How {
    /// Checks what was said for captures at these points.
    ///
    /// # Errors
    /// [`Error::WarmupWithoutPoint`], [`Error::HookWithoutPoint`] or [`Error::Command`].
    pub fn checked(&self, points: &[CapturePoint]) -> Result<capture::How, Error> {
        let warmups = match (points.contains(&CapturePoint::Warm), &self.warmup[..]) {
            (true, []) => vec![Warmup::default()],
            (false, [_, ..]) => return Err(Error::WarmupWithoutPoint),
            (_, warmups) => warmups.to_vec(),
        };
        let can_run_on = |point: &CapturePoint| point.can_run_on();
        if !self.before_freeze.is_empty() && !points.iter().any(can_run_on) {
            return Err(Error::HookWithoutPoint);
        }
        for hook in self.before_freeze.iter().chain(&self.after_restore) {
            hook.check()?;
        }
        Ok(capture::How {
            listener: self.listener.clone(),
            warmups,
            before_freeze: self.before_freeze.clone(),
            after_restore: self.after_restore.clone(),
            hook_limit: self.hook_timeout,
            outbound: self.connections.treatment(),
        })
    }
}

#[derive(Debug, Args)]
pub struct Rehearse {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    /// What to ask: PATH[,status=CODE]; can be given several times [default: /]
    #[arg(long, value_name = "SPEC")]
    pub warmup: Vec<Warmup>,
    /// How long it may take, in seconds
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
    #[command(flatten)]
    pub encrypt: Encrypt,
    #[command(flatten)]
    pub identities: Identities,
}

#[derive(Debug, Args)]
pub struct Checkpoint {
    /// The instance, or the pid of the root of the tree
    #[arg(long, value_name = "PID|ID")]
    pub pid: String,
    /// Name of the image [default: that of the instance's image, or the command's]
    #[arg(long)]
    pub name: Option<String>,
    /// Go on running the tree once its image is made
    #[arg(long)]
    pub leave_running: bool,
    #[command(flatten)]
    pub connections: Connections,
    #[command(flatten)]
    pub encrypt: Encrypt,
}

// What becomes of connections.
#[derive(Clone, Copy, Debug, Args)]
pub struct Connections {
    /// Restore connections that the server has to others as closed ones
    #[arg(long)]
    pub tcp_close: bool,
    /// Restore TCP connections that the server has to others as they were: once, and as long as
    /// the others keep their ends
    #[arg(long, conflicts_with = "tcp_close")]
    pub tcp_established: bool,
}

impl Connections {
    /// What is said of them.
    pub fn treatment(self) -> TcpConnections {
        match (self.tcp_close, self.tcp_established) {
            (true, _) => TcpConnections::Closed,
            (_, true) => TcpConnections::Established,
            (false, false) => TcpConnections::None,
        }
    }
}

// The control group of an instance.
#[derive(Debug, Args)]
pub struct Group {
    /// How much of the processors it may use, as 0.5 or 2, or max
    #[arg(long, value_name = "N")]
    pub cpus: Option<Cpus>,
    /// How much memory it may use, in bytes or with K, M or G, or max
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Memory>,
    /// Put it into a control group of its own, which a limit does as well; below this group
    /// [default: warmimg]
    #[arg(long, value_name = "GROUP", require_equals = true, value_parser = group)]
    pub cgroup: Option<Option<PathBuf>>,
}

impl Group {
    /// The group to make, if any.
    pub fn request(&self) -> Option<Request> {
        let limits = Limits {
            cpus: self.cpus,
            memory: self.memory_limit,
        };
        let is_wanted = self.cgroup.is_some() || limits != Limits::default();
        is_wanted.then(|| Request {
            parent: self.cgroup.clone().flatten(),
            limits,
        })
    }
}

// The limits of a control group.
#[derive(Debug, Args)]
pub struct LimitOptions {
    /// How much of the processors it may use, as 0.5 or 2, or max
    #[arg(long, value_name = "N")]
    pub cpus: Option<Cpus>,
    /// How much memory it may use, in bytes or with K, M or G, or max
    #[arg(long, value_name = "SIZE", alias = "memory-limit")]
    pub memory: Option<Memory>,
}

impl LimitOptions {
    pub fn limits(&self) -> Limits {
        Limits {
            cpus: self.cpus,
            memory: self.memory,
        }
    }
}

#[derive(Debug, Args)]
pub struct Limit {
    /// The instance, or a site of `serve`: all instances that it has
    pub instance: String,
    #[command(flatten)]
    pub limits: LimitOptions,
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// The page of this command instead of the main one
    pub command: Option<String>,
}

/// A positive number of seconds, with a fraction if wanted.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    /// Long enough for anything, and short enough to be added to any time.
    const LONGEST: Duration = Duration::from_secs(1_000_000);
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() && duration <= LONGEST => Ok(duration),
        _ => Err("must be more than 0, and at most 1000000".to_owned()),
    }
}

/// The path of a control group from the top of the hierarchy.
fn group(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_name = |part| matches!(part, Component::Normal(_) | Component::RootDir);
    match path.components().all(is_name) && path.components().next().is_some() {
        true => Ok(path),
        false => Err("not the path of a group, as system.slice".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_limit_or_a_place_asks_for_a_group() {
        let request = |words: &[&str]| {
            let words = ["warmimg", "restore"].iter().chain(words);
            match Cli::try_parse_from(words).unwrap().command {
                Command::Restore(restore) => (restore.group.request(), restore.image),
                _ => unreachable!(),
            }
        };
        assert!(request(&["shop"]).0.is_none());
        let (asked, image) = request(&["--cgroup", "shop"]);
        assert_eq!(
            (asked.unwrap().parent, image.unwrap()),
            (None, "shop".into())
        );
        let (asked, image) = request(&["--cgroup=/system.slice", "--cpus", "0.5"]);
        let asked = asked.unwrap();
        assert_eq!((asked.parent, image), (Some("/system.slice".into()), None));
        assert_eq!(asked.limits.cpus.unwrap().number(), Some(0.5));
        assert!(request(&["--memory-limit", "1G"]).0.is_some());
        for bad in ["--cgroup=../x", "--cgroup="] {
            assert!(Cli::try_parse_from(["warmimg", "restore", bad]).is_err());
        }
    }

    #[test]
    fn seconds_are_positive() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["0", "-1", "x", "inf", "nan", "1e19"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
