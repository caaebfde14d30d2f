//! The Controller service: what external-provisioner calls. Every method checks, hands over, and translates.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Code, Request, Response, Status, async_trait};

use crate::csi::call::{Call, Calls};
use crate::csi::metrics::{CREATE, DELETE};
use crate::csi::request::{CONTEXT_LIMIT, SECRETS_LIMIT, bound, volume_id};
use crate::csi::status::missing;
use crate::csi::v1::controller_server::Controller;
use crate::csi::v1::controller_service_capability::{Rpc, Type, rpc};
use crate::csi::v1::validate_volume_capabilities_response::Confirmed;
use crate::csi::v1::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse, ControllerServiceCapability,
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeCapability,
};
use crate::csi::{capability, status};
use crate::failure::{Kind, chain, one_line};
use crate::host::blocking::{self, Lane};
use crate::provision::claim_name::NAMESPACE;
use crate::provision::error::Error;
use crate::provision::provisioner::{Checked, Provisioned, Provisioner, Wanted};
use crate::provision::volume_id::{is_ours, of_name};
use crate::registry::credentials::secret::Secret;

/// The attribute with which claims for writing are accepted.
const FOR_WRITERS: &str = "readOnlyForWriters";
/// How long a claim is worked on, of the 30 s that the chart has the provisioner wait. It asks again.
const LONGEST: Duration = Duration::from_secs(25);

/// Makes volumes of claims.
#[derive(Clone)]
pub struct ControllerService {
    /// Does the work.
    pub provisioner: Provisioner,
    /// Counts and logs the calls.
    pub calls: Calls,
}

impl ControllerService {
    async fn create(
        &self,
        request: CreateVolumeRequest,
        call: &mut Call,
    ) -> Result<CreateVolumeResponse, Status> {
        tracing::debug!(?request, "create");
        call.volume = Some(one_line(&request.name));
        call.namespace = request.parameters.get(NAMESPACE).map(|name| one_line(name));
        let read = move || check(request);
        let (name, wanted) = blocking::run(Lane::Work, read).await?;
        let reference = wanted.attributes().reference.to_string();
        call.reference = Some(reference.clone());
        let Ok(made) = tokio::time::timeout(LONGEST, self.provisioner.provision(wanted)).await else {
            return Err(Status::internal(format!(
                "{reference}: its registry has not answered in {} s; see that the controller's pods reach it, or set check: \
                 \"false\" in the StorageClass; it is tried again",
                LONGEST.as_secs()
            )));
        };
        let Provisioned { attributes, digest } = made.map_err(|error| refusal(&error))?;
        call.digest = digest.map(|digest| digest.to_string());
        let volume = Volume {
            // Not known: it is for each node to see what of it is for its platform, and the provisioner writes what the claim asks for.
            capacity_bytes: 0,
            volume_id: of_name(&name),
            volume_context: attributes.into_iter().collect(),
        };
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }
}

/// The status for a claim that gets no volume. external-provisioner takes `UNAVAILABLE`, `DEADLINE_EXCEEDED`, `ABORTED` and `CANCELLED`
/// for work that goes on, and asks again for as long as it runs, also when the claim is gone. Here nothing goes on.
fn refusal(error: &Error) -> Status {
    let code = match status::code(error.kind()) {
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled => Code::Internal,
        code => code,
    };
    Status::new(code, chain(error))
}

/// Checks a request to make a volume: its name, and what is wanted.
fn check(request: CreateVolumeRequest) -> Result<(String, Checked), Status> {
    if request.name.is_empty() {
        return Err(missing("name"));
    }
    bound("parameters", CONTEXT_LIMIT, &request.parameters)?;
    bound("secrets", SECRETS_LIMIT, &request.secrets)?;
    if request.volume_content_source.is_some() {
        return Err(Status::invalid_argument(
            "the claim has a dataSource, and ocivol's volumes hold what a registry has: leave it out",
        ));
    }
    if !request.mutable_parameters.is_empty() {
        return Err(Status::invalid_argument(
            "the claim names a VolumeAttributesClass, and nothing of ocivol's volumes can be changed: leave it out",
        ));
    }
    let limit = request.capacity_range.map_or(0, |range| range.limit_bytes);
    let wanted = Wanted {
        parameters: request.parameters.into_iter().collect::<BTreeMap<_, _>>(),
        secrets: request.secrets.into_iter().map(|(key, value)| (key, Secret::new(value))).collect(),
        limit: u64::try_from(limit).ok().filter(|limit| *limit > 0),
    };
    let checked = wanted.check().map_err(|error| refusal(&error))?;
    check_capabilities(&request.volume_capabilities, checked.attributes().read_only_for_writers)?;
    Ok((request.name, checked))
}

/// How a claim wants to use its volume.
fn check_capabilities(capabilities: &[VolumeCapability], for_writers: bool) -> Result<(), Status> {
    if capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    for wanted in capabilities {
        let (mode, _) = capability::of_mount(Some(wanted))?;
        if capability::writes(mode, false) && !for_writers {
            return Err(Status::invalid_argument(format!(
                "the claim's access mode {} is for volumes that can be written, ocivol's cannot: set accessModes: \
                 [ReadOnlyMany] in the claim, or {FOR_WRITERS}: \"true\" in the parameters of its StorageClass",
                mode.as_str_name()
            )));
        }
    }
    Ok(())
}

