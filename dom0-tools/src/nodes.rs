// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest finds in xenstore when it starts.
//!
//! The list is what Linux reads and may write ([`for_guest`]); devices add theirs. Whoever serves xenstore is behind
//! [`Tree`], so that the list can be tested without.
//!
//! Source: `docs/misc/xenstore-paths.pandoc` of Xen at 4.17.

use guest_abi::{DomId, EvtchnPort, Gfn};

use crate::builder::Built;
use crate::config::GuestConfig;
use uuid::Uuid;

/// Who may do what with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// dom0's; the guest may read it.
    GuestReads,
    /// The guest's own.
    GuestOwns,
}

impl Access {
    /// In the protocol's form, the owner first.
    #[must_use]
    pub fn permissions(self, guest: DomId) -> [String; 2] {
        let guest = guest.raw();
        match self {
            Self::GuestReads => ["n0".to_owned(), format!("r{guest}")],
            Self::GuestOwns => [format!("n{guest}"), "n0".to_owned()],
        }
    }
}

/// A node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its whole path.
    pub path: String,
    /// Its value.
    pub value: String,
    /// Who may use it.
    pub access: Access,
}

/// Something that keeps the tree.
pub trait Tree {
    /// Makes all nodes, so that others see none of them or all, and tells the server of the domain, whose ring is that.
    ///
    /// # Errors
    /// The server's reason, with the node's path.
    fn add_guest(&mut self, guest: DomId, nodes: &[Node], ring: (Gfn, EvtchnPort)) -> anyhow::Result<()>;

    /// Removes what lies below these paths, and ends the guest's connection.
    ///
    /// # Errors
    /// The server's reason.
    fn remove_guest(&mut self, guest: DomId, paths: &[String]) -> anyhow::Result<()>;

    /// Sets one node's value.
    ///
    /// # Errors
    /// The server's reason.
    fn write(&mut self, path: &str, value: &str) -> anyhow::Result<()>;

    /// Reads one node, if it exists.
    ///
    /// # Errors
    /// The server's reason.
    fn read(&mut self, path: &str) -> anyhow::Result<Option<String>>;
}

/// The folder of a guest's own nodes.
#[must_use]
pub fn home(guest: DomId) -> String {
    format!("/local/domain/{}", guest.raw())
}

/// The folder of what belongs to the machine and not to one run of it.
#[must_use]
pub fn vm(uuid: Uuid) -> String {
    format!("/vm/{uuid}")
}

/// All nodes of a new guest.
#[must_use]
pub fn for_guest(config: &GuestConfig, uuid: Uuid, built: &Built) -> Vec<Node> {
    use Access::{GuestOwns, GuestReads};
    let (home, vm, guest) = (home(built.domain), vm(uuid), built.domain.raw());
    let node = |path: &str, value: String, access| Node { path: format!("{home}{path}"), value, access };
    let kib = config.memory << 10;
    let mut nodes = vec![
        Node { path: vm.clone(), value: String::new(), access: GuestReads },
        Node { path: format!("{vm}/name"), value: config.name.clone(), access: GuestReads },
        Node { path: format!("{vm}/uuid"), value: uuid.to_string(), access: GuestReads },
        node("", String::new(), GuestReads),
        node("/vm", vm, GuestReads),
        node("/name", config.name.clone(), GuestReads),
        node("/domid", guest.to_string(), GuestReads),
        node("/cpu", String::new(), GuestReads),
        node("/memory", String::new(), GuestReads),
        node("/memory/static-max", kib.to_string(), GuestReads),
        node("/memory/target", kib.to_string(), GuestReads),
        node("/memory/videoram", "0".to_owned(), GuestReads),
        node("/device", String::new(), GuestReads),
        // The guest acknowledges a request by emptying it, and says here what it understands.
        node("/control", String::new(), GuestOwns),
        node("/control/shutdown", String::new(), GuestOwns),
        node("/control/sysrq", String::new(), GuestOwns),
        node("/control/platform-feature-xs_reset_watches", "1".to_owned(), GuestReads),
        node("/data", String::new(), GuestOwns),
        node("/drivers", String::new(), GuestOwns),
        node("/feature", String::new(), GuestOwns),
        node("/attr", String::new(), GuestOwns),
        node("/error", String::new(), GuestOwns),
        node("/console", String::new(), GuestReads),
        node("/console/type", "isthmus".to_owned(), GuestReads),
        node("/console/limit", crate::console::LOG_LIMIT.to_string(), GuestReads),
        node("/console/ring-ref", built.console.frame.to_string(), GuestReads),
        node("/console/port", built.console.port.to_string(), GuestReads),
    ];
    for vcpu in 0..config.vcpus {
        nodes.push(node(&format!("/cpu/{vcpu}"), String::new(), GuestReads));
        nodes.push(node(&format!("/cpu/{vcpu}/availability"), "online".to_owned(), GuestReads));
    }
    if let Some(store) = built.store {
        nodes.push(node("/store", String::new(), GuestReads));
        nodes.push(node("/store/ring-ref", store.frame.to_string(), GuestReads));
        nodes.push(node("/store/port", store.port.to_string(), GuestReads));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::builder::Ring;

    fn nodes() -> Vec<Node> {
        let text = "name = \"web1\"\nkernel = \"k\"\nmemory = 64\nvcpus = 2\n";
        let config = GuestConfig::parse(text, Path::new("/t.toml")).unwrap();
        let ring = |frame, port| Ring { frame, port };
        let built = Built { domain: DomId::new(5), console: ring(0xfc010, 1), store: Some(ring(0xfc011, 2)) };
        for_guest(&config, Uuid::from_u128(1), &built)
    }

    #[test]
    fn linux_finds_what_it_reads_and_may_write_what_it_writes() {
        let nodes = nodes();
        let get = |path: &str| {
            let path = format!("/local/domain/5/{path}");
            nodes.iter().find(|node| node.path == path).unwrap_or_else(|| panic!("{path}"))
        };
        assert_eq!(get("memory/target").value, "65536");
        assert_eq!(get("cpu/1/availability").value, "online");
        assert_eq!(get("store/port").value, "2");
        for path in ["control", "control/shutdown", "control/sysrq", "data", "error"] {
            assert_eq!(get(path).access, Access::GuestOwns, "{path}");
        }
        for path in ["name", "domid", "memory/target", "console/port"] {
            assert_eq!(get(path).access, Access::GuestReads, "{path}");
        }
    }

    #[test]
    fn parents_come_before_their_children_so_that_no_node_is_made_with_anothers_rights() {
        let nodes = nodes();
        for (i, node) in nodes.iter().enumerate() {
            let parent = node.path.rsplit_once('/').unwrap().0;
            let is_above = matches!(parent, "/local/domain" | "/vm");
            assert!(is_above || nodes[..i].iter().any(|other| other.path == parent), "{}", node.path);
        }
    }

    #[test]
    fn permissions_name_the_owner_first() {
        assert_eq!(Access::GuestReads.permissions(DomId::new(7)), ["n0", "r7"]);
        assert_eq!(Access::GuestOwns.permissions(DomId::new(7)), ["n7", "n0"]);
    }
}
