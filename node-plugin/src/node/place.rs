//! Where this node is: its topology segments, and what its Node object says of them.
//!
//! kubelet makes labels of the segments when the driver registers, and takes the driver off the
//! node when a segment later differs from its label; it does not come back by itself. So a changed
//! value is told to the controller (in the WeirNode), which changes the label; until then the old
//! value is reported, and then the registrar is cycled (its probe fails while what kubelet was
//! told is not what is reported).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use weir_csi::Error;

use crate::kubernetes::events::{Announcer, Note, Severity, Subject};
use crate::kubernetes::nodes::OwnObjects;
use crate::topology;
use crate::topology::labels::{self, GPU_PRODUCT, REGION, ZONE};
use crate::topology::model::{GpuReport, Topology};
use crate::topology::nvml::Gpus;
use crate::topology::sysfs::Sysfs;

/// Labels of the cluster that ours follow (Kubernetes, "Well-Known Labels").
const FOLLOWED: [(&str, &str); 2] =
    [(ZONE, "topology.kubernetes.io/zone"), (REGION, "topology.kubernetes.io/region")];
/// Label of GPU Feature Discovery.
const NVIDIA_PRODUCT: &str = "nvidia.com/gpu.product";

type Segments = BTreeMap<String, String>;

/// Where this node is.
pub(super) struct Place {
    gpus: Arc<dyn Gpus>,
    sysfs: Sysfs,
    configured: Segments,
    objects: Option<Arc<dyn OwnObjects>>,
    announcer: Announcer,
    /// The last look; `None` before the first.
    seen: watch::Sender<Option<Arc<Topology>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What kubelet was told last.
    registered: Option<Segments>,
    /// What it would be told now.
    reported: Option<Segments>,
    /// What the GPU driver said when it last said anything of GPUs.
    known: GpuReport,
}

impl Place {
    /// `configured` segments go before what is found; `objects` is `None` outside a cluster.
    pub(super) fn new(
        gpus: Arc<dyn Gpus>,
        sysfs: Sysfs,
        configured: Segments,
        objects: Option<Arc<dyn OwnObjects>>,
        announcer: Announcer,
    ) -> Arc<Self> {
        let (seen, _) = watch::channel(None);
        Arc::new(Self {
            gpus,
            sysfs,
            configured,
            objects,
            announcer,
            seen,
            state: Mutex::default(),
        })
    }

    /// Looks at the machine. Blocks, for a bounded time.
    pub(super) fn look(&self) {
        let topology = Arc::new(topology::read(&*self.gpus, &self.sysfs));
        let before = self.seen.borrow().clone();
        let said = |report: &GpuReport| (report.problem.clone(), report.gpus.len());
        if before.as_ref().map(|before| said(&before.gpu)) != Some(said(&topology.gpu)) {
            let problem = topology.gpu.problem.as_ref().map(|problem| problem.text());
            let driver = topology.gpu.driver_version.as_deref().unwrap_or("none");
            let gpus = topology.gpu.gpus.len();
            tracing::info!(gpus, driver, problem = problem.unwrap_or("none"), "GPUs");
        }
        if topology.gpu.problem.is_none() || !topology.gpu.gpus.is_empty() {
            self.state().known = topology.gpu.clone();
        }
        self.seen.send_replace(Some(topology));
    }

    /// What the last look showed.
    pub(super) fn topology(&self) -> Option<Arc<Topology>> {
        self.seen.borrow().clone()
    }

    /// What the segments should be, given the Node's labels.
    pub(super) fn wanted(&self, labels: &BTreeMap<String, String>) -> Segments {
        // A driver that is being replaced shows no GPUs for a while; the node still has them.
        let mut wanted = labels::segments(&self.state().known);
        for (own, followed) in FOLLOWED {
            if let Some(value) = labels.get(followed) {
                wanted.insert(own.to_owned(), value.clone());
            }
        }
        wanted.extend(self.configured.clone());
        // A class that names GPUs only is told from one that names nothing by this key.
        wanted.entry(ZONE.to_owned()).or_insert_with(|| "default".to_owned());
        wanted
    }

    /// Reads the Node's labels and says which segments the node should have.
    pub(super) async fn refresh(&self) -> Result<Segments, String> {
        let labels = match &self.objects {
            Some(objects) => objects.labels().await?,
            None => BTreeMap::new(),
        };
        let wanted = self.wanted(&labels);
        self.compare(&labels);
        let held_back = |(key, value): (&String, &String)| {
            (key.clone(), labels.get(key).unwrap_or(value).clone())
        };
        let reported: Segments = wanted.iter().map(held_back).collect();
        self.state().reported = Some(reported);
        Ok(wanted)
    }

    /// The segments for kubelet.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the Node's labels are not known: a segment that differs from
    /// its label would cost the driver its registration.
    pub(super) async fn segments(&self) -> Result<Segments, Error> {
        let mut seen = self.seen.subscribe();
        // The first look has a deadline.
        let _ = seen.wait_for(Option::is_some).await;
        if let Err(error) = self.refresh().await {
            return Err(Error::Unavailable(format!("labels of this node: {error}")));
        }
        let mut state = self.state();
        let reported = state.reported.clone().unwrap_or_default();
        state.registered = Some(reported.clone());
        Ok(reported)
    }

