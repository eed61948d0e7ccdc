// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks with a rank: the one place that says in which order they may be taken.
//!
//! A pCPU that holds a lock may only take one of a higher [`Rank`], or one of the same rank that
//! belongs to a domain with a higher number. So no two pCPUs can wait for each other, and a lock
//! is never taken twice. Builds with debug assertions keep a stack of what each pCPU holds and
//! panic at the first violation, on one CPU too, where it could not yet deadlock. Release builds
//! pay for a compare-and-swap and nothing else.
//!
//! The hypervisor runs with interrupts off and never sleeps, so a spinning mutex is enough.
//! Nobody waits for another pCPU while holding a lock: what needs a flush is collected as tokens
//! ([`crate::p2m::flush`]) and flushed after the lock is dropped. So who waits for a lock goes on soon.

use core::ops::{Deref, DerefMut};

use guest_abi::DomId;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// The order of locks: lower ones are taken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    /// Creation, shutdown and destruction of one domain.
    LifeCycle = 1,
    /// One domain's event-channel ports: binding and closing, not sending.
    EventChannels,
    /// One domain's grant table.
    GrantTable,
    /// One domain's p2m: changes, not lookups.
    P2m,
    /// One vCPU's or domain's emulated devices.
    Devices,
    /// One domain's queues of events (FIFO).
    EventQueues,
    /// Run queues and timers.
    Scheduler,
    /// Free frames and what each domain is charged for.
    Allocator,
    /// The console's transmitter.
    Console,
}

/// A value that one pCPU at a time may use.
pub struct Lock<T> {
    inner: SpinMutex<T>,
    #[cfg(debug_assertions)]
    key: u32,
}

impl<T> Lock<T> {
    /// Makes a lock of which the machine has one.
    #[must_use]
    pub const fn new(rank: Rank, value: T) -> Self {
        Self::for_domain(rank, DomId::DOM0, value)
    }

    /// Makes a lock of which each domain has one.
    #[must_use]
    pub const fn for_domain(rank: Rank, owner: DomId, value: T) -> Self {
        #[cfg(not(debug_assertions))]
        let _ = (rank, owner);
        Self {
            inner: SpinMutex::new(value),
            #[cfg(debug_assertions)]
            key: (rank as u32) << 16 | owner.raw() as u32,
        }
    }

    /// Takes the lock, waiting for it if another pCPU holds it.
    ///
    /// # Panics
    /// With debug assertions: if this pCPU holds a lock that must be taken later than this one.
    #[inline]
    pub fn lock(&self) -> LockGuard<'_, T> {
        #[cfg(debug_assertions)]
        held::push(self.key);
        LockGuard {
            inner: self.inner.lock(),
            #[cfg(debug_assertions)]
            key: self.key,
        }
    }

    /// The value, out of a lock that nobody needs any more.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }

    /// The value, for somebody who has the lock to himself.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

/// The right to use a locked value, until it is dropped.
#[must_use]
pub struct LockGuard<'a, T> {
    inner: SpinMutexGuard<'a, T>,
    #[cfg(debug_assertions)]
    key: u32,
}

impl<T> Deref for LockGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for LockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(debug_assertions)]
impl<T> Drop for LockGuard<'_, T> {
    fn drop(&mut self) {
        held::pop(self.key);
    }
}

/// Whether this pCPU holds no lock, as far as the build can tell; for assertions before waiting.
#[must_use]
pub fn holds_none() -> bool {
    #[cfg(debug_assertions)]
    return held::is_empty();
    #[cfg(not(debug_assertions))]
    true
}

/// What each pCPU holds. Only that pCPU touches its entry; the atomics are there for the static.
#[cfg(debug_assertions)]
mod held {
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

    /// Deeper nesting than there are ranks, with two domains at some of them.
    const DEPTH: usize = 16;

    struct Held {
        depth: AtomicUsize,
        keys: [AtomicU32; DEPTH],
    }

    impl Held {
        const fn new() -> Self {
            Self { depth: AtomicUsize::new(0), keys: [const { AtomicU32::new(0) }; DEPTH] }
        }
    }

    // Host tests run on threads that are not pCPUs, so there each thread counts as one.
    #[cfg(not(test))]
    fn with<R>(f: impl FnOnce(&Held) -> R) -> R {
        static HELD: [Held; crate::pcpu::MAX_PCPUS] = [const { Held::new() }; crate::pcpu::MAX_PCPUS];
        f(&HELD[crate::pcpu::current()])
    }

    #[cfg(test)]
    fn with<R>(f: impl FnOnce(&Held) -> R) -> R {
        std::thread_local! { static HELD: Held = const { Held::new() } }
        HELD.with(f)
    }

    pub(super) fn push(key: u32) {
        with(|held| {
            let depth = held.depth.load(Relaxed);
            for slot in &held.keys[..depth] {
                let other = slot.load(Relaxed);
                assert!(other < key, "lock order: {other:#x} is held while {key:#x} is taken");
            }
            held.keys[depth].store(key, Relaxed);
            held.depth.store(depth + 1, Relaxed);
        });
    }

    pub(super) fn pop(key: u32) {
        with(|held| {
            let depth = held.depth.load(Relaxed);
            // Guards may be dropped in any order.
            let Some(at) = held.keys[..depth].iter().position(|slot| slot.load(Relaxed) == key) else { return };
            for i in at + 1..depth {
                held.keys[i - 1].store(held.keys[i].load(Relaxed), Relaxed);
            }
            held.depth.store(depth - 1, Relaxed);
        });
    }

    pub(super) fn is_empty() -> bool {
        with(|held| held.depth.load(Relaxed) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rising_ranks_and_domains_are_fine() {
        let table = Lock::for_domain(Rank::GrantTable, DomId::new(1), 1);
        let other = Lock::for_domain(Rank::GrantTable, DomId::new(2), 2);
        let p2m = Lock::for_domain(Rank::P2m, DomId::new(1), 3);
        for _ in 0..2 {
            let first = table.lock();
            let second = other.lock();
            let mut third = p2m.lock();
            *third += 1;
            drop(first);
            drop(third);
            drop(second);
            assert!(holds_none());
        }
        assert_eq!(*p2m.lock(), 5);
    }

    #[test]
    #[should_panic = "lock order"]
    fn a_lower_rank_after_a_higher_one_is_caught() {
        let p2m = Lock::for_domain(Rank::P2m, DomId::new(1), ());
        let table = Lock::for_domain(Rank::GrantTable, DomId::new(1), ());
        let _p2m = p2m.lock();
        let _table = table.lock();
    }

    #[test]
    #[should_panic = "lock order"]
    fn two_domains_in_falling_order_are_caught() {
        let first = Lock::for_domain(Rank::P2m, DomId::new(1), ());
        let second = Lock::for_domain(Rank::P2m, DomId::new(2), ());
        let _second = second.lock();
        let _first = first.lock();
    }

    #[test]
    #[should_panic = "lock order"]
    fn taking_a_lock_twice_is_caught() {
        let lock = Lock::new(Rank::Allocator, ());
        let _first = lock.lock();
        let _again = lock.lock();
    }

    #[test]
    fn threads_count_exactly() {
        let lock = Lock::new(Rank::Allocator, 0_u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 4000);
    }
}
