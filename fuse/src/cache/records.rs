//! Rows of the index, and how they are encoded (postcard; `docs/cache-format.md`).

use serde::{Deserialize, Serialize};

use crate::model::blocks::{BlockMap, SEGMENT};
use crate::model::version::{BucketId, ETag, Version, VersionKey};

/// A row of the table `objects`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ObjectRow {
    /// Endpoint and bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Tag.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes held on disk.
    pub held: u64,
    /// Last use, in seconds since 1970.
    pub last_used: u64,
    /// The unclean-boot epoch in which every checksum was last checked.
    pub verified_epoch: u32,
}

impl ObjectRow {
    /// The identity in this row, if it is one.
    pub fn version_key(&self) -> Option<VersionKey> {
        let (endpoint, bucket) = self.bucket.split_once('\u{1f}')?;
        Some(VersionKey {
            bucket: BucketId::new(endpoint, bucket),
            key: self.key.as_str().into(),
            version: Version { etag: ETag::new(&self.etag)?, size: self.size },
        })
    }
}

/// A row of the table `signers`: somebody who uses a bucket.
#[derive(Serialize, Deserialize, Clone, Default, Debug, PartialEq, Eq)]
pub struct SignerRow {
    /// When he last began to, in seconds since 1970.
    pub used_s: u64,
    /// What he was known as before, the latest first.
    pub former: Vec<String>,
}

/// A row of the table `listings`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ListingRow {
    /// When the listing was begun, in milliseconds since 1970.
    pub fetched_ms: u64,
    /// How many requests it took.
    pub pages: u32,
    /// Whether the directory has a marker object.
    pub marker: bool,
    /// Its entries.
    pub entries: Vec<ListingEntry>,
}

/// One name in a listing.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ListingEntry {
    /// File name.
    pub name: String,
    /// `None` for a directory.
    pub file: Option<FileEntry>,
}

/// What a listing tells about a file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Size in bytes.
    pub size: u64,
    /// Tag, where the listing had one.
    pub etag: Option<String>,
    /// Last modification, in milliseconds since 1970.
    pub mtime_ms: u64,
}

/// A row of the table `uploads`: a multipart upload that is not finished.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// Endpoint and bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
}

/// Encodes one segment of a range map: a bit per block, then the checksums of the held ones.
pub fn encode_segment(map: &BlockMap, segment: u32) -> Vec<u8> {
    let first = segment.saturating_mul(SEGMENT);
    let mut bits = vec![0_u8; (SEGMENT / 8) as usize];
    let mut sums = Vec::new();
    for at in 0..SEGMENT {
        if let Some(crc) = map.get(first.saturating_add(at)) {
            bits[(at / 8) as usize] |= 1 << (at % 8);
            sums.extend_from_slice(&crc.to_le_bytes());
        }
    }
    bits.extend(sums);
    bits
}

/// Adds one segment's row to a range map. A row of a wrong length adds nothing.
pub fn decode_segment(map: &mut BlockMap, segment: u32, row: &[u8]) -> bool {
    let Some((bits, sums)) = row.split_at_checked((SEGMENT / 8) as usize) else { return false };
    let set: u32 = bits.iter().map(|b| b.count_ones()).sum();
    let (sums, rest) = sums.as_chunks::<4>();
    if !rest.is_empty() || sums.len() != set as usize {
        return false;
    }
    let held = (0..SEGMENT).filter(|at| bits[(at / 8) as usize] & (1 << (at % 8)) != 0);
    for (at, crc) in held.zip(sums) {
        let block = segment.saturating_mul(SEGMENT).saturating_add(at);
        map.insert(block, u32::from_le_bytes(*crc));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_survives_its_encoding_and_a_damaged_one_adds_nothing() {
        let mut map = BlockMap::empty(1000);
        for block in [0, 7, 511, 512, 999] {
            map.insert(block, block * 3);
        }
        let mut back = BlockMap::empty(1000);
        for segment in 0..2 {
            let row = encode_segment(&map, segment);
            assert!(!decode_segment(&mut BlockMap::empty(1000), segment, &row[..row.len() - 1]));
            assert!(decode_segment(&mut back, segment, &row));
        }
        assert_eq!(map, back);
        assert!(!decode_segment(&mut BlockMap::empty(8), 0, &[]));
    }
}
