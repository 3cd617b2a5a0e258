//! What S3 holds, seen past any mount.

use weir_fuse::origin::memory::MemoryOrigin;

use crate::bucket::Bucket;

/// Objects as somebody else stores and sees them.
pub trait Store {
    /// Stores an object.
    fn put(&self, key: &str, bytes: Vec<u8>);
    /// Removes one.
    fn delete(&self, key: &str);
    /// The bytes of one.
    fn get(&self, key: &str) -> Option<Vec<u8>>;
}

impl Store for MemoryOrigin {
    fn put(&self, key: &str, bytes: Vec<u8>) {
        self.insert(key, bytes);
    }

    fn delete(&self, key: &str) {
        self.remove(key);
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.bytes(key).map(|bytes| bytes.to_vec())
    }
}

impl Store for Bucket {
    fn put(&self, key: &str, bytes: Vec<u8>) {
        Bucket::put(self, key, bytes);
    }

    fn delete(&self, key: &str) {
        Bucket::delete(self, key);
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        Bucket::get(self, key)
    }
}
