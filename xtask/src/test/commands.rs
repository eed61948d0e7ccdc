// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xtask` as somebody uses it who does everything wrong: its words, its status, and what it leaves behind.
//!
//! Each check starts this very program again, in a process group of its own, as a shell does. A signal goes to the
//! whole group, as Ctrl-C does. Nothing is left behind if no process has the run's folder on its command line, and the
//! folder is gone.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use isthmus_tests::Tier;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::scenes::{Scene, scene};
use super::{boots, machines, this_program};
use crate::launch::RunDir;
use crate::{interrupt, tool, workspace};

pub(super) const ALL: &[Scene] = &[
    scene("command/emulator-missing", emulator_missing),
    scene("command/emulator-too-old", emulator_too_old),
    scene("command/emulator-does-not-start", emulator_does_not_start),
    scene("command/emulator-killed", emulator_killed),
    scene("command/disk-in-use", disk_in_use),
    scene("command/damaged-kernels-and-disks", damaged_kernels_and_disks),
    scene("command/initrd-that-linux-cannot-unpack", initrd_that_linux_cannot_unpack),
    scene("command/interrupted-while-compiling", |log| interrupted(log, "xtask: compiling the hypervisor", &[])),
    scene("command/interrupted-while-the-firmware-runs", |log| {
        interrupted(log, "xtask: starting qemu", &["--firmware", "uefi"])
    }),
    scene("command/interrupted-while-a-guest-runs", |log| interrupted(log, "idle; a port waits", &[])),
    scene("command/interrupted-twice", interrupted_twice),
    Scene { tier: Tier::Long, ..scene("command/two-at-once", two_at_once) },
    Scene { tier: Tier::Long, ..scene("command/debians-compiler", debians_compiler) },
    Scene { tier: Tier::Long, ..scene("command/rustup-cannot-download", rustup_cannot_download) },
    Scene { tier: Tier::Long, ..scene("command/clone-in-a-path-with-blanks", clone_in_a_path_with_blanks) },
    Scene { tier: Tier::Long, ..scene("command/clone-of-an-ordinary-user", clone_of_an_ordinary_user) },
];

const LIMIT: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(50);
/// `run` has no status to give.
const NO_VERDICT: i32 = 125;
const NO_SHELL: i32 = 126;
const INTERRUPTED: i32 = 130;

/// This program, running.
struct Started {
    child: Child,
    log: PathBuf,
}

/// `xtask` with `arguments` in the environment that `change` makes of this one, its words in `log`.
fn start(log: &Path, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Result<Started> {
    let program = this_program();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace::root());
    change(&mut command);
    spawn(log, command)
}

fn spawn(log: &Path, mut command: Command) -> Result<Started> {
    // Several of one check follow each other in one log.
    let file = File::options().create(true).append(true).open(log).context("opening the log")?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let child = command.spawn().context("starting xtask")?;
    Ok(Started { child, log: log.to_owned() })
}

