// SPDX-License-Identifier: MIT OR Apache-2.0
//! The store's daemon is killed at each point of each message's way, and nobody can tell.
//!
//! A guest sends a list of requests; the daemon is a child process that kills itself at the chosen point and
//! is started again. All that the guest is told must be, byte for byte, what it is told when nobody dies: no
//! request is done twice or not at all, no answer is lost, cut or repeated. Only a transaction that was open
//! may end otherwise: with EAGAIN, and its client tries again.

mod store_harness;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dom0_tools::xenstore::daemon::{Daemon, Point};
use dom0_tools::xenstore::wire::{Message, strings};
use guest_abi::io::xs_wire;
use store_harness::{Folder, Guest, Toy, request};

const FOLDER: &str = "ISTHMUS_TEST_STORE";
const DIE_AT: &str = "ISTHMUS_TEST_DIE_AT";
/// Long on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Not a test: the daemon, started by the tests below with a folder in its environment.
#[test]
#[ignore = "the child process of the other tests"]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let mut host = Toy::open(Path::new(&folder));
    host.die_at = std::env::var(DIE_AT).ok().map(|text| text.parse().unwrap());
    let mut daemon = Daemon::start(Path::new(&folder), host).unwrap();
    let Err(error) = daemon.run();
    panic!("{error}");
}

struct Killed {
    folder: Folder,
    child: Child,
    deaths: u32,
}

impl Killed {
    fn spawn(folder: &Folder, die_at: Option<&str>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture"]);
        command.env(FOLDER, &folder.0).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(die_at.map(|text| (DIE_AT, text)));
        command.spawn().unwrap()
    }

