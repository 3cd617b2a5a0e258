//! Settings of a regional cache.

use weir_fuse::origin::region::RegionSettings;

use super::s3::check_endpoint;
use super::usage;
use crate::cli::{RegionArgs, RegionKind};
use crate::exit::Failure;

/// Checks the options of regions; empty where there are none.
///
/// # Errors
/// A usage failure that names the option.
pub fn region_settings(args: &RegionArgs) -> Result<Vec<RegionSettings>, Failure> {
    let RegionArgs { region_url, region_kind, region_token_file, region_profile, .. } = args;
    if region_url.is_empty() {
        let given = [
            ("--region-token-file", region_token_file.is_some()),
            ("--region-profile", region_profile.is_some()),
            ("--region-ca-bundle", args.region_ca_bundle.is_some()),
            ("--region-allow", !args.region_allow.is_empty()),
        ];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((option, _)) => Err(usage(format!("{option} needs --region-url"))),
            None => Ok(Vec::new()),
        };
    }
    for (n, url) in region_url.iter().enumerate() {
        check_endpoint("--region-url", url)?;
        if region_url[..n].contains(url) {
            return Err(usage(format!("--region-url {url} is given twice")));
        }
    }
    match region_kind {
        RegionKind::Aistore if region_profile.is_some() => {
            return Err(usage("--region-profile is for --region-kind s3: AIStore takes a token"));
        }
        RegionKind::S3 if region_token_file.is_some() => {
            return Err(usage("--region-token-file is for --region-kind aistore: S3 takes keys"));
        }
        RegionKind::S3 if !args.region_allow.is_empty() => {
            return Err(usage("--region-allow is for --region-kind aistore: S3 redirects nowhere"));
        }
        _ => {}
    }
    if let Some(host) = args.region_allow.iter().find(|host| !is_host(host)) {
        return Err(usage(format!("--region-allow {host}: it is HOST or HOST:PORT")));
    }
    let settings = |url: &String| RegionSettings {
        url: url.clone(),
        kind: (*region_kind).into(),
        token_file: region_token_file.clone(),
        profile: region_profile.clone(),
        ca_bundle: args.region_ca_bundle.clone(),
        allow: args.region_allow.clone(),
    };
    Ok(region_url.iter().map(settings).collect())
}

fn is_host(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]_".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Given {
        #[command(flatten)]
        region: RegionArgs,
    }

    fn settings(flags: &str) -> Result<Vec<RegionSettings>, Failure> {
        region_settings(&Given::try_parse_from(flags.split_whitespace()).unwrap().region)
    }

    #[test]
    fn a_region_is_checked_and_none_is_none() {
        assert_eq!(settings("").unwrap(), []);
        let region = settings("--region-url http://ais:51080 --region-allow t1,t2:51081").unwrap();
        assert_eq!(region[0].allow, ["t1", "t2:51081"]);
        let both = settings("--region-url http://a --region-url http://b").unwrap();
        assert_eq!(
            both.iter().map(|region| &*region.url).collect::<Vec<_>>(),
            ["http://a", "http://b"]
        );
        for (flags, word) in [
            ("--region-token-file /t", "--region-url"),
            ("--region-allow t1", "--region-url"),
            ("--region-url ais:51080", "http://"),
            ("--region-url http://a --region-url ais:51080", "http://"),
            ("--region-url http://a --region-url http://a", "twice"),
            ("--region-url http://KEY:HUSH@ais", "names a user"),
            ("--region-url http://ais --region-profile p", "--region-kind s3"),
            ("--region-url http://s3 --region-kind s3 --region-token-file /t", "aistore"),
            ("--region-url http://s3 --region-kind s3 --region-allow t1", "aistore"),
            ("--region-url http://ais --region-allow http://t1/", "HOST:PORT"),
        ] {
            let text = settings(flags).unwrap_err().text;
            assert!(text.contains(word) && !text.contains("HUSH"), "{flags}: {text}");
        }
    }
}
