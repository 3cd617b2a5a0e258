//! An OpenID provider, as a cluster is one for its service accounts' tokens: MinIO trusts what it
//! signs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// A provider on loopback.
pub struct Provider {
    url: String,
    key: PathBuf,
    _dir: TempDir,
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            out.push(DIGITS[(word >> (18 - 6 * place) & 63) as usize] as char);
        }
    }
    out
}

fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {args:?}");
    output.stdout
}

impl Provider {
    /// Starts one.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        fs::write(&key, openssl(&["genrsa", "2048"], b"")).unwrap();
        let modulus = openssl(&["rsa", "-noout", "-modulus", "-in", key.to_str().unwrap()], b"");
        let modulus = String::from_utf8(modulus).unwrap();
        let hex = modulus.trim().trim_start_matches("Modulus=").as_bytes().chunks(2);
        let modulus: Vec<u8> = hex
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let jwks = format!(
            r#"{{"keys":[{{"kty":"RSA","use":"sig","alg":"RS256","kid":"k","n":"{}","e":"AQAB"}}]}}"#,
            base64(&modulus)
        );
        let discovery = format!(
            r#"{{"issuer":"{url}","jwks_uri":"{url}/keys","authorization_endpoint":"{url}/auth",
               "token_endpoint":"{url}/token","response_types_supported":["id_token"],
               "subject_types_supported":["public"],"id_token_signing_alg_values_supported":["RS256"]}}"#
        );
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let _ = reader.read_line(&mut line);
                let mut rest = String::new();
                while reader.read_line(&mut rest).is_ok_and(|n| n > 2) {
                    rest.clear();
                }
                let body = if line.contains("/keys") { &jwks } else { &discovery };
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { url, key, _dir: dir }
    }

    /// What MinIO must be told to trust it.
    pub fn settings(&self) -> Vec<(String, String)> {
        let url = format!("{}/.well-known/openid-configuration", self.url);
        vec![
            ("MINIO_IDENTITY_OPENID_CONFIG_URL".into(), url),
            ("MINIO_IDENTITY_OPENID_CLIENT_ID".into(), "sts.amazonaws.com".into()),
        ]
    }

    /// A token for somebody whom MinIO is to give this policy.
    pub fn token(&self, subject: &str, policy: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let head = r#"{"alg":"RS256","typ":"JWT","kid":"k"}"#;
        let claims = format!(
            r#"{{"iss":"{}","aud":"sts.amazonaws.com","sub":"{subject}","policy":"{policy}",
               "iat":{now},"exp":{}}}"#,
            self.url,
            now + 3600
        );
        let text = format!("{}.{}", base64(head.as_bytes()), base64(claims.as_bytes()));
        let sign = ["dgst", "-sha256", "-sign", self.key.to_str().unwrap()];
        format!("{text}.{}", base64(&openssl(&sign, text.as_bytes())))
    }
}
