//! What gRPC's clients say the name of a unix socket is, and that both sockets answer all of them.
//!
//! tonic's client cannot send most of this, so the bytes are grpc-go's own, replayed.

use std::path::Path;

use ocivol::csi::pluginregistration::PluginInfo;
use ocivol::csi::transport;
use ocivol::csi::v1::identity_client::IdentityClient;
use ocivol::csi::v1::{GetPluginInfoRequest, GetPluginInfoResponse, ProbeRequest};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::node::DRIVER;
use crate::support::{Node, PATIENCE, isolated};

// Two calls on one connection, with a deadline of 20 seconds, as grpc-go 1.85 made them to the target
// `/var/lib/kubelet/plugins_registry/csi.ocivol.dev-reg.sock` with a dialer of its own, which is how kubelet's plugin
// watcher dials. They were recorded by a `net.Conn` that also writes to a file what is written to it. These are the field
// blocks of HEADERS, cut where the authority is.

/// `:method`, `:scheme` and `:path` of the first call, and `grpc-timeout` of the second.
const GET_INFO: [&str; 2] =
    ["838645 9c62ba2d98d558598c84d83498f52fb4b31909b06931ea63115392a94f", "7e870befbefbcd02df"];
/// The same for `/csi.v1.Identity/GetPluginInfo`.
const GET_PLUGIN_INFO: [&str; 2] =
    ["838645 96608832fdc2be490b524c9f4c622a75d16cc6ab25529f", "7e870befbefbed376f"];
/// `content-type`, `user-agent`, `te` and `grpc-timeout` of the first call.
const AFTER_AUTHORITY: &str = "5f8b1d75d0620d263d4c4d6564 7a8a9acac8b4c7602bbcdae0 40027465864d833505b11f \
    40899acac8b24d494f6a7f870befbef3ef3f6f";
/// What the authority is, its field in the first call, and how the second call refers to the path, the authority and what
/// follows it in the first.
const AUTHORITIES: [(&str, &str, &str); 4] = [
    (
        "the path, percent-encoded",
        "41b154587b8ec545868346a8b0f5b632d054aa2c35d16cc6a91158598c84d9e95161220cb9c86ee7a1790bdd6b0b32e8393aff",
        "c3c2c1c0bf",
    ),
    // As grpc-go sent it before 1.57, recorded with 1.38.
    (
        "the path",
        "41a963b8ec628346c75b632d054b15d16cc6a91158598c84d9e98220cb9c86ee7a1790bdd6b0b32e8393af",
        "c3c2c1c0bf",
    ),
    ("empty", "4100", "c3c2c1c0bf"),
    ("absent", "", "c2c1c0bf"),
];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// All that the client sends: preface, SETTINGS and its acknowledgement, and for each call HEADERS and an empty message.
fn conversation(method: [&str; 2], authority: &str, references: &str) -> Vec<u8> {
    let first = hex(&[method[0], authority, AFTER_AUTHORITY].concat());
    let second = hex(&["8386", references, method[1]].concat());
    let message = [0; 5];
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(4, 1, 0, &[]),
        frame(1, 4, 1, &first),
        frame(0, 1, 1, &message),
        frame(1, 4, 3, &second),
        frame(0, 1, 3, &message),
    ]
    .concat()
}

/// Sends `bytes` and returns the messages that answer the calls 1 and 3, or says what came instead.
async fn answers(socket: &Path, bytes: &[u8]) -> Result<[Vec<u8>; 2], String> {
    let mut stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
    stream.write_all(bytes).await.map_err(|error| error.to_string())?;
    let mut data = [Vec::new(), Vec::new()];
    let mut ended = 0;
    while ended < 2 {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.map_err(|error| error.to_string())?;
        let [l0, l1, l2, kind, flags, .., stream_id] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        stream.read_exact(&mut payload).await.map_err(|error| error.to_string())?;
        match kind {
            0 => data[usize::from(stream_id / 2)].extend_from_slice(&payload),
            3 | 7 => return Err(format!("RST_STREAM or GOAWAY for {stream_id}: {payload:02x?}")),
            _ => {}
        }
        ended += i32::from(kind == 1 && flags & 1 != 0);
    }
    Ok(data)
}

/// The message behind gRPC's prefix of five bytes.
fn message<M: Message + Default>(data: &[u8]) -> M {
    M::decode(data.get(5..).unwrap_or_else(|| panic!("no message: {data:02x?}"))).expect("the message")
}

#[test]
fn regression_both_sockets_answer_whatever_the_authority() {
    isolated(async {
        let node = Node::start(&[]).await;
        for (what, authority, references) in AUTHORITIES {
            let ask = async |socket: &Path, method| {
                let bytes = conversation(method, authority, references);
                let answers =
                    tokio::time::timeout(PATIENCE, answers(socket, &bytes)).await.expect("an answer");
                answers.unwrap_or_else(|error| {
                    panic!("{what} at {}: {error}\n{}", socket.display(), node.logged())
                })
            };
            for answer in ask(&node.registration(), GET_INFO).await {
                assert_eq!(message::<PluginInfo>(&answer).name, DRIVER, "{what}");
            }
            for answer in ask(&node.socket, GET_PLUGIN_INFO).await {
                assert_eq!(message::<GetPluginInfoResponse>(&answer).name, DRIVER, "{what}");
            }
        }
    });
}

#[test]
fn what_is_not_http_2_ends_its_own_connection_alone() {
    isolated(async {
        let node = Node::start(&[]).await;
        let channel = transport::connect_by_path(&node.socket).await.expect("connected");
        let mut other = IdentityClient::new(channel);
        other.probe(ProbeRequest {}).await.expect("an answer");
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // A reference to what is not in the table, and a frame within a field block.
        for frames in [
            frame(1, 5, 1, b"\x83\xff\x7fsecret-token"),
            [frame(1, 1, 1, b"\x83"), frame(0, 1, 1, b"")].concat(),
        ] {
            let bytes = [preface.clone(), frame(4, 0, 0, &[]), frames].concat();
            let answer = tokio::time::timeout(PATIENCE, answers(&node.socket, &bytes)).await.expect("an end");
            answer.expect_err("disconnected");
        }
        assert!(node.logged().contains("not HPACK: "), "{}", node.logged());
        assert!(node.logged().contains("not HTTP/2: "), "{}", node.logged());
        assert!(!node.logged().contains("secret-token"), "{}", node.logged());
        other.get_plugin_info(GetPluginInfoRequest {}).await.expect("the others are served");
    });
}
