//! What is in the bucket, and what S3's rules make of a request.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use bytes::Bytes;
use md5::{Digest, Md5};

use super::behaviour::{Behaviour, Obedience};
use crate::model::version::{ETag, ObjectInfo};
use crate::origin::condition::{Condition, ConditionKind};
use crate::origin::{
    CopySource, ListPage, ListRequest, OriginError, Part, PartKind, Stored, UploadBody,
};

#[derive(Default)]
pub(super) struct State {
    pub(super) behaviour: Behaviour,
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) uploads: HashMap<String, Upload>,
}

#[derive(Clone)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    pub(super) etag: ETag,
    /// What listings say of it, where that is not what HEAD does.
    listed: Option<ObjectInfo>,
    is_of_parts: bool,
    mtime: SystemTime,
    pub(super) writer: Option<Box<str>>,
}

pub(super) struct Upload {
    pub(super) key: String,
    pub(super) writer: Option<Box<str>>,
    pub(super) kind: PartKind,
    pub(super) begun: SystemTime,
    pub(super) parts: BTreeMap<u32, Bytes>,
}

impl Object {
    /// One that was stored by a single request.
    pub(super) fn whole(bytes: Bytes, writer: Option<Box<str>>) -> Self {
        let etag = quoted(&hex(&Md5::digest(&bytes)));
        Self { bytes, etag, listed: None, is_of_parts: false, mtime: SystemTime::now(), writer }
    }

    /// One that was made of parts: its tag is the digest of their digests, and their number.
    fn of_parts(parts: &[Bytes], writer: Option<Box<str>>) -> Self {
        let digests: Vec<u8> = parts.iter().flat_map(Md5::digest).collect();
        let etag = quoted(&format!("{}-{}", hex(&Md5::digest(&digests)), parts.len()));
        let bytes = parts.concat().into();
        Self { bytes, etag, listed: None, is_of_parts: true, mtime: SystemTime::now(), writer }
    }

    pub(super) fn info(&self) -> ObjectInfo {
        ObjectInfo {
            size: self.bytes.len() as u64,
            etag: Some(self.etag.clone()),
            mtime: self.mtime,
            version_id: None,
            writer: self.writer.clone(),
        }
    }

    fn listed_info(&self) -> ObjectInfo {
        let listed = self.listed.clone().unwrap_or_else(|| self.info());
        ObjectInfo { writer: None, ..listed }
    }

    /// Listed as the one before it still.
    pub(super) fn listed_as(self, before: Option<&Self>) -> Self {
        Self { listed: before.map(Self::listed_info), ..self }
    }

    fn stored(&self) -> Stored {
        Stored { etag: Some(self.etag.clone()), version_id: None, mtime: self.mtime }
    }
}

impl State {
    /// Whether a request may go on, by its condition and by how the endpoint takes it.
    fn allow(
        &self,
        kind: Option<ConditionKind>,
        condition: &Condition,
        present: Option<&Object>,
    ) -> Result<(), OriginError> {
        let Some(kind) = kind else { return Ok(()) };
        let is_bare = matches!(condition, Condition::Matches(etag) if etag.is_bare());
        let condition = match condition {
            Condition::Matches(etag) => Condition::Matches(etag.quoted()),
            other => other.clone(),
        };
        let present = present.map(Object::info);
        let present = present.as_ref();
        let holds = match self.behaviour.obedience(kind) {
            Obedience::Ignored => true,
            Obedience::Obeyed => condition.holds_for(present),
            Obedience::ObeyedBare => {
                condition.holds_for(present) && (is_bare || condition == Condition::Absent)
            }
            Obedience::Refused412 => false,
            Obedience::Refused501 => {
                return Err(OriginError::Unsupported("NotImplemented".into()));
            }
            Obedience::Refused409 if is_completion(kind) => {
                return Err(OriginError::UploadClash("ConditionalRequestConflict".into()));
            }
            Obedience::Refused409 => {
                return Err(OriginError::Unavailable("ConditionalRequestConflict".into()));
            }
        };
        if holds { Ok(()) } else { Err(OriginError::Conflict) }
    }

    /// The version that a copy is made of.
    pub(super) fn source(
        &self,
        source: &CopySource,
        kind: ConditionKind,
    ) -> Result<&Object, OriginError> {
        let object = self.objects.get(&source.key).ok_or(OriginError::Changed)?;
        if source.etag.is_any() {
            return Ok(object);
        }
        if self.behaviour.multipart_sources_refused && object.is_of_parts {
            return Err(OriginError::Changed);
        }
        let condition = Condition::Matches(source.etag.clone());
        match self.allow(Some(kind), &condition, Some(object)) {
            Ok(()) => Ok(object),
            Err(OriginError::Conflict) => Err(OriginError::Changed),
            Err(error) => Err(error),
        }
    }

    pub(super) fn check_body(&self, bytes: &[u8], crc32c: u32) -> Result<(), OriginError> {
        match self.behaviour.checksums_obeyed && crc32c::crc32c(bytes) != crc32c {
            true => Err(OriginError::Unavailable("BadDigest".into())),
            false => Ok(()),
        }
    }

    pub(super) fn put(
        &mut self,
        key: &str,
        object: Object,
        kind: Option<ConditionKind>,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        self.allow(kind, condition, self.objects.get(key))?;
        let stored = object.stored();
        self.objects.insert(key.to_owned(), object);
        Ok(stored)
    }

