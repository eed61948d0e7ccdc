// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels beside a naive model, and each rule on its own.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use guest_abi::event_channel as fifo_abi;

use super::*;
use crate::testing::test_memory;

const VCPUS: u32 = 3;
const PORTS: u32 = 72;

#[derive(Default)]
struct Recorder {
    upcalls: RefCell<Vec<u32>>,
    polls: RefCell<Vec<u32>>,
}

impl Wake for Recorder {
    fn upcall(&self, vcpu: VcpuId) {
        self.upcalls.borrow_mut().push(vcpu.raw());
    }
    fn poll_wake(&self, vcpu: VcpuId) {
        self.polls.borrow_mut().push(vcpu.raw());
    }
}

/// Some domains on one memory; domain n has `shared_info` in frame n + 1.
struct World {
    mem: PhysMem,
    domains: Vec<(EventChannels, Recorder)>,
    hidden: Option<DomId>,
}

impl World {
    fn new(nr_domains: u16) -> Self {
        let mem = test_memory(usize::from(nr_domains) * 3 + 4);
        let domains = (0..nr_domains)
            .map(|d| {
                let frame = Mfn::new(u64::from(d) + 1);
                (EventChannels::new(DomId::new(d), mem, frame, VCPUS, PORTS).unwrap(), Recorder::default())
            })
            .collect();
        Self { mem, domains, hidden: None }
    }

    fn ch(&self, d: usize) -> &EventChannels {
        &self.domains[d].0
    }

    fn wake(&self, d: usize) -> &Recorder {
        &self.domains[d].1
    }

    fn bind(&self, local: usize, remote: usize, port: EvtchnPort) -> Result<EvtchnPort, Error> {
        bind_interdomain(self.ch(local), self.wake(local), self.ch(remote), port)
    }

    fn connect(&self, local: usize, remote: usize) -> (EvtchnPort, EvtchnPort) {
        let far = self.ch(remote).alloc_unbound(self.ch(local).domain).unwrap();
        (self.bind(local, remote, far).unwrap(), far)
    }

    fn send(&self, d: usize, port: EvtchnPort) -> Result<(), Error> {
        self.ch(d).send(port, self.wake(d), self)
    }

    fn shared_word(&self, d: usize, word: usize) -> &'static AtomicU64 {
        self.mem.word(Mfn::new(d as u64 + 1), word)
    }

    fn pending(&self, d: usize, word: usize) -> &'static AtomicU64 {
        self.shared_word(d, 256 + word)
    }

    fn mask(&self, d: usize, port: EvtchnPort) {
        self.shared_word(d, 320 + port.index() / 64).fetch_or(1 << (port.index() % 64), Ordering::SeqCst);
    }

    fn info_word(&self, d: usize, vcpu: u32, word: usize) -> &'static AtomicU64 {
        let place = self.ch(d).vcpu_info(VcpuId::new(vcpu)).unwrap();
        self.mem.word(place.mfn(), place.page_offset() / 8 + word)
    }

    /// The page of a domain's control blocks; that of its event words is the next one.
    fn queues(&self, d: usize) -> Mfn {
        Mfn::new((self.domains.len() + 4 + 2 * d) as u64)
    }

    fn words(&self, d: usize) -> Mfn {
        Mfn::new(self.queues(d).raw() + 1)
    }

    /// The domain chooses the FIFO ABI, with no port masked.
    fn use_fifo(&self, d: usize) {
        let (controls, words) = (self.queues(d), self.words(d));
        [controls, words].into_iter().for_each(|page| self.mem.zero(page));
        for vcpu in 0..VCPUS {
            let offset = CONTROL_STEP * vcpu as usize;
            self.ch(d).init_control(VcpuId::new(vcpu), Pinned(controls, None), offset, self.wake(d)).unwrap();
        }
        self.ch(d).expand_array(Pinned(words, None), self.wake(d)).unwrap();
    }

    fn event_word(&self, d: usize, raw: u32) -> GuestWord {
        GuestWord(self.mem, self.words(d), raw as usize * 4)
    }

    fn control(&self, d: usize, vcpu: u32, offset: usize) -> GuestWord {
        GuestWord(self.mem, self.queues(d), CONTROL_STEP * vcpu as usize + offset)
    }

    /// The same of one that uses queues, in their order.
    fn consume_fifo(&self, d: usize, vcpu: u32) -> Vec<u32> {
        self.info_word(d, vcpu, 0).store(0, Ordering::SeqCst);
        let ready = self.control(d, vcpu, fifo_abi::FIFO_CONTROL_READY).clear(u32::MAX);
        let mut found = Vec::new();
        for queue in (0..16).filter(|queue| ready >> queue & 1 != 0) {
            let mut port = self.control(d, vcpu, fifo_abi::FIFO_CONTROL_HEAD + queue * 4).get();
            while port != 0 {
                let word = self.event_word(d, port);
                let link = word.clear(fifo_abi::FIFO_LINKED | fifo_abi::FIFO_LINK_MASK) & fifo_abi::FIFO_LINK_MASK;
                if word.get() & (fifo_abi::FIFO_PENDING | fifo_abi::FIFO_MASKED) == fifo_abi::FIFO_PENDING {
                    word.clear(fifo_abi::FIFO_PENDING);
                    found.push(port);
                }
                port = link;
            }
        }
        found
    }

    /// What a kernel does in its upcall: the ports it finds.
    fn consume(&self, d: usize, vcpu: u32) -> Vec<u32> {
        self.info_word(d, vcpu, 0).store(0, Ordering::SeqCst);
        let selector = self.info_word(d, vcpu, 1).swap(0, Ordering::SeqCst);
        let mut found = Vec::new();
        for word in (0..64).filter(|word| selector >> word & 1 != 0) {
            let ready =
                self.pending(d, word).load(Ordering::SeqCst) & !self.shared_word(d, 320 + word).load(Ordering::SeqCst);
            self.pending(d, word).fetch_and(!ready, Ordering::SeqCst);
            found
                .extend((0..64).filter(|bit| ready >> bit & 1 != 0).map(|bit| u32::try_from(word).unwrap() * 64 + bit));
        }
        found
    }
}

