// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's packet filter, as far as address translation needs it: nftables over netlink.
//!
//! One transaction makes the table, empties its chains and fills them, so it does not matter what was there or who else
//! does the same at the same time.
//!
//! Source: Linux `include/uapi/linux/{netlink.h,netfilter/nfnetlink.h,netfilter/nf_tables.h}` at 6.1.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const NEW_RULE: u16 = NFTABLES << 8 | 6;
const DELETE_RULE: u16 = NFTABLES << 8 | 8;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// Length of `struct nlmsghdr`, and of that with `struct nfgenmsg`.
const HEADER: usize = 16;
const HEADERS: usize = 20;
const IPV4: u8 = 2;
const NESTED: u16 = 0x8000;
/// `NFT_REG_1`, the one register that is used, and the one for verdicts.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const FORWARD: u32 = 2;
const POST_ROUTING: u32 = 4;
const SOURCE_NAT_PRIORITY: u32 = 100;
const FILTER_PRIORITY: u32 = 0;
const OUTPUT_NAME: u32 = 7;
const CT_STATE: u32 = 0;
/// Bits of `ct state`: established and related.
const ANSWERS: u32 = 2 | 4;
/// The longest interface name, with its NUL.
const IFNAME: usize = 16;

/// What leaves `network` by another interface than `bridge` leaves with dom0's address there, and what comes to `bridge`
/// from elsewhere is thrown away unless it is an answer.
///
/// # Errors
/// The kernel has no nftables, or refuses.
pub fn masquerade(table: &str, bridge: &str, network: Ipv4Addr, mask: Ipv4Addr) -> Result<()> {
    ensure!(bridge.len() < IFNAME, "{bridge} is no network interface: a name has at most 15 bytes");
    let batch = batch(table, bridge, network, mask);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER));
    let socket = socket.context("a socket to the kernel's packet filter")?;
    sendto(&socket, &batch.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).context("sending rules")?;
    // The kernel has worked on it all before the call returns.
    let (mut answers, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let length = match recv(&socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, length)) => length,
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error).context("the packet filter's answer"),
        };
        answers += acknowledged(&buffer[..length]).context("rules for address translation")?;
    }
    ensure!(answers == batch.messages, "the packet filter has answered {answers} of {} messages", batch.messages);
    Ok(())
}

