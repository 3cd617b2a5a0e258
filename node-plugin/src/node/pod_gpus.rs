//! Which GPUs a pod has, from kubelet's PodResources API, and which disks of the cache are next
//! to them. Never waited for: until it is known, and where nothing can be told, the node's GPUs
//! count.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;
use weir_fuse::cache::Preference;

use crate::kubernetes::events::Subject;
use crate::topology::model::Topology;
use crate::topology::pci::{Locality, Proximity};
use crate::topology::sysfs::Sysfs;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod proto {
    tonic::include_proto!("v1");
}

/// Longest wait for kubelet.
const DEADLINE: Duration = Duration::from_secs(5);
/// Names of NVIDIA's device plugin begin so: `nvidia.com/gpu`, `nvidia.com/mig-1g.5gb`.
const NVIDIA: &str = "nvidia.com/";
/// Rank of disks of which nothing is known; what is known to be far comes after it.
const UNKNOWN: u8 = 1;

/// Finds out about pods.
pub(super) struct PodGpus {
    socket: PathBuf,
    /// Where each disk of the cache is.
    disks: Vec<Locality>,
}

impl PodGpus {
    /// Asks at `socket`; `dirs` are the cache's directories.
    pub(super) fn new(socket: &Path, dirs: &[PathBuf]) -> Arc<Self> {
        let sysfs = Sysfs::default();
        let disks = dirs.iter().map(|dir| sysfs.disk_of(dir)).collect();
        Arc::new(Self { socket: socket.to_owned(), disks })
    }

