// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is left when the hypervisor panics, or when dom0 has crashed and the machine is to halt.
//!
//! A guest idles, a debug key makes the hypervisor panic. Its backtrace is turned into functions and lines, and must name
//! the line of the source that panics. On a machine with a screen the report is read back from a picture of it, pixel by
//! pixel, by comparing with the font.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::scenes::{Scene, scene};
use super::{boots, machines};
use crate::bundle::Module;
use crate::console::{self, End, Log, Until};
use crate::emulator::{self, Boot, Emulator, Firmware, Machine, bochs};
use crate::image;
use crate::launch::{Launch, RunDir, Via};
use crate::run;
use crate::symbolize::Symbols;
use crate::workspace;

pub(super) const ALL: &[Scene] = &[
    scene("failure/panic-has-a-backtrace/svm", |log| panic_has_a_backtrace(Emulator::Qemu, log)),
    scene("failure/panic-has-a-backtrace/vmx", |log| panic_has_a_backtrace(Emulator::Bochs, log)),
    scene("failure/panic-is-on-the-screen", panic_is_on_the_screen),
    scene("failure/dom0-crash-halts", dom0_crash_halts),
];

const LIMIT: Duration = Duration::from_secs(200);
/// How long a machine that halts is looked at.
const STAYS_ON: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);
/// What the idle guest says last.
const GUEST_IS_UP: &str = "idle; a port waits";
/// The source that panics by the key, and what it says there.
const PANICS_IN: &str = "hypervisor/src/debug.rs";
const PANICS_WITH: &str = "the debug key for it was pressed";

/// Follows the machine; `heard` sees the log so far each time there is more. Saying `true` stops the machine a little
/// later, if it has not ended by then.
fn follow(
    running: &mut emulator::Running,
    log: &Mutex<Log>,
    mut heard: impl FnMut(&str) -> Result<bool>,
) -> Result<End> {
    let (stop, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let is_enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                thread::sleep(POLL);
                if is_enough.load(Ordering::Relaxed) {
                    thread::sleep(STAYS_ON);
                    stop.store(true, Ordering::Relaxed);
                    return;
                }
            }
        });
        let mut text = String::new();
        let until = Until { deadline: Some(Instant::now() + LIMIT), stop: Some(&stop) };
        let end = console::watch(running, log, until, |bytes| {
            text += &String::from_utf8_lossy(bytes);
            is_enough.fetch_or(heard(&text)?, Ordering::Relaxed);
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        end
    })
}

fn panic_has_a_backtrace(emulator: Emulator, log_file: &Path) -> Result<()> {
    let built = boots::built()?;
    let dir = RunDir::create(&format!("panic-{}", emulator.name()))?;
    let module = Module { file: built.guest("idle")?.to_owned(), args: "guest name=idle mem=16".to_owned() };
    let cmdline = run::hypervisor_cmdline(emulator, Some("debug=on"));
    let launch = Launch { hypervisor: built.hypervisor.clone(), cmdline, modules: vec![module] };
    let boot = launch.prepare(emulator, Via::Quickest, dir.path())?;
    let machine = Machine { bochs_cpu: bochs::Cpu::quick("corei7_skylake_x"), ..Machine::new(boot, 256) };
    let mut running = emulator::start(emulator, machine, dir.path(), false)?;
    let mut keys = running.com1.try_clone()?;
    let log = Mutex::new(Log::to_file(log_file)?);
    let mut is_pressed = false;
    let end = follow(&mut running, &log, |text| {
        if !is_pressed && text.contains(GUEST_IS_UP) {
            is_pressed = true;
            keys.write_all(b"P").context("pressing the key")?;
        }
        Ok(false)
    })?;
    ensure!(end == End::Panicked, "the machine's end was {end:?}");
    let log = console::lock(&log);
    boots::explain(end, &log, &running, &built.hypervisor, log_file)?;
    check_backtrace(&log, &built.hypervisor)
}

/// The innermost frames are the library's; then comes the line that panics, and the loop that all starts from.
fn check_backtrace(log: &Log, hypervisor: &Path) -> Result<()> {
    let symbols = Symbols::open(hypervisor)?;
    let frames: Vec<String> = log.backtrace().iter().flat_map(|line| symbols.describe(line)).collect();
    let source = fs::read_to_string(workspace::root().join(PANICS_IN)).context("reading the source that panics")?;
    let line = source.lines().position(|line| line.contains(PANICS_WITH)).context("no line panics")? + 1;
    let wanted = [format!("serve at {PANICS_IN}:{line}"), "schedule at hypervisor/src/vcpu/run.rs:".to_owned()];
    let mut rest = frames.iter();
    for text in &wanted {
        ensure!(rest.any(|frame| frame.contains(text)), "`{text}` is not in the backtrace, or not there: {frames:#?}");
    }
    Ok(())
}

