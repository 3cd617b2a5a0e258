use weir_fuzz::near;

use super::*;

#[test]
fn verdicts_of_any_bytes_are_believed_for_a_day_at_most() {
    let mut known = Known::default();
    let now = SystemTime::now();
    for (kind, verdict) in ConditionKind::ALL.into_iter().zip([
        Verdict::Obeyed,
        Verdict::ObeyedBare,
        Verdict::Ignored,
        Verdict::Refused,
    ]) {
        known.note(Question::Condition(kind), verdict, now);
    }
    known.note(Question::Checksums, Verdict::Obeyed, now);
    let bucket = BucketId::new("e", "b");
    let verdicts = MemoryVerdicts::default();
    near(&[postcard::to_allocvec(&known).unwrap(), Vec::new()], |bytes| {
        verdicts.store(&bucket, bytes.to_vec());
        let known = Known::read(&verdicts.known(&bucket).unwrap());
        let questions = ConditionKind::ALL.map(Question::Condition);
        for question in questions.into_iter().chain([Question::Checksums]) {
            for now in [SystemTime::now(), SystemTime::UNIX_EPOCH] {
                let mut sum = Known::default();
                sum.add(known.clone(), now);
                assert!(known.get(question, now).is_none_or(|(_, age)| age < BELIEVED));
                assert_eq!(sum.get(question, now), known.get(question, now));
            }
        }
        known.store(&verdicts, &bucket);
        assert_eq!(Known::read(&verdicts.known(&bucket).unwrap()), known);
    });
}
