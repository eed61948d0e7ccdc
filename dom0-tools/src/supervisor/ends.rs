// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the supervisor does when a guest has ended, or whoever made it has.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use guest_abi::DomId;
use guest_abi::domctl::GetDomainInfo;

use super::client::Role;
use super::{Supervisor, say};
use crate::config::Action;
use crate::console::log;
use crate::registry::{End, Reason, Record, State};
use crate::toolstack::now;

/// Bytes of a log in which a kernel's last words are looked for.
const LAST_WORDS: u64 = 16 << 10;
/// A guest that ends sooner than this after its start, so often in a row, is not started again.
const QUICK_SECONDS: u64 = 3;
/// The same for one that crashes: a kernel does so late in its start.
const QUICK_CRASH_SECONDS: u64 = 15;
const QUICK_ENDS: u32 = 5;

impl Supervisor {
    /// Goes on with what a killed command has begun, if it was killed.
    pub(super) fn resume(&mut self, record: &Record) -> Result<()> {
        let name = &record.config.name;
        if self.restarts.contains_key(name) {
            return Ok(());
        }
        let lock = self.tools.registry.try_lock(name)?;
        // Between the look and the lock its maker may have come to an end.
        match self.tools.record(name)? {
            Some(record) if matches!(record.state, State::Building { .. }) => {
                if let Some(domain) = self.tools.clear_unfinished(&record)? {
                    say(format_args!("{name}: {domain} was half made by a command that was killed: destroyed"));
                }
                if record.boots == 0 {
                    return Ok(self.tools.registry.remove(name)?);
                }
                drop(lock);
                self.restart(name)
            }
            _ => Ok(()),
        }
    }

    /// A domain is gone without a word from whoever ended it.
    pub(super) fn settle(&mut self, record: &Record, domain: DomId, end: End) -> Result<()> {
        let name = &record.config.name;
        let _lock = self.tools.registry.try_lock(name)?;
        if self.tools.record(name)?.as_ref() == Some(record) {
            say(format_args!("{name}: {domain} is gone"));
            self.tools.end(name, domain, &end)?;
        }
        Ok(())
    }

    /// A domain has stopped by itself: does what its description says.
    pub(super) fn ended(&mut self, record: &Record, info: &GetDomainInfo, reason: Reason) -> Result<()> {
        let name = &record.config.name;
        // Looked at again before the restart has begun.
        if self.restarts.contains_key(name) {
            return Ok(());
        }
        let lock = self.tools.registry.try_lock(name)?;
        if self.tools.record(name)?.as_ref() != Some(record) {
            return Ok(());
        }
        let domain = DomId::new(info.domain);
        self.serials.fetch_last(&self.tools.privcmd, name);
        if let Some(served) = self.served.get_mut(name) {
            let bytes = served.last_words();
            self.clients.iter_mut().filter(|client| client.watches(name)).for_each(|client| client.send(&bytes));
        }
        let detail = matches!(reason, Reason::Crash).then(|| panic_line(name)).flatten();
        let end = End { reason, detail };
        let action = self.action(record, reason);
        say(format_args!("{name} ({domain}) has ended: {end}; {action:?}"));
        match action {
            Action::Destroy => {
                // Nothing of ours may keep the domain when its end is told.
                if let Some(served) = self.served.remove(name) {
                    served.detach(&self.evtchn);
                }
                self.tools.end(name, domain, &end)?;
                self.dismiss(name, &format!("has ended: {end}"));
                Ok(())
            }
            Action::Restart => {
                drop(lock);
                self.restart(name)
            }
            Action::Preserve => {
                let mut record = record.clone();
                if let State::Running { ended, .. } = &mut record.state {
                    *ended = Some(end);
                }
                Ok(self.tools.registry.save(&record)?)
            }
        }
    }

