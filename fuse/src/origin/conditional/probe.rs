//! Asking an endpoint what it does: what must be refused is sent, and what must pass.

use std::time::{Duration, SystemTime};

use futures_util::TryFutureExt;
use rand::Rng;

use super::verdicts::{Question, Verdict};
use crate::model::version::ETag;
use crate::origin::condition::{Condition, ConditionKind};
use crate::origin::uploads::{self, LoggedUpload, UploadLog};
use crate::origin::{CopySource, Origin, OriginError, Part, PartKind, UploadBody, WriteIntent};

/// What the objects hold: always the same, so that their tags are, too.
const CONTENT: &[u8] = b"weir";
/// A tag that no object has.
const WRONG: &str = "\"00000000000000000000000000000000\"";
/// A verdict against an endpoint is found this many times before it is believed: other nodes
/// use the same keys at any time.
const ROUNDS: u32 = 3;
/// Uploads of probes that were cut short are removed when they are older.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Asks with the help of two objects, which it removes if it may.
pub(super) struct Prober<'a> {
    pub(super) origin: &'a dyn Origin,
    pub(super) uploads: &'a dyn UploadLog,
    pub(super) key: &'a str,
    /// Target of copies.
    pub(super) copy_key: &'a str,
}

/// What a round needs.
struct Stage {
    etag: ETag,
    upload: Option<(String, Vec<Part>)>,
    /// The same, as it is remembered.
    logged: Option<Box<dyn LoggedUpload>>,
}

