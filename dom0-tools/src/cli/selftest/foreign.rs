// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mapping another domain's frames, with holes between them.

use anyhow::{Result, bail, ensure};
use guest_abi::{DomId, Gfn, PAGE_SIZE};

use crate::sys::privcmd::{ForeignPages, Interface, Privcmd, Restricted};
use crate::toolstack::Toolstack;

/// Frames that a guest of 64 MiB has: where its kernel is, and its last.
const PRESENT: [u64; 4] = [0x1000, 0x1001, 0x1800, 0x3fff];
/// Frames that no guest has: in the hole below 4 GiB, and beyond every guest's memory.
const ABSENT: [u64; 3] = [0xe_0000, 0xf_0000, 0x0ff0_0000];

/// Maps frames of a guest, some of which do not exist: exactly those must be refused, by both of the kernel's calls, and
/// the others show the guest's memory. A restricted handle must be refused everything else.
///
/// # Errors
/// What was not as it should be.
pub fn foreign(name: &str) -> Result<()> {
    let tools = Toolstack::open()?;
    let guest = tools.find(name)?.id;
    let mut frames = Vec::new();
    for (i, present) in PRESENT.iter().enumerate() {
        frames.push(Gfn::new(*present));
        frames.extend(ABSENT.get(i).map(|absent| Gfn::new(*absent)));
    }
    let second = tools.privcmd.map_pages(guest, &frames, false, Interface::BatchV2)?;
    check(&second, &frames)?;
    let first = tools.privcmd.map_pages(guest, &frames, false, Interface::Batch)?;
    check(&first, &frames)?;
    for index in (0..frames.len()).filter(|index| index % 2 == 0) {
        ensure!(page(&first, index)? == page(&second, index)?, "two mappings of {:?} differ", frames[index]);
    }
    println!("mapped {} frames with {} holes, twice", frames.len(), ABSENT.len());
    ensure!(tools.privcmd.map_foreign(guest, &frames, false).is_err(), "a list with holes was mapped as a whole");
    let none: Vec<Gfn> = ABSENT.into_iter().map(Gfn::new).collect();
    ensure!(
        tools.privcmd.map_pages(guest, &none, false, Interface::BatchV2)?.failed().count() == none.len(),
        "holes only"
    );
    restricted(&tools.privcmd, guest)
}

/// Exactly the absent frames have failed.
fn check(pages: &ForeignPages, frames: &[Gfn]) -> Result<()> {
    let failed: Vec<Gfn> = pages.failed().map(|failed| failed.frame).collect();
    let absent: Vec<Gfn> = ABSENT.into_iter().map(Gfn::new).collect();
    ensure!(failed == absent, "{failed:?} failed of {frames:?}, not {absent:?}");
    for failed in pages.failed() {
        ensure!(pages.page(failed.index).is_err(), "a window of {:?} was given out", failed.frame);
    }
    Ok(())
}

fn page(pages: &ForeignPages, index: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; PAGE_SIZE];
    match pages.page(index) {
        Ok(window) => window.read(0, &mut bytes),
        Err(error) => bail!("{error}"),
    }
    Ok(bytes)
}

fn restricted(privcmd: &Privcmd, guest: DomId) -> Result<()> {
    let frames = [Gfn::new(PRESENT[0])];
    let handle = Restricted::open(guest)?;
    let own = handle.map_pages(guest, &frames, false)?;
    ensure!(own.failed().next().is_none(), "a restricted handle cannot map its own domain");
    let whole = privcmd.map_pages(guest, &frames, false, Interface::BatchV2)?;
    ensure!(page(&own, 0)? == page(&whole, 0)?, "a restricted handle maps something else");
    ensure!(handle.map_pages(DomId::new(guest.raw() + 1), &frames, false).is_err(), "it can map another domain");
    ensure!(handle.into_privcmd()?.version().is_err(), "it can make hypercalls");
    println!("a handle that is restricted to {guest} can map it and do nothing else");
    Ok(())
}
