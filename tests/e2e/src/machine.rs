//! The machine that a node runs on: namespaces and cgroups of its own, on this one.
//!
//! The first process in the PID namespace is `init` below. When it ends, the kernel kills all that run there, with them the
//! mount and network namespaces go, and only empty cgroups are left to remove. So nothing survives a failed scenario, a
//! kill, or Ctrl-C.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

const NONE: Option<&str> = None;
/// The name of the cgroup in every hierarchy.
const CGROUP: &str = "ocivol-e2e";
/// Bytes of the machine's disk, which has what a node's root disk has: kubelet, the runtime, the store. As large as it needs to
/// be, whatever is free on the disk that it is a sparse file on.
const DISK: u64 = 16 << 30;
/// How long a node may need to start or end.
const PATIENCE: Duration = Duration::from_secs(300);

/// `target/` of the checkout.
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").canonicalize().expect("target/")
}

/// Where the machine's disk and logs are.
pub fn directory() -> PathBuf {
    target().join("e2e")
}

/// Starts a machine, runs this program with `arguments` on it, and ends it.
pub fn run(arguments: &[&str]) -> ExitCode {
    if kept().is_some() {
        eprintln!("a node is up: make node-down first");
        return ExitCode::FAILURE;
    }
    let mut child = start(&[&["enter"], arguments].concat());
    let status = crate::runtime().block_on(ended_or_told_to(&mut child));
    clean_up();
    if let Some(signal) = status.signal() {
        eprintln!("the machine was ended by signal {signal}");
    }
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits for the end of the machine, and makes it when this process is told to end.
async fn ended_or_told_to(child: &mut Child) -> std::process::ExitStatus {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals");
    let mut terminate = signal(SignalKind::terminate()).expect("signals");
    let mut ended = signal(SignalKind::child()).expect("signals");
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        tokio::select! {
            _ = ended.recv() => {}
            _ = interrupt.recv() => { let _ = child.kill(); }
            _ = terminate.recv() => { let _ = child.kill(); }
        }
    }
}

/// Starts a machine that goes on running.
pub fn up() -> ExitCode {
    if kept().is_some() {
        eprintln!("a node is up already: make node-shell, make node-down");
        return ExitCode::FAILURE;
    }
    let ready = directory().join("ready");
    // It goes on without this process.
    #[allow(clippy::zombie_processes)]
    let mut child = start(&["enter", "keep"]);
    let mut ended = None;
    wait_until("a node that is ready", || {
        ended = child.try_wait().expect("a child");
        ready.exists() || ended.is_some()
    });
    if let Some(status) = ended {
        clean_up();
        eprintln!("it ended ({status}); see {}", directory().join("logs").display());
        return ExitCode::FAILURE;
    }
    println!(
        "the node is up: make node-shell, make node-down; logs are in {}",
        directory().join("logs").display()
    );
    ExitCode::SUCCESS
}

/// Ends the machine that [`up`] started.
pub fn down() -> ExitCode {
    if let Some(pid) = kept() {
        kill(pid, Signal::SIGKILL).expect("the first process of the machine");
        wait_until("the end of the machine", || kill(pid, None).is_err());
    }
    clean_up();
    let _ = fs::remove_file(directory().join("pid"));
    ExitCode::SUCCESS
}

