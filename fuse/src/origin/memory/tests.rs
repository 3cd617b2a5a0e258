use super::*;
use ConditionKind as Kind;

const MIB: usize = 1 << 20;

fn write(condition: Condition) -> WriteIntent {
    WriteIntent { condition, writer: "w".into() }
}

fn source(key: &str, etag: &ETag, size: u64) -> CopySource {
    CopySource { key: key.into(), etag: etag.clone(), size }
}

fn other() -> ETag {
    ETag::new("other").unwrap()
}

async fn upload(origin: &MemoryOrigin, key: &str, parts: &[Vec<u8>]) -> (String, Vec<Part>) {
    let id = origin.create_upload(key, "w", PartKind::Mixed).await.unwrap();
    let mut sent = Vec::new();
    for (number, part) in (1..).zip(parts) {
        let body = UploadBody::of(part.clone());
        sent.push(origin.upload_part(key, &id, number, body).await.unwrap());
    }
    (id, sent)
}

async fn multipart(origin: &MemoryOrigin, key: &str) -> ETag {
    let (id, parts) = upload(origin, key, &[vec![1; 5 * MIB], vec![2; MIB]]).await;
    let write = write(Condition::Always);
    origin.complete_upload(key, &id, &parts, &write).await.unwrap().etag.unwrap()
}

#[tokio::test]
async fn listings_group_and_page_like_s3() {
    let origin = MemoryOrigin::new("b");
    for key in ["a", "d/1", "d/2", "d/e/3", "z"] {
        origin.insert(key, vec![1]);
    }
    let mut seen = Vec::new();
    let mut token = None;
    loop {
        let request = ListRequest { prefix: String::new(), delimited: true, token, max_keys: 1 };
        let page = origin.list(&request).await.unwrap();
        seen.extend(page.objects.into_iter().map(|(key, _)| key));
        seen.extend(page.prefixes);
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "d/", "z"]);
}

#[tokio::test]
async fn a_multipart_object_has_another_tag_than_a_put_and_so_has_its_copy() {
    let origin = MemoryOrigin::new("b");
    let etag = multipart(&origin, "m").await;
    assert!(etag.as_str().ends_with("-2\""), "{etag}");
    let bytes = origin.bytes("m").unwrap();
    let whole = origin.insert("w", bytes.clone());
    assert_ne!(etag, whole);
    let source = source("m", &etag, bytes.len() as u64);
    let copy = origin.copy(&source, "c", &Condition::Always).await.unwrap();
    assert_eq!(copy.etag, Some(whole.clone()));
    assert_eq!(origin.bytes("c").unwrap(), bytes);

    origin.behave(Behaviour { copies_listed_otherwise: true, ..Behaviour::default() });
    origin.copy(&source, "c", &Condition::Always).await.unwrap();
    let request = ListRequest { prefix: "c".into(), delimited: false, token: None, max_keys: 1 };
    let page = origin.list(&request).await.unwrap();
    assert_ne!(page.objects[0].1.etag, Some(whole.clone()));
    assert_eq!(origin.head("c").await.unwrap().etag, Some(whole));
}

#[tokio::test]
async fn an_upload_belongs_to_its_key_and_is_gone_once() {
    let origin = MemoryOrigin::new("b");
    let (id, parts) = upload(&origin, "k", &[vec![1]]).await;
    let body = UploadBody::of(vec![1]);
    let gone = |error| assert!(matches!(error, OriginError::NoSuchUpload), "{error}");
    gone(origin.upload_part("l", &id, 1, body).await.unwrap_err());
    gone(origin.complete_upload("l", &id, &parts, &write(Condition::Always)).await.unwrap_err());
    gone(origin.abort_upload("l", &id).await.unwrap_err());
    assert_eq!(origin.list_uploads("k").await.unwrap().len(), 1);
    assert!(origin.list_uploads("").await.unwrap().is_empty());
    origin.abort_upload("k", &id).await.unwrap();
    gone(origin.abort_upload("k", &id).await.unwrap_err());
}