/// Counts the acknowledgements in what the kernel has sent.
fn acknowledged(mut bytes: &[u8]) -> Result<u32> {
    let mut count = 0;
    while let Some(header) = bytes.first_chunk::<{ HEADER + 4 }>() {
        let [a, b, c, d, kind @ ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        ensure!((HEADER + 4..=bytes.len()).contains(&length), "a message of {length} bytes");
        if u16::from_ne_bytes([kind[0], kind[1]]) == ERROR {
            let code = i32::from_ne_bytes([header[16], header[17], header[18], header[19]]);
            if code != 0 {
                return Err(Errno::from_raw_os_error(-code)).context("the kernel refuses them");
            }
            count += 1;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

fn batch(table: &str, bridge: &str, network: Ipv4Addr, mask: Ipv4Addr) -> Batch {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, REQUEST, |_| {});
    batch.message(NEW_TABLE, REQUEST | CREATE | ACKNOWLEDGE, |table_| table_.text(1, table));
    for (chain, kind, hook, priority) in
        [("postrouting", "nat", POST_ROUTING, SOURCE_NAT_PRIORITY), ("forward", "filter", FORWARD, FILTER_PRIORITY)]
    {
        batch.message(NEW_CHAIN, REQUEST | CREATE | ACKNOWLEDGE, |message| {
            message.text(1, table);
            message.text(3, chain);
            message.nest(4, |hook_| {
                hook_.number(1, hook);
                hook_.number(2, priority);
            });
            message.text(7, kind);
        });
        // Those of an earlier run.
        batch.message(DELETE_RULE, REQUEST | ACKNOWLEDGE, |message| {
            message.text(1, table);
            message.text(2, chain);
        });
    }
    let mut name = [0; IFNAME];
    name[..bridge.len()].copy_from_slice(bridge.as_bytes());
    batch.rule(table, "postrouting", |rule| {
        rule.expression("payload", |source| {
            source.number(1, REGISTER);
            // The network header's source address.
            source.number(2, 1);
            source.number(3, 12);
            source.number(4, 4);
        });
        rule.masked(mask.octets());
        rule.compare(EQUAL, &network.octets());
        rule.output_name();
        rule.compare(NOT_EQUAL, &name);
        rule.expression("masq", |_| {});
    });
    batch.rule(table, "forward", |rule| {
        rule.output_name();
        rule.compare(EQUAL, &name);
        rule.expression("ct", |state| {
            state.number(1, REGISTER);
            state.number(2, CT_STATE);
        });
        rule.masked(ANSWERS.to_ne_bytes());
        rule.compare(EQUAL, &[0; 4]);
        rule.expression("immediate", |drop| {
            drop.number(1, VERDICT);
            drop.nest(2, |data| data.nest(2, |verdict| verdict.number(1, 0)));
        });
    });
    batch.message(BATCH_END, REQUEST, |_| {});
    batch
}

/// Messages, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Of those that are acknowledged.
    messages: u32,
}

impl Batch {
    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        // Sequence number and sender.
        self.bytes.extend([0; 8]);
        let (family, subsystem) = if kind < NEW_TABLE { (0, NFTABLES) } else { (IPV4, 0) };
        self.bytes.extend([family, 0]);
        self.bytes.extend(subsystem.to_be_bytes());
        self.messages += u32::from(flags & ACKNOWLEDGE != 0);
        debug_assert_eq!(self.bytes.len() - start, HEADERS);
        fill(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |value| value.bytes.extend([text.as_bytes(), b"\0"].concat()));
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.attribute(kind, |value| value.bytes.extend(number.to_be_bytes()));
    }

    fn data(&mut self, kind: u16, data: &[u8]) {
        self.nest(kind, |value| value.attribute(1, |bytes| bytes.bytes.extend(data)));
    }

    fn rule(&mut self, table: &str, chain: &str, fill: impl FnOnce(&mut Self)) {
        self.message(NEW_RULE, REQUEST | CREATE | APPEND | ACKNOWLEDGE, |message| {
            message.text(1, table);
            message.text(2, chain);
            message.nest(4, fill);
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nest(1, |element| {
            element.text(1, name);
            element.nest(2, fill);
        });
    }

    fn output_name(&mut self) {
        self.expression("meta", |meta| {
            meta.number(1, REGISTER);
            meta.number(2, OUTPUT_NAME);
        });
    }

    fn masked(&mut self, mask: [u8; 4]) {
        self.expression("bitwise", |bitwise| {
            bitwise.number(1, REGISTER);
            bitwise.number(2, REGISTER);
            bitwise.number(3, 4);
            bitwise.data(4, &mask);
            bitwise.data(5, &[0; 4]);
        });
    }

    fn compare(&mut self, how: u32, data: &[u8]) {
        self.expression("cmp", |compare| {
            compare.number(1, REGISTER);
            compare.number(2, how);
            compare.data(3, data);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_have_their_lengths_and_paddings() {
        let batch = batch("t", "isthmus-nat", Ipv4Addr::new(10, 1, 2, 0), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(batch.messages, 7);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < batch.bytes.len() {
            let message = &batch.bytes[at..];
            let length = u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize;
            kinds.push(u16::from_ne_bytes([message[4], message[5]]));
            let mut attributes = &message[HEADERS..length];
            while !attributes.is_empty() {
                let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
                assert!(length >= 4);
                attributes = &attributes[length.next_multiple_of(4)..];
            }
            assert_eq!(length % 4, 0);
            at += length;
        }
        assert_eq!(kinds, [0x10, 0xa00, 0xa03, 0xa08, 0xa03, 0xa08, 0xa06, 0xa06, 0x11]);
        // `oifname != "isthmus-nat"`: operation and name, padded to 16 bytes.
        let wanted = [b"\x08\0\x02\0\0\0\0\x01\x18\0\x03\x80\x14\0\x01\0isthmus-nat\0\0\0\0\0".as_slice()].concat();
        assert!(batch.bytes.windows(wanted.len()).any(|bytes| bytes == wanted));
    }

    #[test]
    fn a_refusal_is_told_and_answers_are_counted() {
        let answer = |code: i32| {
            let mut bytes = Vec::new();
            bytes.extend(36_u32.to_ne_bytes());
            bytes.extend(ERROR.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        assert_eq!(acknowledged(&[answer(0), answer(0)].concat()).unwrap(), 2);
        let refused = acknowledged(&[answer(0), answer(-2)].concat()).unwrap_err();
        assert!(format!("{refused:#}").contains("No such file"), "{refused:#}");
        assert!(acknowledged(&answer(0)[..20]).is_err());
        assert_eq!(acknowledged(&[]).unwrap(), 0);
    }
}
