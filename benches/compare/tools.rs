//! The tools that are compared: how each gets an artifact into a directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::processor_time;
use crate::workloads::{BASE, Workload};

/// One tool.
pub struct Tool {
    pub name: String,
    /// A shell script; `$DIR` is an empty directory.
    pub script: String,
    /// One that runs before the clock starts, and gets what the tool is to have already.
    pub before: Option<String>,
    pub daemon: Option<Containerd>,
}

/// A containerd of the benchmark's own.
#[derive(Clone)]
pub struct Containerd {
    binary: PathBuf,
    client: PathBuf,
    settings: &'static str,
    /// It may have igzip decompress, as it does by itself where that is installed.
    igzip: bool,
}

/// A containerd that runs until dropped.
pub struct Running(Child);

const VERSION_1: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
"#;
const VERSION_2: &str = r#"version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]
"#;
const VERSION_2_TUNED: &str = r#"version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 4
  concurrent_layer_fetch_buffer = 8388608
  max_concurrent_unpacks = 4
"#;

/// The tools for a workload; ocivol is the first. With a `baseline`, another ocivol, only the two.
pub fn of(workload: &Workload, host: &str, baseline: Option<&str>) -> Vec<Tool> {
    let name = &workload.name;
    let plain = |name: &str, script: String| Tool { name: name.into(), script, before: None, daemon: None };
    let pull = |ocivol: &str, tag: &str| {
        format!("{ocivol} pull --root $DIR --plain-http {host} {host}/{name}:{tag}")
    };
    let ours = |tool_name: &str, ocivol: &str| Tool {
        name: tool_name.into(),
        script: pull(ocivol, "v1"),
        before: workload.has_base.then(|| pull(ocivol, BASE)),
        daemon: None,
    };
    let mut tools = vec![ours("ocivol pull", env!("CARGO_BIN_EXE_ocivol"))];
    if let Some(baseline) = baseline {
        tools.push(ours("ocivol pull, baseline", baseline));
    }
    if workload.has_base {
        let (image, base) = (format!("{host}/{name}:v1"), format!("{host}/{name}:{BASE}"));
        tools.extend(containerds(&image, Some(&base)));
        return tools;
    }
    if baseline.is_some() {
        return tools;
    }
    if workload.is_image {
        tools.extend(containerds(&format!("{host}/{name}:v1"), None));
        tools.push(plain(ONE_PASS, one_pass(workload, host)));
        let podman = "podman --root $DIR/root --runroot $DIR/run --storage-driver overlay";
        tools.push(plain(
            "podman pull and mount",
            format!("{podman} pull -q --tls-verify=false {host}/{name}:v1 && {podman} image mount {host}/{name}:v1"),
        ));
        tools.push(plain(
            "skopeo copy and umoci unpack",
            format!(
                "skopeo copy -q --preserve-digests --src-tls-verify=false docker://{host}/{name}:v1 oci:$DIR/oci:v1 && umoci raw unpack --image $DIR/oci:v1 $DIR/rootfs"
            ),
        ));
        // umoci 0.4 does not know zstd.
        if name.ends_with("zstd") {
            tools.pop();
        }
        return tools;
    }
    let urls: String =
        workload.digests.iter().map(|digest| format!("http://{host}/v2/{name}/blobs/{digest}\n")).collect();
    // `$0` is the URL, `${0##*:}` its digest.
    let parallel = |command: &str| format!("printf '%s' '{urls}' | xargs -P 4 -I{{}} sh -c '{command}' {{}}");
    tools.push(plain("curl, 4 at a time, nothing verified", parallel("curl -sf -o $DIR/${0##*:} $0")));
    tools.push(plain(
        "curl and openssl sha256, 4 at a time",
        parallel("curl -sf $0 | tee $DIR/${0##*:} | openssl dgst -sha256 -r | grep -q ^${0##*:}"),
    ));
    tools.push(plain(
        "curl and sha256sum, 4 at a time",
        parallel("curl -sf $0 | tee $DIR/${0##*:} | sha256sum | grep -q ^${0##*:}"),
    ));
    // It makes no files of raw layers: they stay blobs in its store.
    tools.extend(containerds(&format!("{host}/{name}:v1"), None).into_iter().filter_map(|mut tool| {
        let client = tool.daemon.as_ref()?.client.display().to_string();
        tool.script = format!("{client} -a $DIR/c.sock content fetch --plain-http {host}/{name}:v1");
        Some(tool).filter(|tool| !tool.name.contains("igzip"))
    }));
    tools.push(plain(
        "skopeo copy to dir:",
        format!("skopeo copy -q --src-tls-verify=false docker://{host}/{name}:v1 dir:$DIR/image"),
    ));
    tools
}

