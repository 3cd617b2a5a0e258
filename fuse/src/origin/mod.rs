//! The origin: the object store that alone decides what is true.
//!
//! One narrow trait. [`s3`] is real, [`memory`] stands in for it in tests. The others wrap one:
//! [`aliases`] knows versions that are listed under another tag, [`announced`] tells others of writes, [`conditional`] sees to conditions,
//! [`hedge`] sends late GETs again, [`region`] has bytes from nearer by, [`measured`] counts, and [`faulty`]
//! misbehaves on command.

pub mod aliases;
pub mod announced;
mod condition;
pub mod conditional;
mod content_range;
mod copy_parts;
pub mod error;
pub mod faulty;
pub mod hedge;
mod layer;
pub mod measured;
pub mod memory;
mod pieces;
pub mod region;
pub mod retry;
pub mod s3;
pub mod uploads;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

pub use condition::{Condition, ConditionKind};
pub use error::OriginError;

use crate::blocking::Turns;
use crate::model::version::{BucketId, ETag, ObjectInfo, Version};

/// After credentials were replaced, requests may be signed with those before for so long: what the
/// object store allows then is not remembered.
pub const SETTLING: Duration = Duration::from_secs(30);

/// Metadata name of the nonce by which a writer recognises its own object after a lost reply.
pub const WRITER_METADATA: &str = "weir-writer";

/// What comes of comparing all bytes of a version with its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// They are what the tag says.
    Equal,
    /// They are not.
    Different {
        /// Whether all of them are the origin's own.
        of_origin: bool,
    },
}

/// An object store, as far as a file system needs one.
///
/// Every method may be cancelled by dropping its future. Implementations retry what is worth
/// retrying by themselves, except bodies: a body that ends early is the caller's to resume.
#[async_trait]
pub trait Origin: Send + Sync + 'static {
    /// Identity of the bucket, for the cache.
    fn bucket_id(&self) -> &BucketId;

    /// Takes notice that the endpoint does not refuse bodies whose CRC32C is wrong: they are to be
    /// guarded in another way from now on.
    fn doubt_checksums(&self);

    /// Takes notice that other credentials sign from now on: what was allowed to those before is
    /// forgotten.
    fn credentials_changed(&self) {}

    /// Asks for an object's metadata.
    async fn head(&self, key: &str) -> Result<ObjectInfo, OriginError>;

    /// Reads a range of a version, or fails with [`OriginError::Changed`] when the object is no
    /// longer that.
    async fn get(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Body, OriginError>;

    /// Asks for one byte of a version, which is not empty: whether it may be read. Fails as
    /// [`Origin::get`] does; nobody answers in the place of the object store.
    async fn allows(&self, key: &str, version: &Version) -> Result<(), OriginError> {
        is_begun(self.get(key, version, 0..1).await?, version).await
    }

    /// Whether bytes of a version that nobody waits for yet are worth asking for now: not while they come
    /// to be nearer by.
    fn may_fetch_ahead(&self, _key: &str, _version: &Version) -> bool {
        true
    }

    /// Takes notice of what came of comparing all bytes of a version, some of which were
    /// [`Body::borrowed`], with its tag. Returns whether they are to be kept.
    fn judge(&self, _key: &str, _version: &Version, compared: Compared) -> bool {
        compared == Compared::Equal
    }

    /// Lists one page.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, OriginError>;

    /// Stores an object in one request.
    async fn put(
        &self,
        key: &str,
        body: UploadBody,
        write: &WriteIntent,
    ) -> Result<Stored, OriginError>;

    /// Begins a multipart upload.
    async fn create_upload(
        &self,
        key: &str,
        writer: &str,
        parts: PartKind,
    ) -> Result<String, OriginError>;

    /// Begins a multipart upload whose object will have the source's headers, metadata and
    /// tags, the writer's nonce among them, as [`Origin::copy`] would give it. Parts that are
    /// copied belong into such an upload: endpoints refuse them in others. Parts that are
    /// uploaded may be mixed with them.
    async fn create_copy(&self, source: &CopySource, to: &str) -> Result<String, OriginError>;

    /// Stores one part; part numbers begin at 1.
    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: u32,
        body: UploadBody,
    ) -> Result<Part, OriginError>;

    /// Stores one part as a copy of a range of another object, by the server. Fails with
    /// [`OriginError::Changed`] when the source is no longer that version.
    async fn copy_part(
        &self,
        source: &CopySource,
        range: Range<u64>,
        key: &str,
        upload_id: &str,
        number: u32,
    ) -> Result<Part, OriginError>;

    /// Finds out what the completion of an upload under this condition will have to know, so that
    /// it need not wait for that. Most origins have nothing to find out.
    async fn expect_completion(&self, _condition: &Condition) {}

    /// Makes the object out of its parts, which are in the order of their numbers.
    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        write: &WriteIntent,
    ) -> Result<Stored, OriginError>;

    /// Gives up a multipart upload. Fails with [`OriginError::NoSuchUpload`] when it is gone: a
    /// part that was under way may outlive a first success, so that who wants no byte left
    /// repeats it until then (API reference, AbortMultipartUpload).
    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), OriginError>;

    /// The multipart uploads of exactly this key that are under way.
    async fn list_uploads(&self, key: &str) -> Result<Vec<PendingUpload>, OriginError>;

    /// Removes an object. One that is already gone is a success with [`Condition::Always`], and
    /// [`OriginError::NotFound`] or [`OriginError::Conflict`] with [`Condition::Matches`], as the
    /// server says. [`Condition::Absent`] is invalid.
    async fn delete(&self, key: &str, condition: &Condition) -> Result<(), OriginError>;

    /// Copies a version to another key, within the bucket, in one request: of up to 5 GB, unless
    /// [`conditional::Conditional`] divides it. Fails with [`OriginError::Changed`]
    /// when the source is no longer that version, with [`OriginError::Conflict`] when the
    /// condition does not hold for what is at `to`.
    async fn copy(
        &self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError>;
}

