// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of physical memory in bytes, and sets of them.
//!
//! The machine map is arithmetic on such sets: what the firmware calls RAM, less what somebody
//! has, is free. A set is kept as sorted spans that neither overlap nor touch, so two equal sets
//! are equal as values and a walk sees each byte once. A machine has a hundred spans at most and
//! this runs when a domain is made, so a sorted vector is enough.

use alloc::vec::Vec;
use core::fmt;

use guest_abi::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

/// Physical addresses from `start` up to, not including, `end`. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// The addresses from `start` to before `end`; empty if `end` is not above `start`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// The `len` bytes from `start`, cut at the end of the address space.
    #[must_use]
    pub const fn sized(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// The first address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The address behind the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether every byte of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether a byte is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The whole pages in it.
    #[must_use]
    pub const fn pages_inside(self) -> Self {
        match self.start.checked_next_multiple_of(PAGE) {
            Some(start) => Self::new(start, self.end & !(PAGE - 1)),
            None => Self::new(self.end, self.end),
        }
    }

    /// The pages that it touches.
    #[must_use]
    pub const fn pages_around(self) -> Self {
        let end = match self.end.checked_next_multiple_of(PAGE) {
            Some(end) => end,
            None => !(PAGE - 1),
        };
        if self.is_empty() { self } else { Self::new(self.start & !(PAGE - 1), end) }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#012x}-{:#012x}", self.start, self.end.saturating_sub(1))
    }
}

/// A set of addresses: sorted spans, none empty, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(Vec<Span>);

impl Spans {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The spans in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Span> {
        self.0.iter().copied()
    }

    /// The spans in ascending order.
    #[must_use]
    pub fn as_slice(&self) -> &[Span] {
        &self.0
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(Span::len).sum()
    }

    /// The address behind the last, 0 for the empty set.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |last| last.end)
    }

    /// Whether all of `span` is in it.
    #[must_use]
    pub fn contains(&self, span: Span) -> bool {
        span.is_empty() || self.iter().any(|own| own.contains(span))
    }

    /// Whether a byte of `span` is in it.
    #[must_use]
    pub fn overlaps(&self, span: Span) -> bool {
        self.iter().any(|own| own.overlaps(span))
    }

    /// Adds a span.
    pub fn insert(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        let mut all = span;
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        for own in self.iter() {
            if own.end < all.start || all.end < own.start {
                rest.push(own);
            } else {
                all = Span::new(all.start.min(own.start), all.end.max(own.end));
            }
        }
        let place = rest.partition_point(|own| own.start < all.start);
        rest.insert(place, all);
        self.0 = rest;
    }

    /// Takes a span out.
    pub fn remove(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        for own in self.iter() {
            let below = Span::new(own.start, own.end.min(span.start));
            let above = Span::new(own.start.max(span.end), own.end);
            rest.extend([below, above].into_iter().filter(|part| !part.is_empty()));
        }
        self.0 = rest;
    }

    /// What is in it and not in `other`.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Self {
        other.iter().for_each(|span| self.remove(span));
        self
    }

    /// What is in it and not in `span`.
    #[must_use]
    pub fn without_span(mut self, span: Span) -> Self {
        self.remove(span);
        self
    }

    /// What is in it and in `span`.
    #[must_use]
    pub fn within(&self, span: Span) -> Self {
        self.iter().map(|own| own.intersection(span)).collect()
    }

    /// Its lowest `len` bytes, or all of it.
    #[must_use]
    pub fn lowest(&self, len: u64) -> Self {
        let mut left = len;
        let mut taken = Self::new();
        for own in self.iter() {
            let part = Span::sized(own.start, left.min(own.len()));
            left -= part.len();
            taken.insert(part);
        }
        taken
    }

    /// The lowest `len` bytes in one piece whose start is a multiple of `align` (a power of two).
    #[must_use]
    pub fn first_fit(&self, len: u64, align: u64) -> Option<Span> {
        self.iter().find_map(|own| {
            let start = own.start.checked_next_multiple_of(align)?;
            let fit = Span::new(start, start.checked_add(len)?);
            own.contains(fit).then_some(fit)
        })
    }

    /// The highest `len` bytes in one piece whose start is a multiple of `align` (a power of two).
    #[must_use]
    pub fn last_fit(&self, len: u64, align: u64) -> Option<Span> {
        self.iter().rev().find_map(|own| {
            let start = own.end.checked_sub(len)? & !(align - 1);
            (start >= own.start).then(|| Span::sized(start, len))
        })
    }
}

impl FromIterator<Span> for Spans {
    fn from_iter<I: IntoIterator<Item = Span>>(spans: I) -> Self {
        let mut set = Self::new();
        spans.into_iter().for_each(|span| set.insert(span));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit n stands for byte n.
    fn bits(set: &Spans) -> u64 {
        set.iter().flat_map(|span| span.start..span.end).fold(0, |bits, byte| bits | 1 << byte)
    }

    fn bits_of(span: Span) -> u64 {
        bits(&Spans(vec![span]))
    }

    prop_compose! {
        fn span()(start in 0..48u64, len in 0..16u64) -> Span { Span::sized(start, len) }
    }

    proptest! {
        #[test]
        fn sets_agree_with_a_bitmap(steps in proptest::collection::vec((any::<bool>(), span()), 0..20), probe in span(), take in 0..64u64) {
            let mut set = Spans::new();
            let mut model = 0;
            for (insert, span) in steps {
                if insert { set.insert(span); model |= bits_of(span) } else { set.remove(span); model &= !bits_of(span) }
                prop_assert_eq!(bits(&set), model);
                prop_assert!(set.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{set:?}");
                prop_assert!(set.0.iter().all(|span| !span.is_empty()));
            }
            prop_assert_eq!(set.total(), u64::from(model.count_ones()));
            prop_assert_eq!(set.contains(probe), bits_of(probe) & !model == 0);
            prop_assert_eq!(set.overlaps(probe), bits_of(probe) & model != 0);
            prop_assert_eq!(bits(&set.within(probe)), bits_of(probe) & model);
            let lowest = set.lowest(take);
            prop_assert_eq!(lowest.total(), take.min(set.total()));
            prop_assert!(bits(&lowest) & !model == 0);
            prop_assert!(set.clone().without(&lowest).iter().all(|span| span.start >= lowest.end() || lowest.is_empty()));
        }

        #[test]
        fn fits_are_the_outermost_ones(spans in proptest::collection::vec(span(), 0..6), len in 1..20u64, shift in 0..4u32) {
            let set: Spans = spans.into_iter().collect();
            let align = 1 << shift;
            let all: Vec<_> = (0..64).step_by(align).map(|at| Span::sized(at, len)).filter(|at| set.contains(*at)).collect();
            prop_assert_eq!(set.first_fit(len, align as u64), all.first().copied());
            prop_assert_eq!(set.last_fit(len, align as u64), all.last().copied());
        }
    }

    #[test]
    fn rounding_to_pages_never_leaves_the_address_space() {
        assert_eq!(Span::new(1, 0x2001).pages_inside(), Span::new(0x1000, 0x2000));
        assert_eq!(Span::new(1, 0x2001).pages_around(), Span::new(0, 0x3000));
        assert!(Span::new(1, 0xfff).pages_inside().is_empty());
        assert!(Span::sized(u64::MAX - 5, 100).pages_inside().is_empty());
        assert_eq!(Span::sized(u64::MAX - 5, 100).pages_around().len(), 0);
    }
}
