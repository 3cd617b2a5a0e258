//! Roles of Amazon's, and of services that name theirs alike.

/// The shortest and the longest that a security token service takes, in characters. Fact: STS API
/// reference, AssumeRoleWithWebIdentity, RoleArn.
const LENGTHS: std::ops::RangeInclusive<usize> = 20..=2048;

/// Checks the ARN of a role: `arn:PARTITION:iam::ACCOUNT:role/NAME`, the name behind any path. MinIO
/// and Ceph have roles without an account, and partitions of their own. Fact: IAM user guide, "IAM
/// ARNs".
///
/// # Errors
/// What is wrong with it, in words that repeat nothing of it.
pub(crate) fn role_arn(text: &str) -> Result<&str, &'static str> {
    if text.chars().any(|c| !c.is_ascii_graphic()) {
        return Err("it has a blank, or what is no plain character");
    }
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let [scheme, partition, service, region, _account, resource] = parts[..] else {
        return Err("an ARN has six parts");
    };
    if scheme != "arn" || partition.is_empty() {
        return Err("it does not begin as an ARN");
    }
    if service != "iam" || !region.is_empty() {
        return Err("it is of no role, which are of iam and of no region");
    }
    match resource.strip_prefix("role/").map(|name| name.rsplit('/').next()) {
        Some(Some(name)) if !name.is_empty() => {}
        _ => return Err("it is of no role, or of one without a name"),
    }
    match LENGTHS.contains(&text.len()) {
        true => Ok(text),
        false => Err("it has less than 20 characters, or more than 2048"),
    }
}

#[cfg(test)]
mod tests {
    use weir_fuzz::near_texts;

    use super::*;

    const ROLES: [&str; 5] = [
        "arn:aws:iam::111122223333:role/reader",
        "arn:aws-cn:iam::111122223333:role/teams/a/reader",
        "arn:aws-us-gov:iam::111122223333:role/service-role/r=+,.@-_",
        "arn:minio:iam:::role/dummy-internal",
        "arn:aws:iam::tenant:role/reader",
    ];

    #[test]
    fn roles_of_every_partition_and_service_are_taken() {
        for role in ROLES {
            assert_eq!(role_arn(role), Ok(role));
        }
    }

    #[test]
    fn what_names_no_role_is_refused() {
        for text in [
            "",
            "reader",
            "arn:aws:iam::111122223333:reader",
            "arn:aws:iam::111122223333:user/reader",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/teams/",
            "arn:aws:iam::111122223333:roles/reader",
            "arn:aws:iam:eu-west-1:111122223333:role/reader",
            "arn:aws:sts::111122223333:assumed-role/reader/pod",
            "arn::iam::111122223333:role/reader",
            "urn:aws:iam::111122223333:role/reader",
            " arn:aws:iam::111122223333:role/reader",
            "arn:aws:iam::111122223333:role/reader\n",
            "arn:x:iam:::role/r",
        ] {
            assert!(role_arn(text).is_err(), "{text:?}");
        }
        let long = format!("arn:aws:iam::111122223333:role/{}", "r".repeat(2048));
        assert!(role_arn(&long).is_err());
    }

    #[test]
    fn a_role_of_any_text_is_an_arn_of_one_line_or_refused() {
        near_texts(&ROLES, |text| {
            let Ok(role) = role_arn(text) else { return };
            assert!(role.starts_with("arn:") && role.contains(":role/"), "{role:?}");
            assert!(LENGTHS.contains(&role.len()) && role.chars().all(|c| c.is_ascii_graphic()));
        });
    }
}
