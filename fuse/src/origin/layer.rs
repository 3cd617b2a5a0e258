//! What answers for reads in an origin's place, or takes notice of writes, and leaves all else to it.

use std::ops::Range;

use async_trait::async_trait;

use super::{
    Body, Compared, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part,
    PartKind, PendingUpload, Stored, UploadBody, WriteIntent, is_begun,
};
use crate::model::version::{BucketId, ObjectInfo, Version};

/// An origin as a layer over another one, which changes how bytes are read.
#[async_trait]
pub(super) trait ReadLayer: Send + Sync + 'static {
    /// The origin that it is over.
    fn below(&self) -> &dyn Origin;

    /// As [`Origin::get`].
    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError>;

    /// As [`Origin::allows`].
    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        is_begun(self.get(key, version, 0..1).await?, version).await
    }

    /// As [`Origin::judge`].
    fn judge(&self, _key: &str, _version: &Version, compared: Compared) -> bool {
        compared == Compared::Equal
    }

    /// As [`Origin::credentials_changed`].
    fn credentials_changed(&self) {}

    /// Takes notice that an object may be another one by now, or may be gone: a request has ended, and it
    /// was not refused.
    fn changed(&self, _key: &str, _gone: bool) {}
}

/// A request that changes an object. Where nobody waits for its end any more it may have come through.
struct Change<'a, L: ReadLayer> {
    layer: &'a L,
    key: &'a str,
    gone: bool,
    refused: bool,
}

impl<'a, L: ReadLayer> Change<'a, L> {
    fn of(layer: &'a L, key: &'a str, gone: bool) -> Self {
        Self { layer, key, gone, refused: false }
    }

    fn ended<T>(mut self, done: Result<T, OriginError>) -> Result<T, OriginError> {
        self.refused = done.as_ref().is_err_and(|error| !error.is_transient());
        done
    }
}

impl<L: ReadLayer> Drop for Change<'_, L> {
    fn drop(&mut self) {
        if !self.refused {
            self.layer.changed(self.key, self.gone);
        }
    }
}

#[async_trait]
impl<L: ReadLayer> Origin for L {
    fn bucket_id(&self) -> &BucketId {
        self.below().bucket_id()
    }

    fn doubt_checksums(&self) {
        self.below().doubt_checksums();
    }

    fn credentials_changed(&self) {
        ReadLayer::credentials_changed(self);
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError> {
        self.below().head(key).await
    }

    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError> {
        ReadLayer::get(self, key, version, range).await
    }

    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        ReadLayer::allows(self, key, version).await
    }

    fn judge(&self, key: &str, version: &Version, compared: Compared) -> bool {
        ReadLayer::judge(self, key, version, compared)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError> {
        self.below().list(request).await
    }

    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let change = Change::of(self, key, false);
        change.ended(self.below().put(key, body, write).await)
    }

    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError> {
        self.below().create_upload(key, writer, parts).await
    }

    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError> {
        self.below().create_copy(source, to).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError> {
        self.below().upload_part(key, upload_id, number, body).await
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError> {
        self.below().copy_part(source, range, key, upload_id, number).await
    }

    async fn expect_completion(&self, condition: &Condition) {
        self.below().expect_completion(condition).await;
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError> {
        let change = Change::of(self, key, false);
        change.ended(self.below().complete_upload(key, upload_id, parts, write).await)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.below().abort_upload(key, upload_id).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.below().list_uploads(key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        let change = Change::of(self, key, true);
        change.ended(self.below().delete(key, condition).await)
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        let change = Change::of(self, to, false);
        change.ended(self.below().copy(source, to, condition).await)
    }
}
