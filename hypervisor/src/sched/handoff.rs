// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a vCPU hands its CPU over at once when it wakes another domain's up by an event.
//!
//! Two domains that take turns, a question and its answer, both sleep after each event that they send. Who is known for
//! that leaves its CPU with the event: it does not go through its idle task and HLT, which is an exit and some
//! thousand instructions of its kernel, and the answer is there when it goes on. Who has more to send must not leave,
//! or a batch is answered one by one. So the habit is watched, and now and then again.

/// A vCPU's habit.
#[derive(Debug, Default)]
pub struct Handoff {
    /// Events in a row after which it slept at once.
    seen: u8,
    /// Events with which it still leaves before it is watched again.
    left: u8,
    /// It has left and not come back.
    is_away: bool,
}

impl Handoff {
    /// Events in a row after which the habit is taken for known.
    const KNOWN: u8 = 4;
    /// Events with which it leaves before one is watched.
    const TURNS: u8 = 32;

    /// It has woken somebody up who waits for its CPU: whether it leaves. If not, it is to be watched.
    pub fn leaves(&mut self) -> bool {
        self.is_away = self.left != 0;
        self.left = self.left.saturating_sub(1);
        self.is_away
    }

    /// It was watched after an event, and has slept at once or has gone on.
    pub fn watched(&mut self, slept_at_once: bool) {
        self.seen = if slept_at_once { (self.seen + 1).min(Self::KNOWN) } else { 0 };
        self.left = if self.seen == Self::KNOWN { Self::TURNS } else { 0 };
    }

    /// Whether it has left and not come back.
    #[inline]
    #[must_use]
    pub const fn is_away(&self) -> bool {
        self.is_away
    }

    /// It has its CPU again. Without an answer it would still sleep if it had slept: the habit has changed.
    pub fn returns(&mut self, has_events: bool) {
        if !has_events {
            *self = Self::default();
        }
        self.is_away = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Handoff {
        let mut handoff = Handoff::default();
        (0..Handoff::KNOWN).for_each(|_| handoff.watched(true));
        handoff
    }

    #[test]
    fn a_habit_is_known_after_some_events_in_a_row() {
        let mut handoff = Handoff::default();
        for slept in [true, true, true, false, true, true, true] {
            assert!(!handoff.leaves());
            handoff.watched(slept);
        }
        assert!(!handoff.leaves());
        handoff.watched(true);
        assert!(handoff.leaves());
    }

    #[test]
    fn a_known_habit_is_watched_now_and_then() {
        let mut handoff = known();
        for _ in 0..3 {
            let left = (0..=Handoff::TURNS).filter(|_| handoff.leaves()).count();
            assert_eq!(left, usize::from(Handoff::TURNS), "all but the last");
            handoff.watched(true);
        }
        while handoff.leaves() {}
        handoff.watched(false);
        assert!(!handoff.leaves());
    }

    #[test]
    fn one_who_comes_back_to_nothing_stays_the_next_time() {
        let mut handoff = known();
        assert!(handoff.leaves());
        handoff.returns(true);
        assert!(!handoff.is_away() && handoff.leaves() && handoff.is_away());
        handoff.returns(false);
        assert!(!handoff.leaves() && !handoff.is_away());
    }
}
