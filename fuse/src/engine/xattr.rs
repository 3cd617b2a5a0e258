//! Extended attributes that tell about a file's version.

use rustix::io::Errno;

use super::session::Session;
use crate::blocking::MayBlock;
use crate::namespace::Node;

/// The attributes of a file.
const NAMES: [&str; 3] = ["user.weir.etag", "user.weir.version", "user.weir.cached"];

impl Session {
    /// Value of an attribute, if the origin need not be asked.
    pub fn getxattr_now(
        &self,
        may: &MayBlock,
        ino: u64,
        name: &str,
    ) -> Option<Result<String, Errno>> {
        let Some(Node::File(node)) = self.names.inodes.get(ino) else {
            return Some(Err(Errno::NODATA));
        };
        let Some(key) = self.names.version_key(&node) else { return Some(Err(Errno::NODATA)) };
        match name {
            "user.weir.etag" => Some(Ok(key.version.etag.as_str().to_owned())),
            "user.weir.version" => node.version_id().map(|id| Ok(id.into())),
            "user.weir.cached" => {
                // Of nothing, all is held.
                let unknown = if key.version.size == 0 { 100 } else { 0 };
                let cached = self.engine.cache.peek(may, &key);
                Some(Ok(cached.map_or(unknown, |version| version.percent()).to_string()))
            }
            _ => Some(Err(Errno::NODATA)),
        }
    }

    /// The version id, asked of the origin: listings do not tell it. `null`, as S3 says it, where
    /// the bucket is not versioned.
    ///
    /// # Errors
    /// ESTALE when the name shows another version by now; what the origin reports.
    pub async fn version_xattr(&self, ino: u64) -> Result<String, Errno> {
        let node = self.file(ino)?;
        let info = self.names.origin.head(&node.key()).await.map_err(|error| error.errno())?;
        if info.version() != node.version() {
            return Err(Errno::STALE);
        }
        Ok(info.version_id.map_or_else(|| "null".to_owned(), Into::into))
    }

    /// Names of all attributes.
    pub fn listxattr(&self, ino: u64) -> &'static [&'static str] {
        match self.names.inodes.get(ino) {
            Some(Node::File(node)) if node.version().is_some() => &NAMES,
            _ => &[],
        }
    }
}