    fn action(&mut self, record: &Record, reason: Reason) -> Action {
        let name = &record.config.name;
        let wanted = match reason {
            Reason::Reboot => record.config.on_reboot,
            Reason::Crash | Reason::Watchdog => record.config.on_crash,
            Reason::Suspend => Action::Preserve,
            Reason::Poweroff | Reason::Destroyed | Reason::Failed => record.config.on_poweroff,
        };
        let limit = if matches!(reason, Reason::Crash) { QUICK_CRASH_SECONDS } else { QUICK_SECONDS };
        if wanted != Action::Restart || now().saturating_sub(record.started) >= limit {
            self.quick_ends.remove(name);
            return wanted;
        }
        let ends = self.quick_ends.entry(name.clone()).or_default();
        *ends += 1;
        if *ends < QUICK_ENDS {
            return wanted;
        }
        say(format_args!(
            "{name} has ended {ends} times right after its start ({}): it is not started again",
            reason.name()
        ));
        self.quick_ends.remove(name);
        Action::Destroy
    }

    fn restart(&mut self, name: &str) -> Result<()> {
        if self.restarts.contains_key(name) {
            return Ok(());
        }
        // The page must not outlive the domain by more than this.
        if let Some(served) = self.served.remove(name) {
            served.detach(&self.evtchn);
        }
        for client in self.clients.iter_mut().filter(|client| client.watches(name)) {
            client.send(format!("\r\n[isthmus: {name} starts again]\r\n").as_bytes());
        }
        let program = std::env::current_exe().context("finding isthmus itself")?;
        let child =
            Command::new(program).args(["restart-guest", name]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        self.restarts.insert(name.to_owned(), child.context("starting isthmus restart-guest")?);
        Ok(())
    }

    pub(super) fn reap(&mut self) {
        let mut is_done = false;
        self.restarts.retain(|name, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                if !status.success() {
                    say(format_args!("{name} could not be started again"));
                }
                is_done = true;
                false
            }
            Err(error) => {
                say(format_args!("{name}: {error}"));
                is_done = true;
                false
            }
        });
        if is_done {
            self.look();
            self.dismiss_the_failed();
        }
    }

    /// Whoever watches a guest that could not be started again watches nothing.
    fn dismiss_the_failed(&mut self) {
        let watched: Vec<String> = self
            .clients
            .iter()
            .filter_map(|client| match &client.role {
                Role::Watching { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        for name in watched {
            if let Ok(Some(Record { state: State::Ended { end, .. }, .. })) = self.tools.record(&name) {
                self.dismiss(&name, &format!("has ended: {end}"));
            }
        }
    }
}

/// The reason of a kernel's panic, by what it wrote last to its console, or else to its serial line.
fn panic_line(name: &str) -> Option<String> {
    [log::path(name), log::serial_path(name)].iter().find_map(|path| {
        let tail = log::tail(path, LAST_WORDS).ok()?;
        panic_words(&String::from_utf8_lossy(&tail))
    })
}

fn panic_words(text: &str) -> Option<String> {
    const WORDS: &str = "Kernel panic - not syncing: ";
    /// The kernel repeats the reason at the end, in brackets.
    const END: &str = "end Kernel panic";
    const LONGEST: usize = 200;
    let lines = text.lines().filter(|line| !line.contains(END));
    let found = lines.filter_map(|line| line.split_once(WORDS)).next_back()?;
    Some(found.1.trim().chars().filter(|c| !c.is_control()).take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use super::panic_words;

    #[test]
    fn a_panics_reason_is_found_in_what_the_kernel_wrote() {
        let text = "[  1.0] Kernel panic - not syncing: VFS: Unable to mount root\r\n[  1.1] CPU: 0\r\n\
                    [  1.2] ---[ end Kernel panic - not syncing: VFS: Unable to mount root ]---\r\n";
        assert_eq!(panic_words(text).as_deref(), Some("VFS: Unable to mount root"));
        assert_eq!(panic_words("all is well\n"), None);
    }
}
