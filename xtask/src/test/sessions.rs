// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks in dom0: a boot for each session, a check for each command.
//!
//! The machine's log and each command's output are kept apart. A command that does not end in its time is given up and
//! the next one is tried; once the machine has ended, the rest fail.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use isthmus_tests::dom0::{Command, SESSIONS};
use isthmus_tests::verdict::{self, Arrived, Verdict};
use isthmus_tests::{Backend, Tier};
use sha2::{Digest, Sha256};

use super::boots::{self, emulator_of};
use super::{Judged, Unit, log_file};
use crate::console::{self, End, Log};
use crate::dom0::{self, Wanted};
use crate::emulator::{self, Firmware, Machine};
use crate::exec::{Channel, Failure};
use crate::launch::{Launch, RunDir, Via};
use crate::{run, shell};

/// A session on one backend, with those of its commands that are wanted.
///
/// The first one, which may make a guest that the others are about, is always run, but not told of if it is not wanted
/// and passes.
pub(super) struct Session {
    session: &'static isthmus_tests::dom0::Session,
    backend: Backend,
    commands: Vec<&'static Command>,
    begins_unasked: bool,
}

/// Every session up to `tier` that has a check whose name is wanted.
pub(super) fn all(tier: Tier, is_wanted: &dyn Fn(&str) -> bool) -> impl Iterator<Item = Session> {
    let sessions = SESSIONS.iter().filter(move |session| session.tier <= tier);
    sessions.flat_map(|session| session.backends.iter().map(move |&backend| (session, backend))).filter_map(
        move |(session, backend)| {
            let wanted = |command: &Command| is_wanted(&check_name(session, backend, command));
            let begins_unasked = session.commands.first().is_some_and(|first| !wanted(first));
            let commands: Vec<_> = session.commands.iter().filter(|command| wanted(command)).collect();
            (!commands.is_empty()).then_some(Session { session, backend, commands, begins_unasked })
        },
    )
}

fn check_name(session: &isthmus_tests::dom0::Session, backend: Backend, command: &Command) -> String {
    format!("{}/{}/{}", session.name, command.name, backend.name())
}

impl Session {
    fn name(&self) -> String {
        format!("{}/{}", self.session.name, self.backend.name())
    }

    /// A tree with the session's micro-guests.
    fn overlays(&self, built: &boots::Built, dir: &Path) -> Result<Vec<PathBuf>> {
        if self.session.micro_guests.is_empty() {
            return Ok(Vec::new());
        }
        let overlay = dir.join("micro-guests");
        let folder = overlay.join("var/lib/isthmus/micro");
        fs::create_dir_all(&folder).context("making a folder for micro-guests")?;
        for name in self.session.micro_guests {
            fs::copy(built.guest(name)?, folder.join(name)).with_context(|| format!("copying micro-guest {name}"))?;
        }
        Ok(vec![overlay])
    }

    fn launch(&self, built: &boots::Built, dir: &Path) -> Result<Launch> {
        let wanted = Wanted {
            overlays: self.overlays(built, dir)?,
            kernel: Some(self.session.kernel).filter(|name| !name.is_empty()).map(PathBuf::from),
            packages: self.session.packages.iter().map(|&name| name.to_owned()).collect(),
            demo: if self.session.guest.is_empty() { None } else { Some(self.session.guest.parse()?) },
            append: Some(self.session.append).filter(|text| !text.is_empty()).map(str::to_owned),
            ..Wanted::default()
        };
        let words = format!("{} {}", run::dom0_memory(self.session.memory_mib), self.session.hv_append);
        Ok(Launch {
            hypervisor: built.hypervisor.clone(),
            cmdline: run::hypervisor_cmdline(emulator_of(self.backend), Some(words.trim_end())),
            modules: dom0::modules(&wanted, dir)?,
        })
    }

    fn machine(&self, boot: emulator::Boot, dir: &Path) -> Result<Machine> {
        let mut disks = Vec::new();
        if self.session.disk_mib > 0 {
            let disk = dir.join("disk.img");
            let bytes = (u64::from(self.session.disk_mib) << 20).next_multiple_of(emulator::bochs::CYLINDER_BYTES);
            File::create(&disk).and_then(|file| file.set_len(bytes)).context("making a disk")?;
            disks.push(disk);
        }
        Ok(Machine {
            cpus: self.session.cpus,
            firmware: if self.session.by_uefi { Firmware::Uefi } else { Firmware::Bios },
            has_nic: true,
            has_iommu: self.session.has_iommu,
            disks,
            ..Machine::new(boot, self.session.memory_mib)
        })
    }