impl Prober<'_> {
    /// # Errors
    /// Why nothing was found out.
    pub(super) async fn ask(&self, question: Question) -> Result<Verdict, OriginError> {
        let mut verdict = self.round(question).await;
        for _ in 1..ROUNDS {
            if verdict.as_ref().is_ok_and(|verdict| verdict.is_obeyed()) {
                break;
            }
            let wait = Duration::from_millis(rand::rng().random_range(10..80));
            tokio::time::sleep(wait).await;
            let again = self.round(question).await;
            match (&verdict, &again) {
                (Ok(before), Ok(now)) if before != now && !now.is_obeyed() => {
                    return Err(OriginError::Changed);
                }
                _ => verdict = again,
            }
        }
        verdict
    }

    async fn round(&self, question: Question) -> Result<Verdict, OriginError> {
        let kind = match question {
            Question::Checksums => return self.checksums().await,
            Question::Condition(ConditionKind::PutAbsent) => {
                let verdict = self.put_absent().await;
                self.remove(self.key).await;
                return verdict;
            }
            Question::Condition(kind) => kind,
        };
        let stage = self.stage(kind).await?;
        let verdict = match kind {
            ConditionKind::CompleteAbsent | ConditionKind::CopyAbsent => {
                self.absent(kind, &stage).await
            }
            _ => self.matches(kind, &stage).await,
        };
        self.clear(kind, stage).await;
        verdict
    }

    async fn checksums(&self) -> Result<Verdict, OriginError> {
        let crc32c = !crc32c::crc32c(CONTENT);
        let body = UploadBody::Memory { bytes: CONTENT.into(), crc32c };
        let error = match self.origin.put(self.key, body, &intent(Condition::Always)).await {
            Ok(_) => {
                self.remove(self.key).await;
                return Ok(Verdict::Ignored);
            }
            Err(error) => error,
        };
        match matches!(error, OriginError::Invalid(_)) || error.is_digest_mismatch() {
            true => Ok(Verdict::Obeyed),
            false => {
                // It may have come to something all the same.
                self.remove(self.key).await;
                Err(error)
            }
        }
    }

    /// Most often there is nothing before, and a PUT that passes is all the preparation it takes.
    async fn put_absent(&self) -> Result<Verdict, OriginError> {
        let put = || async {
            let body = UploadBody::of(CONTENT);
            self.origin.put(self.key, body, &intent(Condition::Absent)).await
        };
        match put().await {
            Ok(_) => match put().await {
                Ok(_) => Ok(Verdict::Ignored),
                Err(OriginError::Conflict) => Ok(Verdict::Obeyed),
                Err(error) => refusal(error),
            },
            // It was refused already; what is left is that it passes.
            Err(OriginError::Conflict) => self.passes(self.key, put().map_ok(|_| ())).await,
            Err(error) => refusal(error),
        }
    }

    async fn stage(&self, kind: ConditionKind) -> Result<Stage, OriginError> {
        let mut etag = self.store(self.key).await?;
        match kind {
            ConditionKind::CopyAbsent => {
                self.store(self.copy_key).await?;
            }
            // The condition is about the copy's target.
            ConditionKind::CopyMatches => {
                let source = self.source(ETag::any());
                let copy = self.origin.copy(&source, self.copy_key, &Condition::Always).await?;
                etag = self.tag_of(self.copy_key, copy.etag).await?;
            }
            _ => {}
        }
        let (upload, logged) = match kind {
            ConditionKind::CompleteAbsent | ConditionKind::CompleteMatches => {
                let (id, parts, logged) = self.upload().await?;
                (Some((id, parts)), Some(logged))
            }
            ConditionKind::CopyPartSource => {
                let source = self.source(etag.clone());
                let create = self.origin.create_copy(&source, self.key);
                let (id, logged) = uploads::begin(self.uploads, self.key, create).await?;
                (Some((id, Vec::new())), Some(logged))
            }
            _ => (None, None),
        };
        Ok(Stage { etag, upload, logged })
    }

    async fn store(&self, key: &str) -> Result<ETag, OriginError> {
        let body = UploadBody::of(CONTENT);
        let stored = self.origin.put(key, body, &intent(Condition::Always)).await?;
        self.tag_of(key, stored.etag).await
    }

    async fn tag_of(&self, key: &str, told: Option<ETag>) -> Result<ETag, OriginError> {
        let etag = match told {
            Some(etag) => Some(etag),
            None => self.origin.head(key).await?.etag,
        };
        etag.ok_or_else(|| OriginError::NotS3("an object without ETag".into()))
    }

    async fn upload(&self) -> Result<(String, Vec<Part>, Box<dyn LoggedUpload>), OriginError> {
        let old = SystemTime::now().checked_sub(LEFTOVER_AGE);
        for pending in self.origin.list_uploads(self.key).await.unwrap_or_default() {
            if old.is_some_and(|old| pending.begun < old) {
                self.abort(&pending.id, None).await;
            }
        }
        let create = self.origin.create_upload(self.key, "weir-probe", PartKind::Sent);
        let (id, logged) = uploads::begin(self.uploads, self.key, create).await?;
        match self.origin.upload_part(self.key, &id, 1, UploadBody::of(CONTENT)).await {
            Ok(part) => Ok((id, vec![part], logged)),
            Err(error) => {
                self.abort(&id, Some(logged)).await;
                Err(error)
            }
        }
    }

    fn source(&self, etag: ETag) -> CopySource {
        CopySource { key: self.key.to_owned(), etag, size: CONTENT.len() as u64 }
    }

    /// Sends a request of this kind with this condition.
    async fn send(
        &self,
        kind: ConditionKind,
        condition: Condition,
        stage: &Stage,
    ) -> Result<(), OriginError> {
        use ConditionKind as Kind;
        let sent = match (kind, &condition, &stage.upload) {
            (Kind::PutMatches, ..) => {
                let body = UploadBody::of(CONTENT);
                self.origin.put(self.key, body, &intent(condition)).await.map(|_| ())
            }
            (Kind::CompleteAbsent | Kind::CompleteMatches, _, Some((id, parts))) => {
                let write = intent(condition);
                let sent = self.origin.complete_upload(self.key, id, parts, &write);
                sent.await.map(|_| ())
            }
            (Kind::CopyAbsent | Kind::CopyMatches, ..) => {
                let source = self.source(ETag::any());
                self.origin.copy(&source, self.copy_key, &condition).await.map(|_| ())
            }
            (Kind::DeleteMatches, ..) => self.origin.delete(self.key, &condition).await,
            (Kind::CopySource, Condition::Matches(etag), _) => {
                let source = self.source(etag.clone());
                let sent = self.origin.copy(&source, self.copy_key, &Condition::Always);
                sent.await.map(|_| ())
            }
            (Kind::CopyPartSource, Condition::Matches(etag), Some((id, _))) => {
                let (source, len) = (self.source(etag.clone()), CONTENT.len() as u64);
                let sent = self.origin.copy_part(&source, 0..len, self.key, id, 1);
                sent.await.map(|_| ())
            }
            _ => Err(OriginError::Invalid(format!("{kind:?} was not prepared"))),
        };
        match sent {
            // Gone is not refused: the object may have been removed by another node.
            Err(OriginError::Changed) => {
                self.origin.head(self.key).await?;
                Err(OriginError::Conflict)
            }
            sent => sent,
        }
    }

    async fn matches(&self, kind: ConditionKind, stage: &Stage) -> Result<Verdict, OriginError> {
        let wrong = ETag::new(WRONG).ok_or(OriginError::Conflict)?;
        let forms = [
            (Verdict::Obeyed, wrong.clone(), stage.etag.clone()),
            (Verdict::ObeyedBare, wrong.bare(), stage.etag.bare()),
        ];
        for (verdict, wrong, right) in forms {
            match self.send(kind, Condition::Matches(wrong), stage).await {
                Ok(()) => return Ok(Verdict::Ignored),
                Err(OriginError::Conflict) => {}
                Err(error) => return refusal(error),
            }
            match self.send(kind, Condition::Matches(right), stage).await {
                Ok(()) => return Ok(verdict),
                Err(OriginError::Conflict) => {}
                Err(error) => return refusal(error),
            }
        }
        let about = if kind == ConditionKind::CopyMatches { self.copy_key } else { self.key };
        match self.origin.head(about).await?.etag {
            Some(etag) if etag == stage.etag => Ok(Verdict::Refused),
            _ => Err(OriginError::Changed),
        }
    }

    async fn absent(&self, kind: ConditionKind, stage: &Stage) -> Result<Verdict, OriginError> {
        match self.send(kind, Condition::Absent, stage).await {
            Ok(()) => return Ok(Verdict::Ignored),
            Err(OriginError::Conflict) => {}
            Err(error) => return refusal(error),
        }
        let about = if kind == ConditionKind::CopyAbsent { self.copy_key } else { self.key };
        self.passes(about, self.send(kind, Condition::Absent, stage)).await
    }

    /// Whether what was refused over the object `about` passes where there is none.
    async fn passes(
        &self,
        about: &str,
        send: impl Future<Output = Result<(), OriginError>>,
    ) -> Result<Verdict, OriginError> {
        if self.origin.delete(about, &Condition::Always).await.is_err() {
            // That cannot be tried without the right to remove.
            return Ok(Verdict::Obeyed);
        }
        match send.await {
            // An upload may be of no use any more once its completion was refused.
            Ok(()) | Err(OriginError::NoSuchUpload) => Ok(Verdict::Obeyed),
            Err(OriginError::Conflict) => match self.origin.head(about).await {
                Err(OriginError::NotFound) => Ok(Verdict::Refused),
                Ok(_) => Err(OriginError::Changed),
                Err(error) => Err(error),
            },
            Err(error) => refusal(error),
        }
    }

    async fn clear(&self, kind: ConditionKind, stage: Stage) {
        if let Some((id, _)) = &stage.upload {
            self.abort(id, stage.logged).await;
        }
        self.remove(self.key).await;
        let copies =
            [ConditionKind::CopyAbsent, ConditionKind::CopyMatches, ConditionKind::CopySource];
        if copies.contains(&kind) {
            self.remove(self.copy_key).await;
        }
    }

    async fn abort(&self, id: &str, logged: Option<Box<dyn LoggedUpload>>) {
        match self.origin.abort_upload(self.key, id).await {
            Ok(()) | Err(OriginError::NoSuchUpload) => {
                if let Some(logged) = logged {
                    logged.ended().await;
                }
            }
            Err(error) => tracing::debug!(%error, "upload of a probe stays"),
        }
    }

    async fn remove(&self, key: &str) {
        if let Err(error) = self.origin.delete(key, &Condition::Always).await {
            tracing::debug!(key, %error, "probe object stays");
        }
    }
}

fn intent(condition: Condition) -> WriteIntent {
    WriteIntent { condition, writer: "weir-probe".into() }
}

/// A request that is refused for the header it carries; other errors prove nothing.
fn refusal(error: OriginError) -> Result<Verdict, OriginError> {
    match error {
        OriginError::Unsupported(_) | OriginError::Invalid(_) => Ok(Verdict::Refused),
        error => Err(error),
    }
}