impl Peers for World {
    fn with<R>(&self, domain: DomId, act: impl FnOnce(&EventChannels, &dyn Wake) -> R) -> Option<R> {
        if self.hidden == Some(domain) {
            return None;
        }
        self.domains.get(domain.index()).map(|(channels, wake)| act(channels, wake))
    }
}

const CONTROL_STEP: usize = 80;

/// A 32-bit word as a guest changes it.
struct GuestWord(PhysMem, Mfn, usize);

impl GuestWord {
    fn cell(&self) -> (&'static AtomicU64, usize) {
        (self.0.word(self.1, self.2 / 8), self.2 % 8 * 8)
    }

    fn get(&self) -> u32 {
        self.0.load_u32(self.1, self.2)
    }

    fn set(&self, bits: u32) {
        let (cell, shift) = self.cell();
        cell.fetch_or(u64::from(bits) << shift, Ordering::SeqCst);
    }

    fn clear(&self, bits: u32) -> u32 {
        let (cell, shift) = self.cell();
        (cell.fetch_and(!(u64::from(bits) << shift), Ordering::SeqCst) >> shift & 0xffff_ffff) as u32
    }
}

fn port(raw: u32) -> EvtchnPort {
    EvtchnPort::new(raw)
}

const CPU0: VcpuId = VcpuId::new(0);
const CPU1: VcpuId = VcpuId::new(1);

#[test]
fn binding_raises_the_binder_and_not_the_peer() {
    let world = World::new(2);
    let (near, far) = world.connect(0, 1);
    assert!(world.ch(0).is_pending(near));
    assert!(!world.ch(1).is_pending(far));
    assert_eq!(*world.wake(0).upcalls.borrow(), [0]);
    assert!(world.wake(1).upcalls.borrow().is_empty());
}

#[test]
fn only_the_named_domain_binds() {
    let world = World::new(3);
    let far = world.ch(1).alloc_unbound(DomId::new(0)).unwrap();
    assert_eq!(world.bind(2, 1, far), Err(Error::BadPeer(far)));
    assert_eq!(world.bind(1, 1, far), Err(Error::BadPeer(far)));
    let near = world.bind(0, 1, far).unwrap();
    assert_eq!(world.bind(0, 1, far), Err(Error::BadPeer(far)), "it is bound already");
    assert_eq!(world.bind(0, 1, port(40)), Err(Error::BadPeer(port(40))));
    assert_eq!(world.bind(0, 1, port(u32::MAX)), Err(Error::BadPeer(port(u32::MAX))));
    let state = PortState::Interdomain { remote: DomId::new(0), port: near };
    assert_eq!(world.ch(1).status(far), Ok(Port { state, vcpu: CPU0 }));
}

#[test]
fn an_event_reaches_the_vcpu_that_the_port_is_bound_to() {
    let world = World::new(2);
    let (near, far) = world.connect(0, 1);
    world.ch(1).bind_vcpu(far, VcpuId::new(2)).unwrap();
    world.send(0, near).unwrap();
    assert_eq!(*world.wake(1).upcalls.borrow(), [2]);
    assert!(world.ch(1).upcall_pending(VcpuId::new(2)));
    assert!(!world.ch(1).upcall_pending(CPU0));
    assert_eq!(world.consume(1, 2), [far.raw()]);
    assert!(!world.ch(1).upcall_pending(VcpuId::new(2)));
}

#[test]
fn a_second_event_before_the_first_is_taken_costs_no_upcall() {
    let world = World::new(2);
    let (near, far) = world.connect(0, 1);
    let (near2, far2) = world.connect(0, 1);
    for near in [near, near, near2] {
        world.send(0, near).unwrap();
    }
    assert_eq!(*world.wake(1).upcalls.borrow(), [0]);
    assert_eq!(world.consume(1, 0), [far.raw(), far2.raw()]);
}

#[test]
fn a_masked_event_waits_for_unmask() {
    let world = World::new(2);
    let (near, far) = world.connect(0, 1);
    world.mask(1, far);
    world.send(0, near).unwrap();
    assert!(world.wake(1).upcalls.borrow().is_empty());
    world.ch(1).unmask(far, world.wake(1)).unwrap();
    assert_eq!(*world.wake(1).upcalls.borrow(), [0]);
    assert_eq!(world.consume(1, 0), [far.raw()]);
    world.ch(1).unmask(far, world.wake(1)).unwrap();
    assert_eq!(*world.wake(1).upcalls.borrow(), [0], "nothing was pending");
    assert_eq!(world.ch(1).unmask(port(0), world.wake(1)), Err(Error::BadPort(port(0))));
}

#[test]
fn loopback_is_a_channel_like_any_other() {
    let world = World::new(1);
    let (near, far) = world.connect(0, 0);
    world.consume(0, 0);
    world.send(0, near).unwrap();
    assert_eq!(world.consume(0, 0), [far.raw()]);
    world.send(0, far).unwrap();
    assert_eq!(world.consume(0, 0), [near.raw()]);
    world.ch(0).close(near, &world).unwrap();
    assert_eq!(world.ch(0).status(far).unwrap().state, PortState::Unbound { remote: DomId::new(0) });
    assert_eq!(world.bind(0, 0, far), Ok(near));
}

#[test]
fn closing_leaves_the_peer_waiting_for_this_domain() {
    let world = World::new(2);
    let (near, far) = world.connect(0, 1);
    world.ch(1).bind_vcpu(far, CPU1).unwrap();
    world.ch(0).close(near, &world).unwrap();
    let waiting = Port { state: PortState::Unbound { remote: DomId::new(0) }, vcpu: CPU1 };
    assert_eq!(world.ch(1).status(far), Ok(waiting));
    assert!(!world.ch(0).is_pending(near), "the free port's event is forgotten");
    assert_eq!(world.send(1, far), Ok(()), "an unbound port swallows events");
    assert_eq!(world.send(0, near), Err(Error::BadPort(near)));
    assert_eq!(world.ch(0).close(near, &world), Err(Error::BadPort(near)));
    assert_eq!(world.bind(0, 1, far), Ok(near));
}