impl Started {
    /// What it has said.
    fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Waits until it has said `text`.
    fn wait_for(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.said()?.contains(text) {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}) before it said `{text}`");
            }
            ensure!(Instant::now() < deadline && !interrupt::requested(), "it did not say `{text}` in time");
            sleep(POLL);
        }
        Ok(())
    }

    /// As Ctrl-C does.
    fn interrupt(&self) -> Result<()> {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).context("interrupting it")
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline && !interrupt::requested(), "it did not end in time");
            sleep(POLL);
        }
    }

    /// Waits for its end, which must be this status, with these texts among its words and nothing left behind.
    fn ends(&mut self, status: i32, says: &[&str]) -> Result<()> {
        let id = self.child.id();
        let found = self.wait()?;
        ensure!(found.code() == Some(status), "it ended with {found}, status {status} was expected");
        let said = self.said()?;
        if let Some(missing) = says.iter().find(|text| !said.contains(**text)) {
            bail!("it did not say `{missing}`");
        }
        nothing_is_left_of(id)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It has not been waited for, so the number is still its group's.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// The folders of a process' runs.
fn run_folders(id: u32) -> Vec<PathBuf> {
    let all = fs::read_dir(workspace::target().join("run")).into_iter().flatten().flatten();
    let is_its =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{id}-")));
    all.map(|entry| entry.path()).filter(is_its).collect()
}

/// The numbers of processes with `text` on their command lines.
fn processes_with(text: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let has_it = |number: &i32| {
        fs::read(format!("/proc/{number}/cmdline"))
            .is_ok_and(|line| memchr::memmem::find(&line, text.as_bytes()).is_some())
    };
    numbers.filter(has_it).collect()
}

fn nothing_is_left_of(id: u32) -> Result<()> {
    let mark = format!("/run/{id}-");
    let (folders, processes) = (run_folders(id), processes_with(&mark));
    ensure!(folders.is_empty(), "the folder {} is left", folders[0].display());
    ensure!(processes.is_empty(), "the process {} is left", processes[0]);
    Ok(())
}

/// A micro-guest as `--guest` takes it.
fn guest(name: &str) -> Result<String> {
    Ok(boots::built()?.guest(name)?.display().to_string())
}

/// A search path on which nothing is but the compiler.
fn bare_path() -> Result<PathBuf> {
    let rustc = tool::find("rustc").context("rustc is not in the search path")?;
    Ok(rustc.parent().context("rustc is in no folder")?.to_owned())
}

fn emulator_missing(log: &Path) -> Result<()> {
    let path = bare_path()?;
    let without = |command: &mut Command| {
        command.env("PATH", &path);
    };
    let says = ["missing: ", "qemu-system-x86"];
    start(log, &["run", "--emulator", "qemu", "--guest", &guest("idle")?], without)?.ends(NO_VERDICT, &says)?;
    // What `doctor` says comes true.
    start(log, &["doctor"], without)?.ends(1, &["`run` would fail", "qemu-system-x86"])?;
    start(log, &["doctor"], |_| ())?.ends(0, &["`run` would use"])
}

fn emulator_too_old(log: &Path) -> Result<()> {
    let dir = RunDir::create("old")?;
    let fake = dir.path().join("qemu-system-x86_64");
    fs::write(&fake, "#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2)'\n")?;
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let with_fake = |command: &mut Command| {
        command.env("PATH", format!("{}:{path}", dir.path().display()));
    };
    let says = ["qemu-system-x86_64 is version 5.2 and 7.2 is the oldest that works here"];
    start(log, &["run", "--emulator", "qemu", "--guest", &guest("idle")?], with_fake)?.ends(NO_VERDICT, &says)?;
    start(log, &["doctor"], with_fake)?.ends(1, &says)
}

fn emulator_does_not_start(log: &Path) -> Result<()> {
    let arguments = ["run", "--emulator", "qemu", "--emulator-arg=-no-such-option", "--guest", &guest("idle")?];
    start(log, &arguments, |_| ())?.ends(NO_VERDICT, &["qemu did not start", "invalid option"])
}

fn emulator_killed(log: &Path) -> Result<()> {
    let mut run = start(log, &["run", "--emulator", "qemu", "--guest", &guest("idle")?], |_| ())?;
    run.wait_for("idle; a port waits")?;
    let emulator = processes_with(&format!("/run/{}-", run.child.id()));
    ensure!(emulator.len() == 1, "one process was expected to be the emulator, found {emulator:?}");
    let emulator = Pid::from_raw(emulator[0]).context("no process has this number")?;
    kill_process(emulator, Signal::KILL).context("killing the emulator")?;
    run.ends(NO_VERDICT, &["the machine ended without a status"])
}

fn disk_in_use(log: &Path) -> Result<()> {
    let dir = RunDir::create("disk in use")?;
    let disk = dir.path().join("a disk.img");
    File::create(&disk)?.set_len(1 << 20)?;
    let disk = disk.display().to_string();
    let idle = guest("idle")?;
    let arguments = ["run", "--emulator", "qemu", "--guest", idle.as_str(), "--disk", disk.as_str()];
    let mut first = start(log, &arguments, |_| ())?;
    first.wait_for("idle; a port waits")?;
    let second_log = log.with_extension("second.log");
    fs::write(&second_log, "")?;
    start(&second_log, &arguments, |_| ())?.ends(NO_VERDICT, &["a disk.img is in use by another machine"])?;
    first.interrupt()?;
    first.ends(INTERRUPTED, &[])?;
    let gone = ["run", "--emulator", "qemu", "--guest", idle.as_str(), "--disk", "/no/such/disk"];
    start(log, &gone, |_| ())?.ends(NO_VERDICT, &["disk /no/such/disk", "No such file"])
}

fn damaged_kernels_and_disks(log: &Path) -> Result<()> {
    let dir = RunDir::create("damaged")?;
    let whole = machines::kernel(machines::UNDEFINED, &[]);
    let mut compressed = vec![0; 1024];
    compressed[0x202..0x206].copy_from_slice(b"HdrS");
    compressed[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    compressed[0x24c] = 0xff;
    let cases: &[(&str, &[u8], &str)] = &[
        ("empty", b"", "empty"),
        ("cut.elf", &whole[..whole.len() - 20], "outside the file"),
        ("cut.bzimage", &compressed, "shorter than its boot header says"),
        ("not-dom0.elf", &whole, "CONFIG_XEN_DOM0"),
        ("script", b"#!/bin/sh\nexit\n", "script"),
    ];
    for (name, bytes, says) in cases {
        let file = dir.path().join(name);
        fs::write(&file, bytes)?;
        let file = file.display().to_string();
        let run = ["run", "--emulator", "qemu", "--kernel", file.as_str(), "--exec", "true"];
        let said = log.with_extension(format!("{name}.log"));
        fs::write(&said, "")?;
        start(&said, &run, |_| ())?.ends(NO_VERDICT, &["xtask: error: kernel ", name, says]).context(*name)?;
        let run = ["run", "--emulator", "qemu", "--initrd", file.as_str(), "--exec", "true"];
        start(&said, &run, |_| ())?.ends(NO_VERDICT, &["is no initial RAM disk"]).context(*name)?;
    }
    Ok(())
}

fn initrd_that_linux_cannot_unpack(log: &Path) -> Result<()> {
    let dir = RunDir::create("initrd")?;
    let initrd = dir.path().join("initrd");
    // The beginning of an archive, and then nothing that could follow.
    fs::write(&initrd, [b"070701".as_slice(), &[b'z'; 4000]].concat())?;
    let initrd = initrd.display().to_string();
    let run = ["run", "--emulator", "qemu", "--initrd", initrd.as_str(), "--exec", "true"];
    start(log, &run, |_| ())?.ends(NO_SHELL, &["Kernel panic", "the machine ended"])
}

fn interrupted(log: &Path, when: &str, more: &[&str]) -> Result<()> {
    let idle = guest("idle")?;
    let mut arguments = vec!["run", "--emulator", "qemu", "--guest", idle.as_str()];
    arguments.extend(more);
    let mut run = start(log, &arguments, |_| ())?;
    run.wait_for(when)?;
    run.interrupt()?;
    run.ends(INTERRUPTED, &[])
}

/// A second Ctrl-C ends it at once, by the signal; even then the emulator does not stay.
fn interrupted_twice(log: &Path) -> Result<()> {
    let mut run = start(log, &["run", "--emulator", "bochs", "--guest", &guest("idle")?], |_| ())?;
    run.wait_for("idle; a port waits")?;
    let mark = format!("/run/{}-", run.child.id());
    run.interrupt()?;
    run.interrupt()?;
    let status = run.wait()?;
    let is_by_signal = status.signal() == Some(2);
    ensure!(is_by_signal || status.code() == Some(INTERRUPTED), "it ended with {status}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_with(&mark).is_empty() {
        ensure!(Instant::now() < deadline, "an emulator is left");
        sleep(POLL);
    }
    for folder in run_folders(run.child.id()) {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

fn two_at_once(log: &Path) -> Result<()> {
    let other = log.with_extension("second.log");
    fs::write(&other, "")?;
    let run = ["run", "--emulator", "qemu", "--exec", "cat /proc/sys/kernel/random/boot_id"];
    let (mut one, mut two) = (start(log, &run, |_| ())?, start(&other, &run, |_| ())?);
    one.ends(0, &["dom0 is up"])?;
    two.ends(0, &["dom0 is up"])
}

fn debians_compiler(log: &Path) -> Result<()> {
    let by_debian = |command: &mut Command| {
        command.env("ISTHMUS_TOOLCHAIN", "debian");
    };
    start(log, &["build"], by_debian)?.ends(0, &["/debian/x86_64-unknown-none/release/isthmus-hypervisor"])?;
    start(log, &["run", "--emulator", "qemu", "--guest", &guest("hello")?], by_debian)?.ends(0, &["DONE 16 passed"])?;
    let unknown = |command: &mut Command| {
        command.env("ISTHMUS_TOOLCHAIN", "gcc");
    };
    start(log, &["build"], unknown)?.ends(1, &["ISTHMUS_TOOLCHAIN=gcc: rustup or debian expected"])
}

/// A compiler without the target, and a rustup that cannot get it.
fn rustup_cannot_download(log: &Path) -> Result<()> {
    let dir = RunDir::create("no-rustup")?;
    for (name, text) in [("rustc", "echo /usr"), ("rustup", "echo 'could not download' >&2; exit 1")] {
        let file = dir.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    let target = dir.path().join("target");
    fs::create_dir_all(workspace::target().join("packages"))?;
    fs::create_dir(&target)?;
    // What was downloaded once need not be again.
    std::os::unix::fs::symlink(workspace::target().join("packages"), target.join("packages"))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let without = |command: &mut Command| {
        command.env("PATH", format!("{}:{path}", dir.path().display())).env("CARGO_TARGET_DIR", &target);
    };
    let says = ["could not download", "static.rust-lang.org", "getting Debian's Rust compiler"];
    // What builds would do first; compiling all of it once more would show nothing that the other check does not.
    start(log, &["doctor"], without)?.ends(0, &["the compiler's target"])?;
    let mut setup = start(log, &["setup", "--toolchain", "rustup"], without)?;
    setup.wait()?;
    let said = setup.said()?;
    if let Some(missing) = says.iter().find(|text| !said.contains(**text)) {
        bail!("it did not say `{missing}`");
    }
    start(log, &["doctor"], without)?.ends(0, &["Debian's, below the build directory"])
}

/// A clone whose path has a blank in it, with a build directory of its own.
fn clone_in_a_path_with_blanks(log: &Path) -> Result<()> {
    let dir = RunDir::create("a clone")?;
    let clone = dir.path().join("is thmus");
    let git = tool::find("git").context("git is not installed")?;
    tool::run(Command::new(git).args(["clone", "--quiet", "--shared"]).arg(workspace::root()).arg(&clone))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["xtask", "run", "--emulator", "qemu", "--guest"]).arg(guest("hello")?).current_dir(&clone);
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_TARGET_DIR");
    spawn(log, command)?.ends(0, &["DONE"])
}

/// A clone, an empty cargo home and a compiler that belong to somebody who is not root, and nothing else of the kind: all is
/// downloaded, built and booted. Where this is not root it is what all other checks do.
fn clone_of_an_ordinary_user(log: &Path) -> Result<()> {
    const NOBODY: &str = "65534:65534";
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let dir = RunDir::outside("ordinary-user")?;
    let (clone, toolchain) = (dir.path().join("isthmus"), dir.path().join("toolchain"));
    let found = tool::run(Command::new("rustc").args(["--print", "sysroot"]).current_dir(workspace::root()))?;
    let sysroot = String::from_utf8(found)?;
    // Its files stay root's, so that the user can read them only.
    tool::run(Command::new("cp").args(["-r", sysroot.trim()]).arg(&toolchain))?;
    let git = tool::find("git").context("git is not installed")?;
    tool::run(Command::new(git).args(["clone", "--quiet", "--no-hardlinks"]).arg(workspace::root()).arg(&clone))?;
    tool::run(Command::new("chown").args(["-R", NOBODY]).arg(&clone))?;
    tool::run(Command::new("chown").arg(NOBODY).arg(dir.path()))?;
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cargo", "xtask"]).args(arguments);
        command.env_clear().env("HOME", dir.path()).current_dir(&clone);
        command.env("PATH", format!("{}/bin:/usr/bin:/bin", toolchain.display()));
        spawn(log, command)
    };
    as_nobody(&["doctor"])?.ends(0, &["`run` would use"])?;
    as_nobody(&["run", "--emulator", "qemu", "--exec", "id -u; exit 7"])?
        .ends(7, &["downloading linux-image-", "dom0 is up"])
}
