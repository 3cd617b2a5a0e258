//! What answers for reads in an origin's place, or takes notice of writes, and leaves all else to it.

use std::ops::Range;

use async_trait::async_trait;

use super::{
    Body, Compared, Condition, CopySource, ListPage, ListRequest, Origin, OriginError, Part,
    PartKind, PendingUpload, Stored, UploadBody, WriteIntent, is_begun,
};
use crate::model::version::{BucketId, ObjectInfo, Version};

/// A request that changes what a key names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Its bytes, of which whoever sends it has a record that outlives the process until he is answered.
    Recorded,
    /// It makes an object.
    Made,
    /// It removes one.
    Removed,
}

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

    /// As [`Origin::may_fetch_ahead`].
    fn may_fetch_ahead(&self, key: &str, version: &Version) -> bool {
        self.below().may_fetch_ahead(key, version)
    }

    /// As [`Origin::judge`].
    fn judge(&self, _key: &str, _version: &Version, compared: Compared) -> bool {
        compared == Compared::Equal
    }

    /// As [`Origin::credentials_changed`].
    fn credentials_changed(&self) {}

    /// Sends a request that changes what a key names.
    async fn change<T, R>(&self, _key: &str, _change: Change, request: R) -> Result<T, OriginError>
    where
        T: Send,
        R: Future<Output = Result<T, OriginError>> + Send,
    {
        request.await
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

    fn may_fetch_ahead(&self, key: &str, version: &Version) -> bool {
        ReadLayer::may_fetch_ahead(self, key, version)
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
        // A file under change has a record from its first byte on.
        let change = if body.is_empty() { Change::Made } else { Change::Recorded };
        self.change(key, change, self.below().put(key, body, write)).await
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
        let completes = self.below().complete_upload(key, upload_id, parts, write);
        // Each upload has one.
        self.change(key, Change::Recorded, completes).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError> {
        self.below().abort_upload(key, upload_id).await
    }

    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError> {
        self.below().list_uploads(key).await
    }

    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        self.change(key, Change::Removed, self.below().delete(key, condition)).await
    }

    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.change(to, Change::Made, self.below().copy(source, to, condition)).await
    }
}
