//! Checks of requests: pure functions from messages to what the volume layer takes.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{BTreeMap, HashMap};

use tonic::Status;

use crate::csi::capability;
use crate::csi::status::missing;
use crate::csi::v1::{NodePublishVolumeRequest, VolumeCapability};
use crate::failure::one_line;
use crate::kube::pull_secrets::Pod;
use crate::registry::credentials::account_tokens::parse_tokens;
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::secret::{Secret, ServiceAccount};
use crate::tenant::Tenant;
use crate::volume;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;

/// Bytes of a volume ID. The interface says 128 for strings; PersistentVolumes are not held to it.
const VOLUME_ID_LIMIT: usize = 1024;
/// kubelet's word that a volume is inline. Its access mode is then always SINGLE_NODE_WRITER, whatever the pod says.
/// Forging it gains nothing: the mount is read-only, and a claim that is used without `readOnly` and without the attribute
/// `readOnlyForWriters` is refused with it.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Bytes of the attributes. The interface's limit for a map is 4 KiB; kubelet adds tokens to it.
pub(in crate::csi) const CONTEXT_LIMIT: usize = 64 * 1024;
/// Bytes of the secrets: what a Kubernetes secret can hold.
pub(in crate::csi) const SECRETS_LIMIT: usize = 1024 * 1024;
/// What kubelet says of the pod, with `podInfoOnMount`. It overwrites what a pod's author writes under these keys.
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const ACCOUNT_NAME: &str = "csi.storage.k8s.io/serviceAccount.name";
/// Tokens of the pod's service account, among the secrets: with `serviceAccountTokenInSecrets`, and from there alone. In the context
/// a pod's author could have written them (KEP-5538); no key of a Kubernetes secret has a slash.
const ACCOUNT_TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Bytes of a UID that are looked at; Kubernetes' have 36.
const UID_LIMIT: usize = 64;

/// A publish request that was checked, up to its target.
pub struct Checked {
    /// On whose behalf.
    pub tenant: Tenant,
    /// The pod's UID, if it is told.
    pub pod: Option<String>,
    /// The volume's ID.
    pub volume_id: String,
    /// What to show, and how.
    pub attributes: Attributes,
    /// What makes two requests the same.
    pub arguments: String,
    /// Whether the pod says that it is read-only.
    pub read_only: bool,
    /// Who wants it, and the credentials that came with it.
    pub wanting: Wanting,
}

/// Checks a publish request, all but its target path.
///
/// # Errors
/// `INVALID_ARGUMENT`, or `FAILED_PRECONDITION` for modes that a read-only volume does not have.
pub fn publish(request: NodePublishVolumeRequest, allow_writers: bool) -> Result<Checked, Status> {
    volume_id(&request.volume_id)?;
    if request.target_path.is_empty() {
        return Err(missing("target_path"));
    }
    let inline = request.volume_context.get(EPHEMERAL).is_some_and(|value| value == "true");
    bound("volume_context", CONTEXT_LIMIT, &request.volume_context)?;
    bound("secrets", SECRETS_LIMIT, &request.secrets)?;
    let context: BTreeMap<String, String> = request.volume_context.into_iter().collect();
    let attributes = Attributes::parse(&context).map_err(|error| status(&error.into()))?;
    let allow_writers = allow_writers || attributes.read_only_for_writers;
    if inline && !request.readonly && !allow_writers {
        return Err(Status::invalid_argument(
            "the volume is not read-only, and ocivol's always are: set readOnly: true on the volume (csi.readOnly)",
        ));
    }
    let allow_writers = allow_writers || inline;
    let access = access(request.volume_capability.as_ref(), request.readonly, allow_writers)?;
    let mut secrets: BTreeMap<String, Secret> =
        request.secrets.into_iter().map(|(key, value)| (key, Secret::new(value))).collect();
    let tokens = secrets.remove(ACCOUNT_TOKENS);
    let keyring = Keyring::from_secrets(&secrets).map_err(|error| status(&error.into()))?;
    let arguments = volume::publish::arguments(&request.volume_id, &context, &access);
    let read_only = request.readonly;
    let tenant = Tenant::of_namespace(context.get(POD_NAMESPACE).map(String::as_str));
    let pod = context.get(POD_UID).filter(|uid| (1..=UID_LIMIT).contains(&uid.len())).cloned();
    let told = |key: &str| context.get(key).filter(|value| !value.is_empty()).cloned();
    let (namespace, name) = (told(POD_NAMESPACE), told(POD_NAME));
    let account = match (&namespace, told(ACCOUNT_NAME)) {
        (Some(namespace), Some(name)) => {
            let tokens = tokens.map(|tokens| parse_tokens(tokens.reveal())).transpose();
            let tokens = tokens.map_err(Status::invalid_argument)?.unwrap_or_default();
            Some(ServiceAccount { namespace: namespace.clone(), name, tokens })
        }
        _ => None,
    };
    let pod_of = |((namespace, name), uid)| Pod { namespace, name, uid };
    let wanting = Wanting { keyring, pod: namespace.zip(name).zip(pod.clone()).map(pod_of), account };
    Ok(Checked { tenant, pod, volume_id: request.volume_id, attributes, arguments, read_only, wanting })
}

