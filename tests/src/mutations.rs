// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks of the hypervisor's that are taken out one at a time, upon which one of its unit tests must fail.
//!
//! A check that could be removed unnoticed is one that somebody will remove. Each entry changes one place of one file in
//! a copy of the sources; what is there and what it becomes is text, which must be there exactly once.

/// One change that a test must notice.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// The last part of its check's name: what does not hold any more.
    pub name: &'static str,
    /// The file, from the repository's root.
    pub file: &'static str,
    /// What is there.
    pub from: &'static str,
    /// What it becomes.
    pub to: &'static str,
}

/// Mutations of the hypervisor's files.
macro_rules! mutations {
    ($($file:literal { $($name:literal: $from:literal => $to:literal;)* })*) => {
        &[$($(Mutation { name: $name, file: concat!("hypervisor/src/", $file), from: $from, to: $to },)*)*]
    };
}

/// What grants are checked for.
pub const GRANTS: &[Mutation] = mutations! {
    "grant/table.rs" {
        "dying-granter-grants-nothing": "if self.is_dying {\n            return Err(Refusal::BadDomain);\n        }\n        let word" => "let word";
        "entry-has-the-type-of-a-grant": "flags & abi::GTF_TYPE_MASK != abi::GTF_PERMIT_ACCESS\n                || " => "";
        "entry-grants-a-whole-page": "|| flags & abi::GTF_SUB_PAGE != 0" => "";
        "entry-names-the-peer": "|| low_u16(seen >> 16) != peer.raw()" => "";
        "read-only-grant-is-not-written": "Access::Write if flags & abi::GTF_READONLY != 0 => return Err(Refusal::Denied)," => "";
        "writing-is-marked": "Access::Write => READING | WRITING," => "Access::Write => READING,";
        "entry-is-marked-as-it-was-read": "match word.compare_exchange(seen, seen | marks, Ordering::AcqRel, Ordering::Acquire) {" => "match Ok::<u64, u64>(word.swap(seen | marks, Ordering::AcqRel)) {";
        "entry-that-changes-is-given-up": "for _ in 0..PIN_ATTEMPTS {" => "for _ in 0..100 * PIN_ATTEMPTS {";
        "last-user-clears-the-marks": "(0, 0) => READING | WRITING," => "(0, 0) => return,";
        "last-writer-clears-its-mark": "(_, 0) => WRITING," => "(_, 0) => return,";
        "marks-stay-for-other-users": "(_, 0) => WRITING,\n            _ => return," => "_ => READING | WRITING,";
        "users-of-an-entry-do-not-overflow": "*users.of(access) < u16::MAX" => "*users.of(access) <= u16::MAX";
        "table-has-a-limit": "if index >= self.limits.frames {" => "if index > self.limits.frames {";
        "dying-domains-table-does-not-grow": "if inner.is_dying {\n            return Err(GrowError::Dying);\n        }" => "";
        "locks-are-taken-in-order": "if mine.domain < theirs.domain {" => "if mine.domain > theirs.domain {";
        "one-table-is-locked-once": "if core::ptr::eq(mine, theirs) {" => "if false {";
    }
    "grant/mod.rs" {
        "self-is-the-caller": "if domain == DomId::SELF || domain == me.table.domain() { Some(act(me)) }" => "if domain == me.table.domain() { Some(act(me)) }";
    }
    "grant/map.rs" {
        "dying-domain-maps-nothing": "if pair.mine.is_dying {" => "if false {";
        "page-is-mapped-at-its-start": "if gpa.page_offset() == 0 { Ok(gpa.gfn()) }" => "if true { Ok(gpa.gfn()) }";
        "only-known-flags": "_ => Err(Refusal::General),\n    }\n}\n\nfn page_of" => "_ => Ok(Access::Write),\n    }\n}\n\nfn page_of";
        "read-only-map-asks-for-reading": "abi::GNTMAP_HOST_MAP | abi::GNTMAP_READONLY => Ok(Access::Read)," => "abi::GNTMAP_HOST_MAP | abi::GNTMAP_READONLY => Ok(Access::Write),";
        "users-are-asked-before-they-are-counted": "if !pair.granter().can_count(reference, access) {" => "if false {";
        "room-for-a-handle-is-made-first": "pair.mine.tracks.ensure_room()?;" => "let _ = pair.mine.tracks.ensure_room();";
        "failed-map-leaves-no-mark": "pair.granter().settle(reference);\n            Err(refusal)" => "Err(refusal)";
        "use-is-of-the-mapper": "uncount(mapping.reference, me.table.domain(), mapping.access)" => "uncount(mapping.reference, mapping.granter, mapping.access)";
        "mapping-is-counted": "pair.granter().count(reference, me.table.domain(), access);" => "";
        "unknown-granter-is-said": "group.iter_mut().for_each(|op| op.refuse(Refusal::BadDomain));" => "";
        "unmap-has-no-bus-address": "if op.dev_bus_addr != 0 {" => "if false {";
        "unmap-names-the-mappings-place": "if page_of(op.host_addr)? != mapping.gfn {" => "if page_of(op.host_addr).is_err() {";
        "handle-is-dead-after-unmap": "mine.tracks.close(op.handle, mapping);\n                    closed" => "closed";
        "pages-leave-before-the-counts": "parties.flush(me.memory, &mut removed);\n    settle_closed(me, &closed, parties);\n}\n\nfn checked" => "settle_closed(me, &closed, parties);\n    parties.flush(me.memory, &mut removed);\n}\n\nfn checked";
        "strangers-entry-is-not-uncounted": "&& mapping.incarnation == peer.table.incarnation()" => "";
        "handle-of-a-gone-granter-is-free": "let _ = mine.tracks.release(*handle);" => "let _ = handle;";
        "dying-domain-maps-nothing-behind-its-unmapping": "mine.is_dying = true;\n        let mut from" => "let mut from";
        "unmapping-of-all-is-cut": "if closed.is_full() {\n                break Progress::Again;\n            }" => "";
    }
    "grant/copy.rs" {
        "copy-stays-in-its-source-page": "range.from + range.len > PAGE_SIZE || " => "";
        "copy-stays-in-its-target-page": " || range.to + range.len > PAGE_SIZE" => "";
        "own-side-names-the-caller": "if domain != DomId::SELF && domain != me.table.domain() {" => "if false {";
        "only-known-copy-flags": "if op.flags & !(abi::GNTCOPY_SOURCE_GREF | abi::GNTCOPY_DEST_GREF) != 0 {" => "if false {";
        "target-is-pinned-to-write": "Self::Dest => Access::Write," => "Self::Dest => Access::Read,";
        "granters-of-a-run-are-the-same": "|a, b| granters(a) == granters(b)" => "|_, _| true";
        "unknown-granter-is-said-to-each": "group.iter_mut().for_each(|op| op.status = Refusal::BadDomain.status());" => "";
        "single-copy-leaves-no-mark": "table.settle(reference);\n        copied" => "copied";
        "failed-hold-leaves-no-mark": "self.settle(side, reference);\n                Err(refusal)" => "Err(refusal)";
        "run-of-copies-leaves-no-mark": "self.leave(Side::Dest);\n        for" => "for";
        "mark-stays-for-the-other-side": "if !self.granters.iter().flatten().any(is_held) {" => "if true {";
        "page-of-another-reference-is-not-kept": "Some((held, page)) if *held == reference => Ok(page.mfn())," => "Some((_, page)) => Ok(page.mfn()),";
    }
    "grant/memory.rs" {
        "read-only-mapping-is-read-only": "Access::Read => P2mKind::GrantRo," => "Access::Read => P2mKind::GrantRw,";
    }
    "p2m/walk.rs" {
        "only-ram-is-granted": "|mfn, kind, _| (kind == P2mKind::Ram).then_some(mfn)" => "|mfn, _, _| Some(mfn)";
    }
    "p2m/mod.rs" {
        "grant-is-mapped-at-a-hole": "if <F as PteFormat>::decode(word.load(Ordering::Relaxed), 0) != Entry::Hole {" => "if false {";
        "granted-page-is-held": "self.ram(gfn).map(|mfn| self.frames.get(mfn, self.owner))" => "self.ram(gfn).map(|mfn| Ok(FrameRef::from_entry(self.frames, mfn)))";
        "unmap-removes-the-granted-frame-only": "if mapped == mfn && kind.holds_reference() => {" => "if kind.holds_reference() => {";
    }
    "guest_mem/mod.rs" {
        "only-own-ram-is-copied": "(kind == P2mKind::Ram).then_some(mfn)" => "Some(mfn)";
    }
    "grant/track.rs" {
        "mappings-have-a-limit": "(Ok(first), Ok(end)) if end <= self.limit => (first, end)," => "(Ok(first), Ok(end)) => (first, end),";
        "handle-that-is-being-closed-names-nothing": "Some(Slot::Mapped(mapping)) => Ok(*mapping)," => "Some(Slot::Mapped(mapping) | Slot::Closing(mapping)) => Ok(*mapping),";
    }
    "grant/ops.rs" {
        "count-is-a-signed-number": "if i32::try_from(request.count).is_err() {" => "if false {";
        "others-tables-are-not-told-of": "rights == Rights::All || domain == DomId::SELF || domain == me.table.domain()" => "true";
        "list-is-cut": "for _ in 0..BATCHES {" => "loop {";
        "question-has-one-element": "if request.count != 1 {" => "if false {";
        "second-version-is-not-offered": "2 => Err(Errno::ENOSYS)," => "2 => Ok(()),";
        "size-of-a-stranger-is-bad-domain": ".ok_or(Refusal::BadDomain)" => ".ok_or(Refusal::General)";
    }
    "hypercall/grant_table.rs" {
        "only-control-asks-about-others": "if call.domain.privileges.contains(Privileges::CONTROL) { Rights::All } else { Rights::Own }" => "Rights::All";
    }
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn each_change_is_possible_in_one_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for mutation in GRANTS {
            let text = std::fs::read_to_string(root.join(mutation.file)).unwrap();
            assert_eq!(text.matches(mutation.from).count(), 1, "{} in {}", mutation.name, mutation.file);
        }
        let names: BTreeSet<_> = GRANTS.iter().map(|mutation| mutation.name).collect();
        assert_eq!(names.len(), GRANTS.len());
    }
}