fn panic_is_on_the_screen(log_file: &Path) -> Result<()> {
    let built = boots::built()?;
    let dir = RunDir::create("panic-screen")?;
    let module = Module { file: built.guest("idle")?.to_owned(), args: "guest name=idle mem=16".to_owned() };
    let disk = dir.path().join("boot.img");
    let cmdline = run::hypervisor_cmdline(Emulator::Qemu, Some("debug=on panic=halt"));
    image::grub_disk(&built.hypervisor, &cmdline, &[module], &disk)?;
    let monitor = dir.path().join("monitor");
    let machine = Machine {
        firmware: Firmware::Uefi,
        extra: vec!["-monitor".to_owned(), format!("unix:{},server=on,wait=off", monitor.display())],
        ..Machine::new(Boot::Disk(disk), 512)
    };
    let mut running = emulator::start(Emulator::Qemu, machine, dir.path(), false)?;
    let mut keys = running.com1.try_clone()?;
    let log = Mutex::new(Log::to_file(log_file)?);
    let picture = dir.path().join("screen.ppm");
    let mut is_pressed = false;
    let mut screen = None;
    follow(&mut running, &log, |text| {
        if !is_pressed && text.contains(GUEST_IS_UP) {
            is_pressed = true;
            keys.write_all(b"P").context("pressing the key")?;
        }
        if screen.is_none() && text.contains("(isthmus) halted") {
            screen = Some(dump_screen(&monitor, &picture)?);
        }
        Ok(screen.is_some())
    })?;
    let rows = screen.context("the hypervisor did not halt")?;
    let text = rows.join("\n");
    fs::write(log_file.with_extension("screen.txt"), &text)?;
    ensure!(rows[0].is_empty() && rows[1].starts_with("(isthmus) PANIC: "), "the report is not at the top:\n{text}");
    for wanted in [PANICS_WITH, "#1 0x", "(isthmus) halted"] {
        ensure!(text.contains(wanted), "`{wanted}` is not on the screen:\n{text}");
    }
    Ok(())
}

/// Has QEMU take a picture of the screen; returns the text on it.
fn dump_screen(monitor: &Path, picture: &Path) -> Result<Vec<String>> {
    let mut monitor = UnixStream::connect(monitor).context("connecting to QEMU's monitor")?;
    monitor.set_read_timeout(Some(Duration::from_secs(20)))?;
    writeln!(monitor, "screendump {}\ninfo version", picture.display())?;
    // The answer to the second command comes when the first one is done; the prompt repeats each.
    let mut answers = BufReader::new(monitor).split(b'\n');
    let is_version = |line: &[u8]| line.first().is_some_and(u8::is_ascii_digit);
    answers.find(|line| line.as_ref().map_or(true, |line| is_version(line))).context("QEMU's monitor is silent")??;
    Picture::read(&fs::read(picture).context("reading the picture of the screen")?)?.text()
}

/// A picture in the format PPM with three bytes a pixel.
struct Picture<'a> {
    width: usize,
    height: usize,
    pixels: &'a [u8],
}

impl<'a> Picture<'a> {
    fn read(file: &'a [u8]) -> Result<Self> {
        let mut parts = file.splitn(4, |byte| *byte == b'\n');
        ensure!(parts.next() == Some(b"P6"), "not a picture that is known");
        let size = std::str::from_utf8(parts.next().unwrap_or_default())?;
        let (width, height) = size.split_once(' ').context("a picture without a size")?;
        ensure!(parts.next() == Some(b"255"), "more than 8 bits of a colour");
        let pixels = parts.next().context("a picture without pixels")?;
        let picture = Self { width: width.parse()?, height: height.parse()?, pixels };
        ensure!(pixels.len() == picture.width * picture.height * 3, "a picture that is cut");
        Ok(picture)
    }

    /// The text that is drawn in white on a colour without green, so that a pixel's green is the glyph's coverage.
    fn text(&self) -> Result<Vec<String>> {
        const SIZE: RasterHeight = RasterHeight::Size16;
        let (wide, high) = (get_raster_width(FontWeight::Regular, SIZE), SIZE.val());
        let character = |row: usize, column: usize| {
            let shows = |glyph: &u8| {
                let Some(glyph) = get_raster(char::from(*glyph), FontWeight::Regular, SIZE) else { return false };
                glyph.rows().enumerate().all(|(y, line)| {
                    let at = ((row * high + y) * self.width + column * wide) * 3;
                    line.iter().zip(self.pixels[at..].chunks(3)).all(|(coverage, pixel)| *coverage == pixel[1])
                })
            };
            (b' '..=b'~').find(shows).map(char::from).with_context(|| format!("no character at {row}, {column}"))
        };
        let row = |row| (0..self.width / wide).map(|column| character(row, column)).collect::<Result<String>>();
        (0..self.height / high).map(|r| row(r).map(|text| text.trim_end().to_owned())).collect()
    }
}

fn dom0_crash_halts(log_file: &Path) -> Result<()> {
    let dir = RunDir::create("dom0-crash-halts")?;
    let kernel = dir.path().join("kernel");
    fs::write(&kernel, machines::kernel(machines::UNDEFINED, &[]))?;
    let module = Module { file: kernel, args: "kernel".to_owned() };
    let cmdline = run::hypervisor_cmdline(Emulator::Qemu, Some("panic=halt"));
    let launch = Launch { hypervisor: boots::built()?.hypervisor.clone(), cmdline, modules: vec![module] };
    let boot = launch.prepare(Emulator::Qemu, Via::Quickest, dir.path())?;
    let mut running = emulator::start(Emulator::Qemu, Machine::new(boot, 512), dir.path(), false)?;
    let log = Mutex::new(Log::to_file(log_file)?);
    let end = follow(&mut running, &log, |text| Ok(text.contains("dom0 has crashed; halted, as panic=halt asks")))?;
    ensure!(end == End::Stopped, "the machine's end was {end:?}; it was to stay on");
    Ok(())
}
