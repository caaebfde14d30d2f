//! What the kernel says of this process, under the names that Prometheus' own clients use.

use std::fmt;
use std::fs;
use std::sync::OnceLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads it when it is asked for, which may block. What cannot be read is left out.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stat = Stat::read();
        if let Some(seconds) = stat.cpu_seconds() {
            let (name, help) = ("process_cpu_seconds", "Processor time of user and kernel, in seconds.");
            let cpu = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(cpu)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Memory that is not swapped out or unread, in bytes.",
                stat.resident(),
            ),
            ("process_open_fds", "Descriptors that are open.", open_files()),
            ("process_max_fds", "Descriptors that may be open.", most_files()),
            ("process_start_time_seconds", "When it was started, in seconds since 1970.", stat.started()),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        Ok(())
    }
}

/// `/proc/self/stat`, as it was read once for all that is in it.
struct Stat(String);

impl Stat {
    fn read() -> Self {
        Self(fs::read_to_string("/proc/self/stat").unwrap_or_default())
    }

    /// A field by its number in `man 5 proc_pid_stat`, from 3 on: the second is a name in parentheses.
    fn field(&self, number: usize) -> Option<f64> {
        let (_, after) = self.0.rsplit_once(')')?;
        after.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
    }

    fn cpu_seconds(&self) -> Option<f64> {
        Some((self.field(14)? + self.field(15)?) / ticks())
    }

    fn resident(&self) -> Option<f64> {
        Some(self.field(24)? * rustix::param::page_size() as f64)
    }

    /// Looked up once. The kernel's `btime` follows the clock, and a process whose clock was set has not started anew.
    fn started(&self) -> Option<f64> {
        static STARTED: OnceLock<f64> = OnceLock::new();
        if let Some(started) = STARTED.get() {
            return Some(*started);
        }
        let text = fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let started = boot + self.field(22)? / ticks();
        Some(*STARTED.get_or_init(|| started))
    }
}

fn ticks() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn open_files() -> Option<f64> {
    // The directory that is read is open as well.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn most_files() -> Option<f64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.map(|most| most as f64)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn the_kernel_knows_the_process() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("memory");
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().expect("a number")
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        let age = now.expect("after 1970").as_secs_f64() - value("process_start_time_seconds");
        assert!((-5.0..24.0 * 3600.0).contains(&age), "{age}");
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
