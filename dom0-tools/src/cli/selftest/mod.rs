// SPDX-License-Identifier: MIT OR Apache-2.0
//! `isthmus selftest`: shows from inside dom0 that grants, events and clocks work.
//!
//! Each test drives the hypervisor through the kernel's own devices, with this domain on both ends,
//! and ends at the first thing that is not as it should be.

mod disk;
mod foreign;
mod smp;

pub use disk::{Mix, disk};
pub use foreign::foreign;
pub use smp::{pauses, steps};

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_abi::grant_table::GNTST_BAD_GNTREF;
use guest_abi::{DomId, EvtchnPort, GrantRef, PAGE_SIZE};

use crate::sys::Error;
use crate::sys::clock::{PM_TIMER_HZ, PmTimer};
use crate::sys::evtchn::Evtchn;
use crate::sys::gntalloc::Gntalloc;
use crate::sys::gntdev::{Gntdev, GrantedAt};

const PAGES: u32 = 3;
/// A reference that no kernel has handed out: the tables of a domain end far below.
const NEVER_GRANTED: GrantRef = GrantRef::new(0x00ff_fff0);
/// Events that are sent before anybody looks.
const MERGED: u32 = 5;
/// After so long no event is on its way any more.
const QUIET: Duration = Duration::from_millis(200);
const EVENT_LIMIT: Duration = Duration::from_secs(5);

/// Grants pages to this domain itself, maps them, copies to and from them, and checks what must fail.
///
/// # Errors
/// What was not as it should be.
pub fn grants(own: DomId) -> Result<()> {
    let (allocator, mapper) = (Gntalloc::open()?, Gntdev::open()?);
    let granted = allocator.allocate(own, PAGES, true)?;
    let (ours, references) = (granted.memory(), granted.references().to_vec());
    println!("granted {references:?} to {own}");

    let mapped = mapper.map(own, &references, true)?;
    let theirs = mapped.memory();
    for page in 0..references.len() {
        let (written, back) = (pattern(page, 1), pattern(page, 2));
        ours.write(page * PAGE_SIZE, &written);
        ensure!(bytes(theirs, page) == written, "page {page}: the mapping does not show what was written");
        theirs.write(page * PAGE_SIZE, &back);
        ensure!(bytes(ours, page) == back, "page {page}: what was written through the mapping is not there");
    }
    println!("mapped, written and read both ways");
    let twice = mapper.map(own, &references[..1], false)?;
    ensure!(bytes(twice.memory(), 0) == pattern(0, 2), "a second mapping shows something else");
    drop(twice);
    ensure!(bytes(theirs, 0) == pattern(0, 2), "unmapping one of two mappings took the other's page");
    drop(mapped);
    ensure!(bytes(ours, 0) == pattern(0, 2), "unmapping changed the page");
    println!("mapped twice, unmapped");

    copies(&mapper, own, references[1], ours)?;
    refusals(&allocator, &mapper, own)?;
    drop(granted);
    let gone = mapper.map(own, &references[..1], false);
    ensure!(gone.is_err(), "{:?} can be mapped after the grant was taken back", references[0]);
    println!("taken back: no longer mappable");
    Ok(())
}

fn copies(mapper: &Gntdev, own: DomId, reference: GrantRef, ours: &crate::sys::Mapping) -> Result<()> {
    let at = |offset| GrantedAt { domain: own, reference, offset };
    let mut buffer = vec![0; PAGE_SIZE];
    mapper.copy_from(at(0), &mut buffer)?;
    ensure!(buffer == bytes(ours, 1), "a copied page differs from the granted one");
    mapper.copy_to(b"isthmus", at(1000))?;
    buffer[1000..1007].copy_from_slice(b"isthmus");
    ensure!(bytes(ours, 1) == buffer, "a copy into the granted page changed other bytes, or not those");
    let mut few = [0; 3];
    mapper.copy_from(at(4093), &mut few)?;
    ensure!(few == buffer[4093..], "the page's last bytes were copied wrongly");
    println!("copied both ways");
    ensure!(mapper.copy_from(at(4094), &mut few).is_err(), "a copy across the page's end succeeded");
    Ok(())
}