/// The namespace of the pod, also of a request that is going to be refused; in one line, and no longer than a name can be.
pub fn namespace(request: &NodePublishVolumeRequest) -> Option<String> {
    let name = request.volume_context.get(POD_NAMESPACE)?;
    Some(one_line(&Tenant::of_namespace(Some(name)).to_string()))
}

/// Checks that a volume ID is there. Otherwise it is opaque text.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn volume_id(id: &str) -> Result<(), Status> {
    match id.len() {
        0 => Err(missing("volume_id")),
        1..=VOLUME_ID_LIMIT => Ok(()),
        _ => Err(Status::invalid_argument(format!("volume_id is longer than {VOLUME_ID_LIMIT} bytes"))),
    }
}

fn status(error: &volume::error::Error) -> Status {
    crate::csi::status::from_volume(error)
}

/// Checks how the volume is to be accessed; the text is part of what makes two requests the same.
fn access(
    capability: Option<&VolumeCapability>,
    readonly: bool,
    allow_writers: bool,
) -> Result<String, Status> {
    let (mode, flags) = capability::of_mount(capability)?;
    if capability::writes(mode, readonly) && !allow_writers {
        return Err(Status::failed_precondition(format!(
            "access mode {} is for volumes that can be written, ocivol's cannot; set accessModes: [ReadOnlyMany] and \
             readOnly: true, or the volume attribute readOnlyForWriters: \"true\"",
            mode.as_str_name()
        )));
    }
    Ok(format!("{} {readonly} {flags:?}", mode.as_str_name()))
}

