//! What classes say, and the handles of volumes, which come back as whatever somebody wrote.

use std::collections::BTreeMap;

use tonic::Status;
use weir_csi::request::{Context, Create, VolumeId, VolumeName};
use weir_fuzz::{inputs, near_texts};

use super::handle::Handle;
use super::parameters::Parameters;

const HANDLES: &[u8] = include_bytes!("../../tests/corpus/handles");
const CLASSES: &[u8] = include_bytes!("../../tests/corpus/classes");

#[test]
fn a_handle_of_any_text_is_of_a_place_below_its_bucket_or_not_ours() {
    near_texts(&inputs(HANDLES), |text| {
        let Some(handle) = Handle::parse(text) else { return };
        assert!(!handle.prefix.is_root() && !handle.bucket.is_empty());
        assert_eq!(Handle::parse(&handle.to_string()).as_ref(), Some(&handle));
        // What is said of the place is not dropped: the volume of another endpoint is another.
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let says = |key: &str| query.split('&').any(|pair| pair.starts_with(key));
        assert_eq!(says("endpoint="), handle.endpoint.is_some());
        assert_eq!(says("region="), handle.region.is_some());
    });
}

/// The first line names the volume, the others are the parameters of its class.
#[test]
fn a_class_of_any_text_gives_a_volume_that_can_be_found_again_or_is_refused() {
    near_texts(&inputs(CLASSES), |text| {
        let (name, lines) = text.split_once('\n').unwrap_or((text, ""));
        let Ok(name) = VolumeName::parse(name.to_owned()) else { return };
        let pairs = lines.lines().filter_map(|line| line.split_once('='));
        let map: BTreeMap<_, _> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let create = Create {
            name,
            required_bytes: 0,
            limit_bytes: None,
            capabilities: Vec::new(),
            parameters: Context::parse(map, "parameters").unwrap(),
            secrets: Default::default(),
            topologies: None,
        };
        match Parameters::parse(&create) {
            Ok(Parameters { handle, context }) => {
                let id = VolumeId::parse(handle.to_string()).unwrap();
                assert_eq!(Handle::parse(id.as_str()), Some(handle.clone()));
                assert_eq!(context["prefix"], handle.prefix.as_str());
                let base = create.parameters.get("prefix").unwrap_or_default();
                let base = base.trim_end_matches('/');
                assert!(handle.prefix.as_str().starts_with(base));
                assert!(handle.prefix.as_str().len() > base.len() + 1);
            }
            Err(error) => {
                let status = Status::from(error);
                assert!(status.message().len() <= 2048);
                assert!(!status.message().chars().any(char::is_control));
            }
        }
    });
}
