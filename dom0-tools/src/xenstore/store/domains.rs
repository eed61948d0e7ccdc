// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains come and go.

use guest_abi::{DomId, EvtchnPort};

use super::{Entry, Life, Machine, Store};
use crate::xenstore::path::Path;
use crate::xenstore::tree::Change;
use crate::xenstore::watch::Special;

impl Store {
    /// A domain's ring is there to be served.
    pub fn introduce(&mut self, domain: DomId, gfn: u64, port: EvtchnPort, (taken, said): (u32, u32)) {
        let is_new = !self.domains.contains_key(&domain);
        self.commit(Entry::Introduced { domain, gfn, port: port.raw(), taken, said });
        if is_new {
            self.tell_special(Special::Introduced);
        }
        self.say_events();
    }

    /// Looks at what has become of the domains that the store knows, and forgets those that are gone.
    pub fn check_domains(&mut self, machine: &mut dyn Machine) {
        let mut known: Vec<DomId> = self.domains.keys().copied().chain(self.tree.owners()).collect();
        known.sort_unstable();
        known.dedup();
        let mut has_news = false;
        for domain in known.into_iter().filter(|domain| *domain != DomId::DOM0) {
            match machine.life(domain) {
                Life::Gone => {
                    has_news |= self.domains.contains_key(&domain);
                    self.forget(domain);
                }
                Life::ShutDown if self.domains.get(&domain).is_some_and(|known| !known.is_shut_down) => {
                    self.commit(Entry::ShutDown { domain, is: true });
                    has_news = true;
                }
                Life::ShutDown | Life::Alive => {}
            }
        }
        if has_news {
            self.tell_special(Special::Released);
        }
        self.say_events();
    }

    /// Removes all traces of a domain that does not exist any more: a new one may get its number.
    pub(super) fn forget(&mut self, domain: DomId) {
        if self.domains.contains_key(&domain) {
            self.commit(Entry::Released { domain });
        }
        let (mut owned, mut naming) = (Vec::new(), Vec::new());
        self.tree.visit(&Path::root(), |path, node| {
            let is_below = owned.last().is_some_and(|above| path.below(above).is_some());
            if node.perms().owner() == domain && !is_below {
                owned.push(path.clone());
            } else if let Some(perms) = node.perms().without(domain).filter(|_| !is_below) {
                naming.push((path.clone(), perms));
            }
        });
        let by = DomId::DOM0;
        naming.into_iter().for_each(|(path, perms)| self.change(Change::SetPerms { path, perms, by }));
        owned.into_iter().for_each(|path| self.change(Change::Remove { path, by }));
        for special in Special::ALL {
            if let Some(perms) = self.special.get(&special).and_then(|perms| perms.without(domain)) {
                self.commit(Entry::SpecialPerms { special, perms });
            }
        }
        for (_, quota) in self.quotas.keys().copied().filter(|key| key.0 == Some(domain.raw())).collect::<Vec<_>>() {
            self.commit(Entry::Quota { domain: Some(domain.raw()), quota, limit: None });
        }
    }
}
