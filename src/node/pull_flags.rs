//! Flags about registries and pulls, which most commands have.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::node::bad_flag::BadFlag;
use crate::node::flag_values::check_absolute;
use crate::oci::repository::host_identity;
use crate::registry::addresses::Addresses;
use crate::registry::hosts::directory::HostsSettings;
use crate::registry::local::places::Places;
use crate::store::space::budget::Level;
use crate::{pull, registry};

/// Flags about registries and pulls, as they were given.
#[derive(Debug, Clone)]
pub struct PullFlags {
    /// `--hosts-dir`
    pub hosts_dir: Option<PathBuf>,
    /// `--authoritative-mirrors`
    pub authoritative_mirrors: Vec<String>,
    /// `--plain-http`
    pub plain_http: Vec<String>,
    /// `--allow-hosts`
    pub allow_hosts: Vec<String>,
    /// `--oci-layout-dir`
    pub oci_layout_dirs: Vec<PathBuf>,
    /// `--stall-timeout`, seconds.
    pub stall_timeout: u64,
    /// `--parallel-downloads`
    pub parallel_downloads: usize,
    /// Whether the uncompressed layers of images are checked.
    pub verify_diff_ids: bool,
    /// `--grant-ttl`, seconds; 0 is for good.
    pub grant_ttl: u64,
    /// `--always-verify`
    pub always_verify: bool,
    /// `--spool-above`
    pub spool_above: Option<String>,
}

/// Seconds without a byte after which a request counts as stalled, unless something else is said.
pub const STALL_TIMEOUT: u64 = 30;
/// Downloads of large blobs at the same time, unless something else is said.
pub const PARALLEL_DOWNLOADS: usize = 4;

impl Default for PullFlags {
    fn default() -> Self {
        Self {
            hosts_dir: None,
            authoritative_mirrors: Vec::new(),
            plain_http: Vec::new(),
            allow_hosts: Vec::new(),
            oci_layout_dirs: Vec::new(),
            stall_timeout: STALL_TIMEOUT,
            parallel_downloads: PARALLEL_DOWNLOADS,
            verify_diff_ids: false,
            grant_ttl: 0,
            always_verify: false,
            spool_above: None,
        }
    }
}

impl PullFlags {
    /// Checks every flag.
    ///
    /// # Errors
    /// [`BadFlag`] names the first flag that cannot be used, and says why.
    pub fn check(
        self,
        mut addresses: Addresses,
    ) -> Result<(registry::transport::RegistrySettings, pull::request::PullSettings), BadFlag> {
        let mut plain_http = BTreeSet::new();
        for host in self.allow_hosts {
            if let Err(error) = addresses.allow(&host) {
                return Err(BadFlag { flag: "--allow-hosts", value: host, reason: error.to_string() });
            }
        }
        for host in self.plain_http {
            // A reference is the grammar of hosts.
            if format!("{host}/x")
                .parse::<crate::oci::reference::Reference>()
                .map_or(true, |it| it.host() != host)
            {
                let reason = "it is no host[:port]".to_owned();
                return Err(BadFlag { flag: "--plain-http", value: host, reason });
            }
            if host.ends_with(":443") {
                let reason = "443 is the port of TLS; a registry without TLS has another".to_owned();
                return Err(BadFlag { flag: "--plain-http", value: host, reason });
            }
            if let Err(error) = addresses.allow_plain_http(&host) {
                return Err(BadFlag { flag: "--plain-http", value: host, reason: error.to_string() });
            }
            plain_http.insert(host_identity(&host));
        }
        if let Some(directory) = &self.hosts_dir {
            check_absolute("--hosts-dir", directory)?;
        }
        let hosts = HostsSettings {
            directory: self.hosts_dir,
            plain_http,
            authoritative: self.authoritative_mirrors.into_iter().collect(),
        };
        if !(1..=600).contains(&self.stall_timeout) {
            let reason = "it must be between 1 and 600 seconds".to_owned();
            return Err(BadFlag { flag: "--stall-timeout", value: self.stall_timeout.to_string(), reason });
        }
        if !(1..=64).contains(&self.parallel_downloads) {
            let value = self.parallel_downloads.to_string();
            let reason = "it must be between 1 and 64".to_owned();
            return Err(BadFlag { flag: "--parallel-downloads", value, reason });
        }
        let spool_above = match self.spool_above.as_deref().map(str::parse) {
            None => None,
            Some(Ok(Level::Count(bytes))) => Some(bytes),
            Some(_) => {
                let value = self.spool_above.unwrap_or_default();
                let reason = "it is no number of bytes, as 4GiB".to_owned();
                return Err(BadFlag { flag: "--spool-above", value, reason });
            }
        };
        for directory in &self.oci_layout_dirs {
            check_absolute("--oci-layout-dir", directory)?;
        }
        let registry = registry::transport::RegistrySettings {
            hosts,
            addresses,
            layouts: Places::below(self.oci_layout_dirs),
            stall_timeout: Duration::from_secs(self.stall_timeout),
            ..registry::transport::RegistrySettings::default()
        };
        let pulls = pull::request::PullSettings {
            parallel_downloads: self.parallel_downloads,
            verify_diff_ids: self.verify_diff_ids,
            grant_ttl: (self.grant_ttl > 0).then(|| Duration::from_secs(self.grant_ttl)),
            always_verify: self.always_verify,
            spool_above,
            ..pull::request::PullSettings::default()
        };
        Ok((registry, pulls))
    }
}
