// SPDX-License-Identifier: MIT OR Apache-2.0
//! When domains have to be looked at.
//!
//! xenstored tells of each domain that it knows and that ends (`@releaseDomain`). Domains that it does not know (guests
//! without xenstore, half-made ones whose maker may be killed) and the time until its word is there are bridged by
//! looking each second; besides, a look now and then costs nothing and misses nothing.

use std::time::{Duration, Instant};

use crate::xenstore::client::{Client, Error};

/// How often domains are looked at that nobody tells of.
const OFTEN: Duration = Duration::from_secs(1);
/// How often they are looked at in any case.
const SELDOM: Duration = Duration::from_secs(30);
/// How long an answer of the store is waited for; consoles wait as long.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a store that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(10);
const RELEASED: &str = "@releaseDomain";

/// What is known of when to look.
pub(super) struct News {
    store: Option<Client>,
    tried: Option<Instant>,
    looked: Instant,
    /// There is a domain that nobody tells of.
    is_alone: bool,
}

impl News {
    pub(super) fn new() -> Self {
        Self { store: None, tried: None, looked: Instant::now(), is_alone: true }
    }

    /// The store's connection, to wait for.
    pub(super) fn store(&self) -> Option<&Client> {
        self.store.as_ref()
    }

    /// Domains are being looked at.
    pub(super) fn looks(&mut self) {
        self.looked = Instant::now();
        let may_try = self.tried.is_none_or(|tried| tried.elapsed() >= RETRY);
        if self.store.is_none() && may_try {
            self.tried = Some(Instant::now());
            self.store = watch().ok();
        }
    }

    /// Whether there is a domain that nobody tells of.
    pub(super) fn set_alone(&mut self, is_alone: bool) {
        self.is_alone = is_alone;
    }

    /// How long until it is time to look.
    pub(super) fn wait(&self) -> Duration {
        let interval = if self.is_alone || self.store.is_none() { OFTEN } else { SELDOM };
        interval.saturating_sub(self.looked.elapsed())
    }

    /// Whether it is time to look: the store has said so, or nobody has for too long.
    pub(super) fn is_time(&mut self) -> bool {
        let mut is_told = false;
        while let Some(store) = &mut self.store {
            match store.event(Some(Duration::ZERO)) {
                Ok(Some(_)) => is_told = true,
                Ok(None) => break,
                Err(_) => self.store = None,
            }
        }
        is_told || self.wait().is_zero()
    }
}

fn watch() -> Result<Client, Error> {
    let mut store = Client::connect()?;
    store.set_limit(PATIENCE);
    store.watch(RELEASED, "supervisor")?;
    Ok(store)
}
