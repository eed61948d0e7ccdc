// SPDX-License-Identifier: MIT OR Apache-2.0
//! The UART that the hypervisor keeps, and the log on it and on the screen.
//!
//! One lock covers the UART, held for one line at a time. A panic takes the UART without the
//! lock, because the holder may be the code that panicked.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use hypervisor::log_ring::LOG;
use log::{Level, LevelFilter, Metadata, Record};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

use super::{clock, cpu, screen};

type Uart = Uart16550<PioBackend>;

static UART: Mutex<Option<Uart>> = Mutex::new(None);
static ENABLED: AtomicBool = AtomicBool::new(false);
/// Whether the last byte written ended a line, so that log lines start on one.
static AT_LINE_START: AtomicBool = AtomicBool::new(true);

const COM1: u16 = 0x3f8;

/// Opens COM1 and makes it the log. Called once, before anything is logged.
pub(crate) fn init() {
    // SAFETY: COM1 is the one UART that the hypervisor keeps; nobody else drives it.
    let Ok(mut uart) = (unsafe { Uart::new_port(COM1) }) else { return };
    let present = uart.init(Config::default()).is_ok();
    if present {
        *UART.lock() = Some(uart);
        ENABLED.store(true, Ordering::Relaxed);
    }
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Sets the least severe level that is logged.
pub(crate) fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Turns the console off (`console=none`).
pub(crate) fn disable() {
    ENABLED.store(false, Ordering::Relaxed);
}

/// Writes bytes as they are, and keeps them for tools.
pub(crate) fn write_raw(bytes: &[u8]) {
    LOG.push(bytes);
    screen::write(bytes);
    if !ENABLED.load(Ordering::Relaxed) {
        return;
    }
    if let Some(uart) = UART.lock().as_mut() {
        send(uart, bytes);
    }
}

/// Waits until every byte has left the UART. What is still in its FIFO is lost when the machine ends.
pub(crate) fn drain() {
    const LINE_STATUS: u16 = COM1 + 5;
    const TRANSMITTER_EMPTY: u8 = 1 << 6;
    // A FIFO of 16 bytes takes 1.4 ms at 115,200 baud; a UART that is not there reads as all ones.
    const MAX_READS: usize = 1_000_000;
    if !ENABLED.load(Ordering::Relaxed) {
        return;
    }
    for _ in 0..MAX_READS {
        // SAFETY: reading the line status changes nothing but error bits that nobody looks at.
        if unsafe { cpu::inb(LINE_STATUS) } & TRANSMITTER_EMPTY != 0 {
            return;
        }
    }
}

/// Reads what has arrived into `buffer`; returns the number of bytes.
pub(crate) fn read_raw(buffer: &mut [u8]) -> usize {
    UART.lock().as_mut().map_or(0, |uart| uart.receive_bytes(buffer))
}

/// Lets the UART raise its interrupt line when bytes arrive.
pub(crate) fn enable_receive_interrupt() {
    if let Some(uart) = UART.lock().as_mut() {
        uart.enable_interrupts(uart_16550::spec::registers::IER::DATA_READY);
    }
}

/// Takes the UART away from whoever holds it; only a panic does.
pub(crate) fn break_lock() {
    // SAFETY: the panicking CPU is the only one that still runs, so nobody else uses the UART.
    unsafe { UART.force_unlock() };
}

fn send(uart: &mut Uart, bytes: &[u8]) {
    uart.send_bytes_exact(bytes);
    if let Some(last) = bytes.last() {
        AT_LINE_START.store(*last == b'\n', Ordering::Relaxed);
    }
}

/// A line under construction, sent in one piece so that lines do not mix.
struct Line(ArrayVec<u8, 256>);

impl Line {
    fn push(&mut self, mut bytes: &[u8]) {
        while let Some((now, later)) = bytes.split_at_checked(self.0.remaining_capacity()) {
            let _ = self.0.try_extend_from_slice(now);
            self.flush();
            bytes = later;
        }
        let _ = self.0.try_extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        write_raw(&self.0);
        self.0.clear();
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (at, part) in text.split('\n').enumerate() {
            if at > 0 {
                self.push(b"\r\n");
            }
            self.push(part.as_bytes());
        }
        Ok(())
    }
}

struct Logger;
static LOGGER: Logger = Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let micros = clock::uptime_micros();
        let level = match record.level() {
            Level::Error => "ERROR",
            Level::Warn => "WARN ",
            Level::Info => "INFO ",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        };
        let mut line = Line(ArrayVec::new());
        if !AT_LINE_START.load(Ordering::Relaxed) {
            let _ = line.write_str("\n");
        }
        let _ =
            writeln!(line, "(isthmus) [{:>5}.{:06}] {level} {}", micros / 1_000_000, micros % 1_000_000, record.args());
        line.flush();
    }

    fn flush(&self) {}
}

/// Prints without level or time, for dumps.
pub(crate) fn print(args: fmt::Arguments<'_>) {
    let mut line = Line(ArrayVec::new());
    let _ = line.write_fmt(args);
    line.flush();
}
