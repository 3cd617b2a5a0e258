//! Whose credentials brought what is here: by bucket, who has used it, and who came before him.

use std::time::Duration;

use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Index, encode, logged, quick_write};
use crate::blocking::MayBlock;
use crate::cache::records::SignerRow;

/// Who has used a bucket.
const SIGNERS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("signers");
/// As releases before wrote it: without a time.
const IDENTITIES: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("identities");

/// Who was not seen for so long has ended: nobody is asked for more on his account.
const EXPIRY: Duration = Duration::from_secs(30 * 24 * 3600);
/// How exact the time of the last use is.
const EXACT: Duration = Duration::from_secs(3600);
/// Identities before one that are remembered.
pub const FORMER_MAX: usize = 32;

/// Somebody who begins to use a bucket.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Signer {
    /// Names his credentials.
    pub identity: String,
    /// What he was known as before.
    pub former: Vec<String>,
    /// Identities whose rows are his from now on: he has taken their place.
    pub replaces: Vec<String>,
}

/// How he stands among those who use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether nobody else does, or did within a month.
    pub alone: bool,
    /// What he was known as, the latest first.
    pub former: Vec<String>,
}

/// What somebody was known as, of names with the latest first: each once, and not as he is now.
pub fn former<'a>(names: impl IntoIterator<Item = &'a String>, identity: &str) -> Vec<String> {
    let mut former: Vec<String> = Vec::new();
    for name in names {
        if name != identity && !former.contains(name) {
            former.push(name.clone());
        }
    }
    former.truncate(FORMER_MAX);
    former
}

impl Index {
    /// Notes that somebody uses a bucket, `now` being in seconds since 1970: on the disk where that is
    /// new, with the next commit where it is only that it was noted more than an hour ago. Who `lives` has neither
    /// ended, however long ago he came, nor been replaced. `None`: it could not be noted.
    pub fn enter(
        &self,
        _: &MayBlock,
        bucket: &str,
        signer: &Signer,
        now: u64,
        lives: impl Fn(&str) -> bool,
    ) -> Option<Standing> {
        logged(self.try_enter(bucket, signer, now, lives))
    }

    /// What somebody was known as before, the latest first; `None` for one who has not used the
    /// bucket.
    pub fn former_of(&self, _: &MayBlock, bucket: &str, identity: &str) -> Option<Vec<String>> {
        let read = self.with(|db| {
            let table = db.begin_read()?.open_table(SIGNERS)?;
            let row = table.get((bucket, identity))?;
            Ok(row.and_then(|row| postcard::from_bytes::<SignerRow>(row.value()).ok()))
        });
        logged(read).flatten().map(|row| row.former)
    }

    fn try_enter(
        &self,
        bucket: &str,
        signer: &Signer,
        now: u64,
        lives: impl Fn(&str) -> bool,
    ) -> Result<Standing, redb::Error> {
        self.with(|db| {
            let rows = rows_of(&db.begin_read()?.open_table(SIGNERS)?, bucket)?;
            let noted = Entry::among(rows, signer, now, &lives);
            if noted.is_known && noted.is_recent && noted.gone.is_empty() {
                return Ok(noted.standing());
            }
            let mut txn = quick_write(db)?;
            let entry = {
                let mut table = txn.open_table(SIGNERS)?;
                // Somebody may have come meanwhile: of two one knows of the other.
                let entry = Entry::among(rows_of(&table, bucket)?, signer, now, &lives);
                for name in &entry.gone {
                    table.remove((bucket, name.as_str()))?;
                }
                table.insert((bucket, &*signer.identity), encode(&entry.own)?.as_slice())?;
                entry
            };
            if entry.is_known && entry.gone.is_empty() {
                // A node that starts has hundreds of them, and nobody is to wait for each.
                txn.set_durability(Durability::None)?;
            }
            txn.commit()?;
            Ok(entry.standing())
        })
    }
}

/// What becomes of the rows of a bucket that somebody begins to use.
struct Entry {
    own: SignerRow,
    /// Of those who have ended, or were replaced.
    gone: Vec<String>,
    /// Whether somebody else stays.
    others: bool,
    is_known: bool,
    is_recent: bool,
}

impl Entry {
    fn among(
        mut rows: Vec<(String, SignerRow)>,
        signer: &Signer,
        now: u64,
        lives: impl Fn(&str) -> bool,
    ) -> Self {
        let before = rows.extract_if(.., |(name, _)| *name == signer.identity).next();
        let before = before.map(|(_, row)| row);
        let ended = |row: &SignerRow| now.saturating_sub(row.used_s) > EXPIRY.as_secs();
        let goes = |(name, row): &mut (String, SignerRow)| {
            !lives(name) && (ended(row) || signer.replaces.contains(name))
        };
        let gone: Vec<_> = rows.extract_if(.., goes).collect();
        let replaced = gone.iter().filter(|(name, _)| signer.replaces.contains(name));
        let inherited = replaced.flat_map(|(_, row)| &row.former);
        let known = before.iter().flat_map(|row| &row.former);
        let names = signer.former.iter().chain(inherited).chain(known);
        let own = SignerRow { used_s: now, former: former(names, &signer.identity) };
        Self {
            is_known: before.as_ref().is_some_and(|row| row.former == own.former),
            is_recent: before.is_some_and(|row| now.saturating_sub(row.used_s) < EXACT.as_secs()),
            others: !rows.is_empty(),
            gone: gone.into_iter().map(|(name, _)| name).collect(),
            own,
        }
    }

