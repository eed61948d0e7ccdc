// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device of this guest's as a front sees it: its two folders in the store, its event channel, and pages for the back.

use core::fmt::{self, Write};

use guest_abi::ring::{Front, Protocol, Shared as Ring};
use guest_abi::{DomId, GrantRef, PAGE_SIZE, grant_table::GTF_PERMIT_ACCESS};

use crate::shared::Shared;
use crate::xenstore::{Failed, Store, Value};
use crate::{check, events, grants};

/// The domain of the backends.
pub const BACK: u16 = DomId::DOM0.raw();

/// A page that can be granted.
pub type Page = Shared<[u8; PAGE_SIZE]>;

/// An empty page.
#[must_use]
pub const fn page() -> Page {
    Shared::new([0; PAGE_SIZE])
}

/// Text of a few bytes.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Text {
    /// What `format_args` gives.
    #[must_use]
    pub fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; 64], len: 0 };
        let fits = text.write_fmt(arguments).is_ok();
        if !fits {
            check("a text fits its place", false);
        }
        text
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// A device, on the way to being connected or behind it.
pub struct Device {
    store: Store,
    front: Text,
    back: Text,
    /// The event channel to the back.
    pub port: u32,
}

impl Device {
    /// Finds device `number` of a class (`vbd`, `vif`), waits for its back, and makes the event channel.
    ///
    /// # Errors
    /// Why not.
    pub fn find(class: &str, number: u16) -> Result<Self, Failed> {
        let mut store = Store::open()?;
        let front = Text::new(format_args!("device/{class}/{number}"));
        let back = store.read(Text::new(format_args!("{}/backend", front.as_str())).as_str())?;
        let back = back.ok_or(Failed::Refused)?;
        let back = core::str::from_utf8(back.bytes()).map_err(|_| Failed::Refused)?;
        let back = Text::new(format_args!("{back}"));
        let mut device = Self { store, front, back, port: 0 };
        device.wait_for_back(b"2")?;
        let port = events::alloc_unbound(DomId::SELF.raw(), BACK).map_err(|_| Failed::Refused)?;
        device.port = port;
        device.put("event-channel", format_args!("{port}"))?;
        Ok(device)
    }

    /// Makes a ring in a page, grants it and tells the back under the node's name.
    ///
    /// # Errors
    /// Why not.
    pub fn ring<P: Protocol>(
        &mut self,
        node: &str,
        reference: GrantRef,
        page: &'static Page,
    ) -> Result<Front<P, Ring<'static>>, Failed> {
        lend(reference, page, GTF_PERMIT_ACCESS);
        let front = Front::new(words(page)).map_err(|_| Failed::TooLong)?;
        self.put(node, format_args!("{}", reference.raw()))?;
        Ok(front)
    }

    /// Writes a node of the front.
    ///
    /// # Errors
    /// Why not.
    pub fn put(&mut self, node: &str, value: fmt::Arguments<'_>) -> Result<(), Failed> {
        let path = Text::new(format_args!("{}/{node}", self.front.as_str()));
        self.store.write(path.as_str(), Text::new(value).as_str())
    }

    /// A node of the back.
    ///
    /// # Errors
    /// Why not.
    pub fn get(&mut self, node: &str) -> Result<Option<Value>, Failed> {
        self.store.read(Text::new(format_args!("{}/{node}", self.back.as_str())).as_str())
    }

    /// Waits until the back is in one of these states.
    ///
    /// # Errors
    /// Why not.
    pub fn wait_for_back(&mut self, states: &[u8]) -> Result<u8, Failed> {
        self.store.wait_for(Text::new(format_args!("{}/state", self.back.as_str())).as_str(), states)
    }

    /// Signals the back.
    pub fn kick(&self) {
        events::send(self.port);
    }
}

/// Grants a page to the back.
pub fn lend(reference: GrantRef, page: &Page, flags: u16) {
    grants::grant(reference.raw(), BACK, page.address() >> 12, flags);
}

/// A page as a ring's memory.
#[must_use]
pub fn words(page: &'static Page) -> Ring<'static> {
    // SAFETY: the page is a static, aligned and always there; whoever else writes it, the back included, does so by
    // what `Ring` takes for accesses of a peer.
    unsafe { Ring::from_raw(page.get().cast(), PAGE_SIZE) }
}