#[test]
fn a_free_port_starts_without_an_old_event() {
    let world = World::new(1);
    world.pending(0, 0).store(1 << 1, Ordering::SeqCst);
    assert_eq!(world.ch(0).bind_ipi(CPU0), Ok(port(1)));
    assert!(!world.ch(0).is_pending(port(1)));
}

#[test]
fn an_event_from_anybody_but_the_other_end_is_dropped() {
    let world = World::new(3);
    let (near, far) = world.connect(0, 1);
    world.ch(1).receive(far, (DomId::new(2), near), world.wake(1));
    world.ch(1).receive(far, (DomId::new(0), port(9)), world.wake(1));
    assert!(!world.ch(1).is_pending(far));
    world.ch(1).receive(far, (DomId::new(0), near), world.wake(1));
    assert!(world.ch(1).is_pending(far));
}

#[test]
fn a_peer_that_is_gone_does_not_keep_a_port() {
    let mut world = World::new(2);
    let (near, far) = world.connect(0, 1);
    // The same number at home, which closing must leave alone.
    let (_, _) = world.connect(0, 0);
    world.hidden = Some(DomId::new(1));
    let before: Vec<_> = (2..10).map(|raw| world.ch(0).status(port(raw)).unwrap()).collect();
    assert_eq!(world.send(0, near), Ok(()));
    world.ch(0).close(near, &world).unwrap();
    let after: Vec<_> = (2..10).map(|raw| world.ch(0).status(port(raw)).unwrap()).collect();
    assert_eq!(before, after);
    assert_eq!(world.ch(0).status(near).unwrap().state, PortState::Free);
    // Its number is used again before the peer comes to close its own end.
    assert_eq!(world.ch(0).bind_ipi(CPU1), Ok(near));
    assert_eq!(world.ch(1).destroy(&world), Progress::Done);
    assert_eq!(world.ch(0).status(near), Ok(Port { state: PortState::Ipi, vcpu: CPU1 }));
    assert_eq!(world.ch(1).status(far).unwrap().state, PortState::Free);
}

#[test]
fn virqs_are_bound_once_and_by_their_owner() {
    let world = World::new(1);
    let d = world.ch(0);
    let timer = d.bind_virq(0, CPU1, GlobalVirqs::Refused).unwrap();
    assert_eq!(d.bind_virq(0, CPU1, GlobalVirqs::Refused), Err(Error::VirqBound(0)));
    assert!(d.bind_virq(0, CPU0, GlobalVirqs::Refused).is_ok(), "another vCPU has its own");
    assert_eq!(d.bind_virq(2, CPU0, GlobalVirqs::Refused), Err(Error::VirqTaken(2)));
    assert_eq!(d.bind_virq(2, CPU1, GlobalVirqs::Handler), Err(Error::BadVirq(2)));
    assert_eq!(d.bind_virq(NR_VIRQS, CPU0, GlobalVirqs::Handler), Err(Error::BadVirq(NR_VIRQS)));
    assert_eq!(d.bind_virq(0, VcpuId::new(VCPUS), GlobalVirqs::Handler), Err(Error::NoVcpu(VcpuId::new(VCPUS))));
    assert_eq!(d.bind_vcpu(timer, CPU0), Err(Error::BadPort(timer)));
    assert_eq!(world.send(0, timer), Err(Error::BadPort(timer)));
    let console = d.bind_virq(2, CPU0, GlobalVirqs::Handler).unwrap();
    d.bind_vcpu(console, CPU1).unwrap();
    d.raise_virq(2, CPU0, world.wake(0));
    assert_eq!(world.consume(0, 1), [console.raw()]);
    d.close(console, &world).unwrap();
    d.raise_virq(2, CPU0, world.wake(0));
    assert!(!d.is_pending(console));
    assert_eq!(d.bind_virq(2, CPU0, GlobalVirqs::Handler), Ok(console), "closing released the number");
    d.close(timer, &world).unwrap();
    assert_eq!(d.bind_virq(0, CPU1, GlobalVirqs::Refused), Ok(timer));
}

#[test]
fn an_ipi_stays_on_its_vcpu() {
    let world = World::new(1);
    let ipi = world.ch(0).bind_ipi(CPU1).unwrap();
    assert_eq!(world.ch(0).bind_vcpu(ipi, CPU0), Err(Error::BadPort(ipi)));
    world.send(0, ipi).unwrap();
    assert_eq!(world.consume(0, 1), [ipi.raw()]);
    assert_eq!(world.ch(0).bind_ipi(VcpuId::new(VCPUS)), Err(Error::NoVcpu(VcpuId::new(VCPUS))));
}

#[test]
fn bind_vcpu_wants_a_port_and_a_vcpu() {
    let world = World::new(1);
    let waiting = world.ch(0).alloc_unbound(DomId::new(0)).unwrap();
    assert_eq!(world.ch(0).bind_vcpu(waiting, VcpuId::new(VCPUS)), Err(Error::NoVcpu(VcpuId::new(VCPUS))));
    assert_eq!(world.ch(0).bind_vcpu(port(7), CPU0), Err(Error::BadPort(port(7))));
    assert_eq!(world.ch(0).bind_vcpu(waiting, CPU1), Ok(()));
}

