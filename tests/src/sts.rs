//! Keys that last an hour, with as many rights as a test gives them.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use aws_sdk_sts::config::{BehaviorVersion, Region};
use weir_fuse::origin::s3::http_client;

use crate::bucket::Bucket;
use crate::oidc::Provider;
use crate::{minio, runtime};

/// Writes a file and hears whether it is stored; `fs::write` does not hear what close answers.
///
/// # Errors
/// What any of its steps answers.
pub fn store(path: &Path, bytes: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes.as_bytes())?;
    file.sync_all()
}

/// A MinIO that gives keys out.
pub struct Issuer {
    /// Whose tokens it takes.
    pub provider: Provider,
    /// A bucket on it.
    pub bucket: Bucket,
}

/// Keys from MinIO's security token service.
#[derive(Clone)]
pub struct SessionKeys {
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// The token that belongs to them.
    pub token: String,
}

impl Issuer {
    /// Starts one.
    pub fn start() -> Self {
        let provider = Provider::start();
        let data = tempfile::Builder::new().prefix("weir-minio-").tempdir_in("/var/tmp").unwrap();
        let minio = minio::start_with(data.keep(), provider.settings());
        Self { provider, bucket: Bucket::on(&minio) }
    }

    /// Keys that may do these things (`s3:GetObject`, for instance) with every bucket. What MinIO
    /// gives its own root is not narrowed by a policy: these are somebody else's.
    pub fn keys(&self, actions: &[&str]) -> SessionKeys {
        let policy = serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": actions, "Resource": ["arn:aws:s3:::*"]}],
        });
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client(None).unwrap())
            .endpoint_url(&self.bucket.url)
            .region(Region::new("us-east-1"))
            .build();
        let asked = aws_sdk_sts::Client::from_conf(config)
            .assume_role_with_web_identity()
            .web_identity_token(self.provider.token("somebody", "readwrite"))
            .role_arn("arn:aws:iam::000000000000:role/any")
            .role_session_name("test")
            .policy(policy.to_string())
            .send();
        let keys = runtime().block_on(asked).unwrap().credentials.unwrap();
        SessionKeys {
            access_key: keys.access_key_id,
            secret_key: keys.secret_access_key,
            token: keys.session_token,
        }
    }

    /// Keys that may list and read.
    pub fn reading(&self) -> SessionKeys {
        self.keys(&["s3:ListBucket", "s3:GetObject"])
    }
}
