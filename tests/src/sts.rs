//! Keys that last an hour, with as many rights as a test gives them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use weir_fuse::blocking::MayBlock;
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

impl From<aws_sdk_sts::types::Credentials> for SessionKeys {
    fn from(keys: aws_sdk_sts::types::Credentials) -> Self {
        Self {
            access_key: keys.access_key_id,
            secret_key: keys.secret_access_key,
            token: keys.session_token,
        }
    }
}

impl Issuer {
    /// Starts one.
    pub fn start() -> Self {
        let provider = Provider::start();
        let data = tempfile::Builder::new().prefix("weir-minio-").tempdir_in("/var/tmp").unwrap();
        let minio = minio::start_with(data.keep(), provider.settings());
        Self { provider, bucket: Bucket::on(&minio) }
    }

    /// Keys that may do these things (`s3:GetObject`, for instance) with every bucket.
    pub fn keys(&self, actions: &[&str]) -> SessionKeys {
        let rights: Vec<_> = actions.iter().map(|action| (*action, "*")).collect();
        self.keys_for(&rights)
    }

    /// Keys that may do each of these things with what has such a name, bucket and key. What MinIO
    /// gives its own root is not narrowed by a policy: these are somebody else's.
    pub fn keys_for(&self, rights: &[(&str, &str)]) -> SessionKeys {
        let statement = |(action, name): &(&str, &str)| {
            let resource = format!("arn:aws:s3:::{name}");
            serde_json::json!({"Effect": "Allow", "Action": [action], "Resource": [resource]})
        };
        let statements: Vec<_> = rights.iter().map(statement).collect();
        let policy = serde_json::json!({"Version": "2012-10-17", "Statement": statements});
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http_client(&MayBlock::own_thread(), None).unwrap())
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
        runtime().block_on(asked).unwrap().credentials.unwrap().into()
    }

    /// Keys that may list and read.
    pub fn reading(&self) -> SessionKeys {
        self.keys(&["s3:ListBucket", "s3:GetObject"])
    }
}

/// A security token service that gives whoever brings a token the keys of a bucket, if he names one of
/// its roles. MinIO's own looks at tokens alone.
pub struct RoleService {
    /// Where it listens.
    pub url: String,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl RoleService {
    /// Starts one that knows these roles, by their ARNs.
    pub fn start(listener: TcpListener, roles: &[&str], bucket: &Bucket) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, keys) = (asked.clone(), keys_of(bucket));
        let roles: Vec<_> = roles.iter().map(|role| (*role).to_owned()).collect();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Some(form) = form(&stream) else { continue };
                let field = |name: &str| {
                    let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
                    let value =
                        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next();
                    value.unwrap_or_default().replace("%3A", ":").replace("%2F", "/")
                };
                let role = field("RoleArn");
                let is_known = roles.contains(&role) && !field("WebIdentityToken").is_empty();
                kept.lock().unwrap().push((role, field("RoleSessionName")));
                let (status, body) = match is_known {
                    true => ("200 OK", granted(&keys)),
                    false => ("403 Forbidden", REFUSED.to_owned()),
                };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { url, asked }
    }

    /// Roles that were asked for, each with the name of the session.
    pub fn asked(&self) -> Vec<(String, String)> {
        self.asked.lock().unwrap().clone()
    }
}

const REFUSED: &str = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>\
    <Message>no such role</Message></Error><RequestId>1</RequestId></ErrorResponse>";

fn granted(keys: &SessionKeys) -> String {
    format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{}</AccessKeyId>\
         <SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>2100-01-01T00:00:00Z</Expiration></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        keys.access_key, keys.secret_key, keys.token
    )
}

/// The body of a request.
fn form(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

/// Keys with all rights of the bucket's owner.
fn keys_of(bucket: &Bucket) -> SessionKeys {
    let owner = Credentials::new(&bucket.access_key, &bucket.secret_key, None, None, "owner");
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http_client(&MayBlock::own_thread(), None).unwrap())
        .endpoint_url(&bucket.url)
        .credentials_provider(owner)
        .region(Region::new("us-east-1"))
        .build();
    let asked = aws_sdk_sts::Client::from_conf(config)
        .assume_role()
        .role_arn("arn:aws:iam::000000000000:role/any")
        .role_session_name("test")
        .send();
    runtime().block_on(asked).unwrap().credentials.unwrap().into()
}