pub(in crate::csi) fn bound(field: &str, limit: usize, map: &HashMap<String, String>) -> Result<(), Status> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > limit {
        return Err(Status::invalid_argument(format!("{field} has {size} bytes, more than {limit}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::v1::volume_capability::access_mode::Mode;
    use crate::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    use tonic::Code;

    fn request(access_type: Option<AccessType>, mode: Mode, readonly: bool) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: "v".into(),
            target_path: "/t".into(),
            volume_capability: Some(VolumeCapability {
                access_type,
                access_mode: Some(AccessMode { mode: mode.into() }),
            }),
            readonly,
            volume_context: [("reference".to_owned(), "r.example/x".to_owned())].into(),
            ..Default::default()
        }
    }

    fn mount(flags: &[&str]) -> Option<AccessType> {
        let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Some(AccessType::Mount(MountVolume { mount_flags, ..Default::default() }))
    }

    fn code(request: NodePublishVolumeRequest) -> Code {
        publish(request, false).err().map_or(Code::Ok, |status| status.code())
    }

    #[test]
    fn access_modes() {
        let table = [
            (Mode::SingleNodeWriter, true, Code::Ok),
            (Mode::SingleNodeWriter, false, Code::FailedPrecondition),
            (Mode::SingleNodeReaderOnly, false, Code::Ok),
            (Mode::MultiNodeReaderOnly, false, Code::Ok),
            (Mode::MultiNodeSingleWriter, true, Code::FailedPrecondition),
            (Mode::MultiNodeMultiWriter, true, Code::FailedPrecondition),
            (Mode::Unknown, true, Code::InvalidArgument),
        ];
        for (mode, readonly, expected) in table {
            assert_eq!(code(request(mount(&[]), mode, readonly)), expected, "{mode:?} {readonly}");
            let allowed = publish(request(mount(&[]), mode, readonly), true).is_ok();
            assert_eq!(allowed, expected != Code::InvalidArgument);
        }
        let block = request(Some(AccessType::Block(BlockVolume {})), Mode::MultiNodeReaderOnly, true);
        assert_eq!(code(block), Code::InvalidArgument);
        assert_eq!(code(request(None, Mode::MultiNodeReaderOnly, true)), Code::InvalidArgument);
    }

    #[test]
    fn a_volume_may_say_that_claims_for_writing_read_it() {
        for mode in [Mode::SingleNodeWriter, Mode::MultiNodeMultiWriter] {
            let mut request = request(mount(&[]), mode, false);
            let refused = publish(request.clone(), false).err().expect("refused");
            assert!(refused.message().contains("readOnlyForWriters"), "{refused}");
            request.volume_context.insert("readOnlyForWriters".into(), "true".into());
            assert_eq!(code(request.clone()), Code::Ok);
            // So may an inline volume, whose author else says readOnly.
            request.volume_context.insert(EPHEMERAL.into(), "true".into());
            assert_eq!(code(request), Code::Ok);
        }
    }

    #[test]
    fn t23_inline_volumes_have_to_say_that_they_are_read_only() {
        let mut inline = request(mount(&[]), Mode::SingleNodeWriter, false);
        inline.volume_context.insert(EPHEMERAL.into(), "true".into());
        let status = publish(inline.clone(), false).err().expect("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("set readOnly: true on the volume"), "{status}");
        inline.readonly = true;
        assert_eq!(code(inline.clone()), Code::Ok);
        inline.readonly = false;
        inline.volume_context.insert(EPHEMERAL.into(), "false".into());
        assert_eq!(code(inline), Code::FailedPrecondition);
    }

    #[test]
    fn t36_only_harmless_mount_flags() {
        let mode = Mode::MultiNodeReaderOnly;
        assert_eq!(code(request(mount(&["ro", "noatime"]), mode, true)), Code::Ok);
        for flag in
            ["rw", "suid", "exec", "dev", "bind", "remount", "lowerdir=/etc", "context=x", "ro,rw", ""]
        {
            assert_eq!(code(request(mount(&[flag]), mode, true)), Code::InvalidArgument, "{flag}");
        }
    }

    #[test]
    fn t41_requests_print_no_secret() {
        let mut request = request(mount(&[]), Mode::MultiNodeReaderOnly, true);
        request.secrets.insert(".dockerconfigjson".into(), "hunter2".into());
        request.volume_context.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), "hunter2".into());
        assert!(!format!("{request:?}").contains("hunter2"));
    }

    #[test]
    fn sizes_are_bounded() {
        let mut large = request(mount(&[]), Mode::MultiNodeReaderOnly, true);
        large.volume_context.insert("include".into(), "x".repeat(CONTEXT_LIMIT));
        assert_eq!(code(large), Code::InvalidArgument);
        let mut large = request(mount(&[]), Mode::MultiNodeReaderOnly, true);
        large.secrets.insert("x".into(), "x".repeat(SECRETS_LIMIT));
        assert_eq!(code(large), Code::InvalidArgument);
        assert!(volume_id(&"x".repeat(VOLUME_ID_LIMIT + 1)).is_err());
    }
}
