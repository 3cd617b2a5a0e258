//! What tenants may take of a cache's disks for what they write, so that nobody's files drive out all
//! that others have cached or are writing. A tenant's mounts count together, however many they are:
//! while there are several tenants, one has at most half of a disk, and all together three quarters, but
//! for a sixteenth that each may have. One that is alone leaves a sixteenth, where others may come. So
//! whatever one tenant has taken, another that has nothing can write a sixteenth.

use std::collections::HashMap;
use std::sync::Arc;

use crate::sync::{Mutex, MutexGuard, unpoisoned};

/// The part of a disk that a tenant may have in any case.
const LITTLE: u64 = 16;

/// The tenants of a cache.
#[derive(Clone)]
pub(super) struct Shares {
    accounts: Arc<Mutex<Accounts>>,
    disks: usize,
}

struct Accounts {
    /// Those who have mounts, by their names.
    tenants: HashMap<String, Tenant>,
    /// Bytes that all of them have taken, by the number of the disk.
    taken: Box<[u64]>,
}

struct Tenant {
    mounts: usize,
    taken: Box<[u64]>,
}

/// What a mount may take with all others of its tenant. It counts as a mount while it lives.
pub struct Share {
    all: Shares,
    tenant: String,
}

impl Shares {
    /// No tenant yet, of a cache whose disks have numbers below this.
    pub(super) fn new(disks: usize) -> Self {
        let accounts = Accounts { tenants: HashMap::new(), taken: nothing(disks) };
        Self { accounts: Arc::new(Mutex::new(accounts)), disks }
    }

    /// One mount more, of this tenant; the name is empty where no other can come.
    pub(super) fn begin(&self, tenant: &str) -> Arc<Share> {
        let mut accounts = self.accounts();
        let new = || Tenant { mounts: 0, taken: nothing(self.disks) };
        accounts.tenants.entry(tenant.to_owned()).or_insert_with(new).mounts += 1;
        Arc::new(Share { all: self.clone(), tenant: tenant.to_owned() })
    }

    /// Whether several tenants share the cache.
    pub(super) fn are_several(&self) -> bool {
        self.accounts().tenants.len() > 1
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        unpoisoned(self.accounts.lock())
    }
}

fn nothing(disks: usize) -> Box<[u64]> {
    (0..disks).map(|_| 0).collect()
}

impl Share {
    /// Whose it is.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Whether the tenant may take `more` bytes of a disk that has `total` for what is written.
    pub(super) fn allows(&self, disk: u8, more: u64, total: u64) -> bool {
        self.look(&mut self.all.accounts(), disk).is_none_or(|taken| taken.allows(more, total))
    }

    /// Takes `more` bytes of a disk that has `total` for what is written, if the tenant may have them.
    pub(super) fn take(&self, disk: u8, more: u64, total: u64) -> bool {
        let mut accounts = self.all.accounts();
        let Some(taken) = self.look(&mut accounts, disk) else { return true };
        let may = taken.allows(more, total);
        if may {
            taken.add(more);
        }
        may
    }

    /// Takes bytes that it has been given beyond what it asked for.
    pub(super) fn take_given(&self, disk: u8, bytes: u64) {
        if let Some(taken) = self.look(&mut self.all.accounts(), disk) {
            taken.add(bytes);
        }
    }

    /// Notes bytes that were given back.
    pub(super) fn give_back(&self, disk: u8, bytes: u64) {
        if let Some(taken) = self.look(&mut self.all.accounts(), disk) {
            *taken.own = taken.own.saturating_sub(bytes);
            *taken.all = taken.all.saturating_sub(bytes);
        }
    }

    /// `None` for a disk that the cache does not have.
    fn look<'a>(&self, accounts: &'a mut Accounts, disk: u8) -> Option<Taken<'a>> {
        let disk = usize::from(disk);
        let alone = accounts.tenants.len() == 1;
        let own = accounts.tenants.get_mut(&self.tenant)?.taken.get_mut(disk)?;
        let may_have_others = !self.tenant.is_empty();
        Some(Taken { own, all: accounts.taken.get_mut(disk)?, alone, may_have_others })
    }
}

