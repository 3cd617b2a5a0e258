//! Copies: two conditions in one request, one on what is copied and one on what is replaced.

use std::ops::Range;

use super::{Conditional, Means, PROBE_AGAIN, Question, Verdict};
use crate::logged::LoggedName;
use crate::model::version::ETag;
use crate::origin::copy_parts::{COPY_MAX, copy_by_parts};
use crate::origin::{
    Condition, ConditionKind, CopySource, Origin, OriginError, Part, Stored, UploadBody,
    WriteIntent,
};

/// A request is sent again in another way after each refusal that teaches something: one for
/// the source, one for the target.
const WAYS_MAX: u32 = 3;

/// How a copy's two conditions are seen to.
struct Way {
    /// The source as it is sent; `None`: it is asked for before and after.
    source: Option<CopySource>,
    target: Means,
}

pub(super) async fn copy(
    origin: &Conditional,
    source: &CopySource,
    to: &str,
    condition: &Condition,
) -> Result<Stored, OriginError> {
    if source.size > COPY_MAX {
        return copy_by_parts(origin, &*origin.uploads, source, to, condition).await;
    }
    let kind = ConditionKind::of_copy(condition);
    for _ in 1..WAYS_MAX {
        let way = Way {
            source: origin.sendable(ConditionKind::CopySource, source).await,
            target: origin.means(kind, condition).await,
        };
        let all_sent = way.source.is_some() && matches!(way.target, Means::Send(_));
        if !all_sent && origin.parts_are_obeyed(condition).await {
            return by_parts(origin, source, to, condition).await;
        }
        let (source_sent, target_sent) =
            (way.source.is_some(), kind.filter(|_| matches!(way.target, Means::Send(_))));
        let error = match send(origin, source, to, condition, way).await {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
        };
        match (error, target_sent) {
            (OriginError::Unsupported(_), Some(kind)) => {
                origin.learn(Question::Condition(kind), Verdict::Refused).await;
            }
            (OriginError::Unsupported(_), None) if source_sent => {
                let question = Question::Condition(ConditionKind::CopySource);
                origin.learn(question, Verdict::Refused).await;
            }
            (OriginError::Changed, _) if source_sent && origin.must_be(source).await.is_ok() => {
                if !origin.learns_better(ConditionKind::CopySource).await {
                    break;
                }
            }
            (OriginError::Conflict, Some(kind))
                if origin.holds(to, condition).await.unwrap_or(false) =>
            {
                if !origin.learns_better(kind).await {
                    break;
                }
            }
            (error, _) => return Err(error),
        }
    }
    send(origin, source, to, condition, Way { source: None, target: Means::Ask }).await
}

/// Copies in one request.
async fn send(
    origin: &Conditional,
    source: &CopySource,
    to: &str,
    condition: &Condition,
    way: Way,
) -> Result<Stored, OriginError> {
    if way.source.is_none() {
        origin.must_be(source).await?;
    }
    let sent = match way.target {
        Means::Send(sent) => sent,
        Means::Ask if origin.holds(to, condition).await? => Condition::Always,
        Means::Ask => return Err(OriginError::Conflict),
    };
    let Some(pinned) = way.source else {
        let stored = origin.inner.copy(&any_version(source), to, &sent).await?;
        if let Err(error) = origin.must_be(source).await {
            undo(origin, to, condition, &stored).await;
            return Err(error);
        }
        return Ok(stored);
    };
    origin.inner.copy(&pinned, to, &sent).await
}

/// Removes a copy of what was not asked for, where there was nothing before.
async fn undo(origin: &Conditional, to: &str, condition: &Condition, stored: &Stored) {
    if let (Condition::Absent, Some(etag)) = (condition, &stored.etag)
        && let Err(error) = origin.delete(to, &Condition::Matches(etag.clone())).await
    {
        tracing::warn!(key = %LoggedName(to), %error, "a copy of another version than the one meant stays");
    }
}

async fn by_parts(
    origin: &Conditional,
    source: &CopySource,
    to: &str,
    condition: &Condition,
) -> Result<Stored, OriginError> {
    if source.size > 0 {
        return copy_by_parts(origin, &*origin.uploads, source, to, condition).await;
    }
    // No part holds no bytes.
    let info = origin.inner.head(&source.key).await?;
    if !source.etag.is_same(info.etag.as_ref()) {
        return Err(OriginError::Changed);
    }
    let writer = info.writer.map(Into::into).unwrap_or_default();
    let write = WriteIntent { condition: condition.clone(), writer };
    origin.put(to, UploadBody::empty(), &write).await
}

pub(super) async fn copy_part(
    origin: &Conditional,
    source: &CopySource,
    range: Range<u64>,
    key: &str,
    upload_id: &str,
    number: u32,
) -> Result<Part, OriginError> {
    let kind = ConditionKind::CopyPartSource;
    if let Some(pinned) = origin.sendable(kind, source).await {
        let sent = origin.inner.copy_part(&pinned, range.clone(), key, upload_id, number).await;
        match sent {
            Err(OriginError::Unsupported(_)) => {
                origin.learn(Question::Condition(kind), Verdict::Refused).await;
            }
            Err(OriginError::Changed) => {}
            sent => return sent,
        }
    }
    origin.must_be(source).await?;
    let part = origin.inner.copy_part(&any_version(source), range, key, upload_id, number).await?;
    origin.must_be(source).await?;
    Ok(part)
}

fn any_version(source: &CopySource) -> CopySource {
    CopySource { etag: ETag::any(), ..source.clone() }
}

impl Conditional {
    /// The source in the form in which the endpoint obeys it, if in any.
    async fn sendable(&self, kind: ConditionKind, source: &CopySource) -> Option<CopySource> {
        match self.means(Some(kind), &Condition::Matches(source.etag.clone())).await {
            Means::Send(Condition::Matches(etag)) => Some(CopySource { etag, ..source.clone() }),
            _ => None,
        }
    }

    /// Whether a copy by parts has both its conditions obeyed.
    async fn parts_are_obeyed(&self, condition: &Condition) -> bool {
        let kinds = [Some(ConditionKind::CopyPartSource), ConditionKind::of_complete(condition)];
        for kind in kinds.into_iter().flatten() {
            let verdict = self.verdict(Question::Condition(kind)).await;
            if !verdict.is_some_and(Verdict::is_obeyed) {
                return false;
            }
        }
        true
    }

    /// That the source is the version meant.
    async fn must_be(&self, source: &CopySource) -> Result<(), OriginError> {
        let present = self.present(&source.key).await?;
        match source.etag.is_same(present.and_then(|info| info.etag).as_ref()) {
            true => Ok(()),
            false => Err(OriginError::Changed),
        }
    }

    /// Asks again what is known for some time; whether another way follows.
    async fn learns_better(&self, kind: ConditionKind) -> bool {
        let question = Question::Condition(kind);
        let before = self.remembered(question, std::time::Duration::MAX);
        let now = self.verdict_newer_than(question, PROBE_AGAIN).await;
        before != Some(now)
    }
}
