//! Values that flags of several commands have: sockets, names, addresses, paths.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::node::bad_flag::BadFlag;

/// Bytes of a unix socket's path, without the final NUL: `man 7 unix`.
const SOCKET_PATH_LIMIT: usize = 107;
/// Bytes of a driver name: CSI v1.12.0, GetPluginInfo.
const DRIVER_NAME_LIMIT: usize = 63;
/// `unix:///csi/csi.sock` and `unix:/csi/csi.sock`; the interface wants the name to end in `.sock`.
pub(crate) fn socket_path(endpoint: &str) -> Result<PathBuf, BadFlag> {
    let error =
        |reason: &str| BadFlag { flag: "--endpoint", value: endpoint.to_owned(), reason: reason.to_owned() };
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"))
        .ok_or_else(|| error("only unix:///path/to/csi.sock is served"))?;
    if !path.starts_with('/') {
        return Err(error("the path must be absolute: unix:///path/to/csi.sock"));
    }
    if !path.ends_with(".sock") {
        return Err(error("the path must end in .sock"));
    }
    Ok(PathBuf::from(path))
}

/// Lower-case letters, digits, `.`, `-`; a letter at both ends. Kubernetes wants a DNS name, csi-sanity the letters.
pub(crate) fn check_driver_name(name: &str) -> Result<(), BadFlag> {
    let letter = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphabetic);
    let bytes = name.as_bytes();
    let fits = name.len() <= DRIVER_NAME_LIMIT
        && letter(bytes.first())
        && letter(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(byte));
    if fits {
        return Ok(());
    }
    let reason =
        "it must be a DNS name of at most 63 characters that begins and ends with a lower-case letter"
            .to_owned();
    Err(BadFlag { flag: "--driver-name", value: name.to_owned(), reason })
}

pub(crate) fn check_absolute(flag: &'static str, path: &Path) -> Result<(), BadFlag> {
    let plain = path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    if plain {
        return Ok(());
    }
    Err(BadFlag {
        flag,
        value: path.display().to_string(),
        reason: "it must be absolute, without '..'".to_owned(),
    })
}

pub(crate) fn check_socket_length(flag: &'static str, path: &Path) -> Result<(), BadFlag> {
    if path.as_os_str().len() <= SOCKET_PATH_LIMIT {
        return Ok(());
    }
    let reason = format!(
        "its socket would be {} bytes long, {SOCKET_PATH_LIMIT} are possible; use a shorter directory or driver name",
        path.as_os_str().len()
    );
    Err(BadFlag { flag, value: path.display().to_string(), reason })
}

/// `:9808`, `127.0.0.1:9808`, `[::1]:9808`, or nothing. An IPv4 address may be in brackets as well: the chart writes
/// `[$(POD_IP)]`, and does not know of which family it is.
pub(crate) fn listener_address(flag: &'static str, text: String) -> Result<Option<SocketAddr>, BadFlag> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.rsplit_once(':').and_then(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let address: IpAddr = match bare {
            // All addresses of both families; the listener falls back where there is no IPv6.
            None if host.is_empty() => Ipv6Addr::UNSPECIFIED.into(),
            None => IpAddr::V4(host.parse().ok()?),
            Some(host) => host.parse().ok()?,
        };
        Some(SocketAddr::new(address, port.parse().ok()?))
    });
    let reason = "it is no address:port".to_owned();
    address.map(Some).ok_or(BadFlag { flag, value: text, reason })
}