    /// Starts it again if it has died.
    fn tend(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            assert_eq!(status.signal(), Some(9), "the daemon has ended otherwise: {status}");
            self.deaths += 1;
            self.child = Self::spawn(&self.folder, None);
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The control domain's kernel is the guest: it needs nobody to introduce it, and may do everything.
fn run(die_at: Option<&str>, script: &[u8], expected: Option<usize>) -> (Vec<u8>, u32) {
    let folder = Folder::new("kill");
    let mut guest = Guest::new(&folder.0, 0);
    let child = Killed::spawn(&folder, die_at);
    let mut daemon = Killed { folder, child, deaths: 0 };
    let (start, mut sent, mut quiet) = (Instant::now(), 0, Instant::now());
    loop {
        assert!(start.elapsed() < LIMIT, "{die_at:?}: {sent} bytes sent, {} got", guest.said.len());
        let before = (sent, guest.said.len());
        sent += guest.write(&script[sent..]);
        guest.read();
        daemon.tend();
        if before != (sent, guest.said.len()) {
            quiet = Instant::now();
        }
        let is_all = expected.map_or(quiet.elapsed() > Duration::from_secs(1), |length| guest.said.len() >= length);
        if sent == script.len() && is_all {
            return (guest.said, daemon.deaths);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Requests whose answers and events do not depend on when anything happens.
fn script() -> Vec<u8> {
    let long = [b"/k/long\0".to_vec(), vec![b'v'; 3000]].concat();
    let requests: &[(u32, Vec<u8>)] = &[
        (xs_wire::XS_WATCH, strings(["/k", "token"])),
        (xs_wire::XS_WRITE, b"/k/a\x001".to_vec()),
        (xs_wire::XS_WRITE, long),
        (xs_wire::XS_READ, strings(["/k/long"])),
        (xs_wire::XS_READ, strings(["/k/none"])),
        (xs_wire::XS_SET_PERMS, strings(["/k/a", "n0", "r1"])),
        (xs_wire::XS_DIRECTORY, strings(["/k"])),
        (xs_wire::XS_RM, strings(["/k/long"])),
        (xs_wire::XS_MKDIR, strings(["/k/b/c"])),
        (xs_wire::XS_GET_PERMS, strings(["/k/a"])),
        (xs_wire::XS_UNWATCH, strings(["/k", "token"])),
        (xs_wire::XS_WRITE, b"/k/a\x002".to_vec()),
        (xs_wire::XS_READ, strings(["/k/a"])),
    ];
    requests.iter().zip(1..).flat_map(|((kind, payload), id)| request(*kind, id, 0, payload)).collect()
}

#[test]
fn whoever_is_killed_at_any_point_is_continued_unnoticed() {
    let script = script();
    let (expected, deaths) = run(None, &script, None);
    assert_eq!(deaths, 0);
    let mut runs = 0;
    for point in Point::ALL {
        for time in 1.. {
            let die_at = format!("{}:{time}", point.name());
            let (said, deaths) = run(Some(&die_at), &script, Some(expected.len()));
            assert_eq!(said, expected, "killed at {die_at}");
            runs += 1;
            if deaths == 0 {
                assert!(time > 10, "{die_at}: only {time} times");
                break;
            }
        }
    }
    println!("{runs} runs, {} bytes each", expected.len());
}

/// Sends a request and waits for its answer, over as many lives of the daemon as it takes.
fn ask(daemon: &mut Killed, guest: &mut Guest, kind: u32, tx_id: u32, payload: &[u8]) -> Message {
    let bytes = request(kind, 1, tx_id, payload);
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        assert!(start.elapsed() < LIMIT, "no answer to {kind}");
        sent += guest.write(&bytes[sent..]);
        daemon.tend();
        if let Some(answer) = guest.messages().pop() {
            return answer;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Counts `/n` up by one, as a client does it that knows of conflicts. Says how often it was told to try again.
fn count_up(daemon: &mut Killed, guest: &mut Guest) -> u32 {
    for conflicts in 0.. {
        let answer = ask(daemon, guest, xs_wire::XS_TRANSACTION_START, 0, &[0]);
        let id = String::from_utf8(answer.payload).unwrap().trim_end_matches('\0').parse().unwrap();
        let value = ask(daemon, guest, xs_wire::XS_READ, id, b"/n\0");
        assert_eq!(value.kind, xs_wire::XS_READ, "{value:?}");
        let number: u32 = String::from_utf8(value.payload).unwrap().parse().unwrap();
        let payload = [b"/n\0".to_vec(), (number + 1).to_string().into_bytes()].concat();
        assert_eq!(ask(daemon, guest, xs_wire::XS_WRITE, id, &payload).kind, xs_wire::XS_WRITE);
        // What it has written in the transaction it must see there, whoever serves it.
        let own = ask(daemon, guest, xs_wire::XS_READ, id, b"/n\0");
        assert_eq!(own.payload, (number + 1).to_string().into_bytes());
        let end = ask(daemon, guest, xs_wire::XS_TRANSACTION_END, id, b"T\0");
        match end.payload.as_slice() {
            b"OK\0" => return conflicts,
            b"EAGAIN\0" => {}
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    unreachable!()
}

#[test]
fn transactions_are_done_once_or_told_to_try_again() {
    const TIMES: u32 = 5;
    let mut conflicts = 0;
    for point in Point::ALL {
        for time in [1, 3, 4, 5, 6, 7, 8, 9, 11, 14] {
            let folder = Folder::new("kill-transaction");
            let mut guest = Guest::new(&folder.0, 0);
            let child = Killed::spawn(&folder, Some(&format!("{}:{time}", point.name())));
            let mut daemon = Killed { folder, child, deaths: 0 };
            ask(&mut daemon, &mut guest, xs_wire::XS_WRITE, 0, b"/n\x000");
            conflicts += (0..TIMES).map(|_| count_up(&mut daemon, &mut guest)).sum::<u32>();
            let value = ask(&mut daemon, &mut guest, xs_wire::XS_READ, 0, b"/n\0");
            assert_eq!(value.payload, TIMES.to_string().into_bytes(), "{}:{time}", point.name());
            assert_eq!(daemon.deaths, 1, "{}:{time}", point.name());
        }
    }
    assert!(conflicts > 0, "no kill hit an open transaction");
}