    /// Which disks are near to a pod's GPUs; `None` with one disk, where there is no choice.
    pub(super) async fn preference(
        &self,
        subject: &Subject,
        topology: &Topology,
    ) -> Option<Preference> {
        if self.disks.len() < 2 {
            return None;
        }
        let ids = match tokio::time::timeout(DEADLINE, self.ids_of(subject)).await {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => {
                tracing::debug!(error, pod = subject.pod, "GPUs of a pod are not known");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        let mut places = topology.localities_of(&ids);
        if places.is_empty() {
            places = topology.gpu.gpus.iter().map(|gpu| gpu.locality.clone()).collect();
        }
        Some(rank(&places, &self.disks))
    }

    /// Ids of the GPUs that kubelet gave to a pod: UUIDs, or indexes for those of claims.
    async fn ids_of(&self, subject: &Subject) -> Result<Vec<String>, String> {
        let path = self.socket.clone();
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The URI is not used: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://kubelet");
        let channel = endpoint.connect_with_connector(connect).await.map_err(|e| e.to_string())?;
        let mut kubelet =
            proto::pod_resources_lister_client::PodResourcesListerClient::new(channel);
        let answer = kubelet.list(proto::ListPodResourcesRequest {}).await;
        let pods = answer.map_err(|status| status.message().to_owned())?.into_inner().pod_resources;
        let is_it = |pod: &proto::PodResources| {
            pod.name == subject.pod && pod.namespace == subject.namespace
        };
        let containers = pods.into_iter().filter(is_it).flat_map(|pod| pod.containers);
        let mut ids = Vec::new();
        for container in containers {
            let devices = container.devices.into_iter();
            let gpus = devices.filter(|devices| devices.resource_name.starts_with(NVIDIA));
            ids.extend(gpus.flat_map(|devices| devices.device_ids));
            for claim in container.dynamic_resources {
                ids.extend(claim.claim_resources.iter().filter_map(index_of_claimed));
            }
        }
        Ok(ids)
    }
}

/// Index of a GPU that a claim was given (DRA; kubelet repeats what the ResourceClaim's status
/// says, since 1.34). NVIDIA's driver names devices `gpu-3` and, for a MIG instance,
/// `gpu-3-mig-...`.
fn index_of_claimed(claimed: &proto::ClaimResource) -> Option<String> {
    (claimed.driver_name == "gpu.nvidia.com").then_some(())?;
    let rest = claimed.device_name.strip_prefix("gpu-")?;
    Some(rest.split('-').next()?.to_owned())
}

/// How near each disk is to the nearest of these places.
fn rank(places: &[Locality], disks: &[Locality]) -> Preference {
    let near = |disk: &Locality| {
        let best = places.iter().map(|place| place.proximity(disk)).max();
        match best.unwrap_or(Proximity::Unknown) {
            Proximity::OtherNumaNode => 0,
            Proximity::Unknown => UNKNOWN,
            Proximity::SameNumaNode => 2,
            Proximity::SameRoot => 3,
            Proximity::SameSwitch => 4,
        }
    };
    disks.iter().map(near).collect()
}

#[cfg(test)]
mod tests {
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::topology::model::{Gpu, GpuReport};

    struct Kubelet;

    #[tonic::async_trait]
    impl proto::pod_resources_lister_server::PodResourcesLister for Kubelet {
        async fn list(
            &self,
            _: Request<proto::ListPodResourcesRequest>,
        ) -> Result<Response<proto::ListPodResourcesResponse>, Status> {
            let pod = |name: &str, resource: &str, id: &str| proto::PodResources {
                name: name.into(),
                namespace: "default".into(),
                containers: vec![proto::ContainerResources {
                    devices: vec![proto::ContainerDevices {
                        resource_name: resource.into(),
                        device_ids: vec![id.into()],
                    }],
                    ..Default::default()
                }],
            };
            Ok(Response::new(proto::ListPodResourcesResponse {
                pod_resources: vec![
                    pod("first", "nvidia.com/gpu", "GPU-0"),
                    pod("second", "nvidia.com/gpu", "GPU-1::2"),
                    pod("third", "example.com/nic", "GPU-1"),
                ],
            }))
        }
    }

    #[test]
    fn a_claim_names_its_gpus() {
        let index = |driver: &str, device: &str| {
            let (driver_name, device_name) = (driver.to_owned(), device.to_owned());
            index_of_claimed(&proto::ClaimResource {
                driver_name,
                device_name,
                ..Default::default()
            })
        };
        assert_eq!(index("gpu.nvidia.com", "gpu-3").as_deref(), Some("3"));
        assert_eq!(index("gpu.nvidia.com", "gpu-5-mig-1g5gb-0").as_deref(), Some("5"));
        assert_eq!(index("nics.example.com", "gpu-7"), None);
    }

    fn at(path: &str, numa: u32) -> Locality {
        Locality::of_path(path, Some(numa))
    }

    #[tokio::test]
    async fn the_disk_next_to_a_pods_gpu_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kubelet.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let service = proto::pod_resources_lister_server::PodResourcesListerServer::new(Kubelet);
        let incoming = futures_util::stream::unfold(listener, |listener| async {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            Some((stream, listener))
        });
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
        let gpu = |index: u32, path: &str, numa| Gpu {
            index,
            uuid: Some(format!("GPU-{index}")),
            locality: at(path, numa),
            ..Gpu::default()
        };
        let gpus = vec![
            gpu(0, "pci0000:16/0000:16:01.0/0000:17:00.0", 0),
            gpu(1, "pci0000:97/0000:97:01.0/0000:98:00.0", 1),
        ];
        let topology =
            Topology { gpu: GpuReport { gpus, ..Default::default() }, ..Default::default() };
        let disks = vec![
            at("pci0000:30/0000:30:01.0/0000:31:00.0", 0),
            at("pci0000:97/0000:97:02.0/0000:99:00.0", 1),
        ];
        let pods = PodGpus { socket, disks };
        let preference = async |pod: &str| {
            let subject =
                Subject { namespace: "default".into(), pod: pod.into(), ..Subject::default() };
            pods.preference(&subject, &topology).await.unwrap().to_vec()
        };
        assert_eq!(preference("first").await, [2, 0]);
        assert_eq!(preference("second").await, [0, 3]);
        // No GPU of NVIDIA's: as near as the node's are.
        assert_eq!(preference("third").await, [2, 3]);
        let alone = PodGpus { disks: vec![Locality::default()], ..pods };
        assert_eq!(alone.preference(&Subject::default(), &topology).await, None);
    }
}
