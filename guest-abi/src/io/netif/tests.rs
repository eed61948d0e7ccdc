// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets as slots, and slots as packets.

use std::vec::Vec;

use proptest::prelude::{any, proptest};

use super::*;
use crate::PAGE_SIZE;
use crate::ring::mock::Page;
use crate::ring::{Back, Front, RingError};

fn tx(flags: u16, size: u16) -> TxSlot {
    TxRequest { gref: 9, offset: 0, flags, id: 3, size }.into()
}

fn feed(slots: &[TxSlot]) -> Result<Vec<TxPacket>, BadPacket> {
    let mut reader = TxReader::new();
    let packets: Result<Vec<_>, _> = slots.iter().map(|slot| reader.feed(slot)).collect();
    packets.map(|packets| packets.into_iter().flatten().collect())
}

const GSO: Gso = Gso { size: 1448, kind: XEN_NETIF_GSO_TYPE_TCPV4, features: 0 };

#[test]
fn slots_are_these_bytes() {
    let slot: TxSlot =
        TxRequest { gref: 0x0102_0304, offset: 0x0506, flags: NETTXF_CSUM_BLANK, id: 0x0708, size: 0x090a }.into();
    let mut bytes = [0; 12];
    slot.to_bytes(&mut bytes);
    assert_eq!(bytes, [4, 3, 2, 1, 6, 5, 1, 0, 8, 7, 10, 9]);
    let mut bytes = [0; 8];
    ExtraInfo::Gso(GSO).raw(true).to_bytes(&mut bytes);
    assert_eq!(bytes, [1, 1, 0xa8, 0x05, 1, 0, 0, 0]);
    RxResponse { id: 1, offset: 2, flags: NETRXF_MORE_DATA, status: NETIF_RSP_DROPPED }.to_bytes(&mut bytes);
    assert_eq!(bytes, [1, 0, 2, 0, 4, 0, 0xfe, 0xff]);
    for extra in [
        ExtraInfo::Gso(GSO),
        ExtraInfo::MulticastAdd([1, 0, 0x5e, 0, 0, 1]),
        ExtraInfo::MulticastDel([1, 2, 3, 4, 5, 6]),
        ExtraInfo::Hash(Hash { kind: 1, algorithm: 1, value: 0xdead_beef }),
    ] {
        assert_eq!(ExtraInfo::parse(&extra.raw(true)), Ok((extra, true)));
        assert_eq!(ExtraInfo::parse(&extra.raw(false)), Ok((extra, false)));
    }
}

#[test]
fn the_first_slot_has_the_size_of_all() {
    let slots = [
        tx(NETTXF_MORE_DATA | NETTXF_EXTRA_INFO | NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED, 6000),
        ExtraInfo::Gso(GSO).raw(false).into(),
        tx(NETTXF_MORE_DATA, 4096),
        tx(0, 1000),
        tx(0, 60),
    ];
    let packets = feed(&slots).unwrap();
    let sizes = |packet: &TxPacket| packet.parts().iter().map(|part| part.size).collect::<Vec<_>>();
    assert_eq!(packets.iter().map(sizes).collect::<Vec<_>>(), [&[904, 4096, 1000][..], &[60]]);
    let first = &packets[0];
    assert_eq!(
        (first.len_bytes(), first.checksum(), first.gso(), first.nr_extras()),
        (6000, Checksum::Blank, Some(GSO), 1)
    );
    assert_eq!((packets[1].checksum(), packets[1].gso(), packets[1].nr_extras()), (Checksum::Present, None, 0));
}

#[test]
fn a_packet_comes_back_as_it_was_pushed() {
    let page = Page::default();
    let mut front = Front::<NetTx, _>::new(page.words()).unwrap();
    let mut back = Back::<NetTx, _>::attach(page.words()).unwrap();
    let parts: Vec<_> = (0..18).map(|id| TxRequest { gref: 100, offset: 96, flags: 0, id, size: 3000 }).collect();
    push_packet(&mut front, &parts, Checksum::Validated, Some(GSO)).unwrap();
    push_packet(&mut front, &parts[..1], Checksum::Present, None).unwrap();
    assert!(front.publish().is_needed());
    let mut reader = TxReader::new();
    let mut packets = Vec::new();
    while let Some(slot) = back.pop().unwrap() {
        packets.extend(reader.feed(&slot).unwrap());
    }
    let plain =
        |packet: &TxPacket| packet.parts().iter().map(|part| TxRequest { flags: 0, ..*part }).collect::<Vec<_>>();
    assert_eq!(packets.iter().map(plain).collect::<Vec<_>>(), [&parts[..], &parts[..1]]);
    assert_eq!(
        (packets[0].checksum(), packets[0].gso(), packets[0].len_bytes()),
        (Checksum::Validated, Some(GSO), 54_000)
    );
    while front.space() >= 19 {
        push_packet(&mut front, &parts, Checksum::Present, Some(GSO)).unwrap();
    }
    let before = front.next_out();
    assert_eq!(push_packet(&mut front, &parts, Checksum::Present, Some(GSO)), Err(RingError::Full));
    assert_eq!(front.next_out(), before, "all or nothing");
}

