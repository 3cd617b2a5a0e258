//! What a node says to its mounter, and what is kept for it: the two are of different releases.

use std::time::Duration;

use weir_fuzz::{inputs, near};

use super::backing::Backing;
use super::custody::Custody;
use super::mounts::Mounts;
use super::protocol::{Reply, Request};
use super::roots::Roots;
use super::{serve, wire};

const CORPUS: &str = include_str!("../../tests/corpus/mounter-requests");

#[test]
fn whatever_is_asked_is_answered_in_a_message_that_can_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, pods) = (dir.path().join("sessions"), dir.path().join("pods"));
    let roots = Roots::open(&sessions, std::slice::from_ref(&pods)).unwrap();
    std::fs::create_dir_all(pods.join("8b0e/volumes/kubernetes.io~csi/data")).unwrap();
    let (custody, backing) = (Custody::new(Duration::MAX, 4), Backing::new(&[]));
    let (locks, peers) = Default::default();
    let mounts = Mounts { roots, custody, backing, locks, peers };
    let mut real = inputs(CORPUS.replace("PODS", pods.to_str().unwrap()).as_bytes());
    // As long as a request can be, and longer where its text is repeated.
    real.push(format!(r#"{{"Unmount":{{"session":"{}"}}}}"#, r#"\""#.repeat(32_000)).into_bytes());
    near(&real, |text| {
        let Ok(request) = serde_json::from_slice::<Request>(text) else { return };
        let again = serde_json::to_vec(&request).unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&again).unwrap(), request);
        if matches!(request, Request::Mount(_)) {
            return;
        }
        let (reply, _) = mounts.answer(request, Vec::new()).unwrap_or_else(|e| serve::failed(&e));
        let reply = serde_json::to_vec(&reply).unwrap();
        assert!(reply.len() <= wire::MESSAGE_MAX, "{} bytes", reply.len());
        serde_json::from_slice::<Reply>(&reply).unwrap();
    });
    assert!(std::fs::read_dir(dir.path()).unwrap().count() == 2);
}

/// As kubelet writes it (pkg/volume/csi, `saveVolumeData`).
const VOL_DATA: &str = r#"{"attachmentID":"csi-0","driverName":"s3.csi.weir.dev","nodeName":"n",
"specVolID":"data","volumeHandle":"assets","volumeLifecycleMode":"Persistent"}"#;

#[test]
fn whatever_is_beside_a_target_counts_where_it_names_our_driver_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, pods) = (dir.path().join("sessions"), dir.path().join("pods"));
    let roots = Roots::open(&sessions, std::slice::from_ref(&pods)).unwrap();
    let folder = pods.join("8b0e/volumes/kubernetes.io~csi/data");
    std::fs::create_dir_all(&folder).unwrap();
    let target = roots.target(&folder.join("mount")).unwrap();
    let counts = |text: &[u8]| {
        std::fs::write(folder.join("vol_data.json"), text).unwrap();
        target.check_provenance().is_ok()
    };
    let theirs = VOL_DATA.replace("s3.csi.weir.dev", "other.csi.example");
    assert!(counts(VOL_DATA.as_bytes()) && !counts(theirs.as_bytes()));
    near(&[VOL_DATA.to_owned(), theirs], |text| {
        // What is of no interest is read less strictly than by who keeps it.
        let data = serde_json::from_slice::<serde_json::Value>(text);
        if counts(text)
            && let Ok(data) = data
        {
            assert_eq!(data["driverName"], "s3.csi.weir.dev");
        }
    });
}
