//! Backends that keep everything in memory, for tests of the services themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::Error;
use crate::backend::{ControllerBackend, NodeBackend, NodeInfo, Usage, Volume, VolumeStats};
use crate::request::{
    Create, Publish, Secrets, StatsOf, TargetPath, Unpublish, Validate, VolumeId,
};

/// Volumes and publications, remembered.
#[derive(Default)]
pub struct Memory {
    volumes: Mutex<HashMap<String, Volume>>,
    published: Mutex<HashMap<TargetPath, Publish>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl NodeBackend for Memory {
    async fn publish(&self, publish: Publish) -> Result<(), Error> {
        let mut published = lock(&self.published);
        if let Some(before) = published.get(&publish.target)
            && (&before.volume_id, before.read_only, &before.capability)
                != (&publish.volume_id, publish.read_only, &publish.capability)
        {
            return Err(Error::Exists(format!("{} is published in another way", publish.target)));
        }
        published.insert(publish.target.clone(), publish);
        Ok(())
    }

    async fn unpublish(&self, unpublish: Unpublish) -> Result<(), Error> {
        lock(&self.published).remove(&unpublish.target);
        Ok(())
    }

    async fn stats(&self, of: StatsOf) -> Result<VolumeStats, Error> {
        match lock(&self.published).get(&of.path) {
            Some(publish) if publish.volume_id == of.volume_id => {
                let nothing = Usage { total: 1, used: 0, available: 1 };
                Ok(VolumeStats { bytes: nothing, inodes: nothing, abnormal: None })
            }
            _ => Err(Error::NotFound(format!("{} is not published at {}", of.volume_id, of.path))),
        }
    }

    async fn info(&self) -> Result<NodeInfo, Error> {
        let segments = BTreeMap::from([("zone".to_owned(), "memory".to_owned())]);
        Ok(NodeInfo { node_id: "memory".into(), max_volumes: 0, segments })
    }
}

#[async_trait]
impl ControllerBackend for Memory {
    async fn create(&self, create: Create) -> Result<Volume, Error> {
        let mut volumes = lock(&self.volumes);
        if let Some(volume) = volumes.get(create.name.as_str()) {
            if volume.capacity_bytes != create.required_bytes {
                return Err(Error::Exists(format!("{} is of another size", volume.id)));
            }
            return Ok(volume.clone());
        }
        let volume = Volume {
            id: VolumeId::parse(format!("memory-{}", create.name.as_str()))?,
            capacity_bytes: create.required_bytes,
            context: BTreeMap::new(),
            segments: Vec::new(),
        };
        volumes.insert(create.name.as_str().to_owned(), volume.clone());
        Ok(volume)
    }

    async fn delete(&self, id: VolumeId, _secrets: Secrets) -> Result<(), Error> {
        lock(&self.volumes).retain(|_, volume| volume.id != id);
        Ok(())
    }

    async fn validate(&self, validate: Validate) -> Result<(), Error> {
        match lock(&self.volumes).values().any(|volume| volume.id == validate.volume_id) {
            true => Ok(()),
            false => Err(Error::NotFound(format!("volume {} is not there", validate.volume_id))),
        }
    }
}