#[test]
fn what_cannot_be_a_packet_ends_the_reading() {
    let more = tx(NETTXF_MORE_DATA, 1);
    assert_eq!(feed(&[tx(NETTXF_MORE_DATA, 100), tx(0, 101)]), Err(BadPacket::Sizes { total: 100, rest: 101 }));
    assert_eq!(feed(&[more; 19]), Err(BadPacket::TooManySlots));
    assert_eq!(feed(&[tx(0, 4097)]), Err(BadPacket::CrossesPage { offset: 0, size: 4097 }));
    let late: TxSlot = TxRequest { offset: u16::MAX, size: 1, ..TxRequest::default() }.into();
    assert_eq!(feed(&[late]), Err(BadPacket::CrossesPage { offset: u16::MAX, size: 1 }));
    let extra = |kind, flags, data| RawExtra { kind, flags, data }.into();
    assert_eq!(feed(&[tx(NETTXF_EXTRA_INFO, 1), extra(0, 0, [0; 6])]), Err(BadPacket::Extra(0)));
    assert_eq!(feed(&[tx(NETTXF_EXTRA_INFO, 1), extra(9, 0, [0; 6])]), Err(BadPacket::Extra(9)));
    for gso in [Gso { size: 0, ..GSO }, Gso { kind: 0, ..GSO }, Gso { kind: 3, ..GSO }] {
        let slots = [tx(NETTXF_EXTRA_INFO, 1), ExtraInfo::Gso(gso).raw(false).into()];
        assert_eq!(feed(&slots), Err(BadPacket::Gso(gso)));
    }
    let endless: TxSlot = ExtraInfo::Gso(GSO).raw(true).into();
    assert_eq!(feed(&[&[tx(NETTXF_EXTRA_INFO, 1)][..], &[endless; 5]].concat()), Err(BadPacket::TooManyExtras));
    let mut reader = TxReader::new();
    let bad = reader.feed(&tx(0, 4097));
    assert_eq!(reader.feed(&tx(0, 60)), bad, "nobody knows where the next one begins");
}

fn rx(flags: u16, status: i16) -> RxSlot {
    RxResponse { id: 0, offset: 0, flags, status }.into()
}

#[test]
fn a_received_packet_knows_its_pages() {
    let mut reader = RxReader::new();
    let first = rx(NETRXF_MORE_DATA | NETRXF_EXTRA_INFO | NETRXF_DATA_VALIDATED, 4096);
    assert_eq!(reader.feed(7, &first), Ok(None));
    assert_eq!(reader.feed(8, &ExtraInfo::Gso(GSO).raw(false).into()), Ok(None));
    let packet = reader.feed(9, &rx(0, 4)).unwrap().unwrap();
    let part = |index, size| RxPart { index, offset: 0, size };
    assert_eq!(packet.parts(), [part(7, 4096), part(9, 4)]);
    assert_eq!((packet.len_bytes(), packet.checksum(), packet.gso()), (4100, Checksum::Validated, Some(GSO)));
    let failed = reader.feed(10, &rx(0, NETIF_RSP_ERROR)).unwrap().unwrap();
    assert_eq!((failed.error(), failed.len_bytes()), (Some(NETIF_RSP_ERROR), 0));
    assert_eq!(reader.feed(11, &rx(0, 4097)), Err(BadPacket::CrossesPage { offset: 0, size: 4097 }));
    let mut reader = RxReader::new();
    let results: Vec<_> = (0..20).map(|index| reader.feed(index, &rx(NETRXF_MORE_DATA, 10))).collect();
    assert_eq!((results[18], results[19]), (Ok(None), Err(BadPacket::TooManySlots)));
    let mut reader = RxReader::new();
    let results: Vec<_> = (0..17).map(|index| reader.feed(index, &rx(NETRXF_MORE_DATA, 4096))).collect();
    assert_eq!((results[14], results[15]), (Ok(None), Err(BadPacket::TooLong)));
}

#[test]
fn a_control_request_is_answered() {
    let page = Page::default();
    let mut front = Front::<NetCtrl, _>::new(page.words()).unwrap();
    let mut back = Back::<NetCtrl, _>::attach(page.words()).unwrap();
    let ask = CtrlRequest { id: 1, kind: XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, data: [0; 3] };
    front.push(&ask).unwrap();
    assert!(front.publish().is_needed());
    let asked = back.pop().unwrap().unwrap();
    back.push(&asked.response(XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0)).unwrap();
    assert!(back.publish().is_needed());
    let answer = CtrlResponse { id: 1, kind: 1, status: XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, data: 0 };
    assert_eq!(front.pop(), Ok(Some(answer)));
}

proptest! {
    #[test]
    fn any_slots_are_packets_in_pages_or_an_error(slots in proptest::collection::vec((any::<[u8; 12]>(), any::<u8>()), 1..200)) {
        let mut reader = TxReader::new();
        let mut received = RxReader::new();
        for (index, (mut bytes, choice)) in (0..).zip(slots) {
            // Mostly small packets, or nothing would ever be complete.
            if choice < 200 {
                bytes[5] = 0;
                bytes[11] &= 7;
                (bytes[6], bytes[7]) = (bytes[6] & 15, 0);
                bytes[0] %= 5;
            }
            if let Ok(Some(packet)) = reader.feed(&TxSlot::from_bytes(&bytes)) {
                let sizes: usize = packet.parts().iter().map(|part| usize::from(part.size)).sum();
                assert_eq!(sizes, packet.len_bytes());
                assert!((1..=MAX_SLOTS).contains(&packet.parts().len()));
                assert!(packet.parts().iter().all(|part| usize::from(part.offset) + usize::from(part.size) <= PAGE_SIZE));
            }
            if let Ok(Some(packet)) = received.feed(index, &RxSlot::from_bytes(&bytes[4..])) {
                let sizes: usize = packet.parts().iter().map(|part| usize::from(part.size)).sum();
                assert_eq!(sizes, packet.len_bytes());
                assert!((1..=MAX_RX_SLOTS).contains(&packet.parts().len()));
                let lies = |part: &&RxPart| part.size != 0 && usize::from(part.offset) + usize::from(part.size) > PAGE_SIZE;
                assert_eq!(packet.parts().iter().find(lies), None);
            }
        }
    }
}