#[tokio::test]
async fn parts_are_large_enough_in_order_and_the_ones_that_were_sent() {
    let origin = MemoryOrigin::new("b");
    let always = write(Condition::Always);
    let (id, parts) = upload(&origin, "k", &[vec![1; 5 * MIB - 1], vec![2]]).await;
    let code = |error: OriginError| match error {
        OriginError::Invalid(code) => code,
        other => panic!("{other}"),
    };
    let complete = async |parts: &[Part]| {
        code(origin.complete_upload("k", &id, parts, &always).await.unwrap_err())
    };
    assert_eq!(complete(&parts).await, "EntityTooSmall");
    let mut turned = parts.clone();
    turned.reverse();
    assert_eq!(complete(&turned).await, "InvalidPartOrder");
    let stranger = Part { number: 3, etag: "\"x\"".into(), checksum: None };
    assert_eq!(complete(&[stranger]).await, "InvalidPart");
    assert_eq!(complete(&[]).await, "MalformedXML");
    let all_named = Behaviour { every_part_named: true, ..Behaviour::default() };
    origin.behave(all_named.with_part_min(1));
    assert_eq!(complete(&parts[..1]).await, "InvalidPart");
    origin.complete_upload("k", &id, &parts, &always).await.unwrap();
}

#[tokio::test]
async fn a_body_with_a_wrong_checksum_is_refused_where_checksums_count() {
    let origin = MemoryOrigin::new("b");
    let wrong = || UploadBody::Memory { bytes: vec![1].into(), crc32c: 1 };
    let always = write(Condition::Always);
    let error = origin.put("k", wrong(), &always).await.unwrap_err();
    assert!(error.is_digest_mismatch(), "{error}");
    origin.behave(Behaviour { checksums_obeyed: false, ..Behaviour::default() });
    origin.put("k", wrong(), &always).await.unwrap();
}

/// What each kind of request says to a condition that does not hold.
async fn refusal(origin: &MemoryOrigin, kind: Kind) -> Result<(), OriginError> {
    origin.insert("there", vec![1]);
    origin.insert("other", vec![2]);
    let (id, parts) = upload(origin, "there", &[vec![3]]).await;
    let any = source("there", &ETag::any(), 1);
    let wrong = source("there", &other(), 1);
    let matches = Condition::Matches(other());
    let put = async |condition| {
        origin.put("there", UploadBody::of(vec![4]), &write(condition)).await.map(|_| ())
    };
    let complete = async |condition| {
        origin.complete_upload("there", &id, &parts, &write(condition)).await.map(|_| ())
    };
    match kind {
        Kind::PutAbsent => put(Condition::Absent).await,
        Kind::PutMatches => put(matches).await,
        Kind::CompleteAbsent => complete(Condition::Absent).await,
        Kind::CompleteMatches => complete(matches).await,
        Kind::CopyAbsent => origin.copy(&any, "other", &Condition::Absent).await.map(|_| ()),
        Kind::CopyMatches => origin.copy(&any, "other", &matches).await.map(|_| ()),
        Kind::DeleteMatches => origin.delete("there", &matches).await,
        Kind::CopySource => origin.copy(&wrong, "other", &Condition::Always).await.map(|_| ()),
        Kind::CopyPartSource => origin.copy_part(&wrong, 0..1, "there", &id, 2).await.map(|_| ()),
    }
}

#[tokio::test]
async fn every_condition_is_obeyed_ignored_or_refused_by_itself() {
    let origin = MemoryOrigin::new("b");
    for kind in Kind::ALL {
        let of_source = matches!(kind, Kind::CopySource | Kind::CopyPartSource);
        let behave = |obedience| origin.behave(Behaviour::default().with([kind], obedience));
        behave(Obedience::Obeyed);
        match refusal(&origin, kind).await {
            Err(OriginError::Changed) if of_source => {}
            Err(OriginError::Conflict) if !of_source => {}
            other => panic!("{kind:?}: {other:?}"),
        }
        behave(Obedience::Ignored);
        refusal(&origin, kind).await.unwrap();
        behave(Obedience::Refused501);
        let refused = refusal(&origin, kind).await;
        assert!(matches!(refused, Err(OriginError::Unsupported(_))), "{kind:?}: {refused:?}");
        for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
            let refused = refusal(&origin, other).await;
            let held = matches!(refused, Err(OriginError::Conflict | OriginError::Changed));
            assert!(held, "{kind:?} changed {other:?}: {refused:?}");
        }
    }
}