#[test]
fn ports_end_at_the_limit_and_zero_is_none() {
    let world = World::new(1);
    for raw in 1..PORTS {
        assert_eq!(world.ch(0).bind_ipi(CPU0), Ok(port(raw)));
    }
    assert_eq!(world.ch(0).bind_ipi(CPU0), Err(Error::NoPort));
    assert_eq!(world.ch(0).status(port(0)).unwrap().state, PortState::Free);
    assert_eq!(world.ch(0).status(port(PORTS)), Err(Error::BadPort(port(PORTS))));
    assert_eq!(world.send(0, port(0)), Err(Error::BadPort(port(0))));
    assert_eq!(world.send(0, port(u32::MAX)), Err(Error::BadPort(port(u32::MAX))));
    world.ch(0).close(port(65), &world).unwrap();
    assert_eq!(world.ch(0).bind_ipi(CPU0), Ok(port(65)), "the lowest free one");
}

#[test]
fn reset_closes_in_batches_and_destroy_ends_allocation() {
    let world = World::new(2);
    let (near, far) = world.connect(0, 1);
    while world.ch(0).bind_ipi(CPU0).is_ok() {}
    assert_eq!(world.ch(0).reset(&world), Progress::Again);
    assert_eq!(world.ch(0).reset(&world), Progress::Done);
    assert!((0..PORTS).all(|raw| world.ch(0).status(port(raw)).unwrap().state == PortState::Free));
    assert_eq!(world.ch(1).status(far).unwrap().state, PortState::Unbound { remote: DomId::new(0) });
    assert_eq!(world.bind(0, 1, far), Ok(near));
    assert_eq!(world.ch(0).destroy(&world), Progress::Done);
    assert_eq!(world.bind(0, 1, far), Err(Error::Dying));
    assert_eq!(world.ch(0).alloc_unbound(DomId::new(1)), Err(Error::Dying));
}

#[test]
fn registering_moves_a_vcpu_info_and_loses_nothing() {
    let world = World::new(1);
    let frame = Mfn::new(3);
    let ipi = world.ch(0).bind_ipi(CPU1).unwrap();
    world.info_word(0, 1, 4).store(77, Ordering::Relaxed);
    world.pending(0, 0).fetch_or(1 << ipi.raw(), Ordering::SeqCst);
    assert_eq!(world.ch(0).register_vcpu_info(CPU1, frame, 4, world.wake(0)), Err(Error::BadPlace));
    assert_eq!(world.ch(0).register_vcpu_info(CPU1, frame, 4040, world.wake(0)), Err(Error::BadPlace));
    world.ch(0).register_vcpu_info(CPU1, frame, 4032, world.wake(0)).unwrap();
    assert_eq!(world.mem.word(frame, 4032 / 8 + 4).load(Ordering::Relaxed), 77, "time moved along");
    assert_eq!(*world.wake(0).upcalls.borrow(), [1]);
    assert_eq!(world.consume(0, 1), [ipi.raw()]);
    assert_eq!(world.ch(0).register_vcpu_info(CPU1, frame, 0, world.wake(0)), Err(Error::BadPlace), "once");
    world.send(0, ipi).unwrap();
    assert_eq!(world.mem.word(frame, 4032 / 8).load(Ordering::Relaxed), 1);
}

#[test]
fn a_vcpu_without_a_place_gets_its_events_when_it_registers() {
    let mem = test_memory(3);
    let channels = EventChannels::new(DomId::new(0), mem, Mfn::new(1), 40, 64).unwrap();
    let wake = Recorder::default();
    let late = VcpuId::new(39);
    let ipi = channels.bind_ipi(late).unwrap();
    mem.word(Mfn::new(2), 3).store(99, Ordering::Relaxed);
    channels.send(ipi, &wake, &World::new(1)).unwrap();
    assert!(channels.vcpu_info(late).is_none() && wake.upcalls.borrow().is_empty());
    channels.register_vcpu_info(late, Mfn::new(2), 0, &wake).unwrap();
    assert_eq!(*wake.upcalls.borrow(), [39]);
    assert_eq!(mem.word(Mfn::new(2), 3).load(Ordering::Relaxed), 0, "starts as zeroes");
}

#[test]
fn a_poller_wakes_even_for_a_masked_port() {
    let world = World::new(1);
    let ipi = world.ch(0).bind_ipi(CPU1).unwrap();
    let other = world.ch(0).bind_ipi(CPU1).unwrap();
    world.mask(0, ipi);
    assert_eq!(world.ch(0).begin_poll(CPU1, &[ipi]), Ok(Poll::Wait));
    world.send(0, other).unwrap();
    assert!(world.wake(0).polls.borrow().is_empty(), "another port");
    world.send(0, ipi).unwrap();
    assert_eq!(*world.wake(0).polls.borrow(), [1]);
    assert_eq!(world.ch(0).begin_poll(CPU1, &[port(9), ipi]), Ok(Poll::Ready));
    world.pending(0, 0).store(0, Ordering::SeqCst);
    assert_eq!(world.ch(0).begin_poll(CPU1, &[other, ipi]), Ok(Poll::Wait));
    world.ch(0).end_poll(CPU1);
    world.send(0, ipi).unwrap();
    assert_eq!(*world.wake(0).polls.borrow(), [1], "the poll had ended");
    assert_eq!(world.ch(0).begin_poll(CPU1, &[port(PORTS)]), Err(Error::BadPort(port(PORTS))));
    assert_eq!(world.ch(0).begin_poll(VcpuId::new(VCPUS), &[]), Err(Error::NoVcpu(VcpuId::new(VCPUS))));
}

#[derive(Clone, Debug)]
enum Op {
    AllocUnbound { d: usize, remote: usize },
    Bind { d: usize, remote: usize, port: u32 },
    BindVirq { d: usize, virq: u32, vcpu: u32 },
    BindIpi { d: usize, vcpu: u32 },
    BindVcpu { d: usize, port: u32, vcpu: u32 },
    Close { d: usize, port: u32 },
    Send { d: usize, port: u32 },
    RaiseVirq { d: usize, virq: u32, vcpu: u32 },
    Unmask { d: usize, port: u32 },
    Mask { d: usize, port: u32 },
    SetPriority { d: usize, port: u32, priority: u32 },
    Consume { d: usize, vcpu: u32 },
    Reset { d: usize },
}