/// A shell in the namespaces of the machine that [`up`] started.
pub fn shell() -> ExitCode {
    let Some(pid) = kept() else {
        eprintln!("no node is up: make node-up");
        return ExitCode::FAILURE;
    };
    let tools = target().join("tools");
    let directories = [tools.join("kubernetes"), tools.join("runtime"), tools.join("bin")];
    let path = directories.map(|it| it.display().to_string()).join(":");
    let status = Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--all", "--", "bash", "--norc"])
        .env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin"))
        .env("KUBECONFIG", directory().join("kubeconfig"))
        .env("CONTAINERD_ADDRESS", crate::node::CONTAINERD_SOCKET)
        .env("PS1", "node# ")
        .status();
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first process of the machine that is kept.
fn kept() -> Option<Pid> {
    let pid: i32 = fs::read_to_string(directory().join("pid")).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = command.split(|byte| *byte == 0).skip(1).take(2).eq([&b"init"[..], b"keep"]);
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // Built anew, it has another file of the same name.
    let same = program.to_string_lossy().trim_end_matches(" (deleted)").ends_with("/e2e");
    (ours && same).then(|| Pid::from_raw(pid))
}

/// Starts this program with `arguments` in a process of its own, which goes where this one must not: see [`enter`].
fn start(arguments: &[&str]) -> Child {
    assert!(rustix::process::geteuid().is_root(), "this needs root: it makes namespaces and mounts");
    clean_up();
    if directory().exists() {
        fs::remove_dir_all(directory()).expect("the machine before");
    }
    fs::create_dir_all(directory().join("logs")).expect("directories");
    require_room();
    keep_settings();
    Command::new("/proc/self/exe")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .spawn()
        .expect("a process")
}

/// A disk that fills up below the machine's own breaks etcd, the registry and all that runs there, and none of them says why.
fn require_room() {
    let file_system = rustix::fs::statvfs(directory()).expect("the disk of target/");
    let free = file_system.f_bavail * file_system.f_frsize;
    assert!(
        free >= DISK,
        "{} has {} GiB free, and the node needs up to {}: make room there",
        directory().display(),
        free >> 30,
        DISK >> 30
    );
}

/// Enters the cgroups and namespaces, and starts [`init`] there with `arguments`.
pub fn enter(arguments: &[&str]) -> ExitCode {
    let keep = arguments == ["keep"];
    if keep {
        // It stays when the terminal goes.
        nix::unistd::setsid().expect("a session");
    } else {
        end_with_parent();
    }
    enter_cgroups();
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).expect("namespaces");
    leave_the_root_cgroup();
    let mut init = Command::new("/proc/self/exe");
    init.arg("init").args(arguments);
    if keep {
        let log = fs::File::create(directory().join("logs/node.log")).expect("a log");
        init.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    }
    let mut child = init.spawn().expect("the first process of the machine");
    if keep {
        fs::write(directory().join("pid"), child.id().to_string()).expect("a file");
    }
    let status = child.wait().expect("a child");
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Ctrl-C or a kill of who started this ends it, too.
fn end_with_parent() {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
}

/// The first process: prepares the machine, starts this program with `arguments`, and buries what dies, until that ends.
pub fn init(arguments: &[&str]) -> ExitCode {
    if arguments != ["keep"] {
        end_with_parent();
    }
    prepare();
    // Waited for below, with all others.
    #[allow(clippy::zombie_processes)]
    let child = Command::new("/proc/self/exe").args(arguments).spawn().expect("a child");
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => {
                return ExitCode::from(u8::try_from(status).unwrap_or(1));
            }
            Ok(WaitStatus::Signaled(pid, ..)) if pid == child => return ExitCode::FAILURE,
            _ => {}
        }
    }
}

/// Mounts what the machine has of its own, and makes its network: loopback and one bridge.
fn prepare() {
    let directory = directory();
    // Nothing gets out to the machine below; in here everything is shared, as systemd makes it.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).expect("private mounts");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE).expect("shared mounts");
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).expect("/proc");
    mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("/run");
    let disk = directory.join("disk");
    fs::File::create(&disk).and_then(|file| file.set_len(DISK)).expect("a sparse file");
    execute("mkfs.ext4", &["-q", "-F", &disk.display().to_string()]);
    // Past this machine's page cache: what the node has in memory is not there twice.
    let device = execute("losetup", &["--find", "--show", "--direct-io=on", &disk.display().to_string()]);
    execute("mount", &[device.trim(), "/var/lib"]);
    // It goes with the mount.
    execute("losetup", &["--detach", device.trim()]);
    mount(NONE, "/var/lib", NONE, MsFlags::MS_SHARED, NONE).expect("a shared disk");
    let own = directory.join("log");
    fs::create_dir_all(&own).expect("a directory");
    mount(Some(&own), "/var/log", NONE, MsFlags::MS_BIND, NONE).expect("a disk");
    // Not with the checkout, where it comes from: what is mounted here must not appear there.
    mount(NONE, "/var/log", NONE, MsFlags::MS_PRIVATE, NONE).expect("a disk of its own");
    mount(NONE, "/var/log", NONE, MsFlags::MS_SHARED, NONE).expect("a shared disk");
    mount_cgroups();
    nix::unistd::sethostname("node-a").expect("a name");
    for command in [
        "link set lo up",
        "link add cni0 type bridge",
        "addr add 10.99.0.1/24 dev cni0",
        "link set cni0 up",
        "route add default dev cni0",
    ] {
        let status = Command::new("ip").args(command.split(' ')).status().expect("ip (iproute2)");
        assert!(status.success(), "ip {command}");
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
}

