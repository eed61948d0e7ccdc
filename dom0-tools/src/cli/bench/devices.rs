// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest's disk and network card cost, with Linux' drivers on both sides.
//!
//! dom0 measures, because only it is told all domains' counters; the guest does what it is told over TCP
//! ([`serve`]). A task is one connection: a line with the task, what the task sends, and a line when it is done. A disk's
//! task waits for another line before it begins, so that getting ready is not measured.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_abi::DomId;
use rustix::fs::{OFlags, SeekFrom};
use serde::{Deserialize, Serialize};

use super::Cost;
use crate::sys::aio::{Direction, Queue};
use crate::toolstack::Toolstack;

const MIB: usize = 1 << 20;
/// What a program writes at once to a connection.
const PIECE: usize = 128 << 10;
/// How long the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// The longest line.
const MAX_LINE: usize = 512;
const READY: &str = "ready";
const DONE: &str = "done";
/// Before what is measured: the same a few times, so that connections and grants are there.
const WARM_UP: u32 = 200;
const WARM_UP_MIB: u32 = 2;

/// What the guest is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Task {
    /// Send each byte back.
    Echo,
    /// Take bytes until the end, then say so.
    Take,
    /// Send so many MiB.
    Give(u32),
    /// Read or write the disk.
    Disk { write: bool, random: bool, length: usize, depth: usize, count: u32 },
}

/// `isthmus bench devices`: measures from dom0.
///
/// # Errors
/// There is no such guest, it does not answer, or something failed in it.
pub fn measure(guest: &str, address: SocketAddr, json: bool) -> Result<()> {
    let domains = [DomId::DOM0, Toolstack::open()?.find(guest)?.id];
    let disk = |write, random, length, depth| move |count| Task::Disk { write, random, length, depth, count };
    let far = Far { address };
    let mut costs = Vec::new();
    for (name, task, count) in [
        ("disk_random_read_4k_depth_1", disk(false, true, 4096, 1), 1000),
        ("disk_random_read_4k_depth_32", disk(false, true, 4096, 32), 4000),
        ("disk_read_mib", disk(false, false, MIB, 1), 48),
        ("disk_write_mib", disk(true, false, MIB, 1), 48),
    ] {
        begin(&mut far.prepare(task(WARM_UP.min(count)))?)?;
        let mut prepared = far.prepare(task(count))?;
        costs.push(Cost::of(name, &domains, count, || begin(&mut prepared))?);
    }
    far.take(WARM_UP_MIB)?;
    costs.push(Cost::of("tcp_to_guest_mib", &domains, 32, || far.take(32))?);
    far.give(WARM_UP_MIB)?;
    costs.push(Cost::of("tcp_from_guest_mib", &domains, 32, || far.give(32))?);
    let mut line = far.ask(Task::Echo)?;
    round_trips(&mut line, WARM_UP)?;
    costs.push(Cost::of("tcp_round_trip", &domains, 1000, || round_trips(&mut line, 1000))?);
    costs.iter().try_for_each(|cost| cost.print(json))
}

/// The guest's end.
struct Far {
    address: SocketAddr,
}

impl Far {
    fn ask(&self, task: Task) -> Result<TcpStream> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut stream = loop {
            match TcpStream::connect_timeout(&self.address, Duration::from_secs(5)) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
                Err(error) => {
                    let reason = format!("{} (does `isthmus bench device-server` run in the guest?)", self.address);
                    return Err(error).context(reason);
                }
            }
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{}", serde_json::to_string(&task)?)?;
        Ok(stream)
    }

    /// Has the guest get ready for a task with its disk, which waits for [`begin`].
    fn prepare(&self, task: Task) -> Result<TcpStream> {
        let mut stream = self.ask(task)?;
        said(&mut stream, READY)?;
        Ok(stream)
    }

    fn take(&self, mib: u32) -> Result<()> {
        let mut stream = self.ask(Task::Take)?;
        send(&mut stream, mib)?;
        stream.shutdown(Shutdown::Write)?;
        said(&mut stream, DONE)
    }

    fn give(&self, mib: u32) -> Result<()> {
        let taken = swallow(&mut self.ask(Task::Give(mib))?)?;
        ensure!(taken == u64::from(mib) << 20, "{taken} bytes came, not {mib} MiB");
        Ok(())
    }
}

fn round_trips(stream: &mut TcpStream, times: u32) -> Result<()> {
    let mut byte = [1];
    for _ in 0..times {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(())
}

fn send(stream: &mut TcpStream, mib: u32) -> Result<()> {
    let piece = vec![0x33; PIECE];
    let pieces = (MIB / PIECE) as u64 * u64::from(mib);
    Ok((0..pieces).try_for_each(|_| stream.write_all(&piece))?)
}

/// Reads to the end; returns how many bytes came.
fn swallow(stream: &mut TcpStream) -> Result<u64> {
    let (mut buffer, mut total) = (vec![0; MIB], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            bytes => total += bytes as u64,
        }
    }
}

/// Reads a line byte by byte: what follows it is not text.
fn line(stream: &mut TcpStream) -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        ensure!(line.len() < MAX_LINE, "a line is too long");
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?)
}

/// Has the guest do what it is prepared for.
fn begin(stream: &mut TcpStream) -> Result<()> {
    writeln!(stream)?;
    said(stream, DONE)
}

/// Waits for the guest to say this.
fn said(stream: &mut TcpStream, expected: &str) -> Result<()> {
    let said = line(stream)?;
    ensure!(said == expected, "the guest says: {said}");
    Ok(())
}