fn refusals(allocator: &Gntalloc, mapper: &Gntdev, own: DomId) -> Result<()> {
    let nowhere = GrantedAt { domain: own, reference: NEVER_GRANTED, offset: 0 };
    match mapper.copy_from(nowhere, &mut [0; 8]) {
        Err(Error::Grant { status: GNTST_BAD_GNTREF, .. }) => {}
        Err(Error::Grant { status, .. }) => bail!("copying from {NEVER_GRANTED} gave status {status}, not -3"),
        other => bail!("copying from {NEVER_GRANTED} gave {other:?}, not a grant status"),
    }
    ensure!(mapper.map(own, &[NEVER_GRANTED], false).is_err(), "{NEVER_GRANTED} could be mapped");
    let stranger = mapper.map(DomId::new(0x7000), &[GrantRef::new(8)], false);
    ensure!(stranger.is_err(), "a page of a domain that does not exist could be mapped");

    let read_only = allocator.allocate(own, 1, false)?;
    let reference = read_only.references()[0];
    ensure!(mapper.map(own, &[reference], true).is_err(), "a read-only grant could be mapped for writing");
    let at = GrantedAt { domain: own, reference, offset: 0 };
    ensure!(mapper.copy_to(b"x", at).is_err(), "a copy into a read-only grant succeeded");
    mapper.map(own, &[reference], false).context("a read-only grant cannot be mapped for reading")?;
    println!("wrong references, domains and rights are refused");
    Ok(())
}

fn pattern(page: usize, salt: usize) -> Vec<u8> {
    (0..PAGE_SIZE).map(|i| u8::try_from((i * 7 + page * 31 + salt * 101) % 251).unwrap_or(0)).collect()
}

fn bytes(memory: &crate::sys::Mapping, page: usize) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_SIZE];
    memory.read(page * PAGE_SIZE, &mut bytes);
    bytes
}

/// Connects two ports of this domain and sends `count` events each way.
///
/// # Errors
/// What was not as it should be.
pub fn events(own: DomId, count: u32) -> Result<()> {
    let (left, right) = (Evtchn::open()?, Evtchn::open()?);
    let a = left.bind_unbound(own)?;
    let b = right.bind_interdomain(own, a)?;
    ensure!(a != b, "both ends have {a}");
    ensure!(right.bind_interdomain(own, a).is_err(), "{a} could be bound to twice");
    println!("bound {a} to {b}");
    // Whoever binds is signalled at once: it may have missed an event.
    take(&right, b).context("binding did not signal the binder")?;

    let start = Instant::now();
    for i in 0..count {
        right.notify(b)?;
        take(&left, a).with_context(|| format!("event {i} from {b} to {a}"))?;
        left.notify(a)?;
        take(&right, b).with_context(|| format!("event {i} from {a} to {b}"))?;
    }
    let each = start.elapsed() / count.max(1);
    println!("{count} events each way, {each:?} a round trip");

    // Until the first is looked at the port is masked, so of the others one is left at most.
    for _ in 0..MERGED {
        left.notify(a)?;
    }
    let mut seen = 0;
    while let Some(port) = right.wait(QUIET)? {
        ensure!(port == b, "an event on {port} instead of {b}");
        right.unmask(port)?;
        seen += 1;
    }
    ensure!((1..=2).contains(&seen), "{MERGED} events before one look gave {seen}, not 1 or 2");
    left.unbind(a)?;
    ensure!(left.notify(a).is_err(), "a closed port could be notified");
    println!("merged and closed");
    Ok(())
}

/// Waits for `port`'s event and no other's.
fn take(file: &Evtchn, port: EvtchnPort) -> Result<()> {
    let got = file.wait(EVENT_LIMIT)?;
    ensure!(got == Some(port), "{got:?} instead of an event on {port} within {EVENT_LIMIT:?}");
    Ok(file.unmask(port)?)
}

/// Reads the kernel's monotonic clock for `seconds`: it never goes back, and it agrees with the ACPI
/// power-management timer within one part in a hundred.
///
/// # Errors
/// What was not as it should be, or the machine has no such timer.
pub fn clock(seconds: u32) -> Result<()> {
    let timer = PmTimer::open()?;
    let length = Duration::from_secs(seconds.max(1).into());
    let start = Instant::now();
    let (mut last, mut last_ticks) = (start, timer.read());
    let (mut ticks, mut readings) = (0_u64, 0_u64);
    let elapsed = loop {
        let now = Instant::now();
        ensure!(now >= last, "the clock went back by {:?} after {readings} readings", last - now);
        last = now;
        readings += 1;
        // The timer wraps after 4.7 s, so its ticks are added up.
        let ticks_now = timer.read();
        ticks += u64::from(timer.ticks(last_ticks, ticks_now));
        last_ticks = ticks_now;
        if now - start >= length {
            break now - start;
        }
    };
    let kernel_us = elapsed.as_micros();
    let timer_us = u128::from(ticks) * 1_000_000 / u128::from(PM_TIMER_HZ);
    println!("{readings} readings; kernel {kernel_us} us, power-management timer {timer_us} us");
    let difference = kernel_us.abs_diff(timer_us);
    ensure!(difference * 100 <= kernel_us, "the clocks differ by {difference} us in {kernel_us} us");
    Ok(())
}
