//! A real one-node Kubernetes in namespaces of its own, with Weir installed by its chart.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mount::program;
use crate::{minio, nvml, tools};

/// Address of the node.
const NODE_IP: &str = "10.77.0.2";
/// Port of the S3 server, as pods see it.
const S3_PORT: u16 = 9000;
/// Longest wait for something in the cluster; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(240);
/// The tag of images made here.
const TAG: &str = "test";

/// A running cluster.
pub struct Cluster {
    scripts: PathBuf,
    state: PathBuf,
    /// Connections of pods to S3; `None` while S3 cannot be reached.
    s3: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

/// The cluster of this process, started at the first call. One test at a time has it. It ends
/// with the process.
pub fn cluster() -> MutexGuard<'static, Cluster> {
    static CLUSTER: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| Mutex::new(Cluster::start()));
    cluster.lock().unwrap_or_else(|poisoned| {
        cluster.clear_poison();
        let cluster = PoisonError::into_inner(poisoned);
        cluster.clear();
        cluster
    })
}

/// URL of the S3 server of the tests, as pods reach it.
fn s3_url() -> String {
    format!("http://{NODE_IP}:{S3_PORT}")
}

/// The lock of this machine's cluster, once no other process has it.
fn alone(state: &Path) -> &'static File {
    static LOCK: OnceLock<File> = OnceLock::new();
    LOCK.get_or_init(|| {
        let lock = File::create(state.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        lock
    })
}

fn checked(output: Output, what: &str) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

impl Cluster {
    fn start() -> Self {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube");
        let state = PathBuf::from("/var/tmp/weir-kube-state");
        let alone = alone(&state);
        let this = Self { scripts, state, s3: Arc::new(Mutex::new(Some(Vec::new()))) };
        // What a run that was killed left.
        checked(this.script("down.sh").output().unwrap(), "down.sh");
        let up = this
            .script("up.sh")
            .env("KUBE_PROXY", "1")
            .env("FEATURE_GATES", "CSIVolumeHealth=true")
            .env("KUBELET_CONF_EXTRA", "volumeStatsAggPeriod: 5s")
            .output()
            .unwrap();
        checked(up, "up.sh");
        this.end_with_process(alone);
        this.serve_s3();
        this.import_images();
        fs::create_dir_all(this.nvml()).unwrap();
        fs::copy(nvml::library(), this.nvml().join("libnvidia-ml.so.1")).unwrap();
        this.set_gpus("h200");
        this
    }

    /// Folder on the node with the driver's library, as a container runtime brings it.
    fn nvml(&self) -> PathBuf {
        self.state.join("nvml")
    }

    /// Gives the node other GPUs.
    pub fn set_gpus(&self, machine: &str) {
        let new = self.nvml().join("new");
        fs::copy(nvml::machine(machine), &new).unwrap();
        fs::rename(new, self.nvml().join("machine.json")).unwrap();
    }

    /// The chart's folder.
    pub fn chart() -> String {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weir");
        chart.to_str().unwrap().to_owned()
    }

