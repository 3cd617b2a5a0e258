//! What regions are to forget.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Index, logged, quick_write};
use crate::blocking::MayBlock;

/// By bucket and key.
const REGION_EVICTIONS: TableDefinition<'_, (&str, &str), ()> =
    TableDefinition::new("region_evictions");

/// A key of a bucket that a region is to forget or, where that is not due any more, need not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionEviction {
    /// Name of the bucket.
    pub bucket: Box<str>,
    /// Key.
    pub key: Box<str>,
    /// Whether it is to.
    pub is_due: bool,
}

impl Index {
    /// All keys that regions are to forget.
    pub fn region_evictions(&self, _: &MayBlock) -> Vec<RegionEviction> {
        let read = self.with(|db| {
            let table = db.begin_read()?.open_table(REGION_EVICTIONS)?;
            let mut out = Vec::new();
            for row in table.iter()? {
                let (name, _) = row?;
                let (bucket, key) = name.value();
                out.push(RegionEviction { bucket: bucket.into(), key: key.into(), is_due: true });
            }
            Ok(out)
        });
        logged(read).unwrap_or_default()
    }

    /// Makes these rows durable, the later ones of a key after those before.
    ///
    /// # Errors
    /// What redb reports; none of them is then in effect.
    pub fn note_region_evictions(
        &self,
        _: &MayBlock,
        rows: &[RegionEviction],
    ) -> Result<(), redb::Error> {
        self.with(|db| {
            let txn = quick_write(db)?;
            {
                let mut table = txn.open_table(REGION_EVICTIONS)?;
                for RegionEviction { bucket, key, is_due } in rows {
                    match is_due {
                        true => table.insert((&**bucket, &**key), ())?,
                        false => table.remove((&**bucket, &**key))?,
                    };
                }
            }
            Ok(txn.commit()?)
        })
    }
}

/// Makes the table.
pub(super) fn make(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(REGION_EVICTIONS)?;
    Ok(())
}
