//! What every pod of the cluster can reach, the health port, and what becomes of the plugin when it has no descriptors.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ocivol::csi::transport;
use ocivol::csi::v1::ProbeRequest;
use ocivol::csi::v1::identity_client::IdentityClient;
use ocivol::host::socket;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Node, PATIENCE, eventually, isolated};

/// The health port of the rendered DaemonSet.
const HEALTH: ([u8; 4], u16) = ([127, 0, 0, 1], 9808);
/// kubelet's `timeoutSeconds` for the probes.
const PROBE_TIME: Duration = Duration::from_secs(3);
/// Time between probes, so that what they cost is not what is measured.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Connections of somebody who means no good.
const CROWD: usize = 2_000;
/// Bytes of log that are few, whatever happens.
const LITTLE_LOG: usize = 20_000;

/// The first line of the answer to a request, asked as kubelet asks: with a new connection, at once, and for so long.
pub async fn probe(path: &str) -> Result<String, String> {
    let asked = async {
        let mut connection = TcpStream::connect(SocketAddr::from(HEALTH)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node-1\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.lines().next().unwrap_or_default().to_owned())
    };
    let answer = tokio::time::timeout(PROBE_TIME, asked).await;
    answer.map_err(|late| late.to_string())?.map_err(|error| error.to_string())
}

/// The plugin says it is well.
async fn is_well() -> bool {
    match probe("/healthz").await {
        Ok(line) => line == "HTTP/1.1 200 OK",
        Err(error) => {
            println!("the probe failed: {error}");
            false
        }
    }
}

/// The plugin answers on its CSI socket.
async fn csi_answers(node: &Node) -> bool {
    let asked = async {
        let channel = transport::connect(&node.socket).await.ok()?;
        IdentityClient::new(channel).probe(ProbeRequest {}).await.ok()
    };
    matches!(tokio::time::timeout(PROBE_TIME, asked).await, Ok(Some(_)))
}

/// Descriptors that the plugin has.
fn open_files(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs").count()
}

async fn connect() -> TcpStream {
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(SocketAddr::from(HEALTH)));
    connected.await.expect("patience").expect("somebody listens")
}

/// Waits for the plugin to close the connection; what it sent until then.
async fn read_to_the_end(connection: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut sent = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut sent)).await;
    // A reset is an end, too.
    if let Err(error) = ended.expect("it is closed") {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    sent
}

/// The test itself holds both the crowd's descriptors and its own.
fn raise_own_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let enough = maximum.is_none_or(|maximum| maximum > 2 * CROWD as u64);
    assert!(enough, "this test needs {} open files (ulimit -Hn)", 2 * CROWD);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the hard limit");
}

#[test]
fn regression_t52_idle_connections_take_no_descriptors() {
    isolated(async {
        raise_own_limit();
        let mut node = Node::prepare(&[]);
        // As container runtimes start it.
        node.run_with_open_files(1_024).await;
        assert!(is_well().await);
        let (files, log, cpu) = (open_files(&node), node.logged().len(), node.cpu_time());
        let began = Instant::now();
        let coming = tokio::spawn(async move {
            let mut crowd = Vec::with_capacity(CROWD);
            for _ in 0..CROWD {
                crowd.push(connect().await);
            }
            (crowd, began.elapsed())
        });
        // While they come, and then while all of them are there.
        let mut slowest = Duration::ZERO;
        let mut rounds_after = 0;
        while rounds_after < 5 {
            tokio::time::sleep(PROBE_PAUSE).await;
            rounds_after += usize::from(coming.is_finished());
            let asked = Instant::now();
            assert!(is_well().await, "{:?} after the first", began.elapsed());
            slowest = slowest.max(asked.elapsed());
            assert!(csi_answers(&node).await, "{:?} after the first", began.elapsed());
            assert!(open_files(&node) < files + 100, "{} descriptors, {files} before", open_files(&node));
        }
        let (mut crowd, connected) = coming.await.expect("connected");
        let took = began.elapsed();
        let (spent, logged) = (node.cpu_time() - cpu, node.logged().len() - log);
        println!(
            "{} connections in {connected:?}: slowest probe {slowest:?}, {spent:?} of CPU in {took:?}, {} descriptors, {logged} bytes of log",
            crowd.len(),
            open_files(&node)
        );
        assert!(spent < Duration::from_secs(2) + took / 4, "{spent:?} of CPU in {took:?}");
        assert!(logged < LITTLE_LOG, "{logged} bytes of log: {}", &node.logged()[..LITTLE_LOG]);
        // All but the last have been told to go; those go by themselves.
        for connection in &mut crowd {
            assert!(read_to_the_end(connection).await.is_empty());
        }
        eventually("as few descriptors as before", || open_files(&node) <= files).await;
    });
}