fn execute(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Settings that kubelet changes for the whole kernel (`setupKernelTunables`), below /proc/sys. They are not this machine's
/// alone, so they are kept in a file and put back. Something mounted over them would keep pods with users of their own from
/// mounting /proc.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

fn keep_settings() {
    let values =
        SETTINGS.map(|name| fs::read_to_string(Path::new("/proc/sys").join(name)).expect("a setting"));
    fs::write(directory().join("settings"), values.concat()).expect("a file");
}

fn restore_settings() {
    let Ok(values) = fs::read_to_string(directory().join("settings")) else { return };
    for (name, value) in SETTINGS.iter().zip(values.lines()) {
        fs::write(Path::new("/proc/sys").join(name), value).expect("a setting");
    }
}

/// The cgroup hierarchies: their controllers as the kernel names them (none for version 2), and where they are mounted.
fn hierarchies() -> Vec<(String, PathBuf)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mounts = table.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let place = PathBuf::from(mount.split(' ').nth(4)?);
        let mut fields = file_system.split(' ');
        let kind = fields.next()?;
        let options = fields.nth(1)?;
        match kind {
            "cgroup2" => Some((String::new(), place)),
            "cgroup" => {
                let flags = ["rw", "ro", "xattr", "clone_children"];
                let own: Vec<&str> = options
                    .split(',')
                    .filter(|it| !flags.contains(it) && !it.starts_with("release_agent"))
                    .collect();
                Some((own.join(","), place))
            }
            _ => None,
        }
    });
    let mut found: Vec<_> = mounts.collect();
    found.dedup();
    found
}

fn enter_cgroups() {
    for (controllers, place) in hierarchies() {
        let own = place.join(CGROUP);
        fs::create_dir_all(&own).expect("a cgroup");
        if controllers.split(',').any(|it| it == "cpuset") {
            // Version 1: empty until they are set.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = fs::read_to_string(place.join(file)).expect("the parent's");
                fs::write(own.join(file), value.trim()).expect("a cpuset");
            }
            let _ = fs::write(own.join("cgroup.clone_children"), "1");
        }
        if controllers.is_empty() {
            enable_controllers(&place);
        }
        fs::write(own.join("cgroup.procs"), std::process::id().to_string()).expect("a cgroup");
    }
}

/// Version 2: a cgroup with children that are limited has no processes of its own. This one, and what it starts, goes into
/// a child of the cgroup that is the machine's root since the namespace was made.
fn leave_the_root_cgroup() {
    for (_, place) in hierarchies().into_iter().filter(|(controllers, _)| controllers.is_empty()) {
        let leaf = place.join(CGROUP).join("daemons");
        fs::create_dir_all(&leaf).expect("a cgroup");
        fs::write(leaf.join("cgroup.procs"), std::process::id().to_string()).expect("a cgroup");
    }
}

/// Version 2: what children may be limited by.
fn enable_controllers(cgroup: &Path) {
    let controllers = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}")).expect("a controller");
    }
}

/// Mounts the hierarchies again, so that the root of each is this machine's cgroup.
fn mount_cgroups() {
    let hierarchies = hierarchies();
    let version_2_alone = hierarchies.len() == 1;
    let root = Path::new("/sys/fs/cgroup");
    if !version_2_alone {
        mount(Some("cgroup"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("cgroups");
    }
    for (controllers, place) in hierarchies {
        fs::create_dir_all(&place).expect("a directory");
        if controllers.is_empty() {
            mount(Some("cgroup2"), &place, Some("cgroup2"), MsFlags::empty(), NONE).expect("cgroup2");
            enable_controllers(&place);
        } else {
            let options = match controllers.strip_prefix("name=") {
                Some(_) => format!("none,{controllers}"),
                None => controllers,
            };
            mount(Some("cgroup"), &place, Some("cgroup"), MsFlags::empty(), Some(options.as_str()))
                .unwrap_or_else(|error| panic!("cgroup {options}: {error}"));
        }
    }
}

/// Removes the machine's cgroups, once its processes are gone, and puts back what kubelet has set.
fn clean_up() {
    restore_settings();
    for (_, place) in hierarchies() {
        wait_until("cgroups without processes", || remove_tree(&place.join(CGROUP)).is_ok());
    }
}

/// Waits for what this process cannot be told of.
#[allow(clippy::disallowed_methods)]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not in {PATIENCE:?}; see {}",
            directory().join("logs").display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes a cgroup and those below it, by rmdir alone.
fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir())) {
        remove_tree(&entry.path())?;
    }
    fs::remove_dir(cgroup)
}