#[async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let mut call = self.calls.begin(CREATE);
        let result = self.create(request.into_inner(), &mut call).await;
        call.end(result)
    }

    /// Nothing is kept of a volume here; what nodes have of it they collect.
    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let mut call = self.calls.begin(DELETE);
        let id = request.into_inner().volume_id;
        call.volume = Some(one_line(&id));
        call.end(volume_id(&id).map(|()| DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let mut call = self.calls.begin("/csi.v1.Controller/ValidateVolumeCapabilities");
        let request = request.into_inner();
        call.volume = Some(one_line(&request.volume_id));
        call.end(validate(request))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let rpc = Rpc { r#type: rpc::Type::CreateDeleteVolume.into() };
        let capabilities = vec![ControllerServiceCapability { r#type: Some(Type::Rpc(rpc)) }];
        let call = self.calls.begin("/csi.v1.Controller/ControllerGetCapabilities");
        call.end(Ok(ControllerGetCapabilitiesResponse { capabilities }))
    }
}

fn validate(
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    volume_id(&request.volume_id)?;
    if request.volume_capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    if !is_ours(&request.volume_id) {
        let text = format!("no volume {:?} was made here", one_line(&request.volume_id));
        return Err(Status::new(status::code(Kind::NotFound), text));
    }
    let for_writers = request.volume_context.get(FOR_WRITERS).is_some_and(|value| value.trim() == "true");
    Ok(match check_capabilities(&request.volume_capabilities, for_writers) {
        Ok(()) => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
            }),
            message: String::new(),
        },
        Err(refused) if refused.code() == Code::InvalidArgument => {
            ValidateVolumeCapabilitiesResponse { confirmed: None, message: refused.message().to_owned() }
        }
        Err(refused) => return Err(refused),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::v1::volume_capability::access_mode::Mode;
    use crate::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    use crate::csi::v1::{CapacityRange, VolumeContentSource};

    fn request(access_type: AccessType, mode: Mode) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: "pvc-1".into(),
            volume_capabilities: vec![VolumeCapability {
                access_type: Some(access_type),
                access_mode: Some(AccessMode { mode: mode.into() }),
            }],
            parameters: [("reference".to_owned(), "r.example/x".to_owned())].into(),
            ..Default::default()
        }
    }

    fn readable() -> CreateVolumeRequest {
        request(AccessType::Mount(MountVolume::default()), Mode::MultiNodeReaderOnly)
    }

    fn refused(request: CreateVolumeRequest) -> String {
        let status = check(request).err().expect("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        status.message().to_owned()
    }

    #[test]
    fn what_cannot_be_made_is_said_with_the_cure() {
        assert!(check(readable()).is_ok());
        assert!(refused(CreateVolumeRequest { name: String::new(), ..readable() }).contains("name"));
        let none = CreateVolumeRequest { volume_capabilities: Vec::new(), ..readable() };
        assert!(refused(none).contains("volume_capabilities"));
        let block = request(AccessType::Block(BlockVolume {}), Mode::MultiNodeReaderOnly);
        assert!(refused(block).contains("volumeMode: Filesystem"));
        let copy = CreateVolumeRequest { volume_content_source: Some(VolumeContentSource {}), ..readable() };
        assert!(refused(copy).contains("dataSource"));
        let mutable = [("a".to_owned(), "b".to_owned())].into();
        let mutable = CreateVolumeRequest { mutable_parameters: mutable, ..readable() };
        assert!(refused(mutable).contains("VolumeAttributesClass"));
        for mode in [Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            let mut writer = request(AccessType::Mount(MountVolume::default()), mode);
            assert!(refused(writer.clone()).contains("readOnlyForWriters"));
            writer.parameters.insert(FOR_WRITERS.into(), "true".into());
            assert!(check(writer).is_ok(), "{mode:?}");
        }
    }

    #[test]
    fn limits_are_those_that_are_set() {
        for (bytes, expected) in [(0, None), (-1, None), (5, Some(5))] {
            let range = Some(CapacityRange { required_bytes: 1, limit_bytes: bytes });
            let (_, wanted) =
                check(CreateVolumeRequest { capacity_range: range, ..readable() }).expect("valid");
            assert_eq!(wanted.limit(), expected);
        }
    }

    #[test]
    fn t41_requests_print_no_secret() {
        let mut request = readable();
        request.secrets.insert(".dockerconfigjson".into(), "hunter2".into());
        assert!(!format!("{request:?}").contains("hunter2"));
    }

    #[test]
    fn only_volumes_of_ours_are_known() {
        let request = |id: &str| ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: readable().volume_capabilities,
            ..Default::default()
        };
        assert_eq!(validate(request("")).expect_err("no ID").code(), Code::InvalidArgument);
        assert_eq!(validate(request("fake-vol-id")).expect_err("unknown").code(), Code::NotFound);
        assert!(validate(request(&of_name("pvc-1"))).expect("known").confirmed.is_some());
        let mut writer = request(&of_name("pvc-1"));
        writer.volume_capabilities[0].access_mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
        let answer = validate(writer).expect("known");
        assert!(answer.confirmed.is_none() && answer.message.contains("ReadOnlyMany"), "{answer:?}");
    }
}