    fn standing(self) -> Standing {
        Standing { alone: !self.others, former: self.own.former }
    }
}

fn rows_of(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    bucket: &str,
) -> Result<Vec<(String, SignerRow)>, redb::Error> {
    let mut rows = Vec::new();
    for row in table.range((bucket, "")..)? {
        let (key, value) = row?;
        let (of, name) = key.value();
        if of != bucket {
            break;
        }
        // One that cannot be read is of somebody, long ago.
        let row = postcard::from_bytes::<SignerRow>(value.value()).unwrap_or_default();
        rows.push((name.to_owned(), row));
    }
    Ok(rows)
}

/// Makes the table; what releases before wrote is taken over, as if it had been used `now`.
pub(super) fn take_over(txn: &WriteTransaction, now: u64) -> Result<(), redb::Error> {
    let mut table = txn.open_table(SIGNERS)?;
    let mut of_before = Vec::new();
    for row in txn.open_table(IDENTITIES)?.iter()? {
        let (key, _) = row?;
        let (bucket, identity) = key.value();
        of_before.push((bucket.to_owned(), identity.to_owned()));
    }
    let row = SignerRow { used_s: now, former: Vec::new() };
    for (bucket, identity) in &of_before {
        table.insert((bucket.as_str(), identity.as_str()), encode(&row)?.as_slice())?;
    }
    txn.delete_table(IDENTITIES)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking::MAY;
    use crate::cache::dir::CacheDir;

    const DAY: u64 = 24 * 3600;

    fn enter(index: &Index, identity: &str, replaces: &[&str], now: u64) -> Standing {
        let replaces: Vec<String> = replaces.iter().map(|name| (*name).to_owned()).collect();
        let identity = identity.to_owned();
        let signer = Signer { identity, former: replaces.clone(), replaces };
        index.enter(&MayBlock::own_thread(), "b", &signer, now, |name| name == "old").unwrap()
    }

    fn alone(former: &[&str]) -> Standing {
        Standing { alone: true, former: former.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn who_was_replaced_or_was_long_not_seen_is_nobody_else() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let index = Index::open(MAY, &dir).unwrap();
        assert_eq!(enter(&index, "one", &[], 0), alone(&[]));
        assert_eq!(enter(&index, "one", &[], 5), alone(&[]));
        // Of another bucket.
        let other = Signer { identity: "two".into(), ..Signer::default() };
        assert!(index.enter(&MayBlock::own_thread(), "bb", &other, 5, |_| false).unwrap().alone);
        // Keys rotate.
        assert_eq!(enter(&index, "one'", &["one"], 10), alone(&["one"]));
        assert_eq!(enter(&index, "one''", &["one'"], 10), alone(&["one'", "one"]));
        // And are remembered without being told.
        assert_eq!(enter(&index, "one''", &[], DAY), alone(&["one'", "one"]));
        // Somebody else is there until he was not seen for a month.
        assert!(!enter(&index, "two", &[], 2 * DAY).alone);
        assert!(!enter(&index, "one''", &[], 3 * DAY).alone);
        assert!(!enter(&index, "one''", &[], 32 * DAY).alone);
        assert!(enter(&index, "one''", &[], 33 * DAY).alone);
        assert!(enter(&index, "one''", &[], 33 * DAY + 1).alone);
        // He comes again.
        assert!(!enter(&index, "two", &[], 34 * DAY).alone);
        assert!(enter(&index, "two", &["one''"], 34 * DAY).alone);
        // Who lives is there, however long ago he came, and nobody takes his place.
        assert!(!enter(&index, "old", &[], 34 * DAY).alone);
        assert!(!enter(&index, "two", &["old"], 90 * DAY).alone);
        index.close(MAY);
        let noted = index.enter(&MayBlock::own_thread(), "b", &other, 0, |_| false);
        assert_eq!(noted, None, "he is to be noted later");
    }

    #[test]
    fn rows_of_the_former_form_are_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::own(MAY, temp.path(), 0).unwrap();
        let index = Index::open(MAY, &dir).unwrap();
        index
            .with(|db| {
                let txn = quick_write(db)?;
                txn.open_table(IDENTITIES)?.insert(("b", "driver"), ())?;
                txn.commit()?;
                Ok(())
            })
            .unwrap();
        drop(index);
        let index = Index::open(MAY, &dir).unwrap();
        let now = crate::cache::version::now_secs();
        assert!(!enter(&index, "stranger", &[], now).alone);
        drop(index);
        let index = Index::open(MAY, &dir).unwrap();
        let two = enter(&index, "driver 1", &["driver"], now);
        assert_eq!(two, Standing { alone: false, former: vec!["driver".to_owned()] });
        // The row is gone for others, too: only the two are there.
        assert!(enter(&index, "driver 1", &["stranger"], now).alone);
    }
}
