//! A token in a file, which somebody replaces before it expires.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::sync::Mutex;

use crate::blocking::aside;
use crate::chosen_file;

/// Longest token in bytes: more than a server's head of a request may have.
const TOKEN_MAX: u64 = 64 << 10;
/// How old what was read may be.
const FRESH: Duration = Duration::from_secs(1);

/// Why there is no token; it says which file, and nothing of what is in it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoToken(String);

/// A file that has a token.
pub struct TokenFile {
    path: PathBuf,
    whose: &'static str,
    fresh: Duration,
    read: Mutex<Option<(Instant, Arc<str>)>>,
}

impl TokenFile {
    /// The one at this path; `whose` it is stands before "token file" in errors.
    pub fn new(path: PathBuf, whose: &'static str) -> Self {
        Self { path, whose, fresh: FRESH, read: Mutex::new(None) }
    }

    /// The value of the header `Authorization`.
    ///
    /// # Errors
    /// [`NoToken`] when the file never had one; what it had counts while it cannot be
    /// read.
    pub async fn bearer(&self) -> Result<Arc<str>, NoToken> {
        let mut read = self.read.lock().await;
        if let Some((at, bearer)) = &*read
            && at.elapsed() < self.fresh
        {
            return Ok(bearer.clone());
        }
        let path = self.path.clone();
        let bearer = match (aside(move |_| token_in(&path)).await, read.take()) {
            (Ok(token), _) => format!("Bearer {token}").into(),
            (Err(why), Some((_, before))) => {
                let (file, whose) = (self.path.display(), self.whose);
                tracing::warn!(%file, why, "{whose} token cannot be read");
                before
            }
            (Err(why), None) => {
                let text = format!("{} token file {}: {why}", self.whose, self.path.display());
                return Err(NoToken(text));
            }
        };
        Ok(read.insert((Instant::now(), bearer)).1.clone())
    }
}

fn token_in(path: &Path) -> Result<String, String> {
    let bytes = chosen_file::read(path, OFlags::empty(), TOKEN_MAX).map_err(|e| e.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
    let token = text.trim();
    // RFC 6750, section 2.1.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    match !token.is_empty() && token.bytes().all(allowed) {
        true => Ok(token.to_owned()),
        false => Err("it holds no token and nothing else".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_read_again_and_one_that_cannot_be_is_no_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let file =
            TokenFile { fresh: Duration::ZERO, ..TokenFile::new(path.clone(), "the server's") };
        let wrong = [None, Some(""), Some("two words"), Some("a\r\nHost: b")];
        for text in wrong {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let error = file.bearer().await.unwrap_err().to_string();
            assert!(error.contains("token file") && !error.contains("two"), "{error}");
        }
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(&*file.bearer().await.unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(&*file.bearer().await.unwrap(), "Bearer two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&*file.bearer().await.unwrap(), "Bearer two");
    }
}