/// `isthmus bench device-server`: does in a guest what dom0 asks for, one after the other, until it is ended.
///
/// # Errors
/// The port is taken.
pub fn serve(disk: Option<&Path>, port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("TCP port {port}"))?;
    println!("device-server: ready on port {port}");
    loop {
        let (mut stream, _) = listener.accept()?;
        if let Err(error) = answer(&mut stream, disk) {
            println!("device-server: {error:#}");
            // Whoever asked may have gone.
            let _ = writeln!(stream, "{error:#}");
        }
    }
}

fn answer(stream: &mut TcpStream, disk: Option<&Path>) -> Result<()> {
    stream.set_nodelay(true)?;
    let task = line(stream)?;
    match serde_json::from_str(&task).with_context(|| format!("{task:?} is no task"))? {
        Task::Echo => {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    bytes => stream.write_all(&buffer[..bytes])?,
                }
            }
        }
        Task::Give(mib) => return send(stream, mib),
        Task::Take => drop(swallow(stream)?),
        Task::Disk { write, random, length, depth, count } => {
            let path = disk.context("no --disk was given to device-server")?;
            let direction = if write { Direction::Write } else { Direction::Read };
            let mut requests = Requests::new(path, direction, random, (depth, length))?;
            writeln!(stream, "{READY}")?;
            line(stream)?;
            requests.run(count).with_context(|| path.display().to_string())?;
            // Only then are the requests let go of: the kernel takes its time for that.
            writeln!(stream, "{DONE}")?;
            return Ok(());
        }
    }
    Ok(writeln!(stream, "{DONE}")?)
}

/// Requests to a disk, all of the same length.
struct Requests {
    file: File,
    queue: Queue,
    direction: Direction,
    depth: usize,
    length: usize,
    /// How many of them the disk has room for.
    places: u64,
    random: bool,
    /// The next place, or what the next is made of.
    state: u64,
}

impl Requests {
    fn new(path: &Path, direction: Direction, random: bool, (depth, length): (usize, usize)) -> Result<Self> {
        ensure!((1..=1024).contains(&depth), "a depth of {depth}");
        let queue = Queue::new(depth, length)?;
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let open = OpenOptions::new().read(true).write(direction == Direction::Write).custom_flags(direct).open(path);
        let file = open.with_context(|| format!("opening {}", path.display()))?;
        let places = rustix::fs::seek(&file, SeekFrom::End(0))? / (length as u64).max(1);
        ensure!(places > 0, "{} has no room for {length} bytes", path.display());
        let state = if random { 0x1397_9f2b_6a0d_3c55 } else { 0 };
        Ok(Self { file, queue, direction, depth, length, places, random, state })
    }

    /// Where the next request goes.
    fn next(&mut self) -> u64 {
        let place = if self.random {
            // Xorshift: any order does that no read-ahead guesses.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state
        } else {
            self.state += 1;
            self.state
        };
        place % self.places * self.length as u64
    }

    /// Keeps as many requests under way as the queue takes until `count` are done.
    fn run(&mut self, count: u32) -> Result<()> {
        let (mut begun, mut done) = (0, 0);
        let mut free: Vec<usize> = (0..self.depth).collect();
        while done < count {
            let some = free.len().min(usize::try_from(count - begun)?);
            let requests: Vec<_> = free.drain(..some).map(|slot| (slot, self.next())).collect();
            if !requests.is_empty() {
                self.queue.submit(&self.file, self.direction, &requests)?;
                begun += u32::try_from(requests.len())?;
            }
            let ended = self.queue.wait()?;
            done += u32::try_from(ended.len())?;
            free.extend(ended);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_what_it_is_told_and_says_what_it_cannot() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let far = Far { address: listener.local_addr().unwrap() };
        let disk = std::env::temp_dir().join(format!("isthmus-bench-{}", std::process::id()));
        std::fs::write(&disk, vec![0; 3 * MIB]).unwrap();
        let path = disk.clone();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if let Err(error) = answer(&mut stream, Some(&path)) {
                    let _ = writeln!(stream, "{error:#}");
                }
            }
        });
        far.take(3).unwrap();
        far.give(3).unwrap();
        round_trips(&mut far.ask(Task::Echo).unwrap(), 10).unwrap();
        let bad = Task::Disk { write: false, random: true, length: 4 * MIB, depth: 1, count: 1 };
        assert!(far.prepare(bad).unwrap_err().to_string().contains("no room for 4194304 bytes"));
        let good = Task::Disk { write: true, random: true, length: 4096, depth: 2, count: 5 };
        begin(&mut far.prepare(good).unwrap()).unwrap();
        std::fs::remove_file(disk).unwrap();
    }

    #[test]
    fn requests_stay_on_the_disk() {
        let disk = std::env::temp_dir().join(format!("isthmus-requests-{}", std::process::id()));
        std::fs::write(&disk, vec![0; 10 * 4096 + 100]).unwrap();
        let open = |random| {
            let (file, queue) = (File::open(&disk).unwrap(), Queue::new(3, 4096).unwrap());
            let direction = Direction::Read;
            Requests { file, queue, direction, depth: 3, length: 4096, places: 10, random, state: 7 }
        };
        let places: Vec<u64> = (0..5).map(|_| 0).scan(open(false), |all, _: u64| Some(all.next() / 4096)).collect();
        assert_eq!(places, [8, 9, 0, 1, 2]);
        let mut random = open(true);
        assert!((0..100).all(|_| random.next() <= 9 * 4096));
        random.run(20).unwrap();
        std::fs::remove_file(disk).unwrap();
    }
}
