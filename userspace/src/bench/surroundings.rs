//! What else the machine did meanwhile: it tells how far the figures can be trusted.

use std::{fs, io, time::Duration};

use procfs::{Current as _, CurrentSI as _, KernelStats, LoadAverage};

use super::results::Surroundings;

/// Watches the machine from its making on.
pub struct Watcher {
    load_average: f64,
    before: Times,
    own_before: Duration,
    /// CPU time of the runs.
    runs: Duration,
    /// How long the client waited for first responses, and the CPU time it used meanwhile.
    waited: Duration,
    waiting_cpu: Duration,
}

/// CPU time of the whole machine since its boot, in seconds.
#[derive(Clone, Copy)]
struct Times {
    busy: f64,
    stolen: f64,
    all: f64,
}

impl Watcher {
    /// # Errors
    /// If /proc cannot be read.
    pub fn start() -> io::Result<Self> {
        let load = LoadAverage::current().map_err(io::Error::other)?;
        Ok(Self {
            // As the kernel tells it: in hundredths.
            load_average: (f64::from(load.one) * 100.0).round() / 100.0,
            before: Times::read()?,
            own_before: own_cpu_time(),
            runs: Duration::ZERO,
            waited: Duration::ZERO,
            waiting_cpu: Duration::ZERO,
        })
    }

    /// Takes the CPU time of a run into account.
    pub fn add_run(&mut self, cpu: Duration) {
        self.runs += cpu;
    }

    /// Takes into account what the client used while it waited for a first response.
    pub fn add_wait(&mut self, time: Duration, cpu: Duration) {
        self.waited += time;
        self.waiting_cpu += cpu;
    }

    /// # Errors
    /// If /proc cannot be read.
    pub fn end(self) -> io::Result<Surroundings> {
        let after = Times::read()?;
        let before = self.before;
        let ours = self.runs + (own_cpu_time() - self.own_before);
        let all = (after.all - before.all).max(f64::MIN_POSITIVE);
        let seconds = all / processors() as f64;
        let others = after.busy - before.busy - ours.as_secs_f64();
        Ok(Surroundings {
            load_average: self.load_average,
            other_cpus: (others / seconds).max(0.0),
            stolen_share: (after.stolen - before.stolen) / all,
            client_cpu_share: match self.waited.as_secs_f64() {
                0.0 => 0.0,
                waited => self.waiting_cpu.as_secs_f64() / waited,
            },
        })
    }
}

impl Times {
    fn read() -> io::Result<Self> {
        let stat = KernelStats::current().map_err(io::Error::other)?.total;
        let ticks = procfs::ticks_per_second() as f64;
        let busy =
            stat.user + stat.nice + stat.system + stat.irq.unwrap_or(0) + stat.softirq.unwrap_or(0);
        let stolen = stat.steal.unwrap_or(0);
        let all = busy + stolen + stat.idle + stat.iowait.unwrap_or(0);
        let [busy, stolen, all] = [busy, stolen, all].map(|time| time as f64 / ticks);
        Ok(Self { busy, stolen, all })
    }
}

/// The processors that are online.
pub fn processors() -> usize {
    let cpuinfo = fs::read_to_string("/proc/stat").unwrap_or_default();
    let lines = cpuinfo.lines().filter(|line| line.starts_with("cpu"));
    lines.count().saturating_sub(1).max(1)
}

/// The CPU time that this process has used.
pub fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
