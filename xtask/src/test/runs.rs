// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xtask run` as it is used: its options and statuses, and dom0's shell on a terminal.
//!
//! The commands of [`super::sessions`] use the same channel as `--exec`, but not the program around it; here this very
//! program is started again, and judged by what a shell sees of it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use isthmus_tests::Tier;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::scenes::{Scene, scene};
use super::this_program;
use crate::launch::RunDir;
use crate::workspace;

pub(super) const ALL: &[Scene] = &[
    scene("run/options-of-exec", options),
    scene("run/status-of-a-command-that-takes-too-long", too_long),
    scene("run/status-of-a-dom0-that-crashes", crashed),
    scene("run/status-of-a-dom0-without-shell", without_shell),
    scene("run/shell-on-a-terminal/svm", |log| shell(log, &["--emulator", "qemu"])),
    Scene {
        tier: Tier::Long,
        ..scene("run/shell-on-a-terminal/vmx", |log| shell(log, &["--emulator", "bochs", "--memory", "1024"]))
    },
];

/// For a whole boot of dom0 and of its guest on a busy machine.
const LIMIT: Duration = Duration::from_secs(1200);
/// Ctrl-]; two in a row end the machine, since one of them detaches from a guest's console.
const ESCAPE: u8 = 0x1d;
/// The prompts of the two shells.
const DOM0: &str = "dom0:/root# ";
const GUEST: &str = "demo:/root# ";