    pub(super) fn copy(
        &mut self,
        source: &CopySource,
        to: &str,
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        if source.key == to {
            // The API reference wants a change of metadata there.
            return Err(OriginError::Invalid("InvalidRequest".into()));
        }
        let from = self.source(source, ConditionKind::CopySource)?.clone();
        let mut copy = Object::whole(from.bytes, from.writer);
        if self.behaviour.copies_listed_otherwise && copy.etag != from.etag {
            copy.listed = Some(ObjectInfo { etag: Some(from.etag), ..copy.info() });
        }
        self.put(to, copy, ConditionKind::of_copy(condition), condition)
    }

    pub(super) fn complete(
        &mut self,
        key: &str,
        upload_id: &str,
        parts: &[Part],
        condition: &Condition,
    ) -> Result<Stored, OriginError> {
        let upload = self.upload(key, upload_id)?;
        let bodies = upload.bodies(parts)?;
        if self.behaviour.every_part_named && upload.parts.len() != bodies.len() {
            return Err(OriginError::Invalid("InvalidPart".into()));
        }
        let but_last = &bodies[..bodies.len().saturating_sub(1)];
        if but_last.iter().any(|part| (part.len() as u64) < self.behaviour.part_min) {
            return Err(OriginError::Invalid("EntityTooSmall".into()));
        }
        let object = Object::of_parts(&bodies, upload.writer.clone());
        let stored = self.put(key, object, ConditionKind::of_complete(condition), condition)?;
        self.uploads.remove(upload_id);
        Ok(stored)
    }

    pub(super) fn delete(&mut self, key: &str, condition: &Condition) -> Result<(), OriginError> {
        let present = self.objects.get(key);
        match condition {
            Condition::Always => {}
            Condition::Absent => return Err(OriginError::Invalid("If-None-Match".into())),
            Condition::Matches(_) => {
                let kind = ConditionKind::DeleteMatches;
                if present.is_none() && self.behaviour.obedience(kind) == Obedience::Obeyed {
                    return Err(OriginError::NotFound);
                }
                self.allow(Some(kind), condition, present)?;
            }
        }
        self.objects.remove(key);
        Ok(())
    }

    /// An upload; its id belongs to its key.
    pub(super) fn upload(&self, key: &str, id: &str) -> Result<&Upload, OriginError> {
        let upload = self.uploads.get(id).filter(|upload| upload.key == key);
        upload.ok_or(OriginError::NoSuchUpload)
    }

    pub(super) fn add_part(
        &mut self,
        key: &str,
        upload_id: &str,
        number: u32,
        bytes: Bytes,
    ) -> Result<Part, OriginError> {
        let upload = self.uploads.get_mut(upload_id).filter(|upload| upload.key == key);
        let upload = upload.ok_or(OriginError::NoSuchUpload)?;
        let part = Part { number, etag: part_etag(&bytes), checksum: None };
        upload.parts.insert(number, bytes);
        Ok(part)
    }

    pub(super) fn page(&self, request: &ListRequest) -> ListPage {
        let after = request.token.clone().unwrap_or_default();
        let mut page = ListPage::default();
        let mut last = String::new();
        let from = (Bound::Included(request.prefix.clone()), Bound::Unbounded);
        for (key, object) in self.objects.range::<String, _>(from) {
            let Some(rest) = key.strip_prefix(&request.prefix) else { break };
            let group = match rest.find('/') {
                Some(at) if request.delimited => Some(&key[..request.prefix.len() + at + 1]),
                _ => None,
            };
            let shown = group.unwrap_or(key);
            if shown <= after.as_str() || shown == last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == usize::from(request.max_keys) {
                page.next = Some(last);
                break;
            }
            last = shown.to_owned();
            match group {
                Some(prefix) => page.prefixes.push(prefix.to_owned()),
                None => {
                    page.objects.push((key.clone(), self.behaviour.told(object.listed_info())));
                }
            }
        }
        page
    }
}

impl Upload {
    /// The bytes of the parts named, which must be there and in order.
    fn bodies(&self, parts: &[Part]) -> Result<Vec<Bytes>, OriginError> {
        let invalid = |code: &str| OriginError::Invalid(code.into());
        if parts.is_empty() {
            return Err(invalid("MalformedXML"));
        }
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(invalid("InvalidPartOrder"));
        }
        let body = |part: &Part| {
            let body = self.parts.get(&part.number).filter(|body| part_etag(body) == part.etag);
            body.cloned().ok_or_else(|| invalid("InvalidPart"))
        };
        parts.iter().map(body).collect()
    }
}

fn is_completion(kind: ConditionKind) -> bool {
    matches!(kind, ConditionKind::CompleteAbsent | ConditionKind::CompleteMatches)
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn quoted(text: &str) -> ETag {
    // A digest's text is never empty.
    ETag::new(text).unwrap_or_else(|| unreachable!("an MD5 sum has digits"))
}

fn part_etag(bytes: &[u8]) -> String {
    format!("\"{}\"", hex(&Md5::digest(bytes)))
}

pub(super) fn bytes_of(body: UploadBody) -> Result<Bytes, OriginError> {
    match body {
        UploadBody::Memory { bytes, .. } => Ok(bytes),
        UploadBody::File { file, offset, len, .. } => {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, offset)
                .map_err(|e| OriginError::Invalid(format!("staging file: {e}")))?;
            Ok(bytes.into())
        }
    }
}
