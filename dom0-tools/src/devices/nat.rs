// SPDX-License-Identifier: MIT OR Apache-2.0
//! The network `nat`: guests reach the outside with dom0's address, and need no configuration for it.
//!
//! A bridge with an address of dom0's, forwarding, rules of the packet filter ([`nft`]), and busybox' DHCP server on the
//! bridge. It is made when the first guest wants it and stays. All steps may be repeated; the supervisor repeats the last,
//! which is where something can end (the server) or change (the outside's name servers).

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{host, nft};
use crate::registry::run_folder;
use crate::sys::netdev::Netdev;

/// Its bridge, which also is the name of the table in the packet filter.
pub const BRIDGE: &str = "isthmus-nat";
/// dom0's address in it, which is the guests' gateway.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 193, 0, 1);
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 193, 0, 0);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const MODULES: [&str; 4] = ["nf_tables", "nft_chain_nat", "nft_masq", "nft_ct"];
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const NAME_SERVERS: &str = "/etc/resolv.conf";
const SERVER: &str = "udhcpd";
/// How long an address is a guest's, in seconds.
const LEASE_SECONDS: u32 = 3600;

/// Makes it, unless it is there.
///
/// # Errors
/// The kernel lacks a module or refuses something, or there is no DHCP server.
pub fn prepare() -> Result<()> {
    let lock = lock()?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).context("waiting for another command")?;
    host::prepare_bridge(BRIDGE)?;
    Netdev::open()?.set_address(BRIDGE, ADDRESS, MASK)?;
    MODULES.iter().try_for_each(|module| host::load(module)).context("address translation")?;
    nft::masquerade(BRIDGE, BRIDGE, NETWORK, MASK)?;
    fs::write(FORWARDING, "1").with_context(|| format!("writing {FORWARDING}"))?;
    serve()
}

/// Starts the DHCP server again if it has ended, or with what has changed. Nothing if the network has never been made.
///
/// # Errors
/// It cannot be started.
pub fn keep() -> Result<()> {
    if !file("conf").exists() {
        return Ok(());
    }
    let lock = lock()?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        // A command makes it just now.
        Err(Errno::WOULDBLOCK) => Ok(()),
        locked => locked.context("locking").and_then(|()| serve()),
    }
}

/// What commands and supervisor lock to be one at a time.
fn lock() -> Result<File> {
    let path = file("lock");
    fs::create_dir_all(run_folder()).with_context(|| format!("making {}", run_folder().display()))?;
    let open = File::options().create(true).append(true).open(&path);
    open.with_context(|| format!("opening {}", path.display()))
}

fn file(kind: &str) -> PathBuf {
    run_folder().join(format!("dhcp.{kind}"))
}

fn serve() -> Result<()> {
    let wanted = configuration(&fs::read_to_string(NAME_SERVERS).unwrap_or_default());
    let running = running();
    if running.is_some() && fs::read_to_string(file("conf")).is_ok_and(|text| text == wanted) {
        return Ok(());
    }
    if let Some(pid) = running {
        // It may end by itself just now.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self::running() == Some(pid) {
            ensure!(Instant::now() < deadline, "{SERVER} ({pid:?}) does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fs::write(file("conf"), &wanted).context("writing the DHCP server's configuration")?;
    File::options().create(true).append(true).open(file("leases")).context("making a file for leases")?;
    // It goes into the background once it listens.
    let started = Command::new(SERVER).arg(file("conf")).stdin(Stdio::null()).output();
    let output = started.with_context(|| format!("starting {SERVER}, busybox' DHCP server"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{SERVER} does not start: {} (does another DHCP server run in dom0?)", said.trim());
    }
    Ok(())
}

/// The server, if it runs.
fn running() -> Option<Pid> {
    let pid: i32 = fs::read_to_string(file("pid")).ok()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == SERVER).then(|| Pid::from_raw(pid)).flatten()
}

/// What the server is told. Guests are given dom0's own name servers.
fn configuration(resolv_conf: &str) -> String {
    let servers: Vec<&str> = resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next())
        .filter(|server| server.parse::<Ipv4Addr>().is_ok_and(|server| !server.is_loopback()))
        .collect();
    let [a, b, c, _] = NETWORK.octets();
    let mut text = format!(
        "interface {BRIDGE}\nstart {a}.{b}.{c}.2\nend {a}.{b}.{c}.254\nmax_leases 253\npidfile {}\nlease_file {}\n\
         option subnet {MASK}\noption router {ADDRESS}\noption lease {LEASE_SECONDS}\n",
        file("pid").display(),
        file("leases").display()
    );
    if !servers.is_empty() {
        text.push_str(&format!("option dns {}\n", servers.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_given_the_name_servers_that_they_can_reach() {
        let text = configuration(
            "search x\nnameserver 10.0.2.3\nnameserver 127.0.0.53\nnameserver fe80::1\nnameserver 9.9.9.9 # quad\n",
        );
        assert!(text.ends_with("option dns 10.0.2.3 9.9.9.9\n"), "{text}");
        assert!(text.contains("\nstart 10.193.0.2\nend 10.193.0.254\n") && text.contains("option router 10.193.0.1\n"));
        assert!(!configuration("").contains("dns"));
    }
}