/// Whether it is this version whose answer has begun: then that is a yes.
async fn is_begun(mut body: Body, version: &Version) -> Result<(), OriginError> {
    if body.etag != version.etag {
        return Err(OriginError::Changed);
    }
    // Taken to its end, its connection serves others.
    while body.pieces.next().await.is_some() {}
    Ok(())
}

/// The bytes of a range as they arrive.
pub struct Body {
    /// Tag of the version that the bytes belong to.
    pub etag: ETag,
    /// The pieces, in order; an error ends the stream.
    pub pieces: BoxStream<'static, Result<Bytes, OriginError>>,
    /// Whether some may not be the origin's own: who has all bytes of the version compares them with the
    /// MD5 that its tag is, and says what comes of it ([`Origin::judge`]).
    pub borrowed: bool,
}

/// One page of a listing.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Only keys that start with this.
    pub prefix: String,
    /// Group what follows the prefix by `/`.
    pub delimited: bool,
    /// Continuation token of the page before.
    pub token: Option<String>,
    /// At most this many entries (1 to 1000).
    pub max_keys: u16,
}

/// What a page holds.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Objects, in key order.
    pub objects: Vec<(String, ObjectInfo)>,
    /// Groups that end in `/`, in order.
    pub prefixes: Vec<String>,
    /// Token of the next page; `None` at the end.
    pub next: Option<String>,
    /// How many keys were not UTF-8 and are left out.
    pub undecodable: u64,
}

/// Condition and nonce of a write.
#[derive(Clone, Debug)]
pub struct WriteIntent {
    /// The condition that must hold.
    pub condition: Condition,
    /// Nonce stored as the object's metadata [`WRITER_METADATA`].
    pub writer: String,
}

/// The bytes of a part.
#[derive(Clone, Debug)]
pub enum UploadBody {
    /// In memory.
    Memory {
        /// The bytes.
        bytes: Bytes,
        /// Their CRC32C.
        crc32c: u32,
    },
    /// A range of an open file, which may be renamed or removed meanwhile.
    File {
        /// The file.
        file: Arc<File>,
        /// Turns at the disk that it is on.
        calls: Arc<Turns>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// CRC32C of these bytes.
        crc32c: u32,
    },
}

impl UploadBody {
    /// Bytes in memory.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::Memory { crc32c: crc32c::crc32c(&bytes), bytes }
    }

    /// No bytes, for objects whose name is all there is.
    pub fn empty() -> Self {
        Self::Memory { bytes: Bytes::new(), crc32c: 0 }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory { bytes, .. } => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// CRC32C of the bytes.
    pub fn crc32c(&self) -> u32 {
        let (Self::Memory { crc32c, .. } | Self::File { crc32c, .. }) = self;
        *crc32c
    }
}

/// What the parts of an upload will be. Endpoints that keep checksums of parts have none for
/// copied ones, and MinIO refuses these where checksums were asked for at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// All are sent.
    Sent,
    /// Some may be copied.
    Mixed,
}

/// A stored part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 1.
    pub number: u32,
    /// Its tag.
    pub etag: String,
    /// CRC32C of its bytes as the server told it, base64: what it wants to hear again when the
    /// upload is completed. `None` from servers that keep none.
    pub checksum: Option<String>,
}

/// The version that a copy is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// Its key.
    pub key: String,
    /// Its tag.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
}

/// A multipart upload under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingUpload {
    /// Its id.
    pub id: String,
    /// When it was begun, by the server's clock.
    pub begun: SystemTime,
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Tag of the new version; `None` from servers that do not tell.
    pub etag: Option<ETag>,
    /// Its version id, where the bucket is versioned.
    pub version_id: Option<Box<str>>,
    /// Time of the write as far as known.
    pub mtime: SystemTime,
}

impl Stored {
    /// The object that it is, with what a request knows of it besides.
    pub fn into_info(self, size: u64, writer: Option<Box<str>>) -> ObjectInfo {
        ObjectInfo { size, etag: self.etag, mtime: self.mtime, version_id: self.version_id, writer }
    }
}