fn ops() -> impl Strategy<Value = Op> {
    let d = || 0..3usize;
    // Around the border between two words and two buckets, and past the last port.
    let port = || prop_oneof![60..PORTS + 2, 62..67u32];
    let vcpu = || 0..VCPUS;
    let virq = || prop_oneof![0..3u32];
    prop_oneof![
        4 => (d(), d()).prop_map(|(d, remote)| Op::AllocUnbound { d, remote }),
        6 => (d(), d(), port()).prop_map(|(d, remote, port)| Op::Bind { d, remote, port }),
        1 => (d(), virq(), vcpu()).prop_map(|(d, virq, vcpu)| Op::BindVirq { d, virq, vcpu }),
        1 => (d(), vcpu()).prop_map(|(d, vcpu)| Op::BindIpi { d, vcpu }),
        2 => (d(), port(), vcpu()).prop_map(|(d, port, vcpu)| Op::BindVcpu { d, port, vcpu }),
        2 => (d(), port()).prop_map(|(d, port)| Op::Close { d, port }),
        8 => (d(), port()).prop_map(|(d, port)| Op::Send { d, port }),
        1 => (d(), virq(), vcpu()).prop_map(|(d, virq, vcpu)| Op::RaiseVirq { d, virq, vcpu }),
        2 => (d(), port()).prop_map(|(d, port)| Op::Unmask { d, port }),
        2 => (d(), port()).prop_map(|(d, port)| Op::Mask { d, port }),
        1 => (d(), port(), 5..18u32).prop_map(|(d, port, priority)| Op::SetPriority { d, port, priority }),
        3 => (d(), vcpu()).prop_map(|(d, vcpu)| Op::Consume { d, vcpu }),
        1 => (d(), any::<bool>()).prop_filter_map("rarely", |(d, yes)| yes.then_some(Op::Reset { d })),
    ]
}

#[derive(Clone, Default)]
struct ModelDomain {
    ports: BTreeMap<u32, (PortState, u32)>,
    pending: Vec<u32>,
    masked: Vec<u32>,
    selectors: [u64; VCPUS as usize],
    upcalls: [bool; VCPUS as usize],
    woken: Vec<u32>,
    /// For the FIFO ABI: what is in queues, as (vCPU, priority, port), and priorities.
    queued: Vec<(u32, u32, u32)>,
    priorities: BTreeMap<u32, u32>,
}

/// The rules, written down without regard to speed, locks or races.
struct Model {
    domains: Vec<ModelDomain>,
    uses_fifo: bool,
}

impl Model {
    fn free_port(&self, d: usize) -> Option<u32> {
        (1..PORTS).find(|raw| !self.domains[d].ports.contains_key(raw))
    }

    fn allocate(&mut self, d: usize, state: PortState, vcpu: u32) -> Result<EvtchnPort, Errno> {
        let raw = self.free_port(d).ok_or(Errno::ENOSPC)?;
        self.domains[d].ports.insert(raw, (state, vcpu));
        Ok(port(raw))
    }

    fn notify(&mut self, d: usize, raw: u32, vcpu: u32) {
        let (domain, cpu) = (&mut self.domains[d], vcpu as usize);
        if self.uses_fifo {
            let priority = *domain.priorities.get(&raw).unwrap_or(&7);
            if domain.queued.iter().all(|queued| queued.2 != raw) {
                let is_first = domain.queued.iter().all(|queued| (queued.0, queued.1) != (vcpu, priority));
                domain.queued.push((vcpu, priority, raw));
                if is_first && !std::mem::replace(&mut domain.upcalls[cpu], true) {
                    domain.woken.push(vcpu);
                }
            }
            return;
        }
        let bit = 1 << (raw / 64);
        if domain.selectors[cpu] & bit == 0 {
            domain.selectors[cpu] |= bit;
            if !domain.upcalls[cpu] {
                domain.upcalls[cpu] = true;
                domain.woken.push(vcpu);
            }
        }
    }

    fn raise(&mut self, d: usize, raw: u32) {
        let vcpu = self.domains[d].ports[&raw].1;
        if !self.domains[d].pending.contains(&raw) {
            self.domains[d].pending.push(raw);
            if !self.domains[d].masked.contains(&raw) {
                self.notify(d, raw, vcpu);
            }
        }
    }

    fn close(&mut self, d: usize, raw: u32) -> Result<(), Errno> {
        let (state, _) = self.domains[d].ports.remove(&raw).ok_or(Errno::EINVAL)?;
        self.domains[d].pending.retain(|p| *p != raw);
        self.domains[d].priorities.remove(&raw);
        if let PortState::Interdomain { remote, port } = state {
            let end = self.domains[remote.index()].ports.get_mut(&port.raw()).unwrap();
            end.0 = PortState::Unbound { remote: DomId::new(u16::try_from(d).unwrap()) };
        }
        Ok(())
    }

    fn bind(&mut self, d: usize, remote: usize, raw: u32) -> Result<EvtchnPort, Errno> {
        let (me, peer) = (DomId::new(u16::try_from(d).unwrap()), DomId::new(u16::try_from(remote).unwrap()));
        if self.domains[remote].ports.get(&raw).map(|p| p.0) != Some(PortState::Unbound { remote: me }) {
            return Err(Errno::EINVAL);
        }
        let near = self.allocate(d, PortState::Interdomain { remote: peer, port: port(raw) }, 0)?;
        self.domains[remote].ports.get_mut(&raw).unwrap().0 = PortState::Interdomain { remote: me, port: near };
        self.raise(d, near.raw());
        Ok(near)
    }

    fn bind_virq(&mut self, d: usize, virq: u32, vcpu: u32) -> Result<EvtchnPort, Errno> {
        if virq == 2 && vcpu != 0 {
            return Err(Errno::EINVAL);
        }
        if virq == 2 && d != 0 {
            return Err(Errno::EBUSY);
        }
        let state = PortState::Virq { virq };
        if self.domains[d].ports.values().any(|p| p.0 == state && (virq == 2 || p.1 == vcpu)) {
            return Err(Errno::EEXIST);
        }
        self.allocate(d, state, vcpu)
    }