    /// The command after the variables that it may use. The disk to boot from comes before the session's own.
    fn text(&self, command: &Command, sink: &Sink) -> String {
        let boots_from_disk = self.session.by_grub || self.session.by_uefi || self.backend == Backend::Vmx;
        let disk = if boots_from_disk { "/dev/sdb" } else { "/dev/sda" };
        format!("DISK={disk} SINK={}\n{}", sink.port, command.text)
    }

    /// Runs the commands one after the other.
    fn talk(&self, channel: &mut Channel<TcpStream>, logs: &Path) -> Result<Vec<Judged>> {
        let sink = Sink::open()?;
        let mut judged = Vec::new();
        let mut ended = false;
        let unasked = self.session.commands.first().filter(|_| self.begins_unasked);
        for command in unasked.into_iter().chain(self.commands.iter().copied()) {
            let name = check_name(self.session, self.backend, command);
            let log = log_file(logs, &name);
            let start = Instant::now();
            let deadline = start + Duration::from_secs(command.limit_seconds);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let result = if ended {
                Err(Failure::Ended)
            } else {
                channel.run(&self.text(command, &sink), &mut out, &mut err, deadline)
            };
            fs::write(&log, [out.as_slice(), b"\n", err.as_slice()].concat()).context("writing a log")?;
            let verdict = match result {
                Ok(status) => verdict::judge_command(command, status, &out, sink.arrived().as_ref()),
                Err(failure) => {
                    ended |= matches!(failure, Failure::Ended) || channel.reconnect(deadline + RECONNECT).is_err();
                    Verdict::Fail(failure.to_string())
                }
            };
            if unasked.is_none_or(|unasked| unasked.name != command.name) || !matches!(verdict, Verdict::Pass(_)) {
                judged.push(Judged { name, verdict, took: start.elapsed(), log });
            }
        }
        Ok(judged)
    }
}

/// A TCP port of the host's that takes what dom0 sends.
struct Sink {
    port: u16,
    arrivals: mpsc::Receiver<Arrived>,
}

impl Sink {
    fn open() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a port for dom0")?;
        let port = listener.local_addr()?.port();
        let (sender, arrivals) = mpsc::channel();
        // It ends with xtask, or when what arrives is of no use any more.
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                // The connection is closed after its result is there for whoever hears of the close.
                if read_all(&stream).is_ok_and(|arrived| sender.send(arrived).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { port, arrivals })
    }

    /// What arrived last.
    fn arrived(&self) -> Option<Arrived> {
        self.arrivals.try_iter().last()
    }
}

fn read_all(mut stream: &TcpStream) -> std::io::Result<Arrived> {
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            let checksum = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(Arrived { bytes, checksum });
        }
        bytes += count;
        hash.update(&buffer[..count]);
    }
}

/// How long dom0 may take to give up a command.
const RECONNECT: Duration = Duration::from_secs(30);

impl Unit for Session {
    fn names(&self) -> Vec<String> {
        self.commands.iter().map(|command| check_name(self.session, self.backend, command)).collect()
    }

    fn run(&self, logs: &Path) -> Result<Vec<Judged>> {
        let log_file = log_file(logs, &self.name());
        fs::write(&log_file, "")?;
        let built = boots::built()?;
        let dir = RunDir::create(&self.name().replace('/', "."))?;
        let via = if self.session.by_grub || self.session.by_uefi { Via::Grub } else { Via::Quickest };
        let emulator = emulator_of(self.backend);
        let boot = self.launch(built, dir.path())?.prepare(emulator, via, dir.path())?;
        let log = Mutex::new(Log::to_file(&log_file)?);
        let mut running = emulator::start(emulator, self.machine(boot, dir.path())?, dir.path(), true)?;
        let deadline = Instant::now() + Duration::from_secs(self.session.boot_limit_seconds);
        let (end, talked) = shell::attend(&mut running, &log, deadline, |channel| self.talk(channel, logs))?;
        boots::explain(end, &console::lock(&log), &running, &built.hypervisor, &log_file)?;
        let log_name = log_file.display();
        match talked {
            Ok(_) if end == End::Panicked => bail!("the hypervisor panicked, see {log_name}"),
            Ok(judged) => judged,
            Err(failure) => bail!("{failure}, see {log_name}"),
        }
    }
}
