//! Whose credentials sign a session's requests.

use serde::Serialize;
use weir_fuse::cache::former;
use weir_fuse::namespace::AccessSettings;
use weir_fuse::origin::s3::S3Settings;

use super::credentials::{Keys, Source, Through, WebIdentity};
use crate::config::identity;

/// What is known of the keys.
#[derive(Serialize)]
enum Credentials<'a> {
    Driver,
    /// The secret half, too: who knows the id of a key is not who has it.
    Secret(&'a str, &'a str, Option<&'a str>),
    Pod(&'a str, Option<&'a str>, Through),
}

/// How a session with these credentials and settings is to be told from others.
pub(super) fn access(source: &Source, s3: &S3Settings) -> AccessSettings {
    let (kind, credentials) = match source {
        Source::Driver => ("driver".to_owned(), Credentials::Driver),
        Source::Secret(keys) => {
            // Every field is named, so that a new one is decided about.
            let Keys { access_key, secret_key, session_token, endpoint: _, region: _ } = keys;
            let keys = Credentials::Secret(access_key, secret_key, session_token.as_deref());
            ("secret".to_owned(), keys)
        }
        Source::Pod(web) => {
            // The token is of this account, and is renewed each hour.
            let WebIdentity { account, role_arn, through, token: _, expires: _, region: _ } = web;
            (format!("pod {account}"), Credentials::Pod(account, role_arn.as_deref(), *through))
        }
    };
    AccessSettings {
        identity: identity::of(&kind, &credentials, s3),
        formerly: Some(of_earlier_releases(source)),
        each_object: matches!(source, Source::Pod(_)),
        ..AccessSettings::default()
    }
}

/// The same of a session whose credentials were `before`, and are replaced.
pub(super) fn succeeding(before: &AccessSettings, now: &AccessSettings) -> AccessSettings {
    let former = former([&before.identity].into_iter().chain(&before.former), &now.identity);
    AccessSettings { former, ..now.clone() }
}

/// What releases before called them: neither options nor the secret half were in it.
fn of_earlier_releases(source: &Source) -> String {
    match source {
        Source::Driver => "driver".to_owned(),
        Source::Secret(keys) => identity::named("secret", keys.access_key.as_bytes(), 8),
        Source::Pod(web) => {
            format!("pod {} {}", web.account, web.role_arn.as_deref().unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_fuse::cache::FORMER_MAX;

    use super::super::volume::Settings;
    use super::*;

    fn keys(id: &str, secret: &str) -> Source {
        Source::Secret(Keys {
            access_key: id.into(),
            secret_key: secret.into(),
            session_token: None,
            endpoint: None,
            region: None,
        })
    }

    #[test]
    fn whatever_signs_otherwise_is_somebody_else() {
        let plain = S3Settings::default();
        let other = |change: fn(&mut S3Settings)| {
            let mut settings = S3Settings::default();
            change(&mut settings);
            settings
        };
        let pod = |account: &str, role: Option<&str>| {
            Source::Pod(WebIdentity {
                token: "token".into(),
                expires: None,
                role_arn: role.map(str::to_owned),
                region: None,
                account: account.into(),
                through: Through::Sts,
            })
        };
        let all = [
            access(&Source::Driver, &plain),
            access(&Source::Driver, &other(|s3| s3.profile = Some("a".into()))),
            access(&Source::Driver, &other(|s3| s3.profile = Some("b".into()))),
            access(&Source::Driver, &other(|s3| s3.no_sign_request = true)),
            access(&Source::Driver, &other(|s3| s3.requester_pays = true)),
            access(&keys("id", "one"), &plain),
            // The id of a key is no secret.
            access(&keys("id", "two"), &plain),
            access(&keys("idone", ""), &plain),
            access(&pod("a/b", None), &plain),
            access(&pod("a/b", Some("role")), &plain),
        ];
        let names: std::collections::HashSet<_> = all.iter().map(|a| &a.identity).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
        assert!(all.iter().all(|access| !access.identity.contains("one")), "{names:?}");
        assert_eq!(all[5].formerly, all[6].formerly);
        // Where the bytes lie, or how new ones are stored, is not who asks for them.
        let same = [
            other(|s3| s3.storage_class = Some("GLACIER_IR".into())),
            other(|s3| s3.ca_bundle = Some("/etc/ca".into())),
        ];
        assert!(same.iter().all(|s3| access(&Source::Driver, s3) == all[0]));
    }

    #[test]
    fn who_takes_over_names_all_before_him_once() {
        let (one, two) = (keys("id", "one"), keys("id", "two"));
        let s3 = S3Settings::default();
        let (one, two) = (access(&one, &s3), access(&two, &s3));
        let second = succeeding(&one, &two);
        assert_eq!(second.identity, two.identity);
        assert_eq!(second.former, std::slice::from_ref(&one.identity));
        let third = succeeding(&second, &one);
        assert_eq!(third.former, std::slice::from_ref(&two.identity));
        let mut last = one.clone();
        for at in 0..100 {
            last = succeeding(&last, &access(&keys("id", &at.to_string()), &s3));
        }
        assert_eq!(last.former.len(), FORMER_MAX);
    }

    #[test]
    fn a_session_that_a_release_before_has_made_is_named_as_now() {
        let mut settings = Settings::default();
        settings.session.names.access =
            AccessSettings { identity: "driver".into(), ..AccessSettings::default() };
        settings.name_as_now(&Source::Driver);
        let named = settings.session.names.access.clone();
        assert_eq!(named.former, ["driver"]);
        assert_eq!(named.identity, access(&Source::Driver, &settings.s3).identity);
        settings.name_as_now(&Source::Driver);
        assert_eq!(settings.session.names.access, named);
    }
}
