// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests that only the control domain may make: domains come and go, limits, the daemon's own commands.

use guest_abi::io::xs_wire;
use guest_abi::{DomId, EvtchnPort};

use super::request::{Answer, At, domain_of, done};
use super::{Entry, Life, Machine, Store};
use crate::xenstore::Conn;
use crate::xenstore::quota::Quota;
use crate::xenstore::watch::Special;
use crate::xenstore::wire::{Code, Fields, strings};

impl Store {
    pub(super) fn handle_introduce(&mut self, at: At, mut fields: Fields<'_>, machine: &mut dyn Machine) -> Answer {
        demand_privilege(at)?;
        let (domain, gfn, port) = (domain_of(&mut fields)?, fields.number()?, EvtchnPort::new(fields.number()?));
        if domain == DomId::DOM0 {
            return Err(Code::Einval);
        }
        let counters = machine.attach(domain, gfn, port)?;
        self.introduce(domain, gfn, port, counters);
        Ok(done())
    }

    pub(super) fn release(&mut self, at: At, mut fields: Fields<'_>, machine: &mut dyn Machine) -> Answer {
        demand_privilege(at)?;
        let domain = domain_of(&mut fields)?;
        if domain == DomId::DOM0 {
            return Err(Code::Einval);
        }
        if !self.domains.contains_key(&domain) {
            return Err(Code::Enoent);
        }
        if machine.life(domain) == Life::Gone {
            self.forget(domain);
        } else {
            self.commit(Entry::Released { domain });
        }
        self.tell_special(Special::Released);
        Ok(done())
    }

    pub(super) fn resume_domain(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        demand_privilege(at)?;
        let domain = domain_of(&mut fields)?;
        if !self.domains.contains_key(&domain) {
            return Err(Code::Enoent);
        }
        self.commit(Entry::ShutDown { domain, is: false });
        Ok(done())
    }

    pub(super) fn set_target(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        demand_privilege(at)?;
        let (domain, target) = (domain_of(&mut fields)?, domain_of(&mut fields)?);
        if !self.domains.contains_key(&domain) {
            return Err(Code::Enoent);
        }
        // A domain that could act for the control domain would be one.
        if domain == DomId::DOM0 || target == DomId::DOM0 {
            return Err(Code::Einval);
        }
        self.commit(Entry::Target { domain, target: target.raw() });
        Ok(done())
    }

    pub(super) fn get_quota(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        demand_privilege(at)?;
        let mut words = Vec::new();
        while !fields.is_empty() {
            words.push(fields.text()?);
        }
        let domain = |text: &str| text.parse().map_err(|_| Code::Einval);
        let (domain, quota) = match words[..] {
            [] => return Ok(strings([Quota::ALL.map(Quota::name).join(" ")])),
            [name] => (None, name),
            [id, name] => (Some(domain(id)?), name),
            _ => return Err(Code::Einval),
        };
        let quota = Quota::from_name(quota).ok_or(Code::Enoent)?;
        let for_all = self.quotas.get(&(None, quota)).copied().unwrap_or_else(|| quota.default_limit());
        let limit = domain.and_then(|domain: u16| self.quotas.get(&(Some(domain), quota)).copied());
        Ok(strings([limit.unwrap_or(for_all).to_string()]))
    }

    pub(super) fn set_quota(&mut self, at: At, mut fields: Fields<'_>) -> Answer {
        demand_privilege(at)?;
        let first = fields.text()?;
        let domain: Option<u16> = first.parse().ok();
        let name = if domain.is_some() { fields.text()? } else { first };
        let quota = Quota::from_name(name).ok_or(Code::Enoent)?;
        let limit = Some(fields.number()?);
        fields.end()?;
        if domain.is_some_and(|domain| !self.domains.contains_key(&DomId::new(domain))) {
            return Err(Code::Enoent);
        }
        self.commit(Entry::Quota { domain, quota, limit });
        Ok(done())
    }

    pub(super) fn control(&mut self, at: At, mut fields: Fields<'_>, machine: &mut dyn Machine) -> Answer {
        demand_privilege(at)?;
        match fields.text()? {
            "help" => Ok(strings(["check\ndie-at <point>[:<time>]\nhelp\nmemreport\nprint <text>"])),
            "check" if self.tree.is_counted() => Ok(done()),
            "check" => Err(Code::Eio),
            "die-at" => machine.die_at(fields.text()?).map(|()| done()),
            "memreport" => Ok(strings([self.report()])),
            "print" => {
                let text = fields.text()?.to_owned();
                self.complaints.push((at.conn, text));
                Ok(done())
            }
            _ => Err(Code::Einval),
        }
    }

    /// What each domain has: a line each, as `name=value` words.
    fn report(&self) -> String {
        let mut text = String::new();
        let mut domains: Vec<DomId> = self.domains.keys().copied().chain(self.tree.owners()).collect();
        domains.sort_unstable();
        domains.dedup();
        for domain in domains {
            let (usage, conn) = (self.tree.usage(domain), Conn::Ring(domain));
            let transactions = self.clients.get(&conn).map_or(0, |client| client.transactions.len());
            let line = format!(
                "domain={} nodes={} memory={} watches={} transactions={transactions} pending={} connection={}\n",
                domain.raw(),
                usage.nodes,
                usage.bytes,
                self.watches.count(conn),
                self.pending(conn),
                match self.domains.get(&domain) {
                    None => "none",
                    Some(known) if known.refused.is_some() => "dropped",
                    Some(_) => "served",
                }
            );
            if text.len() + line.len() + 1 < xs_wire::PAYLOAD_MAX {
                text += &line;
            }
        }
        text
    }
}

fn demand_privilege(at: At) -> Result<(), Code> {
    if at.who.is_privileged() { Ok(()) } else { Err(Code::Eacces) }
}