    /// Whether kubelet was told what it would be told now, if it was told anything.
    pub(super) fn is_registered_as_reported(&self) -> bool {
        let state = self.state();
        state.registered.is_none() || state.registered == state.reported
    }

    /// What kubelet was told last.
    pub(super) fn registered(&self) -> Option<Segments> {
        self.state().registered.clone()
    }

    /// Notes what kubelet was told by an earlier run.
    pub(super) fn was_registered(&self, segments: Option<Segments>) {
        self.state().registered = segments;
    }

    /// Tells of labels of GPU Feature Discovery that say otherwise. They are never written.
    fn compare(&self, labels: &BTreeMap<String, String>) {
        let (Some(theirs), Some(topology)) = (labels.get(NVIDIA_PRODUCT), self.topology()) else {
            return;
        };
        let ours = labels::segments(&topology.gpu).remove(GPU_PRODUCT).unwrap_or_default();
        let plain = theirs.split("-MIG-").next().unwrap_or(theirs);
        let plain = plain.trim_end_matches("-SHARED");
        if plain == ours {
            return;
        }
        let advice = match &topology.gpu.problem {
            Some(problem) => format!(
                "{}; the plugin's pod may lack the driver's library (gpu.runtimeClassName in the chart)",
                problem.text()
            ),
            None => "one of them is out of date".to_owned(),
        };
        self.announcer.say(Note {
            severity: Severity::Warning,
            reason: "GpuLabelMismatch",
            text: format!("the label {NVIDIA_PRODUCT} says {theirs}, Weir sees {ours}: {advice}"),
            about: Subject::node(),
            tell_pod: false,
            once: false,
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::nodes::twin::MemoryObjects;
    use crate::topology::model::{Gpu, GpuProblem};

    fn report(product: &str) -> GpuReport {
        let gpu = Gpu { product: Some(product.into()), ..Gpu::default() };
        GpuReport { gpus: vec![gpu], ..GpuReport::default() }
    }

    /// A place whose GPU can be changed, and the objects of its node.
    fn place(objects: &Arc<MemoryObjects>) -> (Arc<Place>, Arc<Mutex<GpuReport>>) {
        struct Changing(Arc<Mutex<GpuReport>>);
        impl Gpus for Changing {
            fn read(&self) -> GpuReport {
                self.0.lock().unwrap().clone()
            }
        }
        let gpu = Arc::new(Mutex::new(report("NVIDIA L40S")));
        let gpus = Arc::new(Changing(gpu.clone()));
        let nowhere = Sysfs::at("/nowhere");
        let configured = BTreeMap::new();
        let objects: Arc<dyn OwnObjects> = objects.clone();
        (Place::new(gpus, nowhere, configured, Some(objects), Announcer::silent()), gpu)
    }

    #[tokio::test]
    async fn a_changed_value_is_reported_once_its_label_has_changed() {
        let objects = Arc::new(MemoryObjects::default());
        objects.set(Some(&[("topology.kubernetes.io/zone", "edge-7")]));
        let (place, gpu) = place(&objects);
        place.look();
        let first = place.segments().await.unwrap();
        assert_eq!((first[GPU_PRODUCT].as_str(), first[ZONE].as_str()), ("NVIDIA-L40S", "edge-7"));
        // kubelet made labels of them; then the GPU is another.
        objects.set(Some(&[(GPU_PRODUCT, "NVIDIA-L40S"), (ZONE, "edge-7")]));
        *gpu.lock().unwrap() = report("NVIDIA H200");
        place.look();
        assert_eq!(place.refresh().await.unwrap()[GPU_PRODUCT], "NVIDIA-H200");
        assert!(place.is_registered_as_reported(), "the label cannot be changed yet");
        assert_eq!(place.segments().await.unwrap()[GPU_PRODUCT], "NVIDIA-L40S");
        // A driver that is gone for a while takes no GPU along.
        let problem = Some(GpuProblem::NoDriver("being replaced".into()));
        *gpu.lock().unwrap() = GpuReport { problem, ..GpuReport::default() };
        place.look();
        assert_eq!(place.refresh().await.unwrap()[GPU_PRODUCT], "NVIDIA-H200");
        // The controller changes the label: now kubelet is to be told.
        objects.set(Some(&[(GPU_PRODUCT, "NVIDIA-H200"), (ZONE, "edge-7")]));
        place.refresh().await.unwrap();
        assert!(!place.is_registered_as_reported());
        assert_eq!(place.segments().await.unwrap()[GPU_PRODUCT], "NVIDIA-H200");
        assert!(place.is_registered_as_reported());
    }

    #[tokio::test]
    async fn without_the_labels_nothing_is_reported() {
        let objects = Arc::new(MemoryObjects::default());
        objects.set(None);
        let (place, _) = place(&objects);
        place.look();
        assert!(matches!(place.segments().await, Err(Error::Unavailable(_))));
    }
}