#[test]
fn the_limit_of_open_files_is_the_hard_one() {
    isolated(async {
        let mut node = Node::prepare(&[]);
        node.run_with_open_files(1_024).await;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
        let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        assert!(numbers[0] == numbers[1] && numbers[0] != "1024", "{line}");
    });
}

#[test]
fn a_connection_that_does_not_finish_its_request_is_closed() {
    isolated(async {
        let node = Node::start(&[]).await;
        let began = Instant::now();
        let mut silent = connect().await;
        let (mut dripping, mut drops) = connect().await.into_split();
        let drips = tokio::spawn(async move {
            let mut sent = drops.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await;
            // The rate is what is tested here, so time has to pass.
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                sent = drops.write_all(b"x: y\r\n").await;
            }
        });
        assert!(read_to_the_end(&mut silent).await.is_empty());
        assert!(read_to_the_end(&mut dripping).await.is_empty());
        drips.await.expect("nothing can be sent any more");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        // A whole request is answered once, and the connection closed with it.
        let mut complete = connect().await;
        complete.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        let answer = String::from_utf8(read_to_the_end(&mut complete).await).expect("text");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer}");
        assert!(!node.logged().contains("timeout"), "{}", node.logged());
    });
}

#[test]
fn regression_t52_without_descriptors_it_waits_and_goes_on_afterwards() {
    isolated(async {
        let mut node = Node::prepare(&[]);
        node.run_registered().await;
        // Some more than it has, so that it is not only one connection for which there is no room.
        let most = open_files(&node) + 40;
        node.limit_open_files(most as u64);
        let log = node.logged().len();
        let registration = socket::identity(&node.registration()).expect("a socket");
        // Only root can connect here, and root connects more often than there are descriptors.
        let taken: Vec<_> =
            (0..2 * most).map(|_| UnixStream::connect(&node.socket).expect("in the queue")).collect();
        let complaint = "cannot accept connections";
        let complaints = |node: &Node| {
            let lines = node.logged().split_off(log);
            lines.lines().filter(|line| line.contains(complaint) && line.contains("csi.sock")).count()
        };
        eventually("a line about it", || complaints(&node) > 0).await;
        // The limit is one of their numbers: what it has above that stays.
        eventually("the last descriptor is taken", || open_files(&node) >= most).await;
        // Nothing can be waited for: it is to do nothing for a while.
        let (before, began) = (node.cpu_time(), Instant::now());
        tokio::time::sleep(Duration::from_secs(8)).await;
        let (spent, took) = (node.cpu_time() - before, began.elapsed());
        assert!(spent < took / 4, "{spent:?} of CPU in {took:?}");
        assert_eq!(complaints(&node), 1, "{}", node.logged());
        assert!(node.logged().len() - log < LITTLE_LOG, "{}", node.logged());
        // Taking it away would unregister the driver.
        assert_eq!(socket::identity(&node.registration()), Some(registration), "{}", node.logged());
        println!("{spent:?} of CPU in {took:?} without descriptors");
        drop(taken);
        let began = Instant::now();
        while !csi_answers(&node).await {
            assert!(began.elapsed() < PATIENCE, "{}", node.logged());
        }
        assert!(is_well().await);
        node.register().await;
        node.stop().await;
    });
}