/// This program with `arguments`, to its end; its words are added to the log.
pub(super) fn xtask(log: &Path, arguments: &[&str]) -> Result<Output> {
    let program = this_program();
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(workspace::root()).stdin(Stdio::null()).output()?;
    let mut file = File::options().append(true).open(log)?;
    writeln!(file, "xtask {}\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))?;
    file.write_all(&output.stdout)?;
    Ok(output)
}

pub(super) fn ends(output: &Output, status: i32) -> Result<()> {
    ensure!(output.status.code() == Some(status), "it ended with {}, status {status} was expected", output.status);
    Ok(())
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

/// Most options at once: what they do is seen from inside. Output is byte-exact and apart from the errors.
fn options(log: &Path) -> Result<()> {
    let dir = RunDir::create("run-options")?;
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let (first, second, disk, serial) = (path("first"), path("second"), path("disk"), path("serial"));
    for (tree, content) in [(&first, "first"), (&second, "second")] {
        fs::create_dir_all(tree.join("etc"))?;
        fs::write(tree.join("etc/overlaid"), content)?;
    }
    fs::write(first.join("etc/only-first"), "here ")?;
    fs::write(&disk, [b"on the disk".as_slice(), &[0; 4085]].concat())?;
    let command = r"cat /etc/only-first /etc/overlaid; head -c 11 /dev/sda; grep -o probe=1 /proc/cmdline
        cat /sys/bus/pci/devices/*/device | grep 0x11e8; isthmus info | grep -o '1535 MiB,'; printf '\377\000\r\n'; echo apart >&2; kill -9 $$";
    let arguments = [
        "run",
        "--emulator",
        "qemu",
        "--exec",
        command,
        "--overlay",
        text(&first)?,
        "--overlay",
        text(&second)?,
        "--disk",
        text(&disk)?,
        "--append",
        "probe=1",
        "--hv-append",
        "loglvl=debug",
        "--memory",
        "1536",
        "--smp",
        "1",
        "--iommu",
        "on",
        "--log",
        text(&serial)?,
        "--timeout",
        "600",
        "--emulator-arg=-device",
        "--emulator-arg=edu",
    ];
    let output = xtask(log, &arguments)?;
    ends(&output, 128 + 9)?;
    let expected = b"here secondon the diskprobe=1\n0x11e8\n1535 MiB,\n\xff\0\r\n";
    ensure!(output.stdout == expected, "{:?} is not {:?}", output.stdout.escape_ascii(), expected.escape_ascii());
    let said = String::from_utf8_lossy(&output.stderr);
    for words in ["apart", "arguments: console=hvc0 cryptomgr.notests=1 probe=1", "sha256"] {
        ensure!(said.contains(words), "standard error lacks `{words}`");
    }
    let serial = String::from_utf8_lossy(&fs::read(serial)?).into_owned();
    for words in ["DEBUG", "IOMMU", "probe=1 swiotlb=force"] {
        ensure!(serial.contains(words), "the machine's log lacks `{words}`");
    }
    Ok(())
}

fn too_long(log: &Path) -> Result<()> {
    ends(&xtask(log, &["run", "--emulator", "qemu", "--exec", "sleep 1000", "--timeout", "20"])?, 124)
}

/// dom0's kernel panics, so the command has no status.
fn crashed(log: &Path) -> Result<()> {
    let command = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger";
    let output =
        xtask(log, &["run", "--emulator", "qemu", "--exec", command, "--append", "panic=1", "--timeout", "500"])?;
    ends(&output, 125)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("the last lines of the machine's log"), "the log's end is not shown");
    Ok(())
}

fn without_shell(log: &Path) -> Result<()> {
    let append = "rdinit=/no/such/program panic=1";
    ends(&xtask(log, &["run", "--emulator", "qemu", "--exec", "true", "--append", append, "--timeout", "500"])?, 126)
}

/// Somebody at a terminal: the prompt comes, a command that is typed runs, the demo guest's shell answers, and Ctrl-] twice
/// ends the machine with status 0.
fn shell(log: &Path, emulator: &[&str]) -> Result<()> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("opening a terminal")?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let name = ptsname(&terminal, Vec::new())?;
    let line = File::options().read(true).write(true).open(name.to_str()?)?;
    let mut command = Command::new(this_program());
    command.arg("run").args(emulator).current_dir(workspace::root());
    command.stdin(line.try_clone()?).stdout(line.try_clone()?).stderr(File::options().append(true).open(log)?);
    let mut child = command.spawn().context("starting xtask")?;
    drop((command, line));
    let talked = Typist::new(terminal, log)?.talk();
    if talked.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    talked?;
    ensure!(status.code() == Some(0), "it ended with {status} after Ctrl-] twice");
    Ok(())
}

/// The other end of the terminal.
struct Typist {
    terminal: File,
    seen: std::sync::mpsc::Receiver<Vec<u8>>,
    /// What has come since what was waited for last.
    unread: Vec<u8>,
    deadline: Instant,
}

impl Typist {
    fn new(terminal: OwnedFd, log: &Path) -> Result<Self> {
        let terminal = File::from(terminal);
        let (mut output, mut log) = (terminal.try_clone()?, File::options().append(true).open(log)?);
        let (sender, seen) = std::sync::mpsc::channel();
        // It ends when nobody has the terminal open any more.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if log.write_all(&buffer[..count]).is_err() || sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { terminal, seen, unread: Vec::new(), deadline: Instant::now() + LIMIT })
    }

    fn talk(&mut self) -> Result<()> {
        self.wait_for(DOM0)?;
        // The text comes back as it is typed; only the command's own output has the sum in it.
        self.ask("echo it is $((6 * 7)) now; tty", "it is 42 now", DOM0)?;
        self.demo()?;
        self.terminal.write_all(&[ESCAPE, ESCAPE])?;
        Ok(())
    }

    /// At the demo guest's console: its shell, two sizes of the window, others that watch, and back with dom0's terminal
    /// as it was.
    fn demo(&mut self) -> Result<()> {
        self.ask("until isthmus list | grep demo; do sleep 1; done", "demo ", DOM0)?;
        self.ask("isthmus console demo --until 'is up with' >/dev/null; echo up $?", "up 0", DOM0)?;
        self.ask("watch() { isthmus console demo --until 'seen-42 by' </dev/null >/tmp/$1 & }", "", DOM0)?;
        self.ask("watch 1; watch 2; stty -g >/tmp/modes", "", DOM0)?;
        self.ask("isthmus console demo", "attached to demo; Ctrl-] detaches", "")?;
        self.ask("", "", GUEST)?;
        self.ask("echo seen-$((6 * 7)) by $(hostname)", "seen-42 by demo", GUEST)?;
        for (rows, columns) in [(50, 132), (30, 100)] {
            // The guest asks where the cursor is when it has been sent to the far corner.
            self.ask("resize", "\x1b[999;999H\x1b[6n", "")?;
            self.terminal.write_all(format!("\x1b[{rows};{columns}R").as_bytes())?;
            self.wait_for(GUEST)?;
            self.ask("stty size", &format!("{rows} {columns}"), GUEST)?;
        }
        self.terminal.write_all(&[ESCAPE])?;
        self.wait_for("detached from demo")?;
        self.wait_for(DOM0)?;
        self.ask("stty -g | cmp - /tmp/modes && echo as $((5 * 5)) before", "as 25 before", DOM0)?;
        self.ask("wait; grep -c 'seen-42 by' /tmp/1 /tmp/2 | tr '\\n' ' '", "/tmp/1:1 /tmp/2:1", DOM0)
    }

    /// Types a line and waits for an answer, then for what comes behind it.
    fn ask(&mut self, line: &str, answer: &str, then: &str) -> Result<()> {
        self.terminal.write_all(line.as_bytes())?;
        self.terminal.write_all(b"\r")?;
        self.wait_for(answer)?;
        self.wait_for(then)
    }

    /// Waits for a text behind what was waited for before.
    fn wait_for(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread, text.as_bytes()) {
                self.unread.drain(..at + text.len());
                return Ok(());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.seen.recv_timeout(left) {
                Ok(bytes) => self.unread.extend(bytes),
                Err(_) => bail!("`{text}` did not come"),
            }
        }
    }
}