/// What is taken of a disk, by all and by one.
struct Taken<'a> {
    own: &'a mut u64,
    all: &'a mut u64,
    alone: bool,
    may_have_others: bool,
}

impl Taken<'_> {
    fn allows(&self, more: u64, total: u64) -> bool {
        let own = self.own.saturating_add(more);
        let all = self.all.saturating_add(more);
        let little = total / LITTLE;
        match self.alone {
            true => !self.may_have_others || own <= total - little,
            false => own <= little || own <= total / 2 && all <= total / 4 * 3,
        }
    }

    fn add(self, bytes: u64) {
        *self.own += bytes;
        *self.all += bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut accounts = self.all.accounts();
        let Some(tenant) = accounts.tenants.get_mut(&self.tenant) else { return };
        tenant.mounts -= 1;
        // Whoever has a file has its share, so that nothing is taken any more.
        if tenant.mounts == 0 {
            accounts.tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 1600;
    const LITTLE: u64 = 100;

    /// Takes what it may have, a little at a time.
    fn take_all(share: &Share) -> u64 {
        (0..ALL).filter(|_| share.take(0, 1, ALL)).count() as u64
    }

    #[test]
    fn mounts_of_one_tenant_together_have_half() {
        let shares = Shares::new(1);
        let other = shares.begin("other");
        let mounts: Vec<_> = (0..20).map(|_| shares.begin("one")).collect();
        std::thread::scope(|scope| {
            for mount in &mounts {
                scope.spawn(|| take_all(mount));
            }
        });
        assert_eq!(shares.accounts().taken[0], ALL / 2);
        mounts[0].give_back(0, 10);
        assert!(mounts[1].allows(0, 10, ALL) && !mounts[1].allows(0, 11, ALL));
        assert_eq!(take_all(&other), ALL / 4 + 10);
    }

    #[test]
    fn whatever_one_tenant_has_taken_another_can_write_a_sixteenth() {
        // However many mounts each has, and whoever came first.
        for (before, later, others) in [(1, 0, 1), (1, 40, 1), (0, 40, 1), (3, 3, 5)] {
            let shares = Shares::new(1);
            let mut one: Vec<_> = (0..before).map(|_| shares.begin("one")).collect();
            one.iter().for_each(|mount| _ = take_all(mount));
            let others: Vec<_> = (0..others).map(|_| shares.begin("other")).collect();
            one.extend((0..later).map(|_| shares.begin("one")));
            let taken = one.iter().map(|mount| take_all(mount)).sum::<u64>();
            assert!(before == 0 || taken == 0, "he has more than half already");
            let all = shares.accounts().taken[0];
            assert_eq!(all, if before > 0 { ALL - LITTLE } else { ALL / 2 });
            let written: u64 = others.iter().map(|other| take_all(other)).sum();
            assert!(written >= LITTLE && all + written <= ALL, "{written}");
        }
    }

    #[test]
    fn three_quarters_are_for_all_but_for_a_sixteenth_each() {
        let shares = Shares::new(1);
        let tenants: Vec<_> = (0..4).map(|n: u8| shares.begin(&n.to_string())).collect();
        let taken: Vec<_> = tenants.iter().map(|tenant| take_all(tenant)).collect();
        assert_eq!(taken, [ALL / 2, ALL / 4, LITTLE, LITTLE]);
    }

    #[test]
    fn who_is_alone_has_all_where_nobody_can_come_and_what_he_has_counts_when_others_do() {
        let shares = Shares::new(2);
        let only = shares.begin("");
        assert!(only.take(0, ALL, ALL));
        drop(only);
        let shares = Shares::new(2);
        let one = shares.begin("one");
        assert_eq!(take_all(&one), ALL - LITTLE);
        let other = shares.begin("other");
        assert!(other.take(1, ALL / 2, ALL), "another disk");
        one.give_back(0, ALL / 2);
        assert_eq!(take_all(&one), ALL / 16);
        drop(other);
        assert_eq!(take_all(&one), ALL / 16 * 7);
    }
}