    /// Removes what a test that failed left.
    fn clear(&self) {
        self.cut_s3(false);
        let kinds =
            "statefulsets,deployments,pods,persistentvolumeclaims,persistentvolumes,secrets";
        let _ = self.try_kubectl(&["delete", kinds, "--all", "--timeout=120s"]);
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.scripts.join(name));
        command
            .env("KUBE_STATE", &self.state)
            .env("KUBE_LOG", self.state.with_extension("log"))
            .stdin(Stdio::null());
        command
    }

    /// Also after a kill. The next process waits until that is done.
    fn end_with_process(&self, alone: &File) {
        let script = format!(
            "while kill -0 {} 2>/dev/null; do sleep 1; done; exec '{}'",
            std::process::id(),
            self.scripts.join("down.sh").display()
        );
        let mut command = Command::new("setsid");
        command.args(["-f", "sh", "-c", &script]).env("KUBE_STATE", &self.state);
        // Whoever inherits the lock holds it.
        command.stdin(alone.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap();
    }

    /// Process id of the first process in the cluster's namespaces.
    pub fn init(&self) -> u32 {
        let text = fs::read_to_string(self.state.join("run/init.pid")).unwrap();
        text.trim().parse().unwrap()
    }

    /// Listens on the node's address: pods reach what a test serves there.
    pub fn listen(&self, port: u16) -> TcpListener {
        let network = File::open(format!("/proc/{}/ns/net", self.init())).unwrap();
        let entered = std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            use std::os::fd::AsFd;
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).unwrap();
            TcpListener::bind((NODE_IP, port)).unwrap()
        });
        entered.join().unwrap()
    }

    /// Passes connections to the node's address on to MinIO on this machine.
    fn serve_s3(&self) {
        let listener = self.listen(S3_PORT);
        let server = minio::shared().url.trim_start_matches("http://").to_owned();
        let open = self.s3.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut open = open.lock().unwrap();
                let Some(open) = open.as_mut() else { continue };
                let Ok(server) = TcpStream::connect(&server) else { continue };
                open.push(client.try_clone().unwrap());
                relay(&client, &server);
                relay(&server, &client);
            }
        });
    }

    /// Ends all connections to S3 and refuses new ones, or lets them through again.
    pub fn cut_s3(&self, cut: bool) {
        let mut open = self.s3.lock().unwrap();
        for connection in open.take().into_iter().flatten() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        *open = (!cut).then(Vec::new);
    }

    fn import_images(&self) {
        self.import_program("weir", &program());
        for name in ["registrar", "csi-provisioner"] {
            let from = format!("{}:/bin/{name}", tools::kube(name).display());
            self.image(name, &format!("/bin/{name}"), &[from], &[]);
        }
    }

    /// Makes an image of a program built here, and says what it is called.
    pub fn import_program(&self, name: &str, program: &Path) -> String {
        let stripped = self.state.join(name);
        let strip = Command::new("strip").arg("-o").arg(&stripped).arg(program).output();
        checked(strip.unwrap(), "strip");
        let libraries = checked(Command::new("ldd").arg(&stripped).output().unwrap(), "ldd");
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        let libraries = libraries.map(|path| format!("{path}:{path}")).collect::<Vec<_>>();
        let entry = format!("/bin/{name}");
        self.image(name, &entry, &[format!("{}:{entry}", stripped.display())], &libraries);
        format!("docker.io/library/{name}:{TAG}")
    }

    fn image(&self, name: &str, entry: &str, files: &[String], more: &[String]) {
        let tar = self.state.join(format!("{name}.tar"));
        let made = self
            .script("mkimage.sh")
            .arg(format!("docker.io/library/{name}:{TAG}"))
            .arg(&tar)
            .args([entry, "--"])
            .args(files.iter().chain(more))
            .output();
        checked(made.unwrap(), "mkimage.sh");
        let import = ["ctr", "-n", "k8s.io", "images", "import"];
        let imported = self.script("enter").args(import).arg(&tar).output();
        checked(imported.unwrap(), "ctr images import");
    }

    /// Runs kubectl; its output.
    ///
    /// # Errors
    /// Its error output.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.script("kubectl").args(args).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Runs kubectl; its output.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
    }

    /// An object, or a list of them.
    pub fn get(&self, args: &[&str]) -> Value {
        let args: Vec<_> = ["get", "-o", "json"].iter().chain(args).copied().collect();
        serde_json::from_str(&self.kubectl(&args)).unwrap()
    }

    fn with_input(&self, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.script("kubectl");
        command.args(args).args(["-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Applies a manifest. What runs comes after the claims are bound: a pod that is scheduled
    /// just before waits minutes for another try.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        let runs = |text: &&str| {
            ["Pod", "Deployment", "StatefulSet"].iter().any(|k| {
                text.contains(&format!("kind: {k}\n"))
                    || text.contains(&format!("\"kind\":\"{k}\""))
            })
        };
        let (running, first): (Vec<_>, Vec<_>) = manifest.split("\n---\n").partition(runs);
        for documents in [first, running] {
            if documents.is_empty() {
                continue;
            }
            let text = documents.join("\n---\n");
            self.with_input(&["apply"], &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            self.eventually("claims of static volumes are bound", |cluster| {
                let claims = cluster.get(&["persistentvolumeclaims"]);
                let claims = claims["items"].as_array().unwrap().iter();
                claims
                    .filter(|c| c["spec"]["volumeName"].is_string())
                    .all(|c| c["status"]["phase"] == "Bound")
            });
        }
    }

    /// Applies an object as whoever has this token.
    ///
    /// # Errors
    /// What the API server says.
    pub fn apply_as(&self, token: &str, manifest: &str) -> Result<String, String> {
        let server = format!("--server={}", self.server());
        let token = format!("--token={token}");
        let args = ["--kubeconfig=/dev/null", &server, &token];
        // Its authority is in the kubeconfig that is not used here.
        let more =
            ["--insecure-skip-tls-verify=true", "apply", "--server-side", "--force-conflicts"];
        self.with_input(&[&args[..], &more[..]].concat(), manifest)
    }

    /// Patches an object, which is named by its path, as whoever has this token. kubectl would read it
    /// first.
    ///
    /// # Errors
    /// What the API server says.
    pub fn patch_as(&self, token: &str, path: &str, patch: &Value) -> Result<(), String> {
        let patch = patch.to_string();
        let kind = "Content-Type: application/merge-patch+json";
        self.ask_as(token, &["-X", "PATCH", "-H", kind, "-d", &patch], path)
    }

    /// Deletes an object, which is named by its path, as whoever has this token.
    ///
    /// # Errors
    /// What the API server says.
    pub fn delete_as(&self, token: &str, path: &str) -> Result<(), String> {
        self.ask_as(token, &["-X", "DELETE"], path)
    }

    fn ask_as(&self, token: &str, request: &[&str], path: &str) -> Result<(), String> {
        let (url, token) =
            (format!("{}{path}", self.server()), format!("Authorization: Bearer {token}"));
        let curl = ["curl", "-sk", "--fail-with-body", "-H", &token];
        let output = self.on_node(&[&curl[..], request, &[&url]].concat());
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
        }
    }

    /// Where the API server is.
    fn server(&self) -> String {
        self.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])
    }

    /// Name of the node.
    pub fn node_name(&self) -> String {
        self.kubectl(&[
            "get",
            "nodes",
            "-l",
            "kubernetes.io/os",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])
    }

    /// Deletes what a manifest names, and waits until it is gone.
    #[track_caller]
    pub fn delete(&self, manifest: &str) {
        let args = ["delete", "--ignore-not-found", "--wait=true", "--timeout=120s"];
        self.with_input(&args, manifest).unwrap_or_else(|e| panic!("{e}\n{manifest}"));
    }

    /// Asks the API server whether it would take a manifest.
    ///
    /// # Errors
    /// What it says.
    pub fn dry_run(&self, manifest: &str) -> Result<String, String> {
        self.with_input(&["apply", "--dry-run=server"], manifest)
    }

    /// Runs helm.
    #[track_caller]
    pub fn helm(&self, args: &[&str]) -> String {
        checked(self.try_helm(args), &format!("helm {args:?}"))
    }

    /// Runs helm, which may fail.
    pub fn try_helm(&self, args: &[&str]) -> Output {
        Command::new("nsenter")
            .args(["-t", &self.init().to_string(), "-n", "--"])
            .arg(tools::path("helm"))
            .arg("--kubeconfig")
            .arg(self.state.join("admin.kubeconfig"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a program as if on the node.
    pub fn on_node(&self, args: &[&str]) -> Output {
        self.script("enter").args(args).output().unwrap()
    }

    /// Waits until `check` says true.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut check: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !check(self) {
            if Instant::now() >= until {
                let pods = self.kubectl(&["get", "pods", "-A", "-o", "wide"]);
                let events = self.kubectl(&["get", "events", "-A"]);
                panic!("never happened: {what}\n{pods}\n{events}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What Weir's pods log.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for role in ["mounter", "standby", "node", "controller", "reconciler"] {
            let selector = format!("app.kubernetes.io/component={role}");
            let args =
                ["logs", "-n", "weir", "-l", &selector, "--all-containers", "--tail=1000000"];
            all.push_str(&self.try_kubectl(&args).unwrap_or_else(|e| e));
        }
        all
    }

    /// Runs a command in a pod; its output.
    ///
    /// # Errors
    /// Its error output.
    pub fn exec(&self, pod: &str, command: &str) -> Result<String, String> {
        self.try_kubectl(&["exec", pod, "--", "sh", "-c", command])
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub fn until_ready(&self, pod: &str) {
        self.eventually(&format!("pod {pod} is ready"), |cluster| {
            let args = [
                "get",
                "pod",
                pod,
                "-o",
                "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
            ];
            cluster.try_kubectl(&args).is_ok_and(|status| status == "True")
        });
    }

    /// Installs the chart, and waits until the driver is registered.
    pub fn install(&self, values: &Value) {
        let file = self.state.join("values.json");
        fs::write(&file, values.to_string()).unwrap();
        let (chart, file) = (Self::chart(), file.to_str().unwrap());
        self.helm(&[
            "upgrade",
            "--install",
            "weir",
            &chart,
            "-n",
            "weir",
            "--create-namespace",
            "-f",
            file,
        ]);
        self.eventually("the driver is registered", |cluster| {
            let drivers = ["get", "csinodes", "-o", "jsonpath={.items[*].spec.drivers[*].name}"];
            cluster.kubectl(&drivers).contains("s3.csi.weir.dev")
        });
        // Not the mounter, which is never rolled.
        for set in [
            "daemonset/weir-node",
            "daemonset/weir-standby",
            "deployment/weir-controller",
            "deployment/weir-reconciler",
        ] {
            self.kubectl(&["rollout", "status", "-n", "weir", set, "--timeout=120s"]);
        }
    }

    /// Values of the chart for local images and the tests' S3 server.
    pub fn values(&self) -> Value {
        serde_json::json!({
            "image": {"repository": "docker.io/library/weir", "tag": TAG, "pullPolicy": "Never"},
            "sidecars": {
                "registrar": {"image": format!("docker.io/library/registrar:{TAG}")},
                "provisioner": {"image": format!("docker.io/library/csi-provisioner:{TAG}")},
            },
            "s3": {"endpointUrl": s3_url(), "region": "us-east-1"},
            "credentials": {"secretName": "weir-credentials"},
            "mounter": {"runDir": self.state.join("weir-run"), "orphanTimeout": 20},
            "node": {
                "cache": {"hostPath": self.state.join("weir-cache"), "minFree": "0"},
                "topology": {"topology.weir.dev/zone": "edge-1"},
                "topologyInterval": 2,
                "extraEnv": [
                    {"name": "WEIR_NVML_LIBRARY", "value": "/nvml/libnvidia-ml.so.1"},
                    {"name": "WEIR_FAKE_NVML", "value": "/nvml/machine.json"},
                ],
                "extraVolumes": [{"name": "nvml", "hostPath": {"path": self.nvml()}}],
                "extraVolumeMounts": [{"name": "nvml", "mountPath": "/nvml", "readOnly": true}],
            },
            "logLevel": "trace",
            "logFormat": "text",
        })
    }
}

fn relay(from: &TcpStream, to: &TcpStream) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
