//! The process's own resource use, read from `/proc` at each scrape; absent if there is no `/proc`.

use prometheus::{Counter, IntGauge, IntGaugeVec, Opts, Registry};

/// `USER_HZ`: the unit of CPU times in `/proc`, 100 on every Linux that Rust's std runs on
/// (<https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>, fields 14 and 15).
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory and CPU of this process.
#[derive(Debug, Clone)]
pub(crate) struct ProcessMetrics {
    resident: IntGauge,
    cpu: Counter,
    open_files: IntGauge,
}

impl ProcessMetrics {
    /// Registers the metrics, and the build's version.
    ///
    /// # Errors
    /// If a name is already registered.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let build =
            Opts::new("ethhook_build_info", "Always 1; the label is the version of this build.");
        let build = IntGaugeVec::new(build, &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        let metrics = Self {
            resident: IntGauge::new(
                "ethhook_process_resident_memory_bytes",
                "Resident memory of this process.",
            )?,
            cpu: Counter::new(
                "ethhook_process_cpu_seconds_total",
                "User and system CPU time of this process.",
            )?,
            open_files: IntGauge::new(
                "ethhook_process_open_files",
                "File descriptors this process has open.",
            )?,
        };
        registry.register(Box::new(metrics.resident.clone()))?;
        registry.register(Box::new(metrics.cpu.clone()))?;
        registry.register(Box::new(metrics.open_files.clone()))?;
        Ok(metrics)
    }

    /// Updates the metrics.
    pub(crate) fn refresh(&self) {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).ok();
        if let Some(bytes) = read("status").and_then(|status| resident_bytes(&status)) {
            self.resident.set(bytes);
        }
        if let Some(seconds) = read("stat").and_then(|stat| cpu_seconds(&stat)) {
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
    }
}

fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The second field is the command in brackets and may contain spaces; fields 14 and 15 are the
    // 12th and 13th after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(resident_bytes("VmSize:\t 9 kB\nVmRSS:\t   10240 kB\n"), Some(10_485_760));
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        let metrics = ProcessMetrics::register(&Registry::new()).unwrap();
        metrics.refresh();
        assert!(metrics.resident.get() > 1_000_000 && metrics.open_files.get() > 0);
    }
}