/// Each byte once: received, hashed, decompressed and unpacked, by what there is for that.
pub const ONE_PASS: &str = "curl, openssl, igzip or zstd, and tar";

/// Two layers at a time; below each other's files, so that they can be.
fn one_pass(workload: &Workload, host: &str) -> String {
    let name = &workload.name;
    let inflate = match name.as_str() {
        "tar" => "cat",
        _ if name.ends_with("zstd") => "zstd -dc",
        _ => "igzip -dc",
    };
    let urls: String =
        workload.digests.iter().map(|digest| format!("http://{host}/v2/{name}/blobs/{digest}\n")).collect();
    let each = format!(
        "d=${{0##*:}}; mkdir $DIR/$d; exec 3> >(openssl dgst -sha256 -r >$DIR/$d.sum); hash=$!; \
         curl -sf $0 | tee /dev/fd/3 | {inflate} | tar -xf - -C $DIR/$d; exec 3>&-; wait $hash; grep -q ^$d $DIR/$d.sum"
    );
    format!("printf '%s' '{urls}' | xargs -P 2 -I{{}} bash -o pipefail -ec '{each}' {{}}")
}

/// Debian's containerd, and the one that pods run on in `make e2e`, where that is built.
fn containerds(reference: &str, base: Option<&str>) -> Vec<Tool> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/runtime");
    let newest = || (built.join("containerd"), built.join("ctr"));
    let debian = (PathBuf::from("/usr/bin/containerd"), PathBuf::from("/usr/bin/ctr"));
    let igzip = Path::new("/usr/bin/igzip").exists();
    let candidates = [
        (debian, VERSION_1, " of Debian 12", false),
        (newest(), VERSION_2, "", false),
        (newest(), VERSION_2_TUNED, ", parallel fetch and unpack", false),
        (newest(), VERSION_2_TUNED, ", the same with igzip", true),
    ];
    let available = candidates.into_iter().filter_map(|((binary, client), settings, how, with_igzip)| {
        let Some(version) = version(&binary).filter(|_| igzip || !with_igzip) else {
            eprintln!("not compared: {}{how}", binary.display());
            return None;
        };
        Some((format!("containerd {version}{how}"), (binary, client), settings, with_igzip))
    });
    available
        .map(|(name, (binary, client), settings, igzip)| {
            let ctr = format!("{} -a $DIR/c.sock", client.display());
            let script = format!(
                "mkdir $DIR/mnt && {ctr} images pull --plain-http {reference} && {ctr} images mount {reference} $DIR/mnt"
            );
            // It is unpacked when it is pulled.
            let before = base.map(|base| format!("{ctr} images pull --plain-http {base}"));
            Tool { name, script, before, daemon: Some(Containerd { binary, client, settings, igzip }) }
        })
        .collect()
}

/// Of "containerd github.com/containerd/containerd/v2 2.4.2+unknown". None where it is not.
fn version(binary: &Path) -> Option<String> {
    let said = Command::new(binary).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_whitespace().nth(2)?.split(['+', '~']).next()?;
    Some(version.trim_start_matches('v').to_owned())
}

impl Containerd {
    /// Starts it with everything below `directory`, and waits until it answers.
    pub fn start(&self, directory: &Path) -> Running {
        let below = |name: &str| directory.join(name).display().to_string();
        let (socket, ttrpc, config) = (below("c.sock"), below("t.sock"), below("config.toml"));
        let settings = format!(
            "root = {:?}\nstate = {:?}\n{}[grpc]\n  address = {socket:?}\n[ttrpc]\n  address = {ttrpc:?}\n",
            below("root"),
            below("state"),
            self.settings
        );
        std::fs::write(&config, settings).expect("a file");
        let child = Command::new(&self.binary)
            .args(["-c", &config, "-l", "error"])
            .env("CONTAINERD_DISABLE_PIGZ", "1")
            .envs((!self.igzip).then_some(("CONTAINERD_DISABLE_IGZIP", "1")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("containerd starts");
        let running = Running(child);
        let began = Instant::now();
        let answers = || {
            let version = Command::new(&self.client).args(["-a", &socket, "version"]).output();
            version.is_ok_and(|version| version.status.success())
        };
        while !answers() {
            assert!(began.elapsed() < Duration::from_secs(20), "{} does not answer", self.binary.display());
            std::thread::yield_now();
        }
        running
    }
}

impl Running {
    /// CPU time that it and those of its children that have ended have used.
    pub fn cpu(&self) -> Duration {
        processor_time(self.0.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