    fn send(&mut self, d: usize, raw: u32) -> Result<(), Errno> {
        match self.domains[d].ports.get(&raw).map(|p| p.0) {
            Some(PortState::Interdomain { remote, port }) => self.raise(remote.index(), port.raw()),
            Some(PortState::Ipi) => self.raise(d, raw),
            Some(PortState::Unbound { .. }) => {}
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn raise_virq(&mut self, d: usize, virq: u32, vcpu: u32) {
        let state = PortState::Virq { virq };
        let bound = self.domains[d].ports.iter().find(|(_, p)| p.0 == state && (virq == 2 || p.1 == vcpu));
        if let Some(raw) = bound.map(|(raw, _)| *raw) {
            self.raise(d, raw);
        }
    }

    fn bind_vcpu(&mut self, d: usize, raw: u32, vcpu: u32) -> Result<(), Errno> {
        match self.domains[d].ports.get_mut(&raw) {
            Some((PortState::Virq { virq: 0 | 1 } | PortState::Ipi, _)) | None => Err(Errno::EINVAL),
            Some(bound) => {
                bound.1 = vcpu;
                Ok(())
            }
        }
    }

    fn unmask(&mut self, d: usize, raw: u32) -> Result<(), Errno> {
        let vcpu = self.domains[d].ports.get(&raw).ok_or(Errno::EINVAL)?.1;
        self.domains[d].masked.retain(|p| *p != raw);
        if self.domains[d].pending.contains(&raw) {
            self.notify(d, raw, vcpu);
        }
        Ok(())
    }

    fn consume(&mut self, d: usize, vcpu: u32) -> Vec<u32> {
        let domain = &mut self.domains[d];
        domain.upcalls[vcpu as usize] = false;
        if self.uses_fifo {
            let (mut own, others): (Vec<_>, Vec<_>) = domain.queued.drain(..).partition(|queued| queued.0 == vcpu);
            domain.queued = others;
            own.sort_by_key(|queued| queued.1);
            let is_found = |raw: &u32| domain.pending.contains(raw) && !domain.masked.contains(raw);
            let found: Vec<u32> = own.iter().map(|queued| queued.2).filter(is_found).collect();
            domain.pending.retain(|raw| !found.contains(raw));
            return found;
        }
        let selector = std::mem::take(&mut domain.selectors[vcpu as usize]);
        let masked = domain.masked.clone();
        let is_found = |raw: &u32| selector >> (raw / 64) & 1 != 0 && !masked.contains(raw);
        let mut found: Vec<u32> = domain.pending.iter().copied().filter(is_found).collect();
        domain.pending.retain(|raw| !is_found(raw));
        found.sort_unstable();
        found
    }
}

fn apply(world: &World, model: &mut Model, op: &Op) {
    let errno = Errno::from;
    match *op {
        Op::AllocUnbound { d, remote } => {
            let remote = DomId::new(u16::try_from(remote).unwrap());
            let expected = model.allocate(d, PortState::Unbound { remote }, 0);
            assert_eq!(world.ch(d).alloc_unbound(remote).map_err(errno), expected);
        }
        Op::Bind { d, remote, port: raw } => {
            assert_eq!(world.bind(d, remote, port(raw)).map_err(errno), model.bind(d, remote, raw));
        }
        Op::BindVirq { d, virq, vcpu } => {
            let globals = if d == 0 { GlobalVirqs::Handler } else { GlobalVirqs::Refused };
            let got = world.ch(d).bind_virq(virq, VcpuId::new(vcpu), globals);
            assert_eq!(got.map_err(errno), model.bind_virq(d, virq, vcpu));
        }
        Op::BindIpi { d, vcpu } => {
            let got = world.ch(d).bind_ipi(VcpuId::new(vcpu));
            assert_eq!(got.map_err(errno), model.allocate(d, PortState::Ipi, vcpu));
        }
        Op::BindVcpu { d, port: raw, vcpu } => {
            let got = world.ch(d).bind_vcpu(port(raw), VcpuId::new(vcpu));
            assert_eq!(got.map_err(errno), model.bind_vcpu(d, raw, vcpu));
        }
        Op::Close { d, port: raw } => {
            assert_eq!(world.ch(d).close(port(raw), world).map_err(errno), model.close(d, raw));
        }
        Op::Send { d, port: raw } => {
            assert_eq!(world.send(d, port(raw)).map_err(errno), model.send(d, raw));
        }
        Op::RaiseVirq { d, virq, vcpu } => {
            world.ch(d).raise_virq(virq, VcpuId::new(vcpu), world.wake(d));
            model.raise_virq(d, virq, vcpu);
        }
        Op::Unmask { d, port: raw } => {
            let got = world.ch(d).unmask(port(raw), world.wake(d));
            assert_eq!(got.map_err(errno), model.unmask(d, raw));
        }
        Op::Mask { d, port: raw } => {
            match model.uses_fifo {
                true => world.event_word(d, raw).set(fifo_abi::FIFO_MASKED),
                false => world.mask(d, port(raw)),
            }
            if !model.domains[d].masked.contains(&raw) {
                model.domains[d].masked.push(raw);
            }
        }
        Op::SetPriority { d, port: raw, priority } => {
            let expected = match model.uses_fifo {
                false => Err(Errno::EOPNOTSUPP),
                true if priority > 15 || !model.domains[d].ports.contains_key(&raw) => Err(Errno::EINVAL),
                true => Ok(_ = model.domains[d].priorities.insert(raw, priority)),
            };
            assert_eq!(world.ch(d).set_priority(port(raw), priority).map_err(errno), expected);
        }
        Op::Consume { d, vcpu } if model.uses_fifo => {
            assert_eq!(world.consume_fifo(d, vcpu), model.consume(d, vcpu));
        }
        Op::Consume { d, vcpu } => assert_eq!(world.consume(d, vcpu), model.consume(d, vcpu)),
        Op::Reset { d } => {
            while world.ch(d).reset(world) == Progress::Again {}
            while let Some(raw) = model.domains[d].ports.keys().next().copied() {
                model.close(d, raw).unwrap();
            }
            if model.uses_fifo {
                model.domains[d].masked.clear();
                model.domains[d].queued.clear();
                world.use_fifo(d);
            }
        }
    }
}

fn compare(world: &World, model: &Model) {
    for (d, expected) in model.domains.iter().enumerate() {
        for raw in 0..PORTS {
            let (state, vcpu) = expected.ports.get(&raw).copied().unwrap_or((PortState::Free, 0));
            assert_eq!(world.ch(d).status(port(raw)), Ok(Port { state, vcpu: VcpuId::new(vcpu) }));
            assert_eq!(world.ch(d).is_pending(port(raw)), expected.pending.contains(&raw));
            if let PortState::Interdomain { remote, port: far } = state {
                let me = DomId::new(u16::try_from(d).unwrap());
                let end = world.ch(remote.index()).status(far).unwrap().state;
                assert_eq!(end, PortState::Interdomain { remote: me, port: port(raw) }, "both ends agree");
            }
        }
        for vcpu in 0..VCPUS {
            let cpu = vcpu as usize;
            assert!(!model.uses_fifo || expected.selectors == [0; 3]);
            assert_eq!(world.info_word(d, vcpu, 1).load(Ordering::Relaxed), expected.selectors[cpu]);
            assert_eq!(world.ch(d).upcall_pending(VcpuId::new(vcpu)), expected.upcalls[cpu]);
        }
        assert_eq!(*world.wake(d).upcalls.borrow(), expected.woken);
    }
}

proptest! {
    #[test]
    fn any_history_is_what_the_model_says(
        history in proptest::collection::vec(ops(), 1..120),
        uses_fifo: bool,
    ) {
        let world = World::new(3);
        let mut model = Model { domains: vec![ModelDomain::default(); 3], uses_fifo };
        for d in 0..3 {
            if uses_fifo {
                world.use_fifo(d);
            }
            for _ in 0..60 {
                apply(&world, &mut model, &Op::BindIpi { d, vcpu: 0 });
            }
        }
        for op in &history {
            apply(&world, &mut model, op);
            compare(&world, &model);
        }
        for d in 0..3 {
            while world.ch(d).destroy(&world) == Progress::Again {}
        }
        for d in 0..3 {
            for raw in 0..PORTS {
                assert_eq!(world.ch(d).status(port(raw)).unwrap().state, PortState::Free);
            }
        }
    }
}

/// Two senders and a consumer on three threads: every event that was sent is found.
#[test]
fn no_event_is_lost_between_threads() {
    const EVENTS: usize = 20_000;
    let mem = test_memory(2);
    let channels = EventChannels::new(DomId::new(0), mem, Mfn::new(1), 1, 64).unwrap();
    struct Flag(core::sync::atomic::AtomicBool);
    impl Wake for Flag {
        fn upcall(&self, _: VcpuId) {
            self.0.store(true, Ordering::SeqCst);
        }
        fn poll_wake(&self, _: VcpuId) {}
    }
    struct Nobody;
    impl Peers for Nobody {
        fn with<R>(&self, _: DomId, _: impl FnOnce(&EventChannels, &dyn Wake) -> R) -> Option<R> {
            None
        }
    }
    let flag = Flag(core::sync::atomic::AtomicBool::new(false));
    let ports = [channels.bind_ipi(CPU0).unwrap(), channels.bind_ipi(CPU0).unwrap()];
    // A sender waits until its event was taken before it sends the next: a lost one hangs it.
    let taken = [const { core::sync::atomic::AtomicUsize::new(0) }; 2];
    std::thread::scope(|scope| {
        for (port, taken) in ports.iter().zip(&taken) {
            let (channels, flag) = (&channels, &flag);
            scope.spawn(move || {
                for sent in 0..EVENTS {
                    while taken.load(Ordering::SeqCst) != sent {
                        std::thread::yield_now();
                    }
                    channels.send(*port, flag, &Nobody).unwrap();
                }
            });
        }
        let info = channels.vcpu_info(CPU0).unwrap();
        let word = |index: usize| mem.word(info.mfn(), info.page_offset() / 8 + index);
        while taken.iter().any(|taken| taken.load(Ordering::SeqCst) != EVENTS) {
            if !flag.0.swap(false, Ordering::SeqCst) {
                std::thread::yield_now();
                continue;
            }
            while word(0).swap(0, Ordering::SeqCst) != 0 {
                let _ = word(1).swap(0, Ordering::SeqCst);
                let ready = mem.word(Mfn::new(1), 256).swap(0, Ordering::SeqCst);
                for (port, taken) in ports.iter().zip(&taken) {
                    if ready >> port.raw() & 1 != 0 {
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }
    });
}

#[test]
fn what_was_pending_before_is_found_in_the_queues() {
    let world = World::new(1);
    let ports = [0, 1, 0].map(|vcpu| world.ch(0).bind_ipi(VcpuId::new(vcpu)).unwrap());
    world.send(0, ports[0]).unwrap();
    let (controls, words) = (Pinned(world.queues(0), None), world.words(0));
    world.ch(0).init_control(CPU0, controls, 0, world.wake(0)).unwrap();
    world.send(0, ports[1]).unwrap();
    world.event_word(0, ports[2].raw()).set(fifo_abi::FIFO_MASKED);
    world.send(0, ports[2]).unwrap();
    assert!(ports.iter().all(|port| world.ch(0).is_pending(*port)));
    world.ch(0).expand_array(Pinned(words, None), world.wake(0)).unwrap();
    assert_eq!(world.consume_fifo(0, 0), [ports[0].raw()]);
    // The second vCPU chooses later.
    world.ch(0).init_control(CPU1, Pinned(world.queues(0), None), CONTROL_STEP, world.wake(0)).unwrap();
    assert_eq!(world.consume_fifo(0, 1), [ports[1].raw()]);
    world.ch(0).unmask(ports[2], world.wake(0)).unwrap();
    assert_eq!(world.consume_fifo(0, 0), [ports[2].raw()]);
    assert_eq!(*world.wake(0).upcalls.borrow(), [0, 1, 0]);
    assert!(ports.iter().all(|port| !world.ch(0).is_pending(*port)));
}

#[test]
fn control_blocks_and_words_have_their_places_once() {
    let world = World::new(1);
    let page = || Pinned(world.queues(0), None);
    let d = world.ch(0);
    assert_eq!(d.expand_array(page(), world.wake(0)), Err(Error::NotFifo));
    assert_eq!(d.init_control(VcpuId::new(VCPUS), page(), 0, world.wake(0)), Err(Error::NoVcpu(VcpuId::new(VCPUS))));
    for offset in [4, PAGE_SIZE - 64, PAGE_SIZE, usize::MAX - 7] {
        assert_eq!(d.init_control(CPU0, page(), offset, world.wake(0)), Err(Error::BadPlace), "{offset:#x}");
    }
    assert_eq!(d.init_control(CPU0, page(), PAGE_SIZE - 72, world.wake(0)), Ok(()));
    assert_eq!(d.init_control(CPU0, page(), 0, world.wake(0)), Err(Error::BadPlace));
    for _ in 0..NR_PORTS / 1024 {
        assert_eq!(d.expand_array(page(), world.wake(0)), Ok(()));
    }
    assert_eq!(d.expand_array(page(), world.wake(0)), Err(Error::NoPort));
    assert_eq!(d.destroy(&world), Progress::Done);
    assert_eq!(d.init_control(CPU0, page(), 0, world.wake(0)), Err(Error::Dying));
}

proptest! {
    /// A guest that writes anything into its pages, one as control block and words at once, harms only itself.
    #[test]
    fn a_guest_may_write_anything_into_its_queues(
        steps in proptest::collection::vec((0..200_u32, 0..1024_usize, any::<u32>()), 1..200)
    ) {
        let world = World::new(2);
        let page = world.queues(0);
        world.ch(0).init_control(CPU0, Pinned(page, None), 0, world.wake(0)).unwrap();
        world.ch(0).expand_array(Pinned(page, None), world.wake(0)).unwrap();
        world.use_fifo(1);
        let (near, far) = world.connect(1, 0);
        let own: Vec<_> = (0..20).map(|_| world.ch(0).bind_ipi(CPU0).unwrap()).collect();
        world.consume_fifo(1, 0);
        for (step, place, value) in steps {
            world.mem.store_u32(page, place % 64 * 4, value);
            let _ = world.send(0, own[place % own.len()]);
            match step {
                0..20 => _ = world.ch(0).unmask(own[place % own.len()], world.wake(0)),
                20..40 => _ = world.ch(0).set_priority(own[place % own.len()], value % 20),
                _ => {}
            }
            world.send(1, near).unwrap();
            world.send(0, far).unwrap();
            assert_eq!(world.consume_fifo(1, 0), [near.raw()]);
        }
    }
}

/// As the test for the two-level ABI: two senders, and a consumer who takes ports out of one queue.
#[test]
fn no_event_is_lost_in_the_queues_between_threads() {
    const EVENTS: usize = 20_000;
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn upcall(&self, _: VcpuId) {
            self.0.store(true, Ordering::SeqCst);
        }
        fn poll_wake(&self, _: VcpuId) {}
    }
    struct Nobody;
    impl Peers for Nobody {
        fn with<R>(&self, _: DomId, _: impl FnOnce(&EventChannels, &dyn Wake) -> R) -> Option<R> {
            None
        }
    }
    let world = World::new(1);
    world.use_fifo(0);
    let (mem, controls, words) = (world.mem, world.queues(0), world.words(0));
    let ports = [0, 0].map(|vcpu| world.ch(0).bind_ipi(VcpuId::new(vcpu)).unwrap());
    let (channels, flag) = (world.ch(0), Flag(AtomicBool::new(false)));
    let taken = [const { core::sync::atomic::AtomicUsize::new(0) }; 2];
    std::thread::scope(|scope| {
        for (port, taken) in ports.iter().zip(&taken) {
            let flag = &flag;
            scope.spawn(move || {
                for sent in 0..EVENTS {
                    while taken.load(Ordering::SeqCst) != sent {
                        std::thread::yield_now();
                    }
                    channels.send(*port, flag, &Nobody).unwrap();
                }
            });
        }
        let info = channels.vcpu_info(CPU0).unwrap();
        let ready = GuestWord(mem, controls, fifo_abi::FIFO_CONTROL_READY);
        let head = GuestWord(mem, controls, fifo_abi::FIFO_CONTROL_HEAD + 7 * 4);
        let words = ports.map(|port| GuestWord(mem, words, port.index() * 4));
        while taken.iter().any(|taken| taken.load(Ordering::SeqCst) != EVENTS) {
            if !flag.0.swap(false, Ordering::SeqCst) {
                std::thread::yield_now();
                continue;
            }
            while mem.word(info.mfn(), info.page_offset() / 8).swap(0, Ordering::SeqCst) != 0 {
                while ready.clear(u32::MAX) != 0 {
                    let mut next = head.get();
                    while next != 0 {
                        let i = usize::from(next != ports[0].raw());
                        next =
                            words[i].clear(fifo_abi::FIFO_LINKED | fifo_abi::FIFO_LINK_MASK) & fifo_abi::FIFO_LINK_MASK;
                        if words[i].clear(fifo_abi::FIFO_PENDING) & fifo_abi::FIFO_PENDING != 0 {
                            taken[i].fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            }
        }
    });
}
